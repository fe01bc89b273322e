"""Wherever the images lie, a batch of them is the same, and what does not fit is said before training."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlcar.data import free_memory, placement
from mtlcar.data.cache import ImageCache, ImageStream
from mtlcar.data.free_memory import free_on_host
from mtlcar.data.loader import BatchLoader
from mtlcar.data.placement import Gathered, PageLocked, Placed, Resident, on_device, page_locked, place
from mtlcar.data.staging import Staging
from mtlcar.errors import UserError
from tests.test_datamodule import cache, make

__all__ = ["cache"]  # a fixture
CPU = torch.device("cpu")
GB = 10**9


def store_of(folder: Path) -> ImageCache:
    data = make(folder)
    data.setup()
    assert isinstance(data.store, ImageCache)
    return data.store


def everywhere(store: ImageCache, device: torch.device) -> dict[str, Placed]:
    return {
        "mmap": Gathered(store, device),
        "device": Resident(on_device(store, device)),
        "pinned": PageLocked(page_locked(store), device),
    }


def batches(images: Placed, device: torch.device) -> list[dict[str, Tensor]]:
    targets = {"make": torch.arange(60), "weight": torch.arange(60) / 2}
    loader = BatchLoader(images, targets, np.arange(3, 57), 7, seed=5, device=device)
    return [{**{k: v for k, v in batch.items() if k != "target"}, **batch["target"]} for batch in loader]


def test_a_batch_is_the_same_wherever_the_images_lie(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "PORTION", 5 * 3 * 8 * 8)  # several portions, the last one smaller
    store = store_of(cache)
    found = {name: batches(images, CPU) for name, images in everywhere(store, CPU).items()}
    for batch in found["mmap"]:
        assert torch.equal(batch["image"], torch.from_numpy(store.images[batch["index"].numpy()]))
        assert torch.equal(batch["weight"] * 2, batch["make"])
        assert torch.equal(batch["make"], batch["index"])
    for other in ("device", "pinned"):
        for a, b in zip(found["mmap"], found[other], strict=True):
            assert a.keys() == b.keys() == {"image", "make", "weight", "index", "key"}
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_data_module_trains_from_where_it_is_told_to(cache: Path) -> None:
    told = [make(cache, placement=where) for where in ("auto", "device", "mmap")]
    kinds = [type(data.train_dataloader().images) for data in told]
    assert kinds == [Gathered, Resident, Gathered]
    first, *others = ([batch["image"] for batch in data.train_dataloader()] for data in told)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    data = told[1]
    assert data.train_dataloader().images is data.val_dataloader().images  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("gpu", "host", "sharing", "gpus", "expected"),
    [
        (40, 40, 1, 1, "device"),
        (40, 1, 1, 8, "device"),
        (7.9, 8.1, 1, 1, "pinned"),
        (7.9, 8.1, 1, 2, "mmap"),  # the other GPU's run may want as much
        (7.9, 16.1, 1, 2, "pinned"),
        (7.9, 8.1, 1, 0, "pinned"),  # no nvidia-smi
        (7.9, 7.9, 1, 1, "mmap"),
        (7.9, 0, 1, 1, "mmap"),  # nobody knows how much the host has
        (15, 31, 2, 1, "pinned"),
        (17, 31, 2, 1, "device"),
        (31, 31, 4, 1, "mmap"),
    ],
)
def test_images_of_two_gigabytes_take_a_quarter_of_what_is_free_at_most(
    gpu: float, host: float, sharing: int, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_on", lambda device: int(gpu * GB))
    monkeypatch.setattr(placement, "free_on_host", lambda: int(host * GB))
    monkeypatch.setattr(placement, "listed", lambda: [None] * gpus)
    assert placement.automatic(2 * GB, torch.device("cuda"), sharing) == expected
    assert placement.automatic(2 * GB, CPU, sharing) == "mmap"


def test_what_cannot_be_is_said_with_numbers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(cache)
    with pytest.raises(UserError, match=r"data.placement=pinned is for copies to a GPU"):
        place(store, CPU, "pinned")
    stream = ImageStream.__new__(ImageStream)
    for wanted in ("device", "pinned"):
        with pytest.raises(UserError, match=rf"data.placement={wanted} keeps decoded images, and data.cache=false"):
            place(stream, CPU, wanted)
    assert isinstance(place(stream, CPU, "auto"), Gathered)
    monkeypatch.setattr(placement, "free_on", lambda device: 1000)
    message = r"data.placement=device: The images do not fit on cpu: the images take 0.00 GB, and 0.00 GB are free"
    with pytest.raises(UserError, match=message):
        place(store, CPU, "device")
    with pytest.raises(UserError, match=r"data.placement should be one of auto, device, pinned, mmap. Found 'gpu'"):
        make(cache, placement="gpu")


def test_free_memory_is_what_the_control_groups_above_a_process_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(file: str, text: object) -> None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"{text}\n")

    monkeypatch.setattr(free_memory, "ROOT", tmp_path)
    assert free_on_host() == 0  # nobody knows
    write("proc/meminfo", "MemTotal: 64000 kB\nMemAvailable:   32000 kB")
    assert free_on_host() == 32_768_000
    write("proc/self/cgroup", "0::/slurm/job_7/step_0")
    slurm = "sys/fs/cgroup/slurm"
    for group, limit, used, inactive in (
        (f"{slurm}/job_7/step_0", "max", 100, 0),
        (f"{slurm}/job_7", 9000, 5000, 1500),  # of which 1500 are files that were read
        (slurm, 20_000_000, 1000, 0),
    ):
        write(f"{group}/memory.max", limit)
        write(f"{group}/memory.current", used)
        write(f"{group}/memory.stat", f"anon 12\ninactive_file {inactive}")
    assert free_on_host() == 5500
    write(f"{slurm}/memory.max", 3000)  # a limit higher up
    assert free_on_host() == 2000
    write("proc/self/cgroup", "12:cpu:/x\n3:memory,blkio:/docker/4f\n0::/")
    write("sys/fs/cgroup/memory/docker/4f/memory.limit_in_bytes", 7000)
    write("sys/fs/cgroup/memory/docker/4f/memory.usage_in_bytes", 500)
    write("sys/fs/cgroup/memory/docker/4f/memory.stat", "total_inactive_file 250")
    assert free_on_host() == 6750


def test_on_this_machine_something_is_free() -> None:
    if Path("/proc/meminfo").is_file():
        assert 10**6 < free_on_host() < 10**15


def test_batches_are_made_by_one_thread_that_ends(cache: Path) -> None:
    threads: list[threading.Thread] = []

    def batch() -> dict[str, Tensor]:
        threads.append(threading.current_thread())
        return {}

    with Staging(None) as staging:
        waiting = [staging.submit(batch) for _ in range(3)]
        assert [staging.take(future) for future in waiting] == [{}, {}, {}]
    assert len(set(threads)) == 1
    assert threads[0].name.startswith("batches")
    assert not threads[0].is_alive()


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["auto", "device", "pinned", "mmap"])
def test_batches_on_a_gpu_are_those_on_the_cpu(where: str, cache: Path) -> None:
    expected = list(make(cache).train_dataloader())
    data = make(cache, placement=where)
    data.device = torch.device("cuda", 0)
    busy = torch.randn(2048, 2048, device="cuda")
    seen = []
    for batch in data.train_dataloader():
        busy = busy @ busy / 2048  # the step, on another stream than the batches
        seen.append({**batch, "image": batch["image"].clone()})
    for a, b in zip(expected, seen, strict=True):
        assert b["image"].is_cuda
        assert torch.equal(a["image"], b["image"].cpu())
        assert torch.equal(a["key"], b["key"].cpu())
        for task in a["target"]:
            assert torch.equal(a["target"][task].nan_to_num(-1), b["target"][task].nan_to_num(-1).cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["device", "pinned", "mmap"])
def test_no_batch_makes_the_host_wait_for_the_gpu(where: str, cache: Path) -> None:
    data = make(
        cache, placement=where, augment={"flip": 0.5, "crop_scale": [0.5, 1], "brightness": 0.2, "erasing": 0.5}
    )
    data.device = torch.device("cuda", 0)
    loader = data.train_dataloader()
    for warm in (True, False):
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        try:
            for batch in loader:
                data.on_after_batch_transfer(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_memory_that_the_system_does_not_lock_is_explained_or_done_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(store: ImageCache) -> list[Tensor]:
        raise RuntimeError("CUDA error: out of memory\nCompile with ...")

    store, gpu = store_of(cache), SimpleNamespace(type="cuda")
    monkeypatch.setattr(placement, "page_locked", refused)
    monkeypatch.setattr(placement, "automatic", lambda *args: "pinned")
    with pytest.raises(UserError, match=r"=pinned: The images do not fit on the host: CUDA error: out of memory. Use"):
        place(store, gpu, "pinned")  # type: ignore[arg-type]
    assert isinstance(place(store, gpu, "auto"), Gathered)  # type: ignore[arg-type]
    assert "They are read from the file" in caplog.text
