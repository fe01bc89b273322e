"""Runs whose loss stops being finite, whose memory, disk or clock fails: a message that helps, and nothing lost."""

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mtlcar.finite import FiniteState
from mtlcar.runs.no_memory import NoMemoryError, advice, explained, smaller
from mtlcar.runs.status import Status, read_status
from tests.jobs import copy_run, finish, results, said, write_run
from tests.test_faults import small_disk  # noqa: F401
from tests.test_resume import assert_same


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("troubles"), "trainer.max_epochs=3", "checkpoint.every_steps=2")


@pytest.fixture(scope="module")
def whole(run: Path) -> dict[str, Any]:
    directory = copy_run(run, run.parents[2] / "whole")
    assert finish(directory) == 0, said(directory)
    return results(directory)


TROUBLES = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "host": MemoryError(),
    "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
}


def break_step(number: int, what: str) -> None:
    """The losses of the `number`-th training batch of this process are not finite, or ask for too much memory."""
    from mtlcar.losses import TaskLosses

    real, left = TaskLosses.forward, [number]

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        losses = real(self, *args, **options)
        left[0] -= torch.is_grad_enabled()
        if left[0]:
            return losses
        if what == "nan":
            return losses * torch.tensor([1.0, math.nan, *[1.0] * (len(losses) - 2)])
        raise TROUBLES[what]

    TaskLosses.forward = forward  # type: ignore[method-assign]


def test_a_loss_that_is_not_finite_names_its_images_and_what_was_saved_goes_on(
    run: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    directory = copy_run(run, tmp_path / "run")
    assert finish(directory, break_step, 9, "nan") == 1
    words = said(directory)
    assert "the loss of model was not finite at step" in words
    (line,) = [line for line in words.splitlines() if "was not finite at step" in line]
    assert line.count("images/") == 8, "the batch's files"
    assert "Traceback" not in words
    status = read_status(directory)
    assert status["state"] == "failed"
    assert "images/" in status["error"]
    assert torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    assert finish(directory) == 0, said(directory)
    assert "The session before this one failed: NonFiniteLossError" in said(directory)
    assert_same(results(directory), whole)


@pytest.mark.parametrize("what", ["gpu", *(pytest.param(w, marks=pytest.mark.slow) for w in ("host", "torch"))])
def test_too_little_memory_names_the_keys_that_need_less(
    run: Path, whole: dict[str, Any], tmp_path: Path, what: str
) -> None:
    directory = copy_run(run, tmp_path / "run")
    assert finish(directory, break_step, 9, what) == 1
    words = said(directory)
    assert "data.batch_size=4 trainer.accumulate_grad_batches=2 (now 8 and 1): the same images" in words
    assert ("The GPU's memory" in words) is (what == "gpu")
    assert ("trainer.precision=bf16-mixed" in words) is (what == "gpu")
    assert "Traceback" not in words
    assert "does not suffice" in read_status(directory)["error"]
    assert finish(directory) == 0, said(directory)
    assert_same(results(directory), whole)


def test_the_advice_keeps_the_images_of_a_step() -> None:
    assert [smaller(n) for n in (1, 2, 3, 8, 9, 96)] == [1, 1, 2, 4, 8, 64]
    cfg = OmegaConf.create(
        {"data": {"batch_size": 96, "image_size": 64, "placement": "device", "eval_batch_size": 300},
         "trainer": {"accumulate_grad_batches": 1, "precision": "bf16-mixed"}, "jobs_per_gpu": 2}
    )  # fmt: skip
    first, *rest = advice(cfg, gpu=True, training=True)
    assert first.startswith("data.batch_size=64 trainer.accumulate_grad_batches=2 (now 96 and 1): 128 instead of 96")
    assert [line.split(" ")[0] for line in rest[:2]] == ["data.placement=mmap", "jobs_per_gpu=1"]
    assert advice(cfg, gpu=True, training=False)[0].startswith("data.eval_batch_size=256 (now 300)")
    with pytest.raises(ValueError, match="other"), explained(cfg):
        raise ValueError("other")
    with pytest.raises(RuntimeError, match="shapes") as found, explained(cfg):
        raise RuntimeError("shapes differ")
    assert not isinstance(found.value, NoMemoryError)
    for trouble in TROUBLES.values():
        with pytest.raises(NoMemoryError, match=r"data\.batch_size=64"), explained(cfg):
            raise trouble


def test_only_the_first_bad_batch_is_named() -> None:
    state = FiniteState()
    for step, value in enumerate((1.0, math.inf, math.nan)):
        state.update(torch.tensor([1.0, value]), torch.arange(12) + 12 * step, step)
    words = state.read(("a", "b"), [f"{i}.jpg" for i in range(20)])
    assert words is not None
    assert words.startswith("the loss of b was not finite at step 1")
    assert "images: 12.jpg, 13.jpg, 14.jpg, 15.jpg, 16.jpg, 17.jpg, 18.jpg, 19.jpg and 4 more" in words


def jumping_clock() -> None:
    """`time.time` of this process goes back and forth by days."""
    real, calls = time.time, [0]

    def jumps() -> float:
        calls[0] += 1
        return real() + 86400 * (-1) ** calls[0] * (calls[0] % 5)

    time.time = jumps


def test_a_clock_that_jumps_changes_nothing(run: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    directory = copy_run(run, tmp_path / "run")
    assert finish(directory, jumping_clock) == 0, said(directory)
    assert_same(results(directory), whole)
    status = read_status(directory)
    assert 0 <= status["seconds"] < 600


def test_the_time_left_and_a_lease_do_not_look_at_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlcar.runs.lease import taken
    from mtlcar.runs.lock import run_lock

    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock"))
    with taken(1, 1, ["GPU-a"], tmp_path) as first:
        assert first == ["GPU-a"]
    with run_lock(tmp_path, watch=0.01):
        pass


def test_a_status_file_of_any_json_is_no_reason_to_stop(tmp_path: Path) -> None:
    for text in ('{"sessions": "x"}', '{"sessions": null, "error": 5, "state": "failed"}', "[]", "7", "{"):
        (tmp_path / "status.json").write_text(text)
        assert Status(tmp_path).values["sessions"] == 1


SLOW_SIZES = (pytest.param(k, marks=pytest.mark.slow) for k in (100, 200, 700, 1100, 1500, 2000))


@pytest.mark.parametrize("kilobytes", [8, 400, *SLOW_SIZES])
def test_a_disk_that_fills_at_any_write_leaves_nothing_half_written(
    run: Path,
    whole: dict[str, Any],
    small_disk: Path,  # noqa: F811
    kilobytes: int,
) -> None:
    disk = small_disk
    directory = copy_run(run, disk / "run")
    out = disk.parent / "run.out"
    (disk / "run.out").symlink_to(out)
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"0" * max(0, free.f_bavail * free.f_frsize - kilobytes * 1024))
    status = finish(directory)
    words = out.read_text()
    assert "Traceback" not in words
    if status:
        assert status in (1, 2)
        assert "No space left" in words or "could not be written" in words, words
    filler.unlink()
    assert finish(directory) == 0, out.read_text()
    assert_same(results(directory), whole)
    assert not list(directory.rglob(".*.tmp"))
