"""The parts of a drawn car, painted from far to near; the left side (y > 0) is always the near one."""

from itertools import pairwise

import numpy as np

from mtlcar.data.car_details import BADGES, GRILLES, LAMPS, RIMS, along_edges, box
from mtlcar.data.car_painter import Colour, Mark, Painter
from mtlcar.data.car_shape import CarSurface
from mtlcar.data.car_styles import CarModel

Array = np.ndarray
BODY_LEVELS = np.array([0, 0.12, 0.32, 0.52, 0.7, 0.86, 0.95, 1])[:, None]
CABIN_LEVELS = np.array([0, 0.35, 0.7, 0.92, 1.0])[:, None]
_TURN = np.linspace(0, 2 * np.pi, 22, endpoint=False)
_BLACK, _RUBBER = (15, 15, 17), (23, 23, 25)


def draw_parts(painter: Painter, surface: CarSurface, car: CarModel, trim: float) -> None:
    """The whole car with its shadow on the ground."""
    front = painter.camera.yaw < np.pi / 2
    body = surface.body(*surface.outline, BODY_LEVELS)
    cabin = surface.cabin(*surface.cabin_outline, CABIN_LEVELS)
    painter.ground_shadow(body[0] * np.array([1.03, 1.08, 0]))
    for axle in surface.axles:
        for left in (-1.0, 1.0):
            _tread(painter, surface, axle, left)
    painter.polygon(body[0] * np.array([0.97, 0.9, 1]), _BLACK)
    _mirror(painter, surface, -1.0)
    painter.loft(body)
    painter.lid(body[-1], crown=0.035)
    if car.type == "pickup":
        _bed(painter, surface)
    _face(painter, surface, front)
    painter.loft(cabin)
    painter.lid(cabin[-1], crown=0.02, paint=np.array((44.0, 46, 50)) if car.style.dark_roof else None)
    _glass(painter, surface, car, 1.0 if front else -1.0)
    _side(painter, surface, car, trim)
    for axle in surface.axles:
        _wheel(painter, surface, axle, car.style.rim, rim_share=0.62 + 0.13 * trim)
    if trim > 0.6 and car.type not in ("pickup", "coupe"):
        _rails(painter, surface)
    _mirror(painter, surface, 1.0)


def _tread(painter: Painter, surface: CarSurface, axle: float, left: float) -> None:
    """The tyre's width: everything between its inner and its outer side."""
    inset = np.array([0.26, 0.04])[:, None]
    discs = surface.wheel(axle, left, np.array(surface.shape.wheel), _TURN, inset)
    painter.hull(discs.reshape(-1, 3), _RUBBER)


def _wheel(painter: Painter, surface: CarSurface, axle: float, kind: str, rim_share: float) -> None:
    """Tyre and rim on the near side."""
    shapes, holes = RIMS[kind]

    def disc(share: float) -> Array:
        return np.stack([np.full(len(_TURN), share), _TURN], -1)

    metal, gap = (206, 209, 214), (40, 41, 45)
    marks = [
        Mark(disc(1.0), _RUBBER),
        Mark(disc(rim_share + 0.05), (158, 161, 166)),
        Mark(disc(rim_share), metal if holes else gap),
        *(Mark(shape * np.array([rim_share, 1.0]), gap if holes else metal) for shape in shapes),
        Mark(disc(0.13), (120, 123, 128), gap, 0.8),
    ]
    radius = surface.shape.wheel
    painter.marks(lambda r, angle: surface.wheel(axle, 1.0, radius * r, angle, inset=0.02), marks)


def _face(painter: Painter, surface: CarSurface, front: bool) -> None:
    """Bumper, grille, lamps, plate and badge of the end that is seen; (share of the half width, height share)."""
    style = surface.style
    dark = (20, 21, 24)
    metal = (208, 211, 215) if style.chrome else (84, 87, 92)

    def put(shape: Array, x: float, y: float, rx: float, ry: float) -> Array:
        return np.stack([x + shape[:, 0] * rx, np.clip(y + shape[:, 1] * ry, 0.01, 0.99)], -1)

    marks = [Mark(box(-0.93, 0.0, 0.93, 0.13), (34, 35, 38))]
    if front:
        openings, bars = GRILLES[style.grille]
        marks.append(Mark(along_edges((-0.62, 0.15), (0.62, 0.15), (0.5, 0.3), (-0.5, 0.3)), dark))
        marks += [Mark(put(shape, 0, 0.64, 0.46, 0.17), dark, metal, 2.0) for shape in openings]
        marks += [Mark(put(shape, 0, 0.64, 0.46, 0.17), metal) for shape in bars]
    else:
        marks.append(Mark(box(-0.75, 0.16, 0.75, 0.24), dark))
        marks.append(Mark(np.stack([np.linspace(-0.8, 0.8, 9), np.full(9, 0.62)], -1), None, painter.tint(0.5)))
    glass: Colour = (226, 235, 242) if front else (172, 16, 24)
    light: Colour = (255, 255, 250) if front else (255, 120, 90)
    glasses, lights = LAMPS[style.lamp]
    for flip in (-1.0, 1.0):
        for shape in glasses:
            whole = put(shape, flip * 0.74, 0.74, flip * 0.19, 0.13)
            marks.append(Mark(whole, glass, (40, 42, 46), 1.2))
            low = whole.copy()  # the lower half of the glass is in shade
            low[:, 1] = np.minimum(low[:, 1], 0.5 * (low[:, 1].min() + low[:, 1].max()))
            marks.append(Mark(low, (70, 80, 92, 90) if front else (60, 0, 8, 110)))
        for shape in lights:
            marks.append(Mark(put(shape, flip * 0.74, 0.74, flip * 0.19, 0.13), light, (120, 126, 134), 0.8))
    plate = 0.34 if front else 0.46
    marks.append(Mark(box(-0.24, plate, 0.24, plate + 0.09), (238, 238, 228), dark, 0.8))
    marks += [Mark(put(shape, 0, 0.86, 0.068, 0.08), (240, 242, 246), dark, 1.0) for shape in BADGES[style.badge]]
    end = 1.0 if front else -1.0
    painter.marks(lambda y, v: surface.end(y, v, end), marks)


def _glass(painter: Painter, surface: CarSurface, car: CarModel, end: float) -> None:
    share = np.linspace(-0.86, 0.86, 9)
    painter.glass(surface.screen(share * 1.02, 0.2 if end < 0 else 0.08, end), surface.screen(share, 0.93, end))
    # Pillars, as shares of the cabin's length from 1 (front) to -1 (rear).
    if car.type == "pickup":
        edges: tuple[float, ...] = (0.8, -0.8) if car.doors == 2 else (0.82, 0.0, -0.82)
    elif car.type in ("wagon", "suv", "van"):
        edges = (0.86, 0.28, -0.3, -0.85)
    elif car.doors == 2:
        edges = (0.84, -0.02, -0.78)
    else:
        edges = (0.85, 0.15, -0.5, -0.82) if car.type == "hatchback" else (0.84, 0.1, -0.6)
    for x1, x0 in pairwise(edges):
        x = np.linspace(x1 - 0.025, x0 + 0.025, 6)
        low = 0.14 + surface.style.kick * np.maximum(-x, 0) ** 2
        painter.glass(surface.window(x, low), surface.window(x, 0.88), metal=surface.style.chrome)


def _side(painter: Painter, surface: CarSurface, car: CarModel, trim: float) -> None:
    """Sill, crease, doors, handles and arches of the near side; (x in m, height share)."""
    shape, dark = surface.shape, painter.tint(0.42)
    cladding = (38, 39, 42) if trim > 0.3 or car.type in ("suv", "pickup") else painter.tint(0.5)
    foot = 0.09 + 0.07 * trim
    x = np.linspace(-0.86, 0.86, 10) * surface.a
    sill = np.concatenate([np.stack([x, np.zeros(10)], -1), np.stack([x[::-1], np.full(10, foot)], -1)])
    crease = np.stack(
        [np.linspace(-0.9, 0.82, 12) * surface.a, surface.style.crease + np.linspace(0.06, -0.06, 12)], -1
    )
    marks = [Mark(sill, cladding), Mark(crease, None, painter.tint(0.66), 1.2)]
    front, rear = surface.axles
    cabin_front, cabin_rear = (float(e) for e in surface.cabin_ends(np.array(0.0)))
    first = min(front - shape.wheel * 1.1, cabin_front - 0.1)
    last = max(rear + shape.wheel * 0.35, cabin_rear) if car.doors == 4 else (first + rear) / 2 - 0.2
    cuts = [first, (first + last) / 2 + 0.05, last] if car.doors == 4 else [first, last]
    marks += [Mark(np.stack([np.full(6, cut), np.linspace(foot, 1, 6)], -1), None, dark) for cut in cuts]
    marks += [Mark(box(cut + 0.06, 0.80, cut + 0.24, 0.85), painter.tint(1.25), dark, 0.6) for cut in cuts[1:]]
    painter.marks(surface.side, marks)
    angle = np.linspace(-0.6, np.pi + 0.6, 18)
    arch = shape.wheel * 1.17 * np.stack([np.cos(angle), np.sin(angle)], -1)
    edge = cladding if trim > 0.3 else None
    arches = [Mark(arch + np.array([axle, shape.wheel]), _BLACK, edge, 2.0) for axle in surface.axles]
    painter.marks(surface.side_at_height, arches)


def _bed(painter: Painter, surface: CarSurface) -> None:
    back, front = -0.95 * surface.a, float(surface.cabin_ends(np.array(0.0))[1]) - 0.05
    x = np.array([back, front, front, back])
    y = surface.b * np.array([0.8, 0.8, -0.8, -0.8])
    painter.polygon(np.stack([x, y, surface.top(x) + 0.02], -1), (30, 31, 33))


def _rails(painter: Painter, surface: CarSurface) -> None:
    def rail(x: Array, lift: Array) -> Array:
        points = surface.window(x, 1.0, np.where(lift < 0, -1.0, 1.0)) * np.array([1.0, 0.93, 1.0])
        points[:, 2] += np.abs(lift)
        return points

    x, lift = np.linspace(0.7, -0.85, 8), np.array([0.01, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.01])
    marks = []
    for left in (-1.0, 1.0):
        marks.append(Mark(np.stack([x, left * lift], -1), None, (60, 62, 66), 3.0))
        marks.append(Mark(np.stack([x, left * (lift + 0.012)], -1), None, (194, 198, 202), 1.3))
    painter.marks(rail, marks)


def _mirror(painter: Painter, surface: CarSurface, left: float) -> None:
    root = surface.window(np.array(0.84), 0.10, left)
    painter.ellipsoid(
        root + np.array([0.02, left * 0.12, 0.03]),
        np.array([0.07, 0.105, 0.065]),
        painter.tint(0.82),
        painter.tint(0.4),
    )
