"""Runs that are the same have one fingerprint, others have another."""

import subprocess
import sys

import pytest
from omegaconf import open_dict

from mtlcar.config import compose_config
from mtlcar.runs.fingerprint import canonical, fingerprint

D = {"annotations": "0123"}


def of(*overrides: str, digests: dict[str, str] = D) -> str:
    return fingerprint(compose_config(["threads=1", *overrides]), digests)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["optimizer.lr=0.1", "seed=1"], ["seed=1", "optimizer.lr=1e-1"]),
        (["head.dropout=0"], ["head.dropout=0.0"]),
        (["weighting.weights={make:1,model:2}"], ["weighting.weights={model:2.0,make:1.0}"]),
        ([], ["paths.runs=/elsewhere", "logger=none", "sweep=other", "data.root=/moved"]),
        ([], ["trainer.log_every_n_steps=7"]),
    ],
)
def test_the_same_run_written_differently(one: list[str], other: list[str]) -> None:
    assert of(*one) == of(*other)


@pytest.mark.parametrize(
    "change",
    ["seed=1", "threads=2", "optimizer.lr=0.001", "head.dropout=0.25", "architecture=single", "data.image_size=65",
     "data.split_seed=1", "trainer.max_epochs=11", "trainer.precision=32-true", "weighting.normalize=true",
     "loss.label_smoothing=0.0", "data.batch_size=8", "backbone=vit_tiny", "trainer.limit_train_batches=1"],
)  # fmt: skip
def test_what_can_change_a_result_changes_it(change: str) -> None:
    assert of(change) != of()


def test_content_of_the_data_counts_and_not_its_place() -> None:
    assert of(digests={"annotations": "4567"}) != of()


ON = (("data.label_fraction={model:0.5}",), ("loss.matching=0.5",), ("loss.matching=0.5", "loss.matching_kind=kl"))


def test_runs_from_before_a_key_are_those_where_it_is_off() -> None:
    """Or nobody's old runs would be found again."""
    cfg = compose_config(["threads=1"])
    with open_dict(cfg):
        del cfg.data.label_fraction, cfg.loss.matching, cfg.loss.matching_kind
    off = ("data.label_fraction=null", "loss.matching=0", "loss.matching_kind=kl")
    assert of() == of(*off) == fingerprint(cfg, D)


def test_keys_that_are_on_tell_runs_apart() -> None:
    assert len({of(), *(of(*words) for words in ON)}) == 4


def test_it_is_the_same_whatever_the_hash_seed() -> None:
    code = "from tests.test_fingerprint import of; print(of('head.dropout=0.3'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1


def test_canonical_numbers() -> None:
    assert canonical({"b": [1.0, 2.5, True], "a": 1e0}) == {"a": 1, "b": [1, 2.5, True]}
