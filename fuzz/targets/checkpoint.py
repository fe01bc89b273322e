"""A checkpoint, a weight file of torch and a safetensors file, of any bytes."""

import atexit
import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save

from mtlcar.backbones import weights
from mtlcar.errors import UserError
from mtlcar.runs.checkpoint_files import load_weights, read_point

INSTRUMENT = ("mtlcar.runs.checkpoint_files", "mtlcar.runs.torch_files", "mtlcar.backbones.weights", "zipfile")
MODULE = torch.nn.Linear(2, 2)
FOLDER = Path(
    tempfile.mkdtemp(prefix=f"fuzz-checkpoint-{os.getpid()}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def try_one(data: bytes) -> None:
    for name in ("last.ckpt", "w.pth", "w.safetensors"):
        (FOLDER / name).write_bytes(data)
    try:
        point, fault = read_point(FOLDER / "last.ckpt")
        assert (point is None) == bool(fault)
        if point is not None:
            assert isinstance(point.own["step"] + point.step + point.epoch, int)
    except UserError:
        pass
    with contextlib.suppress(UserError):
        load_weights(MODULE, FOLDER / "last.ckpt")
    for name in ("w.pth", "w.safetensors"):
        try:
            found = weights.read_weights(FOLDER / name)
            weights.load_weights(MODULE, MODULE, found, name)
        except UserError:
            pass


def seeds() -> Iterable[bytes]:
    state = {key: value.detach().clone() for key, value in MODULE.state_dict().items()}
    own = {"finished": False, "rows": 3, "random": [], "step": 1, "run": "abc", "config": {"head.name": "mlp"}}
    whole = {"state_dict": state, "callbacks": {"Checkpoints": own}, "global_step": 4, "epoch": 1}
    for value, zipped in ((whole, True), (state, True), (state, False), ({"model": state}, True)):
        out = io.BytesIO()
        torch.save(value, out, _use_new_zipfile_serialization=zipped)
        yield out.getvalue()
    yield save(state)
