"""The moving average of the weights: exact, what is validated and kept, and no other training than without it."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mtlcar.build import Parts, build
from mtlcar.checks.values import check
from mtlcar.config import compose_config, conf_dir, groups
from mtlcar.ema import TRAINING_WEIGHTS, WeightAverage, decay_at
from mtlcar.errors import UserError
from mtlcar.report.varied import settings
from mtlcar.runs.checkpoint_files import load_weights, resume_point
from mtlcar.runs.checkpoints import Checkpoints
from mtlcar.runs.files import read_json
from mtlcar.runs.fingerprint import fingerprint
from mtlcar.runs.history import read_history
from mtlcar.runs.interrupts import INTERRUPTS, Stopped
from mtlcar.runs.training import fit, make_trainer
from tests.networks import build as network
from tests.test_resume import STEPS, Rows, Trouble, assert_same, cache, config, no_signal  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]
DECAY = 0.6  # reached by the warm-up in step 13, so that few steps see both sides
EMA = (f"trainer.ema={DECAY}", "trainer.max_epochs=3")


class Averaged(Callback):
    """PyTorch's averaged model, the same recursion in float64 by hand, and how often a step was taken."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def recursion(average: Any, model: Any, count: Any) -> None:
            for a, w in zip(average, model, strict=True):
                if a.is_floating_point():
                    a.lerp_(w, 1 - min(DECAY, (1 + int(count)) / (10 + int(count))))
                else:
                    a.copy_(w)

        self.module = copy.deepcopy(pl_module)
        self.model = AveragedModel(pl_module.architecture, multi_avg_fn=recursion, use_buffers=True)
        self.model.update_parameters(pl_module.architecture)
        self.plain = {k: v.double() for k, v in pl_module.architecture.state_dict().items()}
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if (args[2] + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self.steps += 1
        self.model.update_parameters(pl_module.architecture)
        d = min(DECAY, (1 + self.steps) / (10 + self.steps))
        for k, w in pl_module.architecture.state_dict().items():
            self.plain[k] = d * self.plain[k] + (1 - d) * w.double() if w.is_floating_point() else w.double()


def trained(cfg: DictConfig, folder: Path, *callbacks: Callback, rows: Rows | None = None) -> tuple[Parts, Checkpoints]:
    torch.manual_seed(cfg.seed)
    parts = build(cfg)
    point, _ = resume_point(folder / "checkpoints")
    rows = rows or Rows()
    rows.resume(0 if point is None else point.own["rows"])
    return parts, fit(cfg, parts, folder, [rows], point, further=callbacks)[1]


def saved(folder: Path, name: str = "last") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return state


def of_network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("architecture."): v for k, v in state.items() if k.startswith("architecture.")}


def validated(cfg: DictConfig, parts: Parts, folder: Path) -> dict[str, float]:
    """The metrics of the weights that a module has."""
    trainer = make_trainer(cfg, [], [], folder)
    trainer.validate(parts.module, datamodule=parts.data, verbose=False)
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")  # those of the frozen stage
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_average_is_that_of_pytorch_after_every_optimizer_step(
    cache: Path,  # noqa: F811
    tmp_path: Path,
    accumulate: int,
) -> None:
    cfg = config(cache, *EMA, "backbone.frozen_stages=1", f"trainer.accumulate_grad_batches={accumulate}")
    averaged = Averaged()
    parts, _ = trained(cfg, tmp_path, averaged)
    state = saved(tmp_path)
    assert averaged.steps == state["global_step"] == 3 * -(-STEPS // accumulate)
    average = of_network(state["state_dict"])
    assert_same(average, dict(averaged.model.module.state_dict()))
    for name, value in average.items():
        torch.testing.assert_close(value.double(), averaged.plain[name], rtol=1e-6, atol=1e-7)
    weights = parts.module.architecture.state_dict()
    moved = {k for k in weights if not torch.equal(average[k], weights[k])}
    trainable = {k: p.requires_grad for k, p in parts.module.architecture.named_parameters()}
    assert moved >= {k for k, trains in trainable.items() if trains}
    assert not moved & {k for k, trains in trainable.items() if not trains}, "what is frozen stays as it is"
    assert {k.rsplit(".", 1)[-1] for k in moved - set(trainable)} == {"running_mean", "running_var"}


def test_training_itself_is_the_one_without_an_average(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    one, _ = trained(config(cache, "trainer.max_epochs=3"), tmp_path / "without")
    two, _ = trained(config(cache, *EMA), tmp_path / "with")
    assert_same(dict(two.module.state_dict()), dict(one.module.state_dict()))
    plain, state = saved(tmp_path / "without"), saved(tmp_path / "with")
    assert_same(state["optimizer_states"], plain["optimizer_states"])
    assert_same(dict(plain["state_dict"]), dict(one.module.state_dict()))
    assert state.keys() - plain.keys() == {TRAINING_WEIGHTS}, "and without it a checkpoint is as it always was"
    assert state["state_dict"].keys() == plain["state_dict"].keys()
    assert state["callbacks"].keys() == plain["callbacks"].keys()
    for name, weight in state[TRAINING_WEIGHTS].items():
        assert torch.equal(weight, plain["state_dict"][name])
        assert state["state_dict"][name].stride() == weight.stride(), f"{name} has another memory format"
    first, second = (read_history(tmp_path / name / "history.csv") for name in ("without", "with"))
    assert [row["train/loss"] for row in first] == [row["train/loss"] for row in second]
    assert all(a["val/loss"] != b["val/loss"] for a, b in zip(first, second, strict=True))


def test_the_average_is_what_is_validated_and_what_best_ckpt_holds(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    cfg = config(cache, *EMA)
    averaged = Averaged()
    parts, checkpoints = trained(cfg, tmp_path, averaged)
    raw = validated(cfg, parts, tmp_path)
    parts.module.architecture.load_state_dict(averaged.model.module.state_dict())
    by_hand = validated(cfg, parts, tmp_path)
    last = read_history(tmp_path / "history.csv")[-1]
    assert by_hand == {k: v for k, v in last.items() if k.startswith("val/")}
    assert by_hand["val/loss"] != raw["val/loss"]
    other = build(cfg)
    load_weights(other.module, tmp_path / "checkpoints" / "best.ckpt")
    assert validated(cfg, other, tmp_path) == checkpoints.best_values


def everything(folder: Path) -> dict[str, Any]:
    keys = ("state_dict", TRAINING_WEIGHTS, "optimizer_states", "lr_schedulers", "epoch", "global_step")
    return {
        **{name: {k: saved(folder, name)[k] for k in keys} for name in ("last", "best")},
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(folder / "history.csv")],
    }


class InValidation(Callback):
    """Goes wrong in the middle of an epoch's validation."""

    def __init__(self, epoch: int, error: BaseException) -> None:
        self.epoch, self.error = epoch, error

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise self.error


@pytest.mark.parametrize(
    ("trouble", "overrides"),
    [
        ([Trouble(6, "told"), Trouble(7, "told"), Trouble(14, "told")], ("scheduler=plateau", "scheduler.patience=0")),
        ([Trouble(5, "killed")], ("checkpoint.every_steps=2", "trainer.accumulate_grad_batches=2")),
        ([Trouble(7, "told")], ("architecture=ltb", "weighting=uncertainty")),
        ([InValidation(1, RuntimeError("power cut"))], ("checkpoint.every_steps=5",)),
    ],
    ids=["again_and_again", "killed", "tree", "in_validation"],
)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(
    cache: Path,  # noqa: F811
    tmp_path: Path,
    trouble: list[Callback],
    overrides: tuple[str, ...],
) -> None:
    cfg = config(cache, *EMA, *overrides)
    whole, cut = Rows(), Rows()
    trained(cfg, tmp_path / "whole", rows=whole)
    for callback in trouble:
        with pytest.raises((Stopped, RuntimeError), match=r"SIGTERM|power cut"):
            trained(cfg, tmp_path / "cut", callback, rows=cut)
        INTERRUPTS.requested = None
    parts, _ = trained(cfg, tmp_path / "cut", rows=cut)
    assert_same(everything(tmp_path / "cut"), everything(tmp_path / "whole"))
    assert_same(cut.rows, whole.rows)
    own = parts.module.state_dict()
    assert_same(
        {k: own[k] for k in saved(tmp_path / "whole")[TRAINING_WEIGHTS]}, saved(tmp_path / "whole")[TRAINING_WEIGHTS]
    )


def test_an_error_in_a_validation_leaves_the_weights_of_the_training(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    found = []
    for overrides in (EMA, EMA[1:]):
        cfg = config(cache, *overrides)
        torch.manual_seed(cfg.seed)
        parts = build(cfg)
        with pytest.raises(RuntimeError, match="broken"):
            fit(cfg, parts, tmp_path / str(len(found)), [Rows()], further=[InValidation(1, RuntimeError("broken"))])
        found.append(dict(parts.module.architecture.state_dict()))
    assert_same(*found)
    assert saved(tmp_path / "0")["global_step"] == STEPS, "the epoch before is what a run goes on from"


def test_weights_of_low_precision_have_an_average_of_float32() -> None:
    architecture = network("single").bfloat16()
    module, trainer = SimpleNamespace(architecture=architecture), SimpleNamespace(global_step=0)
    average: Any = WeightAverage(0.999)
    average.on_train_start(trainer, module)
    name, weight = next(iter(architecture.named_parameters()))
    expected = weight.detach().float()
    for trainer.global_step in range(1, 5):
        with torch.no_grad():
            weight.fill_(1 + trainer.global_step / 128)  # the last place of a bfloat16
        average.on_train_batch_end(trainer, module)
        expected = expected.lerp(weight.detach().float(), 1 - decay_at(trainer.global_step, 0.999))
    checkpoint: dict[str, Any] = {"state_dict": {}}
    average.on_save_checkpoint(trainer, module, checkpoint)
    assert torch.equal(checkpoint["state_dict"][f"architecture.{name}"], expected)
    assert not torch.equal(expected, expected.bfloat16().float())
    assert checkpoint[TRAINING_WEIGHTS][f"architecture.{name}"].dtype == torch.bfloat16


def test_what_is_unfrozen_later_is_averaged_too() -> None:
    architecture = network("single").requires_grad_(False)
    module, trainer = SimpleNamespace(architecture=architecture), SimpleNamespace(global_step=0)
    average: Any = WeightAverage(0.999)
    average.on_train_start(trainer, module)
    name, weight = next(iter(architecture.requires_grad_(True).named_parameters()))
    first, trainer.global_step = weight.detach().clone(), 1
    with torch.no_grad():
        weight += 1
    average.on_train_batch_end(trainer, module)
    checkpoint: dict[str, Any] = {"state_dict": {}}
    average.on_save_checkpoint(trainer, module, checkpoint)
    torch.testing.assert_close(checkpoint["state_dict"][f"architecture.{name}"], first + 9 / 11)


def test_a_save_within_a_validation_keeps_both_apart() -> None:
    architecture = network("single")
    module, trainer = SimpleNamespace(architecture=architecture), SimpleNamespace(global_step=0)
    average: Any = WeightAverage(0.5)
    average.on_train_start(trainer, module)
    first = {f"architecture.{k}": p.clone() for k, p in architecture.named_parameters()}
    with torch.no_grad():
        for weight in architecture.parameters():
            weight += 1
    average.on_validation_start(trainer, module)
    checkpoint: dict[str, Any] = {"state_dict": architecture.state_dict(prefix="architecture.")}
    average.on_save_checkpoint(trainer, module, checkpoint)
    for name, weight in first.items():
        assert torch.equal(checkpoint["state_dict"][name], weight)
        assert torch.equal(checkpoint[TRAINING_WEIGHTS][name], weight + 1)


def test_the_decay_warms_up() -> None:
    assert [decay_at(step, 0.999) for step in (1, 2, 8)] == [2 / 11, 3 / 12, 9 / 18]
    assert decay_at(8989, 0.999) < 0.999 == decay_at(8992, 0.999)


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "1.5", "true", "often"])
def test_a_decay_is_between_0_and_1(value: str) -> None:
    with pytest.raises(UserError, match=r"trainer\.ema should be null or a number above 0 and below 1"):
        check(compose_config(["threads=1", f"trainer.ema={value}"]))


@pytest.mark.parametrize("overrides", [("trainer=fsdp",), ("trainer=ddp", "trainer.strategy=deepspeed_stage_3")])
def test_weights_that_no_device_has_whole_are_not_averaged(overrides: tuple[str, ...]) -> None:
    check(compose_config(["threads=1", *overrides]))
    with pytest.raises(UserError, match=r"trainer\.ema averages whole weights.*trainer=ddp, or trainer\.ema=null"):
        check(compose_config(["threads=1", *overrides, "trainer.ema=0.99"]))


def test_a_run_without_an_average_is_the_run_it_was_before_there_was_one() -> None:
    cfg = compose_config(["threads=1"])
    older = copy.deepcopy(cfg)
    with open_dict(older):
        del older.trainer["ema"]
    check(older)
    plain: list[Any] = [OmegaConf.to_container(c, resolve=True) for c in (older, cfg)]
    assert settings(plain[0], ()) == settings(plain[1], ()), "a report finds no difference"
    assert fingerprint(compose_config(["threads=1", "trainer.ema=0.999"]), {}) != fingerprint(cfg, {})


@pytest.mark.parametrize("name", groups()["trainer"])
def test_every_preset_has_the_key_and_says_what_it_is(name: str) -> None:
    assert compose_config([f"trainer={name}"]).trainer.ema is None
    (line,) = [x for x in (conf_dir() / "trainer" / f"{name}.yaml").read_text().splitlines() if x.startswith("ema:")]
    assert "moving average of the weights" in line


@pytest.mark.slow
def test_two_processes_validate_what_is_saved(cache: Path, tmp_path: Path) -> None:  # noqa: F811
    """BatchNorm's statistics differ between processes; those of the first are validated by all."""
    from tests.cli import mtlcar
    from tests.test_resume import CARS

    mtlcar("train", *CARS, *EMA, f"paths.runs={tmp_path}", f"paths.cache={cache}", "sweep=two", "trainer=ddp",
           "trainer.max_epochs=3", "trainer.accelerator=cpu", "trainer.precision=32-true",
           "trainer.devices=2", fresh_jobs=True)  # fmt: skip
    (done,) = (tmp_path / "two").glob("*/DONE")
    cfg = config(cache, *EMA)
    parts = build(cfg)
    load_weights(parts.module, done.parent / "checkpoints" / "best.ckpt")
    found = {k.removeprefix("val/"): v for k, v in validated(cfg, parts, tmp_path).items()}
    assert found == pytest.approx(read_json(done.parent / "metrics.json")["val"], abs=1e-6)
