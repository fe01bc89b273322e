"""Test-time augmentation: the symmetries are a group, and what is averaged is what it says."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mtlcar.build import build
from mtlcar.checks.parts import check_parts
from mtlcar.checks.values import CHOICES, problems
from mtlcar.errors import UserError
from mtlcar.module import MultiTaskModule
from mtlcar.runs.evaluate import stored_config
from mtlcar.runs.training import make_trainer
from mtlcar.symmetries import SYMMETRIES, averaged
from tests.networks import CARS, IMAGE, STEEL
from tests.networks import build as network_of
from tests.test_build import cache, config, parts  # noqa: F401  (a fixture)
from tests.weighting_net import NoHostRoundTrip

GRID = torch.arange(9).reshape(1, 1, 3, 3)
EIGHT = SYMMETRIES["dihedral"]

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def position(image: Tensor) -> tuple[int, ...]:
    return tuple(image.flatten().tolist())


# --- the groups -------------------------------------------------------------------------------------------------------


def test_the_eight_symmetries_are_all_there_are() -> None:
    turned = [torch.rot90(GRID, k, (2, 3)) for k in range(4)]
    expected = {position(x) for x in turned} | {position(x.flip(3)) for x in turned}
    assert len(EIGHT) == len(expected) == 8
    assert {position(s(GRID)) for s in EIGHT} == expected
    quarter = next(s for s in EIGHT if s == (True, True, False))
    assert torch.equal(quarter(GRID), turned[1])


@pytest.mark.parametrize("name", SYMMETRIES)
def test_each_choice_is_a_group(name: str) -> None:
    group = {position(s(GRID)) for s in SYMMETRIES[name]}
    assert len(group) == {"none": 1, "flips": 4, "dihedral": 8}[name]
    assert torch.equal(SYMMETRIES[name][0](GRID), GRID)
    for first in SYMMETRIES[name]:
        products = [position(second(first(GRID))) for second in SYMMETRIES[name]]
        assert set(products) == group
        assert products.count(position(GRID)) == 1  # its inverse


def test_flips_are_the_identity_the_two_mirrors_and_both() -> None:
    expected = [GRID, GRID.flip(3), GRID.flip(2), GRID.flip(2, 3)]
    assert [position(s(GRID)) for s in SYMMETRIES["flips"]] == [position(x) for x in expected]
    assert set(SYMMETRIES["flips"]) < set(EIGHT)


# --- the averages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("among", "backbone"), [("flips", "tiny"), ("dihedral", "tiny"), ("dihedral", "vit_tiny")])
def test_the_average_does_not_depend_on_the_images_position(among: str, backbone: str) -> None:
    network = network_of("parallel", backbone=backbone).eval()

    def outputs(image: Tensor) -> dict[str, Tensor]:
        return network(image).outputs

    plain, expected = outputs(IMAGE), averaged(outputs, IMAGE, CARS, among)
    for symmetry in SYMMETRIES[among]:
        found = averaged(outputs, symmetry(IMAGE), CARS, among)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain["weight"], expected["weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("among", ["flips", "dihedral"])
def test_probabilities_and_values_are_averaged(among: str) -> None:
    torch.manual_seed(0)
    by_position = {position(s(GRID)): (torch.randn(1, 3) * 3, torch.randn(1)) for s in EIGHT}
    seen: list[tuple[int, ...]] = []

    def network(image: Tensor) -> dict[str, Tensor]:
        seen.append(position(image))
        return dict(zip(("class", "hardness"), by_position[position(image)], strict=True))

    found = averaged(network, GRID, STEEL, among)
    assert len(seen) == len(set(seen)) == len(SYMMETRIES[among])
    mean = torch.stack([by_position[p][0].softmax(1) for p in seen]).mean(0)
    torch.testing.assert_close(found["class"].exp(), mean)
    torch.testing.assert_close(found["class"].softmax(1), mean)
    torch.testing.assert_close(found["hardness"], torch.stack([by_position[p][1] for p in seen]).mean(0))


def test_a_probability_that_underflows_keeps_its_loss_finite() -> None:
    def network(image: Tensor) -> dict[str, Tensor]:
        return {"class": torch.tensor([[0.0, -500.0, -600.0]]), "hardness": torch.zeros(1)}

    torch.testing.assert_close(averaged(network, GRID, STEEL, "dihedral")["class"], network(GRID)["class"])


def test_half_precision_outputs_are_averaged_in_float32() -> None:
    def network(image: Tensor) -> dict[str, Tensor]:
        value = 1 + image[:, 0, 0, 0].float() / 128
        return {"class": torch.stack([value, -value, value], 1).bfloat16(), "hardness": value.bfloat16()}

    found = averaged(network, GRID, STEEL, "flips")  # corners 0, 2, 6, 8
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert found["hardness"].item() == 1 + 4 / 128


def test_averaging_never_waits_for_the_device() -> None:
    network = network_of("parallel").eval()
    with NoHostRoundTrip(), torch.no_grad():
        averaged(lambda image: network(image).outputs, IMAGE, CARS, "dihedral")


# --- in a run ---------------------------------------------------------------------------------------------------------


def found_by(cache: Path, *overrides: str, **trainer: object) -> dict[str, dict[str, float]]:  # noqa: F811
    """Validation and test metrics of an untrained network."""
    cfg, built = parts(cache, "backbone=vit_tiny", "data.levels=[make,model,weight]", *overrides)
    cfg.trainer.update({"limit_val_batches": 1, "limit_test_batches": 1, **trainer})
    runner = make_trainer(cfg, [], [], cache)
    return {
        "val": dict(runner.validate(built.module, datamodule=built.data, verbose=False)[0]),
        "test": dict(runner.test(built.module, datamodule=built.data, verbose=False)[0]),
    }


def test_only_the_test_is_averaged(cache: Path) -> None:  # noqa: F811
    plain, eight = (found_by(cache, f"test_time_augmentation={name}") for name in ("none", "dihedral"))
    assert eight["val"] == plain["val"]
    assert eight["test"].keys() == plain["test"].keys()
    assert eight["test"]["test/weight/mae"] != plain["test"]["test/weight/mae"]


@pytest.mark.parametrize("layout", ["false", "true"])
def test_a_test_step_gives_the_averaged_outputs_decoded(cache: Path, layout: str) -> None:  # noqa: F811
    words = ("data.levels=[make,model,weight]", f"trainer.channels_last={layout}")
    found = {}
    for name in SYMMETRIES:
        built = parts(cache, *words, f"test_time_augmentation={name}")[1]
        module = built.module.eval()
        batch = built.data.on_after_batch_transfer(next(iter(built.data.val_dataloader())))
        with torch.no_grad():
            step = module.test_step(batch, 0)
            plain, scores = module(batch["image"])
            each = [module(s(batch["image"])) for s in SYMMETRIES[name]]
        mean = torch.stack([s["model"] for _, s in each]).mean(0)
        torch.testing.assert_close(step["scores"]["model"], mean)
        assert torch.equal(step["prediction"]["model"], step["scores"]["model"].argmax(1))
        torch.testing.assert_close(step["prediction"]["weight"], torch.stack([p["weight"] for p, _ in each]).mean(0))
        if name == "none":
            assert torch.equal(step["prediction"]["weight"], plain["weight"])
            assert torch.equal(step["scores"]["model"], scores["model"])
        found[name] = step["scores"]["model"]
    assert not torch.equal(found["none"], found["flips"])
    assert not torch.equal(found["flips"], found["dihedral"])


def test_unknown_names_are_refused_and_all_known_ones_possible(cache: Path) -> None:  # noqa: F811
    assert CHOICES["test_time_augmentation"] == tuple(SYMMETRIES)
    (problem,) = problems(config(cache, "test_time_augmentation=rotations"))
    assert "test_time_augmentation should be one of none, flips, dihedral. Found rotations." in problem


def test_outputs_that_belong_to_a_predicted_class_are_not_averaged(cache: Path) -> None:  # noqa: F811
    words = (
        "data.levels=[model,weight]",
        "architecture=cascade",
        "architecture.feed=label",
        "architecture.combine=select",
    )
    cfg, built = parts(cache, *words)
    assert not built.module.architecture.can_be_averaged
    cfg.test_time_augmentation = "flips"
    for attempt in (lambda: check_parts(cfg, built.data.tasks), lambda: build(cfg, built.data)):
        with pytest.raises(UserError, match=r"test_time_augmentation=flips averages outputs, and with .*select"):
            attempt()


def test_a_run_from_before_is_evaluated_with_it_and_built_without(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    old = config(cache)
    OmegaConf.set_struct(old, False)
    del old["test_time_augmentation"]
    OmegaConf.set_struct(old, True)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(old))
    asked = stored_config(tmp_path, ["test_time_augmentation=dihedral"])
    for cfg, expected in ((old, "none"), (stored_config(tmp_path, []), "none"), (asked, "dihedral")):
        module = build(cfg).module
        assert isinstance(module, MultiTaskModule)
        assert module.test_time_augmentation == expected
    assert {k: v for k, v in asked.items() if k != "test_time_augmentation"} == dict(old.items())
