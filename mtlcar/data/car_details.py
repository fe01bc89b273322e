"""Shapes that tell makes apart, as polygons [K, 2] in unit coordinates: grilles, lamps, badges and wheel rims.

Grilles, lamps and badges lie in about [-1, 1] x [-1, 1], y upwards; a lamp's x points to the car's outside.
"""

import numpy as np

Array = np.ndarray


def along_edges(*corners: tuple[float, float], pieces: int = 4) -> Array:
    """The polygon with every edge cut into pieces [n * pieces, 2], so that it can follow a curved surface."""
    start = np.asarray(corners, float)
    step = np.roll(start, -1, axis=0) - start
    return (start[:, None] + step[:, None] * (np.arange(pieces)[:, None] / pieces)).reshape(-1, 2)


def box(x0: float, y0: float, x1: float, y1: float) -> Array:
    return along_edges((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(x: float, y: float, rx: float, ry: float, points: int = 16) -> Array:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], -1)


_MIRRORED = (1.0, -1.0)
_STAR = np.pi / 2 + np.arange(10) * np.pi / 5

GRILLES: dict[str, tuple[list[Array], list[Array]]] = {  # openings, bars
    "bars": ([box(-1.25, -0.6, 1.25, 0.8)], [box(-1.25, y, 1.25, y + 0.2) for y in (-0.35, 0.05, 0.45)]),
    "hexagon": (
        [along_edges((-0.6, -1.5), (0.6, -1.5), (1.0, -0.1), (0.7, 1.0), (-0.7, 1.0), (-1.0, -0.1))],
        [box(-0.95, -0.25, 0.95, 0.0)],
    ),
    "kidneys": (
        [
            along_edges((s * 0.08, -0.9), (s * 0.5, -1), (s * 0.62, -0.2), (s * 0.55, 0.9), (s * 0.12, 0.95))
            for s in _MIRRORED
        ],
        [],
    ),
    "slats": ([box(-0.95 + i * 0.28, -1.1, -0.79 + i * 0.28, 0.9) for i in range(7)], []),
    "shield": (
        [along_edges((0.0, -2.1), (0.34, -1.0), (0.45, 0.95), (-0.45, 0.95), (-0.34, -1.0))],
        [box(-0.04, -1.9, 0.04, 0.95)],
    ),
    "slot": ([along_edges((-1.3, 0.25), (1.3, 0.25), (1.25, 0.65), (-1.25, 0.65))], []),
    "oval": ([ellipse(0, -0.3, 0.72, 1.25)], [box(-0.68, -0.42, 0.68, -0.18), box(-0.05, -1.4, 0.05, 0.9)]),
    "mesh": (
        [along_edges((-0.95, -1.6), (0.95, -1.6), (0.75, 0.9), (-0.75, 0.9))],
        [
            along_edges((s * x, -1.6), (s * (x + 0.09), -1.6), (s * (x + 0.55), 0.9), (s * (x + 0.46), 0.9))
            for s in _MIRRORED
            for x in (-0.9, -0.55, -0.2, 0.15)
        ],
    ),
}

LAMPS: dict[str, tuple[list[Array], list[Array]]] = {  # glasses, reflectors
    "round": ([ellipse(0.05, 0.0, 0.75, 1.15)], [ellipse(0.05, 0.0, 0.4, 0.6, 10)]),
    "block": ([box(-0.9, -0.8, 0.95, 0.75)], [box(-0.6, -0.4, 0.0, 0.4)]),
    "slant": (
        [along_edges((-1.2, -0.75), (0.6, -0.15), (1.3, 1.0), (0.7, 0.9), (-0.6, 0.05))],
        [ellipse(0.35, 0.25, 0.25, 0.3, 8)],
    ),
    "strip": ([along_edges((-1.5, 0.2), (1.3, 0.35), (1.25, 0.85), (-1.45, 0.6))], []),
    "twin": (
        [ellipse(-0.55, 0.0, 0.5, 0.8, 12), ellipse(0.6, 0.1, 0.5, 0.8, 12)],
        [ellipse(-0.55, 0.0, 0.22, 0.35, 8), ellipse(0.6, 0.1, 0.22, 0.35, 8)],
    ),
    "tall": (
        [along_edges((-0.1, -2.0), (0.8, -1.7), (1.0, 1.0), (0.05, 0.9))],
        [ellipse(0.45, 0.3, 0.27, 0.4, 8), ellipse(0.4, -0.9, 0.25, 0.4, 8)],
    ),
    "hook": ([along_edges((-1.3, 0.9), (-1.2, 0.3), (0.3, 0.2), (0.4, -1.5), (1.05, -1.3), (1.15, 0.95))], []),
    "triangle": ([along_edges((-1.2, 0.7), (1.25, 1.0), (0.9, -1.2))], [ellipse(0.55, 0.3, 0.28, 0.35, 8)]),
}

BADGES: dict[str, list[Array]] = {
    "disc": [ellipse(0, 0, 0.95, 0.95, 12)],
    "diamond": [along_edges((0, -1.25), (0.85, 0), (0, 1.25), (-0.85, 0))],
    "crest": [along_edges((-0.8, 1), (0.8, 1), (0.8, -0.1), (0, -1.2), (-0.8, -0.1))],
    "star": [np.where(np.arange(10) % 2, 0.45, 1.25)[:, None] * np.stack([np.cos(_STAR), np.sin(_STAR)], -1)],
    "wing": [along_edges((-2.2, 0.5), (0, 0.1), (2.2, 0.5), (1.3, -0.4), (0, -0.6), (-1.3, -0.4))],
    "delta": [along_edges((0, 1.1), (1.1, -0.9), (-1.1, -0.9))],
    "rings": [ellipse(-0.75, 0, 0.7, 0.8, 10), ellipse(0.75, 0, 0.7, 0.8, 10)],
    "cross": [box(-0.3, -1.1, 0.3, 1.1), box(-1.1, -0.3, 1.1, 0.3)],
}


def _spokes(count: int, foot: float, tip: float, twist: float = 0.0, pair: float = 0.0) -> list[Array]:
    middles = [np.pi / 2 + 2 * np.pi * i / count + side for i in range(count) for side in sorted({-pair, pair})]
    angles = np.array([-foot, foot, tip + twist, -tip + twist])
    return [np.stack([np.array([0.2, 0.2, 1.0, 1.0]), middle + angles], -1) for middle in middles]


def _holes(count: int, at: float, size: float) -> list[Array]:
    turn, made = np.linspace(0, 2 * np.pi, 8, endpoint=False), []
    for i in range(count):
        middle = 2 * np.pi * i / count + 0.3
        x, y = at * np.cos(middle) + size * np.cos(turn), at * np.sin(middle) + size * np.sin(turn)
        made.append(np.stack([np.hypot(x, y), np.arctan2(y, x)], -1))
    return made


RIMS: dict[str, tuple[list[Array], bool]] = {
    # Polar polygons (radius, angle) on a rim of radius 1; True where they are holes, not spokes.
    "five": (_spokes(5, 0.55, 0.22), False),
    "multi": (_spokes(10, 0.18, 0.09), False),
    "holes": (_holes(8, 0.68, 0.16), True),
    "twin_five": (_spokes(5, 0.13, 0.08, pair=0.17), False),
    "turbine": (_spokes(8, 0.26, 0.12, twist=0.45), False),
    "disc": (_holes(1, 0.0, 0.2), True),
    "mesh": (_spokes(7, 0.13, 0.06, twist=0.4) + _spokes(7, 0.13, 0.06, twist=-0.4), False),
    "cross": (_spokes(4, 0.66, 0.3), False),
}
