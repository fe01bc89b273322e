"""Checkpoints, weights and tables that are malicious, damaged or of another run: a message; nothing in them runs."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlcar.backbones.weights import read_weights
from mtlcar.cli import main
from mtlcar.errors import UserError
from mtlcar.runs.checkpoint_files import load_weights, read_point, resume_point
from mtlcar.runs.config_differences import SHOWN, differences
from mtlcar.runs.torch_files import UnreadableError, read_torch
from tests.jobs import finish, said
from tests.trained import pictures, trained_run


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def zipped(mark: Path, file: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": {"Checkpoints": Touch(mark)}}, file)


def legacy(mark: Path, file: Path) -> None:
    torch.save({"state_dict": Touch(mark)}, file, _use_new_zipfile_serialization=False)


def bare(mark: Path, file: Path) -> None:
    file.write_bytes(pickle.dumps(Touch(mark)))


def array(mark: Path, file: Path) -> None:
    with file.open("wb") as out:
        np.save(out, np.array([Touch(mark)], dtype=object), allow_pickle=True)


pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")  # Lightning's own
MALICIOUS = [zipped, legacy, bare, array]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def picture(run: Path) -> Path:
    return pictures(run)[0]


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, tmp_path / "runs" / "s" / run.name))


def commands(run: Path, picture: Path, out: Path) -> list[list[str]]:
    return [["evaluate", f"{run}"], ["predict", f"{run}", f"{picture}"], ["runs", "list", f"{run.parents[1]}"],
            ["explain", f"{run}", f"{picture}", "-o", f"{out}/e.png"], ["runs", "show", f"{run}"],
            ["export", f"{run}", "--format", "pt2", "-o", f"{out}/e.pt2"], ["runs", "diff", f"{run}", f"{run}"],
            ["diagnose", f"{run}", "-o", f"{out}/d"], ["report", f"{run.parent}", "-o", f"{out}/report"]]  # fmt: skip


@pytest.mark.parametrize("make", MALICIOUS, ids=lambda make: make.__name__)
def test_no_command_runs_what_a_run_directory_holds(
    copy: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path, Path], None]
) -> None:
    """In the place of every file that a command may read."""
    mark = tmp_path / "touched"
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/previous.ckpt", "predictions.parquet",
             "metrics.json", "status.json", "rows.jsonl", "history.csv", "search.json",
             "reference.safetensors")  # fmt: skip
    for name in names:
        (copy / name).parent.mkdir(exist_ok=True)
        make(mark, copy / name)
    for words in commands(copy, picture, tmp_path):
        status = main(words)
        told = capsys.readouterr()
        assert not mark.exists(), words
        assert "Traceback" not in told.err + told.out
        if words[0] in ("evaluate", "predict", "explain", "export", "diagnose"):
            assert status == 2, words
            assert "Nothing in it was run" in told.err
    assert resume_point(copy / "checkpoints")[0] is None
    assert not mark.exists()
    make(mark, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    assert not mark.exists()


def stop_before_fitting() -> None:
    from mtlcar.runs import run as running

    def fit(cfg: Any, parts: Any, run_dir: Path, loggers: Any, point: Any, **_: Any) -> Any:
        raise UserError(f"from {point}")

    running.fit = fit  # type: ignore[assignment]


def test_a_job_goes_past_malicious_checkpoints(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    (copy / "DONE").unlink()
    for name in ("best", "last", "previous"):
        zipped(mark, copy / "checkpoints" / f"{name}.ckpt")
    assert finish(copy, stop_before_fitting) == 2
    assert "from None" in said(copy)
    assert not mark.exists()
    assert (copy / "checkpoints" / "last.damaged").exists()


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def compressed() -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(4 << 20)}))) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


GOOD = saved({"state_dict": {"w": torch.ones(1000)}})
DAMAGED = {
    "empty": b"",
    "torn": GOOD[: len(GOOD) // 2],
    "text": b"<html>404</html>",
    "list": saved([1, 2]),
    "numbers": saved({"state_dict": {"w": 1}}),
    "keys": saved({"state_dict": {1: torch.ones(1)}}),
    "sparse": saved({"state_dict": {"w": torch.ones(2, 2).to_sparse()}}),
    "meta": saved({"state_dict": {"w": torch.ones(2, device="meta")}}),
    "bomb": compressed(),
    "none": saved({"state_dict": None}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_holds_no_weights_is_a_message(tmp_path: Path, content: bytes) -> None:
    for name in ("best.ckpt", "w.pth"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"best\.ckpt"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    assert read_point(tmp_path / "best.ckpt")[0] is None


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}},
        {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 0]}},
        {"w": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}},
        [],
        None,
    ],
)
def test_a_safetensors_header_that_lies_is_a_message(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    length = 10**12 if header is None else len(text)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + text + b"\0" * 8)
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "w.safetensors")


def test_a_directory_in_the_place_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    assert read_point(tmp_path / "last.ckpt") == (None, "is no file")
    with pytest.raises(UnreadableError, match="is no file"):
        read_torch(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "own",
    [
        {},
        [],
        None,
        ["finished", "rows", "random", "step", "run"],
        {"finished": 1, "rows": "1", "random": [], "step": 1, "run": "x"},
        {"finished": True, "rows": -5, "random": [], "step": 1, "run": "x"},
    ],
)
def test_bookkeeping_of_another_shape_is_no_checkpoint_to_go_on_from(tmp_path: Path, own: Any) -> None:
    torch.save({"callbacks": {"Checkpoints": own}, "global_step": 1, "epoch": 0}, tmp_path / "last.ckpt")
    assert read_point(tmp_path / "last.ckpt")[0] is None


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    own = {"finished": False, "rows": 1, "random": [], "step": -1, "run": "x"}
    good = saved({"callbacks": {"Checkpoints": own}, "global_step": 1, "epoch": 0, "state_dict": {"w": torch.ones(9)}})
    path = tmp_path / "last.ckpt"
    path.write_bytes(good)
    assert read_point(path)[0] is not None
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        point, fault = read_point(path)
        if point is not None:  # in the padding, or in a name that nothing reads
            assert (point.step, point.own) == (1, own)
        else:
            assert fault


def test_a_checkpoint_of_another_configuration_says_in_which_keys(run: Path, copy: Path) -> None:
    from mtlcar.inference.network import load_network
    from mtlcar.runs.config_differences import network_config
    from mtlcar.runs.evaluate import stored_config

    cfg, path = stored_config(copy, []), copy / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    state["callbacks"] = {"Checkpoints": {"config": network_config(cfg)}}
    torch.save(state, path)
    load_network(copy, cfg)
    cfg.head.dropout = 0.125
    with pytest.raises(UserError, match=r"head\.dropout: 0\.3 in the checkpoint, 0\.125 here"):
        load_network(copy, cfg)
    cfg.backbone.weights = "elsewhere.pth"  # the parameters are in the checkpoint
    cfg.head.dropout = 0.3
    load_network(copy, cfg)


def test_differences_are_few_lines() -> None:
    theirs, ours = {f"a.k{k}": k for k in range(40)}, {"a.name": "x" * 500}
    found = differences(theirs, ours)
    assert len(found) == SHOWN + 1
    assert max(map(len, found)) <= 200
    assert differences({}, ours) == []
