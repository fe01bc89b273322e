"""`mtlcar diagnose`: gradients against a plain loop, probes and subspaces against closed forms and SciPy."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from mtlcar.architectures.base import Architecture
from mtlcar.config import groups
from mtlcar.diagnosis import command
from mtlcar.diagnosis.conflict import ALL, conflict_table, noise_share
from mtlcar.diagnosis.features import pooled_features
from mtlcar.diagnosis.figures import conflict_figure, features_figure
from mtlcar.diagnosis.gradients import measure
from mtlcar.diagnosis.layers import layers_of, shared_parameters
from mtlcar.diagnosis.opened import open_run
from mtlcar.diagnosis.probes import FOLDS, PENALTIES, baseline, folds, press, probe, ridge
from mtlcar.diagnosis.subspaces import Factor, directions, overlap, overlaps, random_overlap
from mtlcar.errors import UserError
from mtlcar.step_log import StepMeans
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.gradients import Step
from tests.networks import CARS, IMAGE, build, losses, node
from tests.test_build import SumOfGradients
from tests.test_explain import untrained, warmed

ARCHITECTURES = [n for n in groups()["architecture"] if n not in ("single", "constant")]
HIERARCHY = TaskSet(
    (
        Task("make", "classification", ("a", "b", "c")),
        Task("model", "classification", tuple("012345678"), parent="make"),
    ),
    {"model": [i // 3 for i in range(9)]},
)


def batches(n: int, size: int = 6) -> list[Tensor]:
    g = torch.Generator().manual_seed(4)
    return [torch.randn(size, 3, 32, 32, generator=g) for _ in range(n)]


def stacked(network: Architecture) -> Any:
    return lambda image: torch.stack(losses(network, image))


def test_the_numbers_are_those_of_a_plain_loop_over_whole_gradients() -> None:
    network = warmed(build("cascade", order=[["make", "model"]]))
    parameters = shared_parameters(network)
    layers = layers_of(network, parameters)
    table = conflict_table(measure(stacked(network), batches(4), parameters), CARS.names, layers)
    for part in (ALL, "stage 2", "head make"):
        chosen = [p for n, p in parameters.items() if part == ALL or n in layers[part]]
        vectors = torch.zeros(4, 3, sum(p.numel() for p in chosen), dtype=torch.float64)
        for i, image in enumerate(batches(4)):
            for t, loss in enumerate(losses(network, image)):
                network.zero_grad()
                loss.backward(retain_graph=True)
                vectors[i, t] = torch.cat(
                    [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in chosen]
                )
        network.zero_grad()
        rows = table[(table.part == part) & (table.level != "tensor")]
        assert len(rows) == 3
        for row, (a, b) in zip(rows.itertuples(), combinations(range(3), 2), strict=True):
            u, v = vectors[:, a], vectors[:, b]
            cosines = torch.cosine_similarity(u, v, dim=1, eps=0)
            known = ~cosines.isnan()
            assert row.batches == int(known.sum())
            norms = u.norm(dim=1), v.norm(dim=1)
            np.testing.assert_allclose([row.norm_a, row.norm_b], [float(n.mean()) for n in norms], rtol=1e-5)
            if not known.any():
                assert np.isnan([row.cosine, row.conflict, row.gms, row.cosine_of_mean]).all()
                continue
            similarity = 2 * norms[0] * norms[1] / (norms[0] ** 2 + norms[1] ** 2)
            mean = torch.cosine_similarity(u.mean(0), v.mean(0), dim=0, eps=0)
            expected = [
                cosines.mean(),
                cosines.min(),
                cosines.max(),
                mean,
                (cosines < 0).double().mean(),
                similarity.mean(),
            ]
            found = [row.cosine, row.cosine_low, row.cosine_high, row.cosine_of_mean, row.conflict, row.gms]
            np.testing.assert_allclose(found, [float(x) for x in expected], atol=1e-5)
            variance = u.var(dim=0).sum() / u.square().sum(1).mean()
            np.testing.assert_allclose(row.noise_a, min(1.0, float(variance)), atol=1e-5)
    weight = table[(table.part == "head make") & (table.task_b == "weight")]
    assert (weight.batches == 0).all()  # the weight's loss does not reach the make's head


def test_they_are_those_that_training_logs() -> None:
    network = warmed(build("parallel"))
    parameters = shared_parameters(network)
    table = conflict_table(
        measure(stacked(network), batches(5), parameters), CARS.names, layers_of(network, parameters)
    )
    log, weighting = StepMeans(CARS.names), SumOfGradients(CARS, name="sum", level="parameters")
    shared = list(parameters.values())
    private = [p for p in network.parameters() if all(p is not q for q in shared)]
    for image in batches(5):
        found = torch.stack(losses(network, image))
        one = torch.ones(())
        step = Step(losses=found, factor=one, scale=one, shared=shared, private=private, above=[])
        log.add(found.detach(), weighting.backward(step))
    logged = {k: float(v) for k, v in log.take(lambda x: x).items()}
    for row in table[table.level == "all"].itertuples():
        pair = f"{row.task_a}-{row.task_b}"
        np.testing.assert_allclose(row.cosine, logged[f"{pair}/cosine"], atol=1e-4)
        assert row.conflict == pytest.approx(logged[f"{pair}/conflict"])
        np.testing.assert_allclose(row.norm_a, logged[f"{row.task_a}/gradient_norm"], rtol=1e-3)


def test_equal_tasks_agree_opposed_ones_conflict_and_a_stronger_one_rules() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))

    def three(x: Tensor) -> Tensor:
        value = (parameter * x).sum()
        return torch.stack([value, -value, 10 * value])

    found = measure(three, list(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))), {"p": parameter})
    table = conflict_table(found, ("a", "b", "c"), {"layer": ["p"]})
    assert set(table.level) == {"all", "part", "tensor"}
    rows = table[table.level == "part"].set_index(["task_a", "task_b"])
    np.testing.assert_allclose(rows.cosine, [-1, 1, -1], atol=1e-12)
    np.testing.assert_allclose(rows.conflict, [1, 0, 1])
    np.testing.assert_allclose(rows.gms, [1, 20 / 101, 20 / 101])


def test_the_noise_share_is_that_of_gradients_with_known_noise() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=200)
    signal /= np.linalg.norm(signal)
    for variance in (0.25, 1.0, 4.0):
        g = signal + rng.normal(size=(400, 200)) * np.sqrt(variance / 200)
        share = noise_share((g**2).sum(1), float((g.mean(0) ** 2).sum()))
        assert share == pytest.approx(variance / (1 + variance), abs=0.02)
    assert noise_share(np.ones(3), 1.0) == 0.0
    assert noise_share(np.ones(3), 0.1) == 1.0
    assert np.isnan(noise_share(np.ones(1), 1.0))
    assert np.isnan(noise_share(np.zeros(3), 0.0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_shared_parameter_is_in_one_named_part(architecture: str) -> None:
    network = build(architecture).eval().pruned()
    parameters = shared_parameters(network)
    assert {id(p) for p in parameters.values()} == {id(p) for p in network.shared_parameters()}
    layers = layers_of(network, parameters)
    assert sorted(n for names in layers.values() for n in names) == sorted(parameters)
    stages = [p for p in layers if "stage" in p]
    assert list(layers)[: len(stages)] == stages  # what is no stage comes after
    if architecture in ("parallel", "kem", "mtan"):
        assert stages == ["stage 1", "stage 2", "stage 3", "stage 4"]
    if architecture == "cross_stitch":
        assert stages[:3] == ["trunk 1 stage 1", "trunk 2 stage 1", "trunk 3 stage 1"]
        assert "stitches 1" in layers
    if architecture == "cascade":
        assert list(layers)[-2:] == ["head make", "head model"]
    if architecture == "ltb":
        assert stages[0] == "stage 1 (common)"


@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "single"])
def test_features_are_stage_by_stage_and_what_heads_take(architecture: str, backbone: str) -> None:
    network = warmed(build(architecture, backbone=backbone))
    features = pooled_features(network, [IMAGE[:4], IMAGE[4:]])
    assert all(len(x) == 6 and x.ndim == 2 and np.isfinite(x).all() for x in features.values())
    assert not any(m._forward_hooks for m in network.modules())
    shared = network(IMAGE)
    heads = [x for n, x in features.items() if n.startswith("features")]
    if architecture in ("parallel", "single"):
        assert [n for n in features if "stage" in n] == [f"stage {k}" for k in (1, 2, 3, 4)]
        maps = network.backbone(IMAGE)
        for k, m in enumerate(maps, 1):
            grid = m[:, :, 1:] if backbone == "vit_tiny" else m
            np.testing.assert_allclose(features[f"stage {k}"], grid.mean((2, 3)).detach(), atol=1e-5)
        assert len(heads) == (backbone == "vit_tiny")  # a CNN's pooled vector is the last stage's
    if shared.representations and architecture != "ltb":  # there a head takes a stage's map pooled
        assert {n for n in features if n.startswith("features")} >= {"features of make"}
    if len(heads) == 1 and shared.bottleneck is not None and shared.bottleneck.ndim == 2:
        np.testing.assert_allclose(heads[0], shared.bottleneck.detach(), atol=1e-5)


def test_ridge_is_the_closed_form_with_the_penalty_that_leaving_one_out_prefers() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((30, 5), (12, 40)):
        x, new = rng.normal(size=(n, d)), rng.normal(size=(4, d))
        y = x[:, :2] @ rng.normal(size=(2, 3)) + rng.normal(size=(n, 3)) + 5

        def fit(x: np.ndarray, y: np.ndarray, at: np.ndarray, penalty: float) -> np.ndarray:
            design = np.c_[np.ones(len(x)), x]
            unpenalised = np.diag([0.0] + [penalty] * x.shape[1])
            return np.c_[np.ones(len(at)), at] @ np.linalg.solve(design.T @ design + unpenalised, design.T @ y)

        mean, std = x.mean(0), x.std(0)
        z, z_new = (x - mean) / std, (new - mean) / std
        errors = []
        for penalty in PENALTIES * n:
            left = [fit(np.delete(z, i, 0), np.delete(y, i, 0), z[[i]], penalty) - y[[i]] for i in range(n)]
            errors.append(float(np.square(left).sum()))
        best = int(np.argmin(errors))
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        np.testing.assert_allclose([press(u, s, y - y.mean(0), p) for p in PENALTIES * n], errors, rtol=1e-5)
        assert 0 < best < len(PENALTIES) - 1 or d > n  # there is something to choose
        np.testing.assert_allclose(ridge(x, y, new), fit(z, y, z_new, PENALTIES[best] * n), rtol=1e-6)


def test_probes_find_what_is_there_and_only_that() -> None:
    rng = np.random.default_rng(0)
    task, value = Task("c", "classification", tuple("abcd")), Task("v", "regression")
    labels = rng.integers(0, 4, 200)
    noise = rng.normal(size=(200, 30))
    told = noise.copy()
    told[:, 3:7] += 6 * np.eye(4)[labels]
    assert probe(told, labels, task) == 1.0
    assert abs(probe(noise, labels, task) - 0.25) < 0.1
    assert baseline(labels, task) == np.bincount(labels).max() / 200
    y = noise[:, 0] + 0.5 * rng.normal(size=200)  # R^2 of the best line: 0.8
    assert probe(noise, y, value) == pytest.approx(0.8, abs=0.06)
    assert probe(noise[:, 1:], y, value) < 0.1
    some = labels.copy()
    some[:150] = -1
    assert probe(told, some, task) > 0.9  # missing labels take no part
    assert probe(told, np.full(200, -1), task) is None
    assert probe(told, np.zeros(200, int), task) is None
    assert probe(np.ones((200, 3)), labels, task) is not None  # nothing varies: the most frequent class


def test_folds_hold_the_same_labels_and_no_group_is_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    fold = folds(labels)
    for c in range(3):
        counts = np.bincount(fold[labels == c], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    group = np.repeat(np.arange(30), 3)
    by_group = np.repeat(rng.integers(0, 3, 30), 3)
    fold = folds(by_group, group)
    assert all(len(set(fold[group == g])) == 1 for g in range(30))
    assert len(set(fold)) == FOLDS
    # what is the same for all images of a group cannot be read off the group
    mark = np.eye(30)[group]
    value = rng.normal(size=30)[group]
    assert probe(mark, value, Task("v", "regression")) > 0.9
    assert probe(mark, value, Task("v", "regression"), group) < 0.1


def test_overlap_is_scipys_principal_angles_and_chance_is_the_simulated_one() -> None:
    rng = np.random.default_rng(0)
    for p, q, d in ((2, 3, 8), (5, 2, 6), (4, 4, 4)):
        found = []
        for _ in range(400):
            u, v = (np.linalg.qr(rng.normal(size=(d, r)))[0] for r in (p, q))
            found.append(overlap(u, v))
        angles = scipy.linalg.subspace_angles(u, v)
        assert found[-1] == pytest.approx(float(np.square(np.cos(angles)).mean()), abs=1e-12)
        assert np.mean(found) == pytest.approx(random_overlap(p, q, d), abs=0.02)
    assert np.isnan(overlap(np.zeros((4, 0)), np.eye(4)))


def test_a_classs_directions_are_those_of_the_between_class_scatter() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 60)
    x = rng.normal(size=(60, 7)) + rng.normal(size=(5, 7))[labels]
    scatter = np.zeros((7, 7))
    for c in range(5):
        away = x[labels == c].mean(0) - x.mean(0)
        scatter += (labels == c).sum() * np.outer(away, away)
    values, vectors = np.linalg.eigh(scatter)
    share = np.cumsum(values[::-1]) / values.sum()
    rank = int((share < 0.9).sum()) + 1
    found = directions(x, Factor(labels))
    assert found.shape == (7, rank)
    assert rank < 4
    assert overlap(found, vectors[:, ::-1][:, :rank]) == pytest.approx(1)
    value = x @ rng.normal(size=7)
    covariance = (x - x.mean(0)).T @ (value - value.mean())
    assert abs(directions(x, Factor(value))[:, 0] @ covariance) == pytest.approx(np.linalg.norm(covariance))
    assert directions(x, Factor(np.zeros(60, int))).shape == (7, 0)


def hierarchical(n: int, apart: bool, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Makes along 3 axes; models within a make along 3 others, or along the same."""
    rng = np.random.default_rng(seed)
    model = np.arange(n) % 9
    make = model // 3
    x = 0.3 * rng.normal(size=(n, 30))
    x[:, :3] += 3 * np.eye(3)[make]
    start = 3 if apart else 0
    x[:, start : start + 3] += 3 * np.eye(3)[model % 3]
    return x, {"make": make, "model": model}


def test_disentangled_levels_overlap_less_than_chance_and_entangled_ones_more() -> None:
    (apart,) = overlaps(*hierarchical(360, apart=True), HIERARCHY)
    assert (apart["a"], apart["b"], apart["given"], apart["images"]) == ("make", "model", True, 360)
    assert apart["rank_a"] == apart["rank_b"] == 2
    assert apart["overlap"] < 0.01 < apart["random"] == pytest.approx(2 / 30)
    assert apart["overlap"] < apart["shuffled"]
    (mixed,) = overlaps(*hierarchical(360, apart=False), HIERARCHY)
    assert mixed["overlap"] > 0.95 > mixed["random"]
    # noise in few directions alone: shuffled labels say what that does, the formula does not
    rng = np.random.default_rng(0)
    x = rng.normal(size=(360, 30)) * np.r_[10, 10, 10, np.full(27, 0.01)]
    (noise,) = overlaps(x, hierarchical(360, apart=True)[1], HIERARCHY)
    assert noise["overlap"] == pytest.approx(noise["shuffled"], abs=0.35)
    assert noise["shuffled"] > 5 * noise["random"]


def test_values_beside_a_class_count_within_it() -> None:
    rng = np.random.default_rng(0)
    tasks = TaskSet((Task("hardness", "regression"), Task("class", "classification", ("a", "b", "c"))))
    c = np.arange(300) % 3
    inside = rng.normal(size=300)
    x = 0.1 * rng.normal(size=(300, 10))
    x[:, :3] += 5 * np.eye(3)[c]
    x[:, 5] += inside
    y = 100.0 * c + inside
    missing = y.copy()
    missing[::7] = np.nan
    (found,) = overlaps(x, {"hardness": missing, "class": c}, tasks)
    assert (found["a"], found["b"], found["given"]) == ("class", "hardness", True)
    assert found["images"] == 300 - len(y[::7])
    assert found["rank_b"] == 1
    assert found["overlap"] < 0.01  # although the value's own direction is nearly the classes'
    assert overlap(directions(x, Factor(y)), directions(x, Factor(c))) > 0.9


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("diagnosis"), "architecture=cascade", "architecture.feed=label")


def test_the_command_writes_what_it_prints_and_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run)
    assert command(str(run), batches=3, output=str(tmp_path / "d"), as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert files(run) == before
    assert said == json.loads((tmp_path / "d/diagnosis.json").read_text())
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "conflict.csv", "conflict.png", "diagnosis.json", "features.png",
    ]  # fmt: skip
    table = pd.read_csv(tmp_path / "d/conflict.csv")
    parts = said["gradients"]["parts"]
    assert [r["part"] for r in parts] == [ALL, *(f"stage {k}" for k in (1, 2, 3, 4))]  # labels are fed: no head
    assert said["gradients"]["batches"] == 3
    assert table[table.level == "all"].cosine.item() == pytest.approx(parts[0]["cosine"])
    assert table[table.level == "tensor"].elements.sum() == parts[0]["elements"]
    assert [row["name"] for row in said["features"]["of"]] == [f"stage {k}" for k in (1, 2, 3, 4)]
    for name in ("conflict.png", "features.png"):
        with Image.open(tmp_path / "d" / name) as image:
            assert min(image.size) > 300
    assert command(str(run), batches=3, output=str(tmp_path / "d"), as_json=False) == 0
    printed = capsys.readouterr().out
    assert "stage 4" in printed
    assert "model given make" in printed
    assert str(tmp_path / "d") in printed
    assert json.loads((tmp_path / "d/diagnosis.json").read_text()) == said  # the same again


def test_gradients_are_of_plain_training_images_with_labels_fed(run: Path) -> None:
    opened = open_run(str(run))
    seen = list(opened.train_batches(1000))
    data = opened.parts.data
    assert len(seen) == data.steps_per_epoch  # no more than an epoch
    rows = torch.cat([b["index"] for b in seen]).numpy()
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(data.indices["train"])
    torch.testing.assert_close(seen[0]["image"], data.augment.normalize(data.gather(seen[0]["index"].numpy())))
    network, target = opened.architecture, seen[0]["target"]
    assert not any(m.training for m in network.modules() if m is not network)
    wrong = {**target, "make": 1 - target["make"]}
    model = network(seen[0]["image"], target).outputs["model"]
    assert not torch.equal(model, network(seen[0]["image"], wrong).outputs["model"])
    smoothing = opened.cfg.loss.label_smoothing
    expected = torch.nn.functional.cross_entropy(model, target["model"], label_smoothing=smoothing)
    torch.testing.assert_close(opened.losses(seen[0])[1], expected)


def test_a_single_task_has_features_but_no_conflict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = untrained(tmp_path, "architecture=single", "weighting=equal")
    (run / "diagnosis").mkdir()
    (run / "diagnosis/conflict.csv").write_text("of another time")
    assert command(str(run), batches=2, output=None, as_json=False) == 0
    assert "trains model alone" in capsys.readouterr().out
    assert sorted(p.name for p in (run / "diagnosis").iterdir()) == ["diagnosis.json", "features.png"]
    said = json.loads((run / "diagnosis/diagnosis.json").read_text())
    assert set(said["features"]["of"][0]["probes"]) == {"make", "model"}  # also of what it was not trained on


def test_a_network_without_a_trunk_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = untrained(tmp_path, "architecture=constant", "weighting=equal")
    assert command(str(run), batches=2, output=None, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "no trainable parameter that several losses reach" in printed
    assert "makes no features" in printed


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--batches should be at least 1. Found 0"):
        command(str(run), batches=0, output=None, as_json=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        command(str(run), batches=1, output=str(tmp_path / "file"), as_json=False)
    other = tmp_path / run.name
    other.mkdir()
    cfg = OmegaConf.load(run / "config.yaml")
    (other / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    with pytest.raises(UserError, match=r"best\.ckpt: no such checkpoint"):
        command(str(other), batches=1, output=None, as_json=False)
    (other / "checkpoints").symlink_to(run / "checkpoints")
    cfg.data = OmegaConf.merge(node("data", "stanford_cars"), {"root": str(tmp_path / "nowhere")})
    (other / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    with pytest.raises(UserError, match="nowhere"):
        command(str(other), batches=1, output=None, as_json=False)


def test_figures_name_every_part_and_pair_and_take_what_is_missing() -> None:
    row = {"batches": 4, "norm_a": 1.0, "norm_b": 1.0, "gms": 1.0, "noise_a": None, "noise_b": None, "elements": 3}
    known = {"cosine": 0.1, "cosine_low": -0.2, "cosine_high": 0.3, "cosine_of_mean": None, "conflict": 0.25}
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    parts = [
        {"part": p, "task_a": x, "task_b": y, **row, **(known if (p, y) != ("head a", "c") else dict.fromkeys(known))}
        for p in ("all shared", "stage 1", "head a")
        for x, y in pairs
    ]
    figure = conflict_figure({"parts": parts, "batches": 4})
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["head a", "stage 1", "all shared"]
    assert {"a, b", "a, c", "b, c"} <= {t.get_text() for t in figure.legends[0].get_texts()}
    assert len([t for t in figure.axes[1].texts if t.get_text() == "25 %"]) == 7
    overlaps = [{"a": "a", "b": "b", "given": False, "overlap": None, "shuffled": 0.1, "random": 0.1}]
    of = [{"name": f"stage {k}", "width": 3, "probes": {"a": 0.5, "b": None}, "overlaps": overlaps} for k in (1, 2)]
    of[1]["probes"] = {"a": 0.7, "b": -3.0}
    figure = features_figure({"of": of, "scores": {"a": "accuracy", "b": "R2"}, "baselines": {"a": 0.3, "b": 0.0}})
    left, right = figure.axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["a (accuracy)", "b (R²)"]
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["a, b"]
    assert left.get_ylim()[0] == pytest.approx(-0.52)  # a failed fit does not hide the others
