"""`mtlcar bench step`: every architecture has its row or a reason, mistakes are named. No time is asserted."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from mtlcar.architectures import latency
from mtlcar.bench import step
from mtlcar.bench.rig import Driven, Rig
from mtlcar.cli import main
from mtlcar.config import groups
from mtlcar.weightings.base import Weighting
from tests.test_bench import SMALL, torch_settings

KEYS = {
    "name", "tasks", "parameters", "shared_parameters", "pruned_parameters", "forward_gmacs", "step_ms",
    "ratio_to_parallel", "ratio_low", "ratio_high", "task_gmacs", "latency_ms",
}  # fmt: skip


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(step, "WARM_UP_EPOCHS", 1)
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr("gc.collect", lambda: 0)  # half of the time, beside pytest's own objects
    before = torch_settings()
    yield
    assert torch_settings() == before, "the command put back what it set"


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[dict[str, Any]], str]:
    """The rows and what was said next to them."""
    assert main(["bench", "step", "--json", "--rounds", "1", *words, *SMALL]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert isinstance(found, list)
    return found, captured.err


def test_every_architecture_is_measured_or_left_out_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found, err = rows(capsys)
    names = [r["name"] for r in found]
    assert names[0] == "parallel"
    out = [line.split(": ")[1] for line in err.splitlines() if line.startswith("left out: ")]
    assert sorted([*names, *out]) == sorted(groups()["architecture"])
    assert "single: architecture=single trains 1 of 2 tasks" in err
    for row in found:
        assert set(row) == KEYS
        assert list(row["task_gmacs"]) == ["make", "model"]
        assert all(0 <= x <= row["forward_gmacs"] * (1 + 1e-9) for x in row["task_gmacs"].values())
        assert all((x > 0) == (row["name"] != "constant") for x in row["task_gmacs"].values())
        assert list(row["latency_ms"]) == ["make", "model", "all"]
        numbers = [*(row[k] for k in KEYS - {"name", "task_gmacs", "latency_ms"}), *row["latency_ms"].values()]
        nothing = row["name"] == "constant"  # no products, and nothing shared
        assert all(math.isfinite(x) and (x > 0 or (x == 0 and nothing)) for x in numbers)
        assert row["ratio_low"] <= row["ratio_to_parallel"] <= row["ratio_high"]


def test_the_table_has_a_line_an_architecture_and_number_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "parallel,cascade", "--tasks", "2", "3", *SMALL, "--rounds", "1"]
    assert main(["bench", "step", *words]) == 0  # overrides right after the numbers
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert [line[:2] for line in table[2:]] == [
        ["parallel", "2"],
        ["cascade", "2"],
        ["parallel", "3"],
        ["cascade", "3"],
    ]
    assert table[0][7:] == [f"latency of {n}, ms" for n in ("make", "model", "value_0", "all")]
    assert {len(line) for line in table} == {11}
    assert [line[9] == "" for line in table[2:]] == [True, True, False, False]
    assert table[2][2] == "0.099"  # million: 82,872 of the trunk, 65 x (49 + 196) of the heads
    assert table[2][3] == "0.083"
    assert "1 threads" in out


def test_own_keys_reach_the_architectures_that_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = rows(capsys, "--only", "parallel", "cascade")
    other, _ = rows(capsys, "--only", "parallel", "cascade", "architecture.combine=add")
    more = [b["parameters"] - a["parameters"] for a, b in zip(plain, other, strict=True)]
    # Instead of 49 more inputs to a layer of 196, a projection of 49 to 64 with a bias.
    assert more == [0, 49 * 64 + 64 - 49 * 196]


def test_the_step_is_that_of_the_weighting_which_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    class Spy(Driven):
        def __init__(self, rig: Rig, weighting: Weighting) -> None:
            super().__init__(rig, weighting)
            seen.append((rig.architecture.name, weighting.name))
            assert rig.optimizer is not None
            held = {id(p) for group in rig.optimizer.param_groups for p in group["params"]}
            assert {id(p) for p in weighting.parameters()} <= held

    monkeypatch.setattr(step, "Driven", Spy)
    found, _ = rows(capsys, "--only", "cascade", "weighting=uncertainty")
    assert [r["name"] for r in found] == ["cascade"]
    assert seen == [("cascade", "uncertainty"), ("parallel", "uncertainty")]


def test_a_schedule_stands_in_the_middle_of_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mtlcar.architectures.base.Architecture.begin_epoch", lambda self, epoch, epochs: seen.append((epoch, epochs))
    )
    rows(capsys, "--only", "parallel", "trainer.max_epochs=8")
    assert seen == [(4, 8), (4, 8)]


def test_one_that_cannot_be_built_does_not_cost_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    found, err = rows(capsys, "--only", "single", "parallel")
    assert [r["name"] for r in found] == ["parallel"]
    assert "left out: single: architecture=single trains 1 of 2 tasks only" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "pralel"], "There is no architecture 'pralel'. Did you mean 'parallel'"),
        (["--only", ","], "--only needs names of architectures"),
        (["--only", "single"], "nothing to measure"),
        (["--only", "cascade", "architecture.fed=logits"], "none of cascade has this key. Did you mean 'feed'"),
        (["--only", "cascade", "architecture.feed=hidden"], "left out: cascade: architecture.feed=hidden"),
        (["architecture=cascade"], "choose architectures with --only cascade"),
        (["--tasks", "1"], "at least 2"),
        (["--tasks", "two"], "'two'"),
        (["--rounds", "0"], "at least 1"),
        (["--peers"], "bench weightings"),
        (["backbone=tinny"], "'tiny'"),
        (["backbone=tiny,resnet18"], "one setting"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken = {w.split("=")[0] for w in words}
    small = [o for o in SMALL if o.split("=")[0] not in taken]
    assert main(["bench", "step", *words, *small]) == 2
    assert message in capsys.readouterr().err
