"""Paints the surfaces of a car: projection, shading by direction, marks on a surface, glass, ground shadow."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from mtlcar.data.car_shape import Camera, stack

Array = np.ndarray
Colour = tuple[int, ...]


class Mark(NamedTuple):
    """A flat shape [K, 2] in a surface's own coordinates; without `fill` an open line of colour `edge`."""

    shape: Array
    fill: Colour | None = None
    edge: Colour | None = None
    wide: float = 1.0


def colour(rgb: Array) -> Colour:
    return tuple(np.clip(rgb, 0, 255).astype(int).tolist())


class Painter:
    """Draws on a picture through a camera.

    Args:
        draw: of an RGB picture in "RGBA" mode, so that colours with four numbers blend.
        camera: where points fall.
        paint: the car's colour [3], 0 to 255.
        ambient: colour [3] of the surroundings, which the paint and the glass reflect.
        sun_turn: where the sun stands, in radians from beside the camera.
    """

    def __init__(
        self, draw: ImageDraw.ImageDraw, camera: Camera, paint: Array, ambient: Array, sun_turn: float
    ) -> None:
        self.draw, self.camera, self.paint, self.ambient = draw, camera, paint, ambient
        self.thin = camera.scale / camera.distance * 0.012  # 12 mm in pixels
        side = camera.yaw + 0.35 + sun_turn
        sun = np.array([np.cos(side), np.sin(side), 1.25])
        self.sun = sun / np.linalg.norm(sun)

    def tint(self, factor: float) -> Colour:
        return colour(self.paint * factor)

    def polygon(self, points: Array, fill: Colour) -> None:
        """Points [K, 3] in m."""
        self.draw.polygon(self.camera.project(points).ravel().tolist(), fill=fill)

    def hull(self, points: Array, fill: Colour) -> None:
        """The convex hull of points [K, 3] in m, as it is seen."""
        seen = sorted(map(tuple, self.camera.project(points).tolist()))
        outline: list[tuple[float, float]] = []
        for way in (seen, seen[::-1]):  # Andrew's monotone chain: the lower, then the upper side
            chain: list[tuple[float, float]] = []
            for x, y in way:
                while len(chain) > 1:
                    (x0, y0), (x1, y1) = chain[-2:]
                    if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                        break
                    chain.pop()
                chain.append((x, y))
            outline += chain[:-1]
        self.draw.polygon(outline, fill=fill)

    def marks(self, place: Callable[[Array, Array], Array], marks: Iterable[Mark]) -> None:
        """Shapes on a surface; `place` turns its two coordinates [K] into points [K, 3] in m."""
        marks = list(marks)
        flat = np.concatenate([mark.shape for mark in marks])
        pixels = self.camera.project(place(flat[:, 0], flat[:, 1])).tolist()
        start = 0
        for mark in marks:
            stop = start + len(mark.shape)
            points = [number for point in pixels[start:stop] for number in point]
            if mark.fill is not None:
                self.draw.polygon(points, fill=mark.fill)
                points += points[:2]
            if mark.edge is not None:
                self.draw.line(points, fill=mark.edge, width=max(1, round(mark.wide * self.thin)))
            start = stop

    def shade(self, normals: Array, paint: Array | None = None) -> Array:
        """Colours [Q, 3] of faces with unit normals [Q, 3]: Lambert, plus sky above and dark ground below mirrored."""
        base = self.paint if paint is None else paint
        facing = np.clip(normals @ self.sun, 0, 1)[:, None]
        mirror = np.clip(0.25 + 1.3 * normals[:, 2:], 0.0, 1.0)
        tone = base * (0.36 + 0.64 * facing) * (0.86 + 0.22 * mirror)
        return tone + self.ambient * 0.15 * mirror + 80 * facing**16

    def quads(self, corners: Array, paint: Array | None = None) -> None:
        """Faces [Q, 4, 3] (counter-clockwise from outside), those turned away left out, far ones first."""
        normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
        ray = self.camera.position - corners[:, 0]
        seen = np.flatnonzero((normals * ray).sum(-1) > 0)
        seen = seen[np.argsort(-(ray[seen] ** 2).sum(-1), kind="stable")]
        normals = normals[seen] / np.sqrt((normals[seen] ** 2).sum(-1, keepdims=True) + 1e-18)
        flat = self.camera.project(corners[seen]).reshape(len(seen), 8).tolist()
        tones = np.clip(self.shade(normals, paint), 0, 255).astype(int).tolist()
        for points, tone in zip(flat, tones, strict=True):
            self.draw.polygon(points, fill=tuple(tone))

    def loft(self, rings: Array) -> None:
        """The skin between closed rings [V, P, 3] at rising levels."""
        after = np.roll(rings, -1, axis=1)
        corners = np.stack([rings[:-1], after[:-1], after[1:], rings[1:]], axis=2)
        self.quads(corners.reshape(-1, 4, 3))

    def lid(self, ring: Array, crown: float, paint: Array | None = None) -> None:
        """The top over a closed ring [P, 3] whose two halves mirror each other, raised by `crown` m in the middle."""
        half = len(ring) // 2 + 1
        left, right = ring[:half], np.concatenate([ring[:1], ring[: half - 2 : -1]])
        share = np.array([0.0, 0.08, 0.35, 0.65, 0.92, 1.0])
        grid = left[:, None] + (right - left)[:, None] * share[:, None]
        grid[..., 2] += crown * (1 - (2 * share - 1) ** 4)
        corners = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)
        self.quads(corners.reshape(-1, 4, 3), paint)

    def glass(self, low: Array, high: Array, metal: bool = False) -> None:
        """A pane between its lower and upper edge [K, 3], front first, with the sky and a streak reflected."""
        n = len(low)
        low, high = np.split(self.camera.project(np.concatenate([low, high])), 2)

        def part(first: Array, second: Array) -> list[float]:
            return np.concatenate([first, second[::-1]]).ravel().tolist()

        outline = part(low, high)
        self.draw.polygon(outline, fill=colour(0.16 * self.ambient + np.array((10.0, 14.0, 18.0))))
        self.draw.polygon(part(low + (high - low) * 0.5, high), fill=(*colour(self.ambient), 64))
        a, b = n // 5, n // 5 + max(1, n // 4)
        beam = part(low[[a, b]], high[[min(a + 1, n - 2), min(b + 1, n - 1)]])
        self.draw.polygon(beam, fill=(*colour(self.ambient * 0.6 + 100), 50))
        edge = (204, 208, 212) if metal else (14, 15, 18)
        self.draw.line(outline + outline[:2], fill=edge, width=max(1, round(1.6 * self.thin)))

    def ground_shadow(self, ring: Array) -> None:
        """A soft dark patch under the closed ring [P, 3] on the ground."""
        away = -self.sun * np.array([1, 1, 0])
        for grow, alpha in ((1.24, 16), (1.17, 22), (1.1, 30), (1.04, 48), (0.98, 80), (0.92, 90)):
            self.polygon(ring * grow + away * (grow - 0.9), (8, 9, 12, alpha))

    def ellipsoid(self, centre: Array, radii: Array, fill: Colour, edge: Colour) -> None:
        """A small body as its outline across the view: radii [3] in m along x, y and z."""
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        wide = np.hypot(radii[0] * np.sin(self.camera.yaw), radii[1] * np.cos(self.camera.yaw))
        across = np.array([-np.sin(self.camera.yaw), np.cos(self.camera.yaw), 0.0]) * wide
        points = centre + np.cos(turn)[:, None] * across + stack(0.0, 0.0, radii[2] * np.sin(turn))
        flat = self.camera.project(points).ravel().tolist()
        self.draw.polygon(flat, fill=fill)
        self.draw.line(flat + flat[:2], fill=edge, width=max(1, round(0.8 * self.thin)))
