"""Augmentation: torchvision's operations, another draw for every image, the same draw for the same key."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mtlcar.data.augment import DRAWS, Augment, uniform
from mtlcar.data.colour import adjust_brightness_, adjust_contrast_, adjust_hue_, adjust_saturation_, luma
from mtlcar.errors import UserError

B, S = 64, 24
PLAIN: dict[str, Any] = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}
"""A normalisation that leaves 0..255 alone."""


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (B, 3, S, S), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def key() -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (B,), generator=torch.Generator().manual_seed(1))


EVERYTHING: dict[str, Any] = {
    "flip": 0.5,
    "vertical_flip": 0.5,
    "quarter_turns": True,
    "rotation": 10,
    "crop_scale": (0.5, 1),
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "erasing": 0.5,
}
SINGLE = [{name: value} for name, value in EVERYTHING.items()]


def show(options: dict[str, Any]) -> str:
    return "+".join(options)


# Randomness


def test_random_numbers_are_uniform_independent_and_of_each_key() -> None:
    u = uniform(torch.arange(20000) * 7919 - 10**6, len(DRAWS))
    assert u.shape == (len(DRAWS), 20000)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(1) - 0.5).abs().max() < 0.01
    assert (u.var(1) - 1 / 12).abs().max() < 0.003
    assert (torch.corrcoef(u) - torch.eye(len(DRAWS))).abs().max() < 0.03
    # the published SplitMix64 started at 0
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert torch.equal(
        uniform(torch.zeros(1, dtype=torch.int64), 3)[:, 0], torch.tensor([v >> 40 for v in first]) / 2**24
    )


@pytest.mark.parametrize("options", [*SINGLE, EVERYTHING], ids=show)
def test_an_image_is_augmented_by_its_key_alone(options: dict[str, Any], image: Tensor, key: Tensor) -> None:
    augment = Augment(**options)
    whole = augment(image, key)
    assert whole.dtype == torch.float32
    assert whole.shape == image.shape
    assert torch.isfinite(whole).all()
    assert torch.equal(augment(image, key), whole), "no hidden state"
    order = torch.randperm(B, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(augment(image[order], key[order]), whole[order], atol=1e-5), "other batch, same result"
    assert torch.allclose(augment(image[5:6], key[5:6]), whole[5:6], atol=1e-5)
    same = image[:1].expand(B, -1, -1, -1).clone()
    results = {tuple(x.flatten().tolist()) for x in augment(same, key)}
    assert len(results) >= (2 if len(options) == 1 else B - 2), "images of a batch are augmented differently"
    changed = augment(same, key + 1)
    assert not torch.equal(changed, augment(same, key))


def test_the_input_is_left_alone(image: Tensor, key: Tensor) -> None:
    before = image.clone()
    Augment(**EVERYTHING)(image, key)
    Augment(flip=0.5)(image, key)
    Augment().normalize(image)
    assert torch.equal(image, before)


def test_switching_one_operation_on_does_not_change_the_draws_of_another(image: Tensor, key: Tensor) -> None:
    flipped = Augment(flip=0.5, **PLAIN)(image, key)
    both = Augment(flip=0.5, erasing=0.5, **PLAIN)(image, key)
    kept = both != 0
    assert torch.equal(both[kept], flipped[kept])
    assert kept.float().mean() > 0.5


# Geometry


def test_off_is_normalisation_alone(image: Tensor, key: Tensor) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = TF.normalize(image.float() / 255, list(mean), list(std))
    off = Augment(mean=mean, std=std)
    assert torch.allclose(off(image, key), expected, atol=1e-5)
    assert torch.allclose(off.normalize(image), expected, atol=1e-5)
    changed = Augment()
    changed.set_normalization(mean, std)
    assert torch.equal(changed(image, key), off(image, key))


def variants(x: Tensor) -> list[Tensor]:
    """The eight symmetries of the square, the four turns first."""
    return [torch.rot90(y, k, (-2, -1)) for y in (x, x.flip(-1)) for k in range(4)]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"flip": 0.5}, (0, 4)),
        ({"vertical_flip": 0.5}, (0, 6)),
        ({"flip": 0.5, "vertical_flip": 0.5}, (0, 2, 4, 6)),
        ({"quarter_turns": True}, (0, 1, 2, 3)),
        ({"quarter_turns": True, "flip": 0.5}, tuple(range(8))),
    ],
    ids=lambda value: show(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("resampled", [False, True], ids=["exact", "resampled"])
def test_flips_and_turns_are_exact_and_equally_likely(
    options: dict[str, Any], allowed: tuple[int, ...], resampled: bool, image: Tensor, key: Tensor
) -> None:
    # a cut of the whole area changes nothing, but takes the way of the affine resampling
    extra: dict[str, Any] = {"crop_scale": (1, 1), "crop_ratio": (1, 1)} if resampled else {}
    out = Augment(**options, **extra, **PLAIN)(image, key)
    assert torch.allclose(out, Augment(**options, **PLAIN)(image, key), atol=1e-2), "both ways are the same"
    found = []
    for x, y in zip(image.float(), out, strict=True):
        found += [i for i, v in enumerate(variants(x)) if torch.allclose(v, y, atol=1e-2)]
    counts = np.bincount(found, minlength=8)
    assert counts.sum() == B
    assert set(np.flatnonzero(counts)) == set(allowed)
    assert counts[list(allowed)].min() >= 0.3 * B / len(allowed)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_share_of_flips_is_the_probability(probability: float) -> None:
    image = torch.zeros(4000, 3, 1, 2, dtype=torch.uint8)
    image[..., 1] = 255
    out = Augment(flip=probability, **PLAIN)(image, torch.arange(4000) * 10**12)
    assert abs((out[:, 0, 0, 0] > 128).float().mean().item() - probability) < 0.03


def test_rotation_turns_like_torchvision_inside_the_circle() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    smooth = torch.stack([127 + 100 * torch.sin(2 * x + y), 127 + 100 * x, 127 + 100 * y])[None]
    smooth = smooth.repeat(16, 1, 1, 1).to(torch.uint8)
    key = torch.arange(16) * 10**15
    out = Augment(rotation=40, **PLAIN)(smooth, key)
    angle = (2 * uniform(key, len(DRAWS))[DRAWS.index("rotation")] - 1) * 40
    assert angle.min() < -20
    assert angle.max() > 20
    inside = (x**2 + y**2) < 0.9
    for i in range(16):
        bilinear = TF.InterpolationMode.BILINEAR
        expected = TF.rotate(smooth[i].float(), -angle[i].item(), interpolation=bilinear)
        other = TF.rotate(smooth[i].float(), angle[i].item(), interpolation=bilinear)
        error = min((out[i] - e)[:, inside].abs().max().item() for e in (expected, other))
        assert error < 2


def test_a_crop_is_torchvisions_resized_crop() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    smooth = torch.stack([5 * x, 5 * y, 2 * (x + y)])[None].repeat(200, 1, 1, 1).to(torch.uint8)
    key = torch.arange(200) * 10**15
    out = Augment(crop_scale=(0.25, 0.64), crop_ratio=(0.8, 1.25), **PLAIN)(smooth, key)
    u = dict(zip(DRAWS, uniform(key, len(DRAWS)), strict=True))
    area = 0.25 + u["area"] * (0.64 - 0.25)
    ratio = torch.exp((2 * u["ratio"] - 1) * math.log(1.25))
    width, height = (area * ratio).sqrt() * 48, (area / ratio).sqrt() * 48
    left, top = u["left"] * (48 - width), u["top"] * (48 - height)
    for i in range(200):
        # the ramps make the place of every pixel legible: 5 grey levels a pixel
        columns = left[i] + (torch.arange(48) + 0.5) / 48 * width[i] - 0.5
        rows = top[i] + (torch.arange(48) + 0.5) / 48 * height[i] - 0.5
        assert (out[i, 0] - 5 * columns.clamp(0, 47)).abs().max() < 3
        assert (out[i, 1] - 5 * rows.clamp(0, 47)[:, None]).abs().max() < 3


@settings(max_examples=40)
@given(st.floats(0.05, 1), st.floats(0.2, 5), st.integers(0, 10**9))
def test_a_crop_never_leaves_the_image(scale: float, ratio: float, start: int) -> None:
    image = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    low, high = min(ratio, 1 / ratio), max(ratio, 1 / ratio)
    out = Augment(crop_scale=(scale, 1), crop_ratio=(low, high), rotation=180, **PLAIN)(image, torch.arange(4) + start)
    assert torch.allclose(out, torch.full_like(out, 200), atol=1e-3), "filled by reflection, never by black"


def test_erasing_removes_a_rectangle_of_the_asked_area(image: Tensor) -> None:
    n, s = 1000, 40
    ones = torch.full((n, 3, s, s), 255, dtype=torch.uint8)
    out = Augment(erasing=0.5, erasing_scale=(0.1, 0.3))(ones, torch.arange(n) * 10**15)
    gone = out[:, 0] == 0
    share = gone.float().mean((1, 2))
    hit = share > 0
    assert abs(hit.float().mean() - 0.5) < 0.06
    assert share[hit].min() > 0.05
    assert share[hit].max() < 0.36
    assert abs(share[hit].mean() - 0.19) < 0.03
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(rows * columns, gone.sum((1, 2))), "a rectangle"
    assert (out == out[:, :1]).all(), "in all channels"


# Colour: the same factor gives torchvision's result


def cases() -> Tensor:
    """Random, saturated, grey, black and white images, 0..255."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(12, 3, 9, 7, generator=g)
    x[0] = 0
    x[1] = 1
    x[2] = x[2, :1]
    x[3] = x[3].round()
    x[4] = (255 * x[4]).round() / 255
    return x * 255


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.8, 1.0, 1.2, 1.9])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adjust_brightness_, TF.adjust_brightness),
        (adjust_contrast_, TF.adjust_contrast),
        (adjust_saturation_, TF.adjust_saturation),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_colour_operations_are_torchvisions(ours: Any, theirs: Any, factor: float) -> None:
    x = cases()
    expected = theirs(x / 255, factor) * 255
    assert torch.allclose(ours(x.clone(), torch.full((12, 1, 1, 1), factor)), expected, atol=2e-2)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.05, 0.3, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    x = cases()
    expected = TF.adjust_hue(x / 255, shift) * 255
    assert torch.allclose(adjust_hue_(x.clone(), torch.full((12, 1, 1, 1), shift)), expected, atol=2e-2)


def test_grey_is_torchvisions() -> None:
    x = cases()
    assert torch.allclose(luma(x), TF.rgb_to_grayscale(x / 255) * 255, atol=2e-2)


def test_each_image_gets_the_factor_drawn_for_it(image: Tensor, key: Tensor) -> None:
    options = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    out = Augment(**options, **PLAIN)(image, key)
    u = dict(zip(DRAWS, uniform(key, len(DRAWS)), strict=True))
    for i in range(B):
        x = image[i].float() / 255
        x = TF.adjust_brightness(x, 0.6 + 0.8 * u["brightness"][i].item())
        x = TF.adjust_contrast(x, 0.7 + 0.6 * u["contrast"][i].item())
        x = TF.adjust_saturation(x, 0.8 + 0.4 * u["saturation"][i].item())
        x = TF.adjust_hue(x, -0.1 + 0.2 * u["hue"][i].item())
        assert torch.allclose(out[i], x * 255, atol=0.05)


# Arguments


@pytest.mark.parametrize(
    "options",
    [{"flip": 1.5}, {"hue": 0.6}, {"rotation": -3}, {"crop_scale": (0.9, 0.5)}, {"crop_scale": (0, 1)}, {"erasing": 2}],
    ids=show,
)
def test_an_argument_out_of_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"data\.augment\.{next(iter(options))}"):
        Augment(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_and_computes_the_same_without_synchronising(image: Tensor, key: Tensor) -> None:
    cpu = Augment(**EVERYTHING)(image, key)
    augment, x, k = Augment(**EVERYTHING).cuda(), image.cuda(), key.cuda()
    augment(x, k)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = augment(x, k)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (out.cpu() - cpu).abs().mean() < 1e-3
