"""A trained network by itself: what it says, and the features it says it from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlcar.build import build, build_data
from mtlcar.errors import UserError
from mtlcar.inference.network import load_network
from mtlcar.runs.checkpoint_files import load_weights
from mtlcar.runs.evaluate import stored_config
from tests.test_explain import untrained
from tests.trained import trained_run

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
ALL = "data.levels=[make,model,weight]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return trained_run(folder, ALL, "architecture=cascade", tested=False)


@pytest.mark.parametrize("architecture", ["parallel", "single", "cross_stitch", "mmoe", "mtan", "ltb", "kem"])
def test_features_are_the_last_map_of_the_trunk_that_the_network_computes(folder: Path, architecture: str) -> None:
    run = untrained(folder, f"architecture={architecture}", "weighting=equal", "data.box_margin=null")
    cfg = stored_config(run, [])
    network, pixels = load_network(run, cfg), build_data(cfg).gather(np.array([0, 5, 9]))
    found = network.features(pixels)
    assert found.shape == (3, network.architecture.backbone.channels[-1])
    torch.testing.assert_close(network(pixels).features, found)
    assert (found.std(0) > 0).any()
    if architecture in ("parallel", "single"):
        with torch.inference_mode():
            last = network.architecture.backbone(network.augment.normalize(pixels))[-1]
        torch.testing.assert_close(found, last.flatten(2).mean(2))


def test_features_are_of_the_image_as_it_is_whatever_it_is_averaged_over(run: Path, folder: Path) -> None:
    plain = run
    turned = untrained(
        folder,
        ALL,
        "weighting=equal",
        "data.box_margin=null",
        "architecture=cascade",
        "test_time_augmentation=dihedral",
    )
    shutil.copy(plain / "checkpoints" / "best.ckpt", turned / "checkpoints" / "best.ckpt")
    one, other = (load_network(run, stored_config(run, [])) for run in (plain, turned))
    pixels = build_data(one.cfg).gather(np.array([0, 1]))
    first, second = one(pixels), other(pixels)
    torch.testing.assert_close(first.features, second.features)
    assert not torch.allclose(first.scores["model"], second.scores["model"], atol=1e-4)
    torch.testing.assert_close(other(pixels.flip(-1)).scores["model"], second.scores["model"], rtol=1e-3, atol=1e-5)


def test_it_says_what_the_module_that_was_trained_says(run: Path) -> None:
    cfg = stored_config(run, [])
    parts = build(cfg)
    load_weights(parts.module, run / "checkpoints" / "best.ckpt")
    pixels = parts.data.gather(np.array([3, 8, 20, 21]))
    with torch.inference_mode():
        predictions, scores = parts.module.eval()(parts.data.augment.normalize(pixels))
    said = load_network(run, cfg)(pixels)
    assert list(said.predictions) == ["make", "model", "weight"]
    for name, value in predictions.items():
        torch.testing.assert_close(said.predictions[name], value)
    for name, value in scores.items():
        torch.testing.assert_close(said.scores[name], value)


def test_no_hook_stays_behind(run: Path) -> None:
    network = load_network(run, stored_config(run, []))
    network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    network.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert not any(m._forward_hooks for m in network.architecture.modules())


def test_loading_needs_tasks_and_the_checkpoint_of_this_configuration(run: Path, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    cfg = stored_config(copy, [])
    (copy / "tasks.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_network(copy, cfg)
    (copy / "tasks.json").unlink()
    with pytest.raises(UserError, match=r"tasks\.json is missing"):
        load_network(copy, cfg)
    shutil.copy(run / "tasks.json", copy)
    other = untrained(folder, ALL, "architecture=parallel")
    shutil.copy(other / "checkpoints" / "best.ckpt", copy / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="of another configuration"):
        load_network(copy, cfg)
