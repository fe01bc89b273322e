"""Geometry of a drawn car: surfaces in metres (x forward, y left, z up), and the camera that projects them."""

from dataclasses import dataclass

import numpy as np

from mtlcar.data.car_styles import CarModel, Proportions

Array = np.ndarray

# Parameters of the outline: dense where a superellipse turns.
_ANGLES = np.concatenate([np.linspace(0.0, 0.03, 2), np.linspace(0.14, 1.4, 7), np.array([1.53, np.pi / 2])])


def stack(*parts: Array | float) -> Array:
    """The parts, broadcast, beside each other in a new last axis."""
    out = np.empty((*np.broadcast_shapes(*(np.shape(p) for p in parts)), len(parts)))
    for i, part in enumerate(parts):
        out[..., i] = part
    return out


def superellipse(exponent: float) -> tuple[Array, Array]:
    """Closed unit outline |x|^n + |y|^n = 1, counter-clockwise from the nose; two [P] arrays."""
    x, y = np.cos(_ANGLES) ** (2 / exponent), np.sin(_ANGLES) ** (2 / exponent)
    x[-1], y[0] = 0.0, 0.0
    left_x = np.concatenate([x, -x[-2::-1]])
    left_y = np.concatenate([y, y[-2::-1]])
    # More points along the flat side, where the height of the body changes.
    extra = np.linspace(-0.78, 0.78, 9)
    left_x = np.concatenate([left_x, extra])
    left_y = np.concatenate([left_y, (1 - np.abs(extra) ** exponent) ** (1 / exponent)])
    order = np.argsort(-left_x, kind="stable")
    left_x, left_y = left_x[order], left_y[order]
    return np.concatenate([left_x, left_x[-2:0:-1]]), np.concatenate([left_y, -left_y[-2:0:-1]])


@dataclass(frozen=True)
class Camera:
    """Perspective camera looking horizontally at the car's middle, then a turn, scale and shift in the picture.

    Attributes:
        yaw: angle in radians between the car's nose and the camera; 0 looks at the front, pi / 2 at the left side.
        distance, height: of the camera, in m.
        roll: turn of the picture, radians.
        mirror: whether left and right change places (the right side is then seen).
        scale, shift: pixels per unit of tangent, and (x, y) of the optical axis in pixels.
    """

    yaw: float
    distance: float
    height: float
    roll: float = 0.0
    mirror: bool = False
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def position(self) -> Array:
        return np.array([self.distance * np.cos(self.yaw), self.distance * np.sin(self.yaw), self.height])

    def project(self, points: Array) -> Array:
        """[..., 3] metres -> [..., 2] pixels."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        x, y = points[..., 0], points[..., 1]
        depth = self.distance - (x * c + y * s)
        u = (-x * s + y * c) / depth  # the camera's right
        u = -u if self.mirror else u
        v = (self.height - points[..., 2]) / depth
        cr, sr = np.cos(self.roll), np.sin(self.roll)
        u, v = u * cr - v * sr, u * sr + v * cr
        return stack(u * self.scale + self.shift[0], v * self.scale + self.shift[1])


class CarSurface:
    """Body and cabin of one car as two lofts over superellipses, and points on them for everything drawn on top.

    Args:
        car: the model, for its style.
        shape: the proportions to draw (the model's, or those moved by trim and difficulty).
    """

    def __init__(self, car: CarModel, shape: Proportions) -> None:
        self.style, self.shape, self.type = car.style, shape, car.type
        self.a, self.b = shape.length / 2, shape.width / 2
        self.sill = shape.clearance + 0.02
        self.tall = shape.height - self.sill
        self.belt = self.sill + shape.belt * self.tall
        self.outline = superellipse(self.style.squareness)
        self.cabin_outline = superellipse(self.style.squareness + 0.6)
        bed = car.type == "pickup"  # its load bed is level
        kick = self.style.kick * (0.2 if bed else 1.0)
        share = np.array([0.0, 0.03, 0.12, shape.cowl, shape.cowl + 0.1, shape.glass_rear, 0.97, 1.0])
        nose, tail = (self.sill + q * self.tall for q in (shape.nose, shape.tail))
        tail = self.belt + kick if bed else tail
        hood = self.sill + (0.8 * shape.belt + 0.2 * shape.nose + 0.015) * self.tall
        knots = [nose - 0.05, nose, 0.6 * nose + 0.4 * hood, hood, self.belt, self.belt + kick, tail, tail - 0.04]
        self._grid = np.linspace(-1.1, 1.1, 111) * self.a
        sharp = np.interp(self._grid, self.a - share[::-1] * shape.length, np.array(knots)[::-1])
        # A moving mean rounds the corners of the profile.
        self._top = np.convolve(np.pad(sharp, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
        axle = 0.5 * shape.wheelbase + 0.02 * shape.length
        self.axles = (axle, axle - shape.wheelbase)
        self.track = {x: float(self.side(np.array(x), np.array(0.3))[1]) for x in self.axles}

    def top(self, x: Array) -> Array:
        """Height of the body's upper edge at x."""
        return np.interp(x, self._grid, self._top)

    def bottom(self, x: Array) -> Array:
        """Height of the body's lower edge at x: it rises towards both ends."""
        rise = np.maximum(np.abs(x) / (0.4 * self.a) - 1.5, 0)
        return self.sill - 0.05 + 0.09 * rise**2

    def body(self, cx: Array, cy: Array, v: Array) -> Array:
        """Body points [..., 3] at unit outline (cx, cy) and height share v (0 sill to 1 upper edge)."""
        x0 = cx * self.a
        z = self.bottom(x0) + v * (self.top(x0) - self.bottom(x0))
        # Both ends lean back above the bumper, the front more.
        lean = -0.035 * (v < 0.12) - 0.16 * np.maximum(v - 0.5, 0) ** 1.5
        x = x0 + (np.maximum(cx - 0.55, 0) ** 2 - 0.7 * np.maximum(-cx - 0.55, 0) ** 2) * lean / 0.2
        bulge = 1.0 - 0.09 * np.abs(v - self.style.crease) ** 1.4 - 0.03 * (v > 0.94)
        return stack(x, cy * self.b * bulge, z)

    def side(self, x: Array, v: Array, left: float = 1.0) -> Array:
        """Points on the body's side at x metres."""
        cx = np.clip(x / self.a, -1, 1)
        cy = left * (1 - np.abs(cx) ** self.style.squareness) ** (1 / self.style.squareness)
        return self.body(cx, cy, np.asarray(v))

    def side_at_height(self, x: Array, z: Array, left: float = 1.0) -> Array:
        """Points on the body's side at (x, z) metres, cut off at its edges."""
        low, high = self.bottom(x), self.top(x)
        return self.side(x, np.clip((z - low) / (high - low), 0, 1), left)

    def end(self, y: Array, v: Array, front: float = 1.0) -> Array:
        """Points on the front (1) or rear (-1) face at y as a share of the half width."""
        y = np.clip(np.asarray(y, float), -1, 1)
        cx = front * (1 - np.abs(y) ** self.style.squareness) ** (1 / self.style.squareness)
        return self.body(cx, y, np.asarray(v, float))

    def roof(self, x: Array) -> Array:
        """Height of the roof at x."""
        s = self.shape
        x1, x0 = self.a - s.roof_front * s.length, self.a - s.roof_rear * s.length
        t = np.clip((x1 - x) / (x1 - x0), 0, 1)
        arch = self.style.roof_arch * (4 * t * (1 - t) - 1)
        slope = self.style.roof_slope * t**2 * (0.4 if self.type in ("van", "pickup") else 1.0)
        return s.height + 0.25 * arch - slope - 0.02

    def cabin_ends(self, t: Array) -> tuple[Array, Array]:
        """x of the cabin's front and rear at height share t (0 foot, 1 roof)."""
        s = self.shape
        lift = t**1.12  # the glass gets flatter towards the roof
        front = self.a - s.length * (s.cowl + (s.roof_front - s.cowl) * lift)
        rear = self.a - s.length * (s.glass_rear + (s.roof_rear - s.glass_rear) * lift)
        return front, rear

    def cabin(self, cx: Array, cy: Array, t: Array) -> Array:
        """Cabin points [..., 3] at unit outline (cx, cy) and height share t."""
        front, rear = self.cabin_ends(t)
        bow = 0.10 * np.maximum(cx, 0) ** 2 * (1 - np.abs(cy))  # the windscreen is curved
        x = (front + rear) / 2 + cx * (front - rear) / 2 + bow
        half = self.b * (0.93 - (0.10 if self.type == "van" else 0.19) * t**1.3)
        foot = self.top(x) - 0.05
        z = foot + t * (self.roof(x) - foot)
        return stack(x, cy * half, z)

    def window(self, x: Array, t: Array | float, left: Array | float = 1.0) -> Array:
        """Points on the cabin's side at share x of its length (1 front, -1 rear)."""
        n = self.style.squareness + 0.6
        cx = np.clip(np.asarray(x, float), -1, 1)
        return self.cabin(cx, left * (1 - np.abs(cx) ** n) ** (1 / n), np.asarray(t, float))

    def screen(self, y: Array, t: Array | float, front: float = 1.0) -> Array:
        """Points on the windscreen (1) or the rear window (-1), y as a share of the half width."""
        n = self.style.squareness + 0.6
        y = np.clip(np.asarray(y, float), -1, 1)
        return self.cabin(front * (1 - np.abs(y) ** n) ** (1 / n), y, np.asarray(t, float))

    def wheel(self, axle: float, left: float, radius: Array, angle: Array, inset: Array | float = 0.03) -> Array:
        """Points of a wheel's disc at polar (radius in m, angle), `inset` m inside the body's side."""
        y = left * (self.track[axle] - inset)
        x = axle + radius * np.cos(angle)
        z = self.shape.wheel + radius * np.sin(angle)
        return stack(x, y, z)
