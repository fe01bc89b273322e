"""One weighting of each kind under everything Lightning's automatic optimization offers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch._functorch import config as functorch

from mtlcar.compiled import compile_network
from mtlcar.runs.history import History, read_history
from mtlcar.runs.training import make_trainer
from tests.test_build import cache, parts  # noqa: F401  (cache is a fixture)
from tests.test_weighting_rows import CASES
from tests.weighting_rows import ROWS

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

KINDS = {
    "loss, trained": ("weighting=uncertainty",),
    "loss, second forward": ("weighting=famo",),
    "gramian at parameters": ("weighting=gradvac",),
    "gramian at representation": ("weighting=cagrad", "weighting.level=representation"),
    "combiner at parameters": ("weighting=db_mtl",),
    "combiner at representation": ("weighting=graddrop",),
}
OPTIONS = {
    "bf16": ("trainer.precision=bf16-mixed",),
    "accumulation": ("trainer.accumulate_grad_batches=2",),
    "clipping": ("trainer.gradient_clip_val=0.1",),
    "onecycle": ("scheduler=onecycle", "trainer.max_epochs=2"),
    "plateau": ("scheduler=plateau", "trainer.max_epochs=2", "trainer.log_every_n_steps=0"),
}


def train(cache: Path, *overrides: str, before: dict[str, Any] | None = None) -> tuple[Any, Any]:  # noqa: F811
    """The trainer and the trained module; `before` takes what trains, as it was."""
    cfg, built = parts(cache, "architecture=cascade", "trainer.limit_train_batches=5", "seed=1", *overrides)
    if before is not None:
        before.update({n: p.detach().clone() for n, p in built.module.named_parameters() if p.requires_grad})
    if cfg.trainer.compile:
        compile_network(built.module.architecture, cache)
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    return runner, built.module


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_under(cache: Path, kind: str, option: str) -> None:  # noqa: F811
    before: dict[str, torch.Tensor] = {}
    runner, module = train(cache, *KINDS[kind], *OPTIONS[option], before=before)
    steps = 3 if option == "accumulation" else 5
    assert runner.global_step == steps * runner.max_epochs
    after = dict(module.named_parameters())
    assert all(after[n].isfinite().all() for n in before)
    assert [n for n, p in before.items() if torch.equal(after[n], p)] == []
    logged = {k: float(v) for k, v in runner.callback_metrics.items()}
    assert logged["train/make/loss"] > 0
    assert logged["train/make/weight"] == logged["train/make/weight"] or kind.startswith("combiner")
    assert logged["train/weighting/degenerate"] == 0
    if not kind.startswith("loss"):
        assert logged["train/make/gradient_norm"] > 0
        assert -1 <= logged["train/make-model/cosine"] <= 1
        assert 0 <= logged["train/make-model/conflict"] <= 1


def test_the_last_micro_batch_of_a_step_is_known_also_in_a_short_last_step(
    cache: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mtlcar.weightings.equal import Equal

    seen = []
    plain = Equal._backward

    def watched(self: Equal, step: Any) -> Any:
        seen.append((step.last, float(step.factor)))
        return plain(self, step)

    monkeypatch.setattr(Equal, "_backward", watched)
    train(cache, "trainer.accumulate_grad_batches=2")
    assert seen == [(last, 0.5) for last in (False, True, False, True, True)]


def test_parameters_that_thaw_in_training_are_trained(cache: Path) -> None:  # noqa: F811
    class Thaw(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                module.architecture.backbone.stages[0].requires_grad_(True)

    cfg, built = parts(cache, "weighting=cagrad", "trainer.max_epochs=2")
    first = built.module.architecture.backbone.stages[0].requires_grad_(False)
    before = [p.detach().clone() for p in first.parameters()]
    thawed = list(first.parameters())
    built.module.make_optimizer = lambda *parts: torch.optim.SGD(built.module.parameters(), lr=0.1)
    make_trainer(cfg, [Thaw()], [], cache).fit(built.module, datamodule=built.data, weights_only=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, thawed, strict=True))


# Inductor is too slow for each of them; this backend splits graphs and saves activations as it does.
# A combiner takes the tasks' gradients through the same `task_gradients` as a function of the Gramian: slow.
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k.startswith("combiner") else ()) for k in KINDS]
)
def test_every_kind_trains_compiled_as_eager(cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from mtlcar.backbones.base import StagedBackbone

    plain = StagedBackbone.compile
    monkeypatch.setattr(StagedBackbone, "compile", lambda self: plain(self, backend="aot_eager"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    torch._dynamo.reset()
    # Without validations: their form of the trunk is compiled in test_compile.
    fixed = ("optimizer=sgd", "optimizer.lr=0.01", "trainer.limit_train_batches=3", "trainer.limit_val_batches=0")
    fixed += KINDS[kind]
    _, eager = train(cache, *fixed)
    with functorch.patch(donated_buffer=True):
        _, compiled = train(cache, *fixed, "trainer.compile=true")
    torch._dynamo.reset()
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("loss")])
def test_conflicts_and_norms_reach_the_history(cache: Path, kind: str, tmp_path: Path) -> None:  # noqa: F811
    cfg, built = parts(cache, "trainer.max_epochs=2", *KINDS[kind])
    runner = make_trainer(cfg, [History(tmp_path / "history.csv")], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    rows = read_history(tmp_path / "history.csv")
    assert len(rows) == 2
    for row in rows:
        assert {"train/make/gradient_norm", "train/make-model/cosine", "train/make-model/conflict"} <= set(row)
        assert row["train/weighting/degenerate"] == 0


@pytest.mark.parametrize("scale", [2.0**10, 2.0**40])
@pytest.mark.parametrize("kind", KINDS)
def test_fp16_steps_are_taken_and_overflows_skipped_without_a_trace(
    cache: Path,  # noqa: F811
    kind: str,
    scale: float,
) -> None:
    """On a CPU, with torch's scaler for it: the larger scale overflows in every step."""
    cfg, built = parts(
        cache, "architecture=cascade", "trainer.limit_train_batches=5", "scheduler=constant", *KINDS[kind]
    )
    runner = make_trainer(cfg, [], [], cache)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    runner.strategy._precision_plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    before = [p.detach().clone() for p in built.module.parameters()]
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    moved = [not torch.equal(a, p) for a, p in zip(before, built.module.parameters(), strict=True)]
    assert any(moved) == (scale < 2.0**20)
    assert (scaler.get_scale() == scale) == (scale < 2.0**20)
    assert all(p.isfinite().all() for p in built.module.parameters())
    assert all(b.isfinite().all() for b in built.module.weighting.buffers())
    if not kind.startswith("loss"):
        assert int(built.module.weighting.degenerate) == (0 if scale < 2.0**20 else 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_in_half_precision(cache: Path, kind: str) -> None:  # noqa: F811
    runner, module = train(cache, *KINDS[kind], "trainer=default", "trainer.precision=16-mixed")
    assert runner.global_step >= 1
    assert all(p.isfinite().all() for p in module.parameters())


class NoWaiting(Callback):
    """CUDA refuses every wait for the device from the third step on; the first ones make buffers and kernels."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx >= 2 else "default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "level"), [c for c in CASES if c[0] not in ("callable", "torchjd")])
def test_a_step_between_logging_steps_never_waits_for_the_gpu(cache: Path, name: str, level: str) -> None:  # noqa: F811
    chosen = (f"weighting={name}", *((f"weighting.level={level}",) if ROWS[name].levels else ()))
    options = ("data.levels=[make,model,weight]", "trainer=default", "trainer.precision=bf16-mixed")
    cfg, built = parts(cache, *chosen, *options, "trainer.limit_train_batches=6", "trainer.deterministic=false")
    runner = make_trainer(cfg, [NoWaiting()], [], cache)
    ends = built.module.on_train_batch_end

    def ended(*args: Any) -> None:  # the module's hook comes after all callbacks', FAMO's second forward among them
        torch.cuda.set_sync_debug_mode("default")
        ends(*args)

    built.module.on_train_batch_end = ended
    try:
        runner.fit(built.module, datamodule=built.data, weights_only=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert runner.global_step == 6
