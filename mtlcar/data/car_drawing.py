"""Draws a car of the fleet as a small picture: geometry in perspective, painted from far to near."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from mtlcar.data.car_painter import Painter
from mtlcar.data.car_parts import draw_parts
from mtlcar.data.car_scene import add_nuisance, draw_scene
from mtlcar.data.car_shape import Camera, CarSurface
from mtlcar.data.car_styles import AVERAGE, CarModel, Proportions, fleet

__all__ = ["CarBuild", "CarModel", "CarPicture", "build_car", "draw_car", "fleet"]

OVERSAMPLING = 3
PAINTS = np.array(
    [
        *((232, 234, 236), (186, 190, 195), (122, 127, 134), (34, 36, 41), (170, 24, 32), (28, 62, 140)),
        *((92, 142, 196), (26, 92, 66), (222, 178, 36), (214, 98, 28), (96, 62, 44), (198, 186, 160)),
        *((84, 20, 44), (60, 140, 136)),
    ],
    float,
)
SILVER = np.array((176.0, 180.0, 186.0))
VIEWS = ("front", "rear", "side", "front-side", "rear-side")
"""CompCars' viewpoints, in its order (1 to 5)."""


@dataclass(frozen=True)
class CarBuild:
    """One individual car: its paint (RGB, 0 to 255), trim from 0 (bare) to 1 (full) and kerb weight in kg.

    The trim shows: larger wheels and rims, higher, a little longer, roof rails, fog lamps, cladding.
    """

    paint: tuple[float, float, float]
    trim: float
    weight: float


@dataclass(frozen=True)
class CarPicture:
    """A drawn car.

    Attributes:
        image: RGB.
        box: (x1, y1, x2, y2) of the car in pixels, x2 and y2 exclusive, inside the picture.
        weight: kerb weight in kg.
        view: one of `VIEWS`.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    weight: float
    view: str


def build_car(car: CarModel, rng: np.random.Generator) -> CarBuild:
    """A random individual of a model; the kerb weight lies between 0.92 and 1.10 of the model's."""
    trim = float(rng.random())
    paint = np.clip(PAINTS[int(rng.integers(len(PAINTS)))] + rng.normal(0, 8, 3), 8, 245)
    weight = car.weight * (0.92 + 0.17 * trim + float(np.clip(rng.normal(0, 0.004), -0.01, 0.01)))
    return CarBuild(paint=tuple(paint.tolist()), trim=trim, weight=round(weight, 1))


def draw_car(
    car: CarModel,
    rng: np.random.Generator,
    size: int | tuple[int, int],
    difficulty: float = 0.5,
    *,
    build: CarBuild | None = None,
    view: str | None = None,
) -> CarPicture:
    """A picture of `car`; everything random comes from `rng`.

    Args:
        car: the model, from `fleet`.
        rng: its state after the call depends on the arguments.
        size: pixels, one number or (width, height).
        difficulty: 0 to 1; scales view, light, background, noise and occlusion, and draws all proportions towards
            those of an average car.
        build: the individual car; None draws one from `rng`.
        view: one of `VIEWS`; None draws front-side views, and with growing difficulty some rear-side ones.
    """
    width, height = (size, size) if isinstance(size, int) else size
    build = build_car(car, rng) if build is None else build
    surface = CarSurface(car, _dressed(car, build.trim, difficulty))
    view = view or ("rear-side" if rng.random() < 0.5 * max(0.0, difficulty - 0.4) else "front-side")
    canvas = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING))
    camera, corners = _place(surface, view, rng, canvas.size, difficulty)
    draw = ImageDraw.Draw(canvas, "RGBA")
    horizon = camera.shift[1]
    ambient = draw_scene(canvas, draw, horizon, rng, difficulty)
    paint = SILVER + (np.array(build.paint) - SILVER) * min(1.0, 0.25 + 1.5 * difficulty)
    sun = rng.normal(0, 0.15 + 0.5 * difficulty)
    painter = Painter(draw, camera, paint, ambient, sun_turn=sun)
    draw_parts(painter, surface, car, build.trim)
    image = add_nuisance(canvas.reduce(OVERSAMPLING), corners / OVERSAMPLING, rng, difficulty)
    x1, y1 = np.floor(corners.min(0) / OVERSAMPLING).astype(int)
    x2, y2 = np.ceil(corners.max(0) / OVERSAMPLING).astype(int)
    bounds = (max(0, int(x1)), max(0, int(y1)), min(width, int(x2)), min(height, int(y2)))
    return CarPicture(image=image, box=bounds, weight=build.weight, view=view)


def _dressed(car: CarModel, trim: float, difficulty: float) -> Proportions:
    """The model's proportions as this trim and difficulty show them."""
    shape = car.shape.blend(AVERAGE, 0.4 * difficulty)
    return replace(
        shape,
        length=shape.length * (0.985 + 0.03 * trim),
        wheel=shape.wheel * (0.94 + 0.13 * trim),
        clearance=shape.clearance + 0.05 * trim,
        height=shape.height + 0.04 * trim,
    )


def _place(
    surface: CarSurface, view: str, rng: np.random.Generator, canvas: tuple[int, int], difficulty: float
) -> tuple[Camera, np.ndarray]:
    """A camera that has the whole car in the picture, and the car's outline points in pixels [K, 2]."""
    d = difficulty
    middle, spread = {
        "front": (6, 4),
        "rear": (174, 4),
        "side": (84, 4),
        "front-side": (42, 22),
        "rear-side": (138, 18),
    }[view]
    yaw = np.deg2rad(middle + spread * (0.12 + 0.88 * d) * rng.uniform(-1, 1))
    mirror = bool(rng.random() < min(0.5, d))
    distance = surface.shape.length * (1.9 + d * rng.uniform(-0.5, 1.2))
    camera = Camera(
        yaw=float(yaw),
        distance=float(distance),
        height=float(1.75 + d * rng.uniform(-0.35, 0.9)),
        roll=float(np.deg2rad(rng.uniform(-4, 4) * d)),
        mirror=mirror,
    )
    body = surface.body(*surface.outline, np.array([[0.0], [0.5], [1.0]]))
    cabin = surface.cabin(*surface.cabin_outline, np.array([[0.5], [1.0]]))
    down = np.linspace(-2.0, -1.0, 3)
    wheels = [surface.wheel(x, side, np.array(surface.shape.wheel), down) for x in surface.axles for side in (1, -1)]
    flat = camera.project(np.concatenate([body.reshape(-1, 3), cabin.reshape(-1, 3), *wheels]))
    low, high = flat.min(0), flat.max(0)
    fill = 0.94 - d * rng.uniform(0, 0.28)
    scale = float(fill * np.min(np.array(canvas) / (high - low)))
    free = np.array(canvas) - scale * (high - low)
    at = free * np.clip(0.5 + d * rng.uniform(-0.45, 0.45, 2) + np.array([0, 0.12]), 0.02, 0.98) - scale * low
    camera = replace(camera, scale=scale, shift=(float(at[0]), float(at[1])))
    return camera, flat * scale + at
