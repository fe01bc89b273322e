"""What is around a drawn car and in the way of seeing it: backgrounds, light, occlusion, blur and noise."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray


def _mix(a: Array, b: Array, share: float) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(a + (b - a) * share, 0, 255))


def _fade(draw: ImageDraw.ImageDraw, y0: float, y1: float, width: int, top: Array, low: Array, steps: int = 24) -> None:
    edges = np.linspace(y0, y1, steps + 1).astype(int).tolist()
    share = ((np.arange(steps) + 0.5) / steps)[:, None]
    tones = np.clip(top + (low - top) * share, 0, 255).astype(int).tolist()
    for i, tone in enumerate(tones):
        draw.rectangle((0, edges[i], width, edges[i + 1] + 1), fill=tuple(tone))


def draw_scene(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, horizon: float, rng: np.random.Generator, difficulty: float
) -> Array:
    """Paints the background over the whole canvas; returns the mean colour [3] of what is above the ground."""
    width, height = canvas.size
    horizon = float(np.clip(horizon, 0.12 * height, 0.7 * height))
    number = int(rng.integers(len(_SCENES)))
    scene = _SCENES[number] if rng.random() < 2 * difficulty else _studio
    return np.asarray(scene(draw, width, height, horizon, rng, min(1.0, 0.35 + difficulty)), float)


def _studio(draw: ImageDraw.ImageDraw, w: int, h: int, y: float, rng: np.random.Generator, clutter: float) -> Array:
    tone = rng.uniform(195, 225)
    wall = np.array([tone, tone + 2, tone + 5])
    edge = y + 0.25 * (h - y)
    _fade(draw, 0, edge, w, wall * 0.9, wall * 1.08)
    _fade(draw, edge, h, w, wall * 1.0, wall * 0.78)
    return wall


def _sky(draw: ImageDraw.ImageDraw, w: int, y: float, rng: np.random.Generator, clutter: float) -> Array:
    blue = np.array([rng.uniform(90, 150), rng.uniform(150, 185), rng.uniform(205, 240)])
    grey = np.array([190.0, 195, 202])
    top = blue + (grey - blue) * rng.random()
    low = top + (np.array([232.0, 236, 240]) - top) * 0.7
    _fade(draw, 0, y, w, top, low)
    for _ in range(int(rng.integers(0, 5))):
        cx, cy, r = rng.uniform(0, w), rng.uniform(0, 0.7 * y), rng.uniform(0.05, 0.16) * w
        for _ in range(4):
            dx, dy = rng.uniform(-1, 1) * r, rng.uniform(-0.2, 0.2) * r
            s = r * rng.uniform(0.4, 0.8)
            draw.ellipse(
                (cx + dx - s, cy + dy - 0.4 * s, cx + dx + s, cy + dy + 0.4 * s),
                fill=(250, 250, 252, int(110 * clutter)),
            )
    return (top + low) / 2


def _ground(draw: ImageDraw.ImageDraw, w: int, h: int, y: float, base: Array) -> None:
    _fade(draw, y, h, w, base * 1.12, base * 0.88)


def _road(draw: ImageDraw.ImageDraw, w: int, h: int, y: float, rng: np.random.Generator, clutter: float) -> Array:
    mean = _sky(draw, w, y, rng, clutter)
    x = np.linspace(0, w, 14)
    for depth in (0.55, 1.0):
        ridge = y - h * 0.09 * clutter * rng.random(14) * (1.4 - depth) - 0.02 * h
        tone = np.array([96.0, 122, 96]) * rng.uniform(0.6, 1.0) * depth + mean * (1 - depth) * 0.6
        draw.polygon([(0, y + 2), *zip(x.tolist(), ridge.tolist(), strict=True), (w, y + 2)], fill=_mix(tone, tone, 0))
    grass = np.array([96.0, 118, 70]) * rng.uniform(0.8, 1.15)
    _ground(draw, w, h, y, grass)
    grey = rng.uniform(82, 128)
    edge = y + 0.18 * (h - y)
    _ground(draw, w, h, edge, np.array([grey, grey, grey + 3]))
    slope = rng.uniform(-0.02, 0.02) * w
    draw.line((0, edge, w, edge + slope), fill=(230, 230, 224, 200), width=max(1, h // 90))
    step = w * rng.uniform(0.25, 0.4)
    for x0 in np.arange(-rng.random() * step, w, step):
        low = y + 0.93 * (h - y)
        draw.polygon(
            [(x0, low), (x0 + 0.5 * step, low), (x0 + 0.47 * step, low + h / 45), (x0 - 0.04 * step, low + h / 45)],
            fill=(232, 230, 214, int(200 * clutter)),
        )
    return mean


def _city(draw: ImageDraw.ImageDraw, w: int, h: int, y: float, rng: np.random.Generator, clutter: float) -> Array:
    mean = _sky(draw, w, y, rng, clutter)
    x = 0.0
    while x < w:
        wide, tall = rng.uniform(0.12, 0.3) * w, rng.uniform(0.3, 0.95) * y
        base = np.array([rng.uniform(90, 190)] * 3) * np.array([rng.uniform(0.9, 1.1), 1.0, rng.uniform(0.85, 1.05)])
        draw.rectangle((x, y - tall, x + wide, y + 1), fill=_mix(mean, base, 0.25 + 0.75 * clutter))
        pitch = w * rng.uniform(0.035, 0.06)
        pane = _mix(base, np.array([60.0, 76, 96]), 0.75 * clutter)
        for wx in np.arange(x + pitch * 0.4, x + wide - pitch * 0.6, pitch):
            for wy in np.arange(y - tall + pitch * 0.5, y - pitch * 0.8, pitch * 1.3):
                draw.rectangle((wx, wy, wx + 0.5 * pitch, wy + 0.7 * pitch), fill=pane)
        x += wide
    _ground(draw, w, h, y, np.array([150.0, 148, 144]) * rng.uniform(0.85, 1.1))
    grey = rng.uniform(76, 118)
    _ground(draw, w, h, y + 0.22 * (h - y), np.array([grey, grey, grey + 3]))
    return mean * 0.8


def _wall(draw: ImageDraw.ImageDraw, w: int, h: int, y: float, rng: np.random.Generator, clutter: float) -> Array:
    base = np.array([(176.0, 120, 96), (182.0, 178, 170), (150.0, 160, 168), (204.0, 190, 158)][int(rng.integers(4))])
    base = base * rng.uniform(0.75, 1.15)
    foot = y + 0.3 * (h - y)
    _fade(draw, 0, foot, w, base * 1.06, base * 0.92)
    brick = h * rng.uniform(0.035, 0.09)
    joint = _mix(base, base * 0.72, clutter)
    thin = max(1, int(brick * 0.1))
    for row, wy in enumerate(np.arange(foot, -brick, -brick)):
        draw.line((0, wy, w, wy), fill=joint, width=thin)
        for wx in np.arange(-brick * 1.2 * (row % 2), w, brick * 2.4):
            draw.line((wx, wy, wx, wy - brick), fill=joint, width=thin)
    grey = rng.uniform(96, 158)
    _ground(draw, w, h, foot, np.array([grey, grey, grey - 2]))
    return base


def _park(draw: ImageDraw.ImageDraw, w: int, h: int, y: float, rng: np.random.Generator, clutter: float) -> Array:
    mean = _sky(draw, w, y, rng, clutter)
    green = np.array([62.0, 96, 48]) * rng.uniform(0.8, 1.3)
    for _ in range(26):
        cx, r = rng.uniform(-0.05, 1.05) * w, rng.uniform(0.06, 0.17) * h
        cy = y - rng.uniform(0.0, 0.22) * h
        draw.rectangle((cx - r * 0.08, cy, cx + r * 0.08, y + 1), fill=_mix(mean, np.array([74.0, 58, 44]), clutter))
        tone = green * rng.uniform(0.7, 1.3)
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=_mix(mean, tone, 0.4 + 0.6 * clutter))
    _ground(draw, w, h, y, np.array([112.0, 138, 76]) * rng.uniform(0.8, 1.1))
    sand = rng.uniform(120, 168)
    _ground(draw, w, h, y + 0.25 * (h - y), np.array([sand, sand * 0.97, sand * 0.9]))
    return mean * 0.75 + green * 0.25


_SCENES = (_road, _city, _wall, _park)


def add_nuisance(image: Image.Image, corners: Array, rng: np.random.Generator, difficulty: float) -> Image.Image:
    """Occlusion, light, blur and noise on the finished picture; `corners` [K, 2] are the car's points in pixels."""
    d, (width, height) = difficulty, image.size
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    draws = rng.random(12)
    if draws[0] < 0.45 * d:
        _occlude(image, rng, (x0, y0, x1, y1), d)
    blur = d * draws[1] * 0.9 * max(width, height) / 128
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(float(blur)))
    pixels = np.asarray(image, np.float32)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = 2 * np.pi * draws[2]
    light = (
        1
        + d * (0.55 * draws[3] - 0.28)
        + d * 0.3 * draws[4] * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
    )
    if draws[5] < 0.5 * d:  # the edge of a shadow, from a tree or a house
        reach = x * np.float32(np.cos(6 * draws[6])) + y * np.float32(np.sin(6 * draws[6])) - np.float32(draws[7] - 0.5)
        light = light * (1 - np.float32(0.3 * d + 0.2) * np.clip(reach * 12, 0, 1))
    tint = 1 + d * 0.12 * (draws[8:11] - 0.5)
    pixels = pixels * light[..., None].astype(np.float32) * tint.astype(np.float32)
    noise = rng.standard_normal((height, width, 1), np.float32) * np.float32(1 + 9 * d * draws[11])
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _occlude(image: Image.Image, rng: np.random.Generator, car: tuple[float, float, float, float], d: float) -> None:
    """A post, a bush or a crash barrier before the car."""
    x0, y0, x1, y1 = car
    draw = ImageDraw.Draw(image)
    kind, at = int(rng.integers(3)), rng.uniform(x0, x1)
    if kind == 0:
        wide = (x1 - x0) * rng.uniform(0.02, 0.07) * (0.5 + d)
        grey = int(rng.uniform(60, 150))
        draw.rectangle((at, 0, at + wide, y1 + 4), fill=(grey, grey, grey + 4))
        draw.line((at + wide * 0.3, 0, at + wide * 0.3, y1 + 4), fill=(grey + 40,) * 3)
    elif kind == 1:
        r = (x1 - x0) * 0.08 * (0.5 + d)
        for _ in range(7):
            cx, cy, s = at + rng.normal() * r, y1 + rng.normal() * 0.4 * r, r * rng.uniform(0.4, 0.8)
            draw.ellipse(
                (cx - s, cy - s, cx + s, cy + s), fill=(int(rng.uniform(40, 70)), int(rng.uniform(80, 120)), 44)
            )
    else:
        tall = (y1 - y0) * rng.uniform(0.06, 0.13) * (0.5 + d)
        top = y1 - tall * rng.uniform(1.0, 2.2)
        grey = int(rng.uniform(120, 190))
        for post in np.linspace(x0, x1, 4) + (at - x0) / 4:
            draw.rectangle((post, top, post + 0.02 * image.width, y1 + 0.4 * tall), fill=(grey - 60,) * 3)
        draw.rectangle((0, top, image.width, top + 0.6 * tall), fill=(grey, grey + 2, grey + 5))
        draw.line((0, top + 0.3 * tall, image.width, top + 0.3 * tall), fill=(grey - 45,) * 3)
