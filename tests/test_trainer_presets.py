"""Several processes for one run: the presets compose, and two processes on the CPU give the numbers of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from omegaconf import OmegaConf

from mtlcar.config import compose_config
from mtlcar.errors import UserError
from mtlcar.runs.files import read_json
from mtlcar.runs.ranks import is_main_process
from tests.cli import mtlcar
from tests.test_build import cache, parts  # noqa: F401  (cache is a fixture)
from tests.test_runs import SMALL

TRANSFORMER = "backbone=vit_tiny"
"""BatchNorm would see half the batch in each of two processes."""
KEY = slice(48, 96)
"""Of an attention's bias [3 x 48]: the keys' part. Its gradient is rounding error alone, and Adam makes steps of it."""
CPU = ("trainer.accelerator=cpu", "trainer.precision=32-true", TRANSFORMER)


@pytest.mark.parametrize(
    ("name", "nodes", "strategy"), [("ddp", 1, "ddp"), ("ddp_2node", 2, "ddp"), ("fsdp", 1, "fsdp")]
)
def test_a_preset_is_for_all_gpus_and_knows_its_machines(name: str, nodes: int, strategy: str) -> None:
    trainer = compose_config([f"trainer={name}"]).trainer
    assert (trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.strategy) == (
        "gpu",
        "auto",
        nodes,
        strategy,
    )
    assert set(compose_config([]).trainer) <= set(trainer)


def test_fsdp_refuses_what_needs_whole_gradients(cache: Path) -> None:  # noqa: F811
    for level, refused in (("parameters", True), ("representation", False)):
        _, built = parts(cache, "weighting=pcgrad", f"weighting.level={level}")
        built.module._trainer = SimpleNamespace(strategy=FSDPStrategy())
        if refused:
            with pytest.raises(UserError, match=r"needs whole gradients.*FSDPStrategy"):
                built.module.on_fit_start()
        else:
            built.module.on_fit_start()
        built.module._trainer = SimpleNamespace(strategy=DDPStrategy())
        built.module.on_fit_start()


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "4"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),  # torchrun's second machine
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, True),
        ({"SLURM_PROCID": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, False),  # srun's
    ],
)
def test_one_process_is_the_first_whoever_starts_them(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], main: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == main


def train(folder: Path, name: str, *overrides: str) -> Path:
    options = (f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", f"sweep={name}", TRANSFORMER)
    mtlcar("train", *SMALL, *options, *overrides, fresh_jobs=True)
    (run,) = (folder / "runs" / name).glob("*/DONE")
    return run.parent


def assert_alike(one: Path, two: Path) -> None:
    """The same metrics and predictions, and each prediction once; the same weights up to rounding."""
    for part in ("val", "test"):
        assert read_json(two / "metrics.json")[part] == pytest.approx(read_json(one / "metrics.json")[part], abs=1e-5)
    mine, others = (pd.read_parquet(run / "predictions.parquet") for run in (one, two))
    assert list(others["index"]) == list(mine["index"])
    assert others["index"].is_unique
    for column in ("make/prediction", "model/prediction"):
        assert (mine[column] == others[column]).all()
    weights, other = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in (one, two))
    for name, value in weights.items():
        if name.endswith("in_proj_bias"):
            value[KEY] = other[name][KEY] = 0
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("processes")
    return folder, train(folder, "alone")


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(alone: tuple[Path, Path]) -> None:
    folder, one = alone
    two = train(folder, "ddp", "trainer=ddp", "trainer.max_epochs=2", "trainer.devices=2", *CPU)
    assert_alike(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["lightning", "torchrun", "srun"])
def test_two_machines_give_the_run_of_one(alone: tuple[Path, Path], starter: str) -> None:
    """Two jobs here that take each other for another machine."""
    folder, one = alone
    run = folder / "runs" / starter / "two"
    run.mkdir(parents=True)
    cfg = OmegaConf.load(one / "config.yaml")
    cfg.trainer.update({"num_nodes": 2, "strategy": "ddp"})
    OmegaConf.save(cfg, run / "config.yaml")
    for name in ("tasks.json", "digests.json"):
        (run / name).write_bytes((one / name).read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    jobs = []
    for node in "01":
        command = [sys.executable, "-m", "mtlcar.runs.job", str(run)]
        said = {"NODE_RANK": node, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if starter == "torchrun":
            where = ["--nnodes=2", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
            command[2:2] = ["torch.distributed.run", *where, "--nproc-per-node=1", "-m"]
            said = {}
        elif starter == "srun":
            said = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_PROCID": node,
                    "SLURM_LOCALID": "0", "SLURM_NODEID": node, "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2",
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        jobs.append(subprocess.Popen(command, env={**os.environ, **said}, stderr=subprocess.PIPE, text=True))
    try:
        errors = [job.communicate(timeout=200)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert_alike(one, run)
