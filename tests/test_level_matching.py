"""The matching of levels: its value and gradient, and that it is in the objective and in no task's loss."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch import Tensor

from mtlcar.build import Parts, build
from mtlcar.checks.parts import check_parts
from mtlcar.config import compose_config, finish
from mtlcar.data.options import read_annotations
from mtlcar.errors import UserError
from mtlcar.level_matching import LevelMatching
from mtlcar.losses import TaskLosses
from mtlcar.runs.training import make_trainer
from mtlcar.tasks import Task, TaskSet

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

PARENT_OF = (2, 0, 0, 1, 2, 0)
TASKS = TaskSet(
    [
        Task("make", "classification", classes=("a", "b", "c")),
        Task("weight", "regression", unit="kg"),
        Task("model", "classification", classes=tuple("pqrstu"), parent="make"),
    ],
    {"model": PARENT_OF},
)
CARS = ("data.makes=2", "data.models_per_make=2", "data.images=96", "data.size=48", "data.image_size=32",
        "data.batch_size=8", "trainer=cpu", "threads=1", "logger=none", "trainer.max_epochs=1",
        "trainer.limit_train_batches=3", "optimizer=sgd", "optimizer.lr=0.05")  # fmt: skip


def logits(size: int = 7, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "make": (scale * torch.randn(size, 3, generator=g, dtype=torch.float64)).to(dtype),
        "weight": torch.randn(size, generator=g).to(dtype),
        "model": (scale * torch.randn(size, 6, generator=g, dtype=torch.float64)).to(dtype),
    }


def by_hand(outputs: dict[str, Tensor], kind: str) -> float:
    """One image after the other, one model after the other, with SciPy's divergences."""
    total = 0.0
    for make, model in zip(outputs["make"].double(), outputs["model"].double(), strict=True):
        p = np.array([math.exp(x) / sum(map(math.exp, make.tolist())) for x in make.tolist()])
        fine = [math.exp(x) / sum(map(math.exp, model.tolist())) for x in model.tolist()]
        q = np.zeros(3)
        for i, parent in enumerate(PARENT_OF):
            q[parent] += fine[i]
        total += rel_entr(p, q).sum() + rel_entr(q, p).sum() if kind == "kl" else jensenshannon(p, q) ** 2
    return float(total / len(outputs["make"]))


@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("kind", ["js", "kl"])
def test_the_value_is_scipys(kind: Any, scale: float) -> None:
    outputs = logits(scale=scale)
    found = LevelMatching(TASKS, kind)(outputs)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(by_hand(outputs, kind), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("kind", ["js", "kl"])
def test_it_is_zero_where_the_levels_agree_and_only_there(kind: Any) -> None:
    outputs = logits()
    share = torch.zeros(7, 3).index_add(1, torch.tensor(PARENT_OF), outputs["model"].softmax(1))
    agreeing = {**outputs, "make": share.log() + 5.0}
    assert float(LevelMatching(TASKS, kind)(agreeing)) == pytest.approx(0.0, abs=1e-6)
    assert float(LevelMatching(TASKS, kind)({**agreeing, "make": share.log() * 1.2})) > 1e-4


@pytest.mark.parametrize("kind", ["js", "kl"])
def test_the_gradient_of_both_heads_is_that_of_finite_differences(kind: Any) -> None:
    matching, step = LevelMatching(TASKS, kind), 1e-2
    outputs = {k: v.requires_grad_() for k, v in logits(size=3).items()}
    matching(outputs).backward()
    for task in ("make", "model"):
        gradient, differences = outputs[task].grad, torch.zeros_like(outputs[task])
        assert gradient is not None
        for at in np.ndindex(*outputs[task].shape):
            sides = []
            for sign in (1, -1):
                moved = outputs[task].detach().double().clone()
                moved[at] += sign * step
                sides.append(by_hand({**{k: v.detach() for k, v in outputs.items()}, task: moved}, kind))
            differences[at] = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(gradient, differences, atol=1e-4, rtol=1e-3)
        assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["js", "kl"])
def test_sure_heads_that_disagree_give_finite_values_and_gradients(kind: Any) -> None:
    outputs = {
        "make": torch.tensor([[900.0, 0.0, -900.0]]),
        "model": torch.tensor([[800.0, 0.0, 0.0, 0.0, 0.0, -800.0]]),
    }
    outputs = {k: v.requires_grad_() for k, v in outputs.items()}
    value = LevelMatching(TASKS, kind)(outputs)
    value.backward()
    if kind == "js":
        assert value.item() == pytest.approx(math.log(2))
    else:
        assert 1000 < value.item() < 4000
    for output in outputs.values():
        assert output.grad is not None
        assert output.grad.isfinite().all()


def test_it_is_float32_under_autocast_and_waits_for_no_device() -> None:
    outputs = logits(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LevelMatching(TASKS)(outputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, LevelMatching(TASKS)({k: v.float() for k, v in outputs.items()}))
    assert LevelMatching(TASKS).to("meta")({k: v.to("meta") for k, v in outputs.items()}).is_meta


def test_three_levels_are_two_pairs_and_nothing_is_stored_with_the_weights() -> None:
    levels = [*TASKS, Task("year", "classification", classes=tuple("0123456"), parent="model")]
    deep = LevelMatching(TaskSet(levels, {"model": PARENT_OF, "year": (0, 1, 2, 3, 4, 5, 5)}))
    assert deep.pairs == (("make", "model"), ("model", "year"))
    assert deep.state_dict() == {}
    year = torch.randn(7, 7, generator=torch.Generator().manual_seed(3))
    assert float(deep({**logits(), "year": year})) > float(LevelMatching(TASKS)(logits()))
    assert TaskLosses(TASKS, matching=1.0).state_dict().keys() == TaskLosses(TASKS).state_dict().keys()


def test_the_loss_adds_it_to_what_the_architecture_adds_and_leaves_the_tasks_alone() -> None:
    outputs = logits()
    targets = {"make": torch.zeros(7, dtype=torch.long), "weight": torch.zeros(7), "model": torch.full((7,), -1)}
    off, on = TaskLosses(TASKS), TaskLosses(TASKS, matching=0.5)
    torch.testing.assert_close(on(outputs, targets), off(outputs, targets), rtol=0, atol=0)
    extra = torch.tensor(3.0)
    assert off.add_matching(None, outputs) is None
    assert off.add_matching(extra, outputs) is extra
    found = on.add_matching(None, outputs), on.add_matching(extra, outputs)
    assert [f.item() for f in found if f is not None] == pytest.approx(
        [by_hand(outputs, "js") / 2, 3 + by_hand(outputs, "js") / 2]
    )


@pytest.mark.parametrize(
    ("tasks", "options", "says"),
    [
        (TASKS, {"matching": -1.0}, r"loss\.matching should be a number of at least 0"),
        (TASKS, {"matching": "on"}, r"loss\.matching should be a number"),
        (TASKS, {"matching_kind": "jsd"}, r"loss\.matching_kind should be js or kl. Found 'jsd'"),
        (TASKS.subset(["model"]), {"matching": 1.0}, r"both have to be trained.\s+Trained here: model"),
        (TASKS.subset(["make", "weight"]), {"matching": 1.0}, "Trained here: make, weight"),
        (TaskSet([TASKS[0], TASKS[2]], {"model": (0, 0, 0, 1, 1, 1)}), {"matching": 1.0}, "'c' has no model"),
    ],
)
def test_what_cannot_be_matched_is_refused(tasks: TaskSet, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        TaskLosses(tasks, **options)


# --- in training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def parts(cache: Path, *overrides: str) -> tuple[Any, Parts]:
    cfg = finish(compose_config([*CARS, f"paths.cache={cache}", f"paths.runs={cache / 'runs'}", *overrides]))
    OmegaConf.resolve(cfg)
    torch.manual_seed(0)
    return cfg, build(cfg)


def trained(cache: Path, *overrides: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    cfg, built = parts(cache, *overrides)
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    metrics = {k: float(v) for k, v in runner.callback_metrics.items()}
    return {k: v.clone() for k, v in built.module.state_dict().items()}, metrics


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def test_weight_zero_changes_no_bit_and_another_does(cache: Path) -> None:
    base, metrics = trained(cache)
    same, again = trained(cache, "loss.matching=0", "loss.matching_kind=kl")
    assert difference(base, same) == 0
    assert metrics == again
    assert "train/extra_loss" not in metrics
    other, with_it = trained(cache, "loss.matching=1")
    assert difference(base, other) > 1e-4
    assert 0 < with_it["train/extra_loss"] < math.log(2)


@pytest.mark.parametrize(
    "overrides",
    [
        ("weighting=pcgrad", "weighting.level=parameters"),
        ("weighting=pcgrad", "weighting.level=representation"),
        ("weighting=famo",),
        ("architecture=cascade",),
        ("architecture=cross_stitch",),
        ("architecture=dselect_k", "architecture.experts=3", "architecture.k=3"),
    ],
    ids=lambda overrides: "-".join(o.split("=")[1] for o in overrides[:2]),
)
def test_its_gradient_is_added_to_what_any_method_makes_of_the_tasks(cache: Path, overrides: tuple[str, ...]) -> None:
    """One step of plain SGD moves by lr x (gradient of the tasks' part + weight x gradient of the divergence)."""
    plain = (
        "optimizer=sgd",
        "optimizer.weight_decay=0",
        "optimizer.optimizer={momentum:0,nesterov:false}",
        "scheduler=constant",
    )
    moves = []
    for weight in (0, 0.7):
        cfg, built = parts(cache, *plain, "trainer.limit_train_batches=1", f"loss.matching={weight}", *overrides)
        if weight == 0:
            batch = built.data.on_after_batch_transfer(next(iter(built.data.train_dataloader())))
            network = built.module.architecture.train()
            parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
            matching = LevelMatching(network.tasks)(network(batch["image"], batch["target"]).outputs)
            grads = torch.autograd.grad(matching, list(parameters.values()), allow_unused=True)
            expected = {
                n: 0.0 * p if g is None else 0.7 * g for (n, p), g in zip(parameters.items(), grads, strict=True)
            }
            cfg, built = parts(cache, *plain, "trainer.limit_train_batches=1", "loss.matching=0", *overrides)
        runner = make_trainer(cfg, [], [], cache)
        before = {n: p.detach().clone() for n, p in built.module.architecture.named_parameters()}
        runner.fit(built.module, datamodule=built.data, weights_only=True)
        moves.append({n: before[n] - p.detach() for n, p in built.module.architecture.named_parameters()})
        rate = runner.optimizers[0].param_groups[0]["lr"]
    found = torch.cat([((moves[1][n] - moves[0][n]) / rate).flatten() for n in expected])
    wanted = torch.cat([g.flatten() for g in expected.values()])
    assert wanted.norm() > 1e-3
    assert (found - wanted).norm() < 2e-3 * wanted.norm() + 1e-4


@pytest.mark.parametrize(
    "overrides", [("architecture=single",), ("data.levels=[model,weight]", "label_transform=fastcar")]
)
def test_a_network_of_one_level_is_refused_before_anything_runs(cache: Path, overrides: tuple[str, ...]) -> None:
    cfg = finish(compose_config([*CARS, f"paths.cache={cache}", "loss.matching=1", *overrides]))
    with pytest.raises(UserError, match="both have to be trained"):
        check_parts(cfg, read_annotations(cfg.data, cache)[1])
