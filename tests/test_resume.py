"""A training that was stopped anywhere and goes on is the one that was never stopped: same bits, same log."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from mtlcar.build import build
from mtlcar.config import compose_config, finish, groups
from mtlcar.errors import UserError
from mtlcar.runs.checkpoint_files import resume_point
from mtlcar.runs.history import read_history
from mtlcar.runs.interrupts import INTERRUPTS, Interrupts, Stopped
from mtlcar.runs.training import fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]

CARS = ("data.makes=2", "data.models_per_make=2", "data.images=72", "data.size=48", "data.image_size=32",
        "data.batch_size=8", "trainer=cpu", "threads=1", "logger=none", "trainer.max_epochs=2",
        "trainer.log_every_n_steps=2", "head.dropout=0.3")  # fmt: skip
STEPS = 6  # of an epoch


class Rows(Logger):
    """A logger whose rows outlive what is killed, as a file's do."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.saved = 0

    name = version = None  # type: ignore[assignment]

    @property
    def count(self) -> int:
        return len(self.rows)

    def resume(self, count: int) -> None:
        del self.rows[count:]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def sync(self) -> None:
        self.saved += 1


class Trouble(Callback):
    """Asks the run to stop after some step or batch, or lets it die there."""

    def __init__(self, step: int, how: str, *, batches: bool = False) -> None:
        self.step, self.how, self.batches = step, how, batches

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        now = trainer.fit_loop.total_batch_idx + 1 if self.batches else trainer.global_step
        if now == self.step:
            if self.how == "killed":
                raise RuntimeError("power cut")
            INTERRUPTS.requested = signal.SIGTERM


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_signal() -> Any:
    yield
    INTERRUPTS.requested = None


def config(cache: Path, *overrides: str) -> DictConfig:
    cfg = finish(compose_config([*CARS, f"paths.cache={cache}", f"paths.runs={cache / 'runs'}", *overrides]))
    OmegaConf.resolve(cfg)
    return cfg


def session(cfg: DictConfig, run_dir: Path, rows: Rows, *callbacks: Callback) -> dict[str, Any]:
    """One process's part of a run."""
    torch.manual_seed(cfg.seed)
    parts = build(cfg)
    torch.manual_seed(12345)  # whatever was drawn before says nothing
    point, said = resume_point(run_dir / "checkpoints")
    assert not said
    rows.resume(0 if point is None else point.own["rows"])
    timing, checkpoints = fit(cfg, parts, run_dir, [rows], point, further=callbacks)
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    return {
        "last": {k: last[k] for k in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")},
        "best": {k: best[k] for k in ("state_dict", "epoch", "global_step")},
        "rows": list(rows.rows),
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(run_dir / "history.csv")],
        "values": checkpoints.best_values,
        "images": timing.images,
        "sessions": timing.sessions,
    }


def assert_same(mine: Any, other: Any, where: str = "") -> None:
    """Equal to the bit; NaN equals NaN."""
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine.nan_to_num(-1e30), other.nan_to_num(-1e30)), where
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys(), where
        for key in mine:
            assert_same(mine[key], other[key], f"{where}/{key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(other), where
        for k, (a, b) in enumerate(zip(mine, other, strict=True)):
            assert_same(a, b, f"{where}/{k}")
    else:
        assert mine == other or (mine != mine and other != other), f"{where}: {mine} {other}"


def stopped(cfg: DictConfig, run_dir: Path, rows: Rows, step: int, how: str) -> None:
    ends = {"killed": (RuntimeError, "power cut"), "told": (Stopped, "SIGTERM")}
    kind, words = ends[how]
    with pytest.raises(kind, match=words):
        session(cfg, run_dir, rows, Trouble(step, how))
    INTERRUPTS.requested = None


def check(cache: Path, tmp_path: Path, steps: tuple[int, ...], how: str, *overrides: str) -> None:
    cfg = config(cache, *overrides)
    whole = session(cfg, tmp_path / "whole", Rows())
    rows = Rows()
    for step in steps:
        stopped(cfg, tmp_path / "cut", rows, step, how)
    resumed = session(cfg, tmp_path / "cut", rows)
    assert resumed.pop("sessions") >= whole.pop("sessions") == 1
    assert whole["images"] == STEPS * 8 * cfg.trainer.max_epochs
    assert whole["last"]["global_step"] > 0
    assert len(whole["history"]) == cfg.trainer.max_epochs
    assert_same(resumed, whole)


@pytest.mark.parametrize("step", [1, 4, 6, 7, 11, 12])
def test_a_run_told_to_stop_anywhere_goes_on_with_the_same_bits(cache: Path, tmp_path: Path, step: int) -> None:
    check(cache, tmp_path, (step,), "told")


@pytest.mark.parametrize("step", [1, 5, 6, 8, 12])
def test_a_killed_run_goes_on_from_its_last_checkpoint_with_the_same_bits(
    cache: Path, tmp_path: Path, step: int
) -> None:
    check(cache, tmp_path, (step,), "killed", "checkpoint.every_steps=2")


def test_a_run_may_be_stopped_again_and_again(cache: Path, tmp_path: Path) -> None:
    check(cache, tmp_path, (1, 3, 4, 6, 7, 10), "told", "scheduler=plateau", "scheduler.patience=0", "weighting=famo")


@pytest.mark.parametrize(
    "overrides",
    [
        ("weighting=dwa", "trainer.max_epochs=3"),
        ("weighting=graddrop", "architecture=cascade"),
        ("trainer.accumulate_grad_batches=2", "weighting=rlw", "trainer.gradient_clip_val=0.5"),
        ("scheduler=plateau", "scheduler.patience=0", "optimizer=sgd", "optimizer.lr=0.01"),
        ("architecture=ltb", "weighting=pcgrad"),
        ("trainer.precision=bf16-mixed", "weighting=moco"),
    ],
    ids=lambda o: o[0].partition("=")[2] if isinstance(o, tuple) else str(o),
)
def test_every_kind_of_state_is_in_the_checkpoint(cache: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    check(cache, tmp_path, (2, 4) if "accumulate" in overrides[0] else (4, 7), "told", *overrides)


@pytest.mark.parametrize(
    ("batch", "overrides", "saved"),
    [
        (7, ("trainer.accumulate_grad_batches=2",), 4),  # the first half of the second epoch's first step
        (6, ("trainer.check_val_every_n_epoch=2",), 6),  # the end of an epoch without a validation
        (1, ("trainer.limit_train_batches=1", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=4"), 1),
    ],
)
def test_a_stop_is_obeyed_after_a_whole_step_and_no_later(
    cache: Path, tmp_path: Path, batch: int, overrides: tuple[str, ...], saved: int
) -> None:
    cfg = config(cache, *overrides)
    whole, rows = session(cfg, tmp_path / "whole", Rows()), Rows()
    with pytest.raises(Stopped):
        session(cfg, tmp_path / "cut", rows, Trouble(batch, "told", batches=True))
    INTERRUPTS.requested = None
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == saved
    resumed = session(cfg, tmp_path / "cut", rows)
    for found in (whole, resumed):
        found.pop("sessions")
    assert_same(resumed, whole)


def test_a_file_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(config(cache), tmp_path, Rows())
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    def stale(*args: Any, **options: Any) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(torch, "load", stale)
    with pytest.raises(UserError, match="cannot be read now"):
        resume_point(tmp_path / "checkpoints")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [w for w in groups()["weighting"] if w not in ("callable", "torchjd", "fixed")])
def test_every_weighting_goes_on(cache: Path, tmp_path: Path, weighting: str) -> None:
    check(cache, tmp_path, (4, 7), "told", f"weighting={weighting}", "trainer.max_epochs=3")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in groups()["architecture"] if a != "constant"])
def test_every_architecture_goes_on(cache: Path, tmp_path: Path, architecture: str) -> None:
    check(cache, tmp_path, (4, 7), "told", f"architecture={architecture}")


def test_early_stopping_is_remembered(cache: Path, tmp_path: Path) -> None:
    overrides = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=6")
    cfg = config(cache, *overrides, "optimizer.lr=1e-12")
    whole, rows = session(cfg, tmp_path / "whole", Rows()), Rows()
    assert whole["last"]["epoch"] == 1, "it stops when the first epoch's value is not improved on"
    stopped(cfg, tmp_path / "cut", rows, 9, "told")
    resumed = session(cfg, tmp_path / "cut", rows)
    again = session(cfg, tmp_path / "cut", rows)
    for found in (whole, resumed, again):
        found.pop("sessions")
    assert_same(resumed, whole)
    assert_same(again, whole, "finished training is not begun again")


def test_a_stop_that_python_drops_is_obeyed_later() -> None:
    """What is raised in an object's `__del__` is printed and forgotten."""
    interrupts = Interrupts()
    with pytest.raises(Stopped):
        interrupts._handle(signal.SIGTERM, None)
    with pytest.raises(Stopped, match="SIGTERM"), interrupts.deferred():
        pytest.fail("training began")
