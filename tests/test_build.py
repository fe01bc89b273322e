"""The parts of a configuration meet: real steps under Lightning's trainer on a few embedded cars."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mtlcar.build import Parts, build
from mtlcar.checks.parts import check_parts
from mtlcar.checks.values import problems
from mtlcar.config import compose_config, finish, groups
from mtlcar.data.options import read_annotations
from mtlcar.errors import UserError
from mtlcar.finite import NonFiniteLossError
from mtlcar.module import MultiTaskModule, refuse_impossible
from mtlcar.runs.evaluate import stored_config
from mtlcar.runs.names import run_name
from mtlcar.runs.training import make_trainer, precision
from mtlcar.weightings.base import GramianWeighting
from mtlcar.weightings.equal import Equal

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

CARS = ("data.makes=2", "data.models_per_make=2", "data.images=96", "data.size=48", "data.image_size=32",
        "data.batch_size=8", "trainer=cpu", "threads=1", "logger=none", "trainer.max_epochs=1")  # fmt: skip


class SumOfGradients(GramianWeighting):
    """What equal weighting does, by the long way round."""

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(cache: Path, *overrides: str) -> DictConfig:
    cfg = finish(compose_config([*CARS, f"paths.cache={cache}", f"paths.runs={cache / 'runs'}", *overrides]))
    OmegaConf.resolve(cfg)
    return cfg


def parts(cache: Path, *overrides: str, level: str | None = None) -> tuple[DictConfig, Parts]:
    cfg = config(cache, *overrides)
    torch.manual_seed(0)
    built = build(cfg)
    if level:
        built.module.weighting = SumOfGradients(built.module.architecture.tasks, name="sum", level=level)
    return cfg, built


def trained(cache: Path, *overrides: str, level: str | None = None, **trainer: Any) -> dict[str, Tensor]:
    cfg, built = parts(cache, *overrides, level=level)
    cfg.trainer.update(trainer)
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    return {k: v.clone() for k, v in built.module.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize("architecture", ["parallel", "cascade"])
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulated", "clipped", "bf16"],
)
def test_every_kind_of_weighting_takes_the_same_steps(cache: Path, architecture: str, options: dict) -> None:
    overrides = (f"architecture={architecture}", "optimizer=sgd", "optimizer.lr=0.05", "trainer.limit_train_batches=3")
    _, start = parts(cache, *overrides)
    before = {n: p.detach().clone() for n, p in start.module.named_parameters()}
    one = trained(cache, *overrides, **options)
    step = torch.cat([(one[n] - p).flatten() for n, p in before.items()])
    for level in ("parameters", "representation"):
        other = trained(cache, *overrides, level=level, **options)
        difference = torch.cat([(one[n] - other[n]).flatten() for n in before])
        # bfloat16 has 8 bits, and here each task's gradient is rounded on its own
        assert difference.norm() < (0.1 if options.get("precision") else 1e-3) * step.norm(), level


class Repeated:
    """A loader that gives one batch n times."""

    def __init__(self, batch: dict[str, Any], n: int) -> None:
        self.batches = [batch] * n

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize("level", [None, "parameters", "representation"])
def test_four_identical_micro_batches_take_the_step_of_one(cache: Path, level: str | None) -> None:
    found = []
    for n in (1, 4):
        cfg, built = parts(
            cache, "optimizer=sgd", "scheduler=constant", f"trainer.accumulate_grad_batches={n}", level=level
        )
        batch = built.data.on_after_batch_transfer(next(iter(built.data.train_dataloader())))
        start = [p.detach().clone() for p in built.module.parameters()]
        cfg.trainer.limit_val_batches = 0
        runner = make_trainer(cfg, [], [], cache)
        runner.fit(
            built.module, train_dataloaders=Repeated(batch, n), val_dataloaders=Repeated(batch, 1), weights_only=True
        )
        assert runner.global_step == 1
        found.append(
            torch.cat([(p.detach() - s).flatten() for p, s in zip(built.module.parameters(), start, strict=True)])
        )
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()


def test_the_best_checkpoint_is_one_that_was_validated(cache: Path, tmp_path: Path) -> None:
    from mtlcar.runs.checkpoints import Checkpoints

    cfg, built = parts(cache, "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2", "optimizer.lr=1e-9")
    best = Checkpoints(tmp_path, built.monitor, built.mode)
    make_trainer(cfg, [best], [], cache).fit(built.module, datamodule=built.data, weights_only=True)
    assert best.epoch == 3  # equal values: the later one; the fifth epoch has no validation
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 3


def test_a_number_beats_a_nan(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from mtlcar.runs.checkpoints import Checkpoints

    best = Checkpoints(tmp_path, "val/a", "max")
    better = []
    for epoch, value in enumerate((float("nan"), 0.1, 0.3, 0.2, float("nan"), 0.3)):
        trainer: Any = SimpleNamespace(callback_metrics={"val/a": value}, current_epoch=epoch, global_step=epoch)
        better.append(best._compare(trainer))
    assert better == [True, True, True, False, False, True], "equal values: the later one"
    assert (best.value, best.epoch) == (0.3, 5)


def test_what_an_epoch_has_no_value_of_does_not_keep_that_of_an_earlier_one(cache: Path) -> None:
    """As the severity of mistakes in an epoch without any."""
    cfg, built = parts(cache, "trainer.max_epochs=2")
    name, compute, seen = "val/hierarchy/mistake_severity", built.module.val_metrics.compute, []

    def without_mistakes_in_the_end() -> dict[str, float]:
        found = {k: v for k, v in compute().items() if k != name}
        return found if built.module.current_epoch else {**found, name: 2.0}

    class Look(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            found = trainer.callback_metrics
            seen.append((name in found, "val/model/accuracy" in found, "train/loss" in found))

    built.module.val_metrics.compute = without_mistakes_in_the_end  # type: ignore[method-assign]
    make_trainer(cfg, [Look()], [], cache).fit(built.module, datamodule=built.data, weights_only=True)
    assert [(severity, accuracy) for severity, accuracy, _ in seen] == [(True, True), (False, True)]
    assert seen[1][2], "what training logged stays"


def test_steps_are_taken(cache: Path) -> None:
    _, built = parts(cache, "trainer.limit_train_batches=2")
    before = {k: v.clone() for k, v in built.module.state_dict().items()}
    after = trained(cache, "trainer.limit_train_batches=2")
    moved = [k for k, v in after.items() if not torch.equal(v, before[k])]
    assert {n for n, p in built.module.named_parameters() if p.requires_grad} <= set(moved)


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine", "plateau", "constant"])
def test_every_schedule_ends_where_the_steps_end(cache: Path, scheduler: str) -> None:
    cfg, built = parts(cache, f"scheduler={scheduler}", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=3")
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    assert runner.global_step == built.module.total_steps


def test_a_nan_stops_training_and_says_where(cache: Path) -> None:
    cfg, built = parts(cache)

    class Broken(Equal):
        def forward(self, losses: Tensor) -> Tensor:
            return super().forward(losses) * float("nan")

    from mtlcar.finite import StopOnNonFinite

    built.module.weighting = Broken(built.module.architecture.tasks, name="broken")
    runner = make_trainer(cfg, [StopOnNonFinite(2)], [], cache)
    with pytest.raises(NonFiniteLossError, match=r"loss of make, model was not finite at step 1 \(rows of the batch"):
        runner.fit(built.module, datamodule=built.data, weights_only=True)


def test_steel_like_pairs_train_on_class_and_value(cache: Path) -> None:
    cfg, built = parts(cache, "data.levels=[model,weight]", "monitor=val/weight/mae")
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    found = {k: float(v) for k, v in runner.callback_metrics.items()}
    weights = built.data.train_targets["weight"]
    assert weights.mean() > 500  # kg: metrics in the label's unit although the target is standardised
    assert 0 < found["val/weight/mae"] < 5 * float(weights.std())
    assert found["val/weight/rmse"] == pytest.approx(found["val/weight/mse"] ** 0.5)
    assert built.mode == "min"


@pytest.mark.parametrize(
    ("overrides", "monitor", "mode"),
    [
        ((), "val/model/accuracy", "max"),
        (("architecture=single",), "val/model/accuracy", "max"),
        (("architecture=single", "architecture.task=make"), "val/make/accuracy", "max"),
        (
            ("data.levels=[make,model,weight]", "architecture=single", "architecture.task=weight"),
            "val/weight/mae",
            "min",
        ),
        (("monitor=val/model/loss",), "val/model/loss", "min"),
        (("monitor=val/model/loss", "monitor_mode=max"), "val/model/loss", "max"),
    ],
)
def test_the_best_checkpoint_is_picked_by(cache: Path, overrides: tuple[str, ...], monitor: str, mode: str) -> None:
    _, built = parts(cache, *overrides)
    assert (built.monitor, built.mode) == (monitor, mode)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("monitor=val/model/acuracy",), "Did you mean 'val/model/accuracy'"),
        (("monitor=val/hierarchy/mistake_severity",), "Use monitor=val/hierarchy/distance"),
        (("architecture=single", "architecture.task=weight"), "No task 'weight'"),
        (("architecture=cascade", "data.levels=[make]"), "at least two tasks"),
        (("architecture=cascade", "architecture.feed=hidden"), "head=mlp"),
        (("weighting=fixed", "weighting.weights={make:1,modle:2}"), "Did you mean 'model'"),
        (("data.augment.flip=2",), "flip"),
        (("optimizer.lr=-1",), "optimizer.lr"),
    ],
)
def test_impossible_combinations_are_refused_before_training(
    cache: Path, overrides: tuple[str, ...], says: str
) -> None:
    cfg = config(cache, *overrides)
    with pytest.raises(UserError, match=says):
        build(cfg).module.configure_optimizers()


def test_representation_level_needs_a_trunk_that_learns(cache: Path) -> None:
    _, built = parts(cache, "backbone.frozen_stages=4")
    arguments = {k: getattr(built.module, k) for k in ("tasks", "architecture", "losses", "label_transform", "monitor")}
    weighting = SumOfGradients(built.module.architecture.tasks, name="sum", level="representation")
    with pytest.raises(UserError, match="trunk is frozen"):
        MultiTaskModule(
            **arguments,
            weighting=weighting,
            optimizer=lambda: None,
            scheduler=lambda: None,
            steps_per_epoch=1,
            total_steps=1,
        )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weighting", "level", "change", "says"),
    [
        (
            "cagrad",
            "representation",
            "bottleneck",
            r"needs a bottleneck: .* Choose one of cascade, kem, parallel, skem, or weighting.level=pa",
        ),
        (
            "graddrop",
            "representation",
            "bottleneck",
            r"architecture=parallel has none. Choose one of cascade, .*parallel, .*, or one kind of head for all tasks",
        ),
        ("cagrad", "representation", "frozen", "the whole trunk is frozen. Lower backbone.frozen_stages or choose w"),
        ("moco", "parameters", "frozen", "nothing that trains is shared here"),
    ],
)
def test_a_weighting_that_cannot_act_is_refused_with_what_would_do(
    cache: Path, weighting: str, level: str, change: str, says: str
) -> None:
    _, built = parts(cache, f"weighting={weighting}", f"weighting.level={level}")
    architecture = built.module.architecture
    if change == "frozen":
        architecture.backbone.requires_grad_(False)
    else:
        architecture.has_bottleneck = False
    with pytest.raises(UserError, match=says):
        refuse_impossible(architecture, built.module.weighting)


def test_dropout_reaches_the_layer(cache: Path) -> None:
    for architecture, head in (("single", "linear"), ("parallel", "mlp"), ("cascade", "conv")):
        _, built = parts(cache, f"architecture={architecture}", f"head={head}", "head.dropout=0.37")
        found = [m.p for m in built.module.modules() if isinstance(m, torch.nn.Dropout)]
        assert found
        assert set(found) == {0.37}


def test_single_and_multi_task_runs_see_the_same_batches(cache: Path) -> None:
    seen = []
    for architecture in ("single", "parallel"):
        _, built = parts(cache, f"architecture={architecture}")
        seen.append([batch["index"] for batch in built.data.train_dataloader()])
    assert len(seen[0]) == len(seen[1]) > 1
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_precision_is_full_on_a_cpu(cache: Path) -> None:
    assert precision(config(cache, "trainer.precision=bf16-mixed")) == "bf16-mixed"
    if not torch.cuda.is_available():
        assert precision(config(cache, "trainer.precision=auto")) == "32-true"


def test_class_order_does_not_depend_on_the_hash_seed(cache: Path) -> None:
    cfg = config(cache)
    _, tasks = read_annotations(cfg.data, cache)
    assert list(tasks["make"].classes) == sorted(tasks["make"].classes)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("head=conv", "data.image_size=16"), "head=conv needs a last feature map of at least 2 x 2"),
        (("architecture=cross_attention", "data.image_size=16"), "needs maps of more than one position"),
    ],
)
def test_maps_that_are_too_small_are_found_before_anything_runs(
    cache: Path, overrides: tuple[str, ...], says: str
) -> None:
    cfg = config(cache, *overrides)
    with pytest.raises(UserError, match=says):
        check_parts(cfg, read_annotations(cfg.data, cache)[1])


@pytest.mark.parametrize("name", groups()["head"])
@pytest.mark.parametrize("feed", ["logits", "label"])
def test_every_head_passes_the_checks_before_a_run(cache: Path, name: str, feed: str) -> None:
    cfg = config(cache, f"head={name}", "architecture=cascade", f"architecture.feed={feed}")
    assert list(problems(cfg)) == []
    check_parts(cfg, read_annotations(cfg.data, cache)[1])


def test_what_an_architecture_adds_to_the_objective_is_logged_and_watched(cache: Path) -> None:
    cfg, built = parts(cache, "architecture=dselect_k", "architecture.experts=3", "architecture.k=3")
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    # 1 / (mass of the codes that name one of 3 experts out of 4), for two tasks of three selectors
    assert 6 < float(runner.callback_metrics["train/extra_loss"]) < 12
    finite = built.module.finite
    assert finite.read(("make", "model")) is None
    plain = built.module.architecture.forward

    def spoiled(*args: Any) -> Any:
        shared = plain(*args)
        shared.extra_loss = shared.extra_loss * torch.inf
        return shared

    built.module.architecture.forward = spoiled
    batch = next(iter(built.data.train_dataloader()))
    batch = built.data.on_after_batch_transfer(batch, 0)
    built.module.training_step(batch, 0)
    assert "was not finite" in str(finite.read(("make", "model")))


def test_representations_of_the_tasks_own_have_norms_and_no_angles(cache: Path) -> None:
    cfg, built = parts(cache, "architecture=cross_stitch", "weighting=graddrop")
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    logged = runner.callback_metrics
    assert float(logged["train/make/gradient_norm"]) > 0
    assert not [k for k in logged if "cosine" in k or "conflict" in k]


@pytest.mark.parametrize(
    ("task", "monitor", "possible"),
    [("model", "val/weight/mae", True), ("make", "val/weight/mae", False), ("make", "val/make/accuracy", True)],
)
def test_a_value_that_is_looked_up_can_be_monitored_where_its_class_is_predicted(
    cache: Path, task: str, monitor: str, possible: bool
) -> None:
    words = ("data.levels=[make,model,weight]", "label_transform=class_mean", "architecture=single")
    cfg = config(cache, *words, f"architecture.task={task}", f"monitor={monitor}")
    tasks = read_annotations(cfg.data, cache)[1]
    if possible:
        check_parts(cfg, tasks)
    else:
        with pytest.raises(UserError, match="monitor=val/weight/mae is no metric of this run"):
            check_parts(cfg, tasks)


def test_a_label_transform_is_fixed_by_the_checkpoint(tmp_path: Path) -> None:
    OmegaConf.save(compose_config(["label_transform=fastcar"]), tmp_path / "config.yaml", resolve=True)
    with pytest.raises(UserError, match="the label transform and its constants are fixed by the checkpoint"):
        stored_config(tmp_path, ["label_transform.scale=3"])


def test_a_method_names_the_run_with_what_else_may_differ(cache: Path) -> None:
    names = {
        run_name(config(cache, 'method="two heads"', *words))
        for words in ((), ("data.split=grouped",), ("weighting=dwa",), ("optimizer=adam",), ("seed=1",))
    }
    assert len(names) == 5
    assert "synthetic_cars_official_tiny_two-heads_equal_adamw_s0" in names
