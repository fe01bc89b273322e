"""The one-epoch test and the choice among candidates: their rule with made-up outcomes, then real runs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mtlcar.errors import UserError
from mtlcar.label_transforms.base import Outcome, Trial
from mtlcar.label_transforms.fastcar import FastCAR
from mtlcar.runs.files import read_json
from mtlcar.runs.search import GradientMeter
from tests.cli import mtlcar
from tests.jobs import finish, said
from tests.test_fastcar import THREE, fitted
from tests.test_runs import SMALL


def play(f: FastCAR, outcomes: list[Outcome]) -> list[Trial]:
    """The trials it asks for when they end like this."""
    steps, asked, left = f.search(), [], list(outcomes)
    trial = next(steps, None)
    while trial is not None:
        asked.append(trial)
        try:
            trial = steps.send(left.pop(0))
        except StopIteration:
            trial = None
    assert not left
    return asked


def gradient(value: float) -> Outcome:
    return Outcome(value, {})


def score(accuracy: float, mae: float, loss: float = 0.0) -> Outcome:
    return Outcome(0.1, {"val/steel/accuracy": accuracy, "val/hv/mae": mae, "val/loss": loss})


def test_nothing_is_tried_unless_asked() -> None:
    assert play(fitted(*THREE), []) == []
    assert play(fitted(*THREE, gradient_limit=2.0, constants=fitted(*THREE).constants()), []) == []


def test_the_scale_rises_until_the_test_is_passed() -> None:
    f = fitted(*THREE, scale=1, gradient_limit=2.0, factor=3.0)
    before = f.low.clone()
    asked = play(f, [gradient(10.0), gradient(2.0), gradient(1.99)])  # the limit itself does not pass
    assert [t.what["scale"] for t in asked] == [1, 3, 9]
    assert f.scale.item() == 9
    assert torch.equal(f.low, before)  # the axis stays, only its unit changes
    tries = f.findings({})["one_epoch_test"]
    assert [t["passed"] for t in tries] == [False, False, True]
    assert [t["mean_gradient"] for t in tries] == [10.0, 2.0, 1.99]
    json.dumps(f.findings({}), allow_nan=False)


def test_the_gap_may_be_what_shrinks() -> None:
    f = fitted(*THREE, scale=1, gradient_limit=2.0, adjust="gap", gap=40.0)
    play(f, [gradient(math.inf), gradient(1.0)])  # a loss that was not finite is a failed test
    assert (f.gap, f.scale.item()) == (20, 1)
    assert (f.low[1] - f.high[0]).item() == 20
    assert f.findings({})["one_epoch_test"][0]["mean_gradient"] is None


def test_it_gives_up_after_so_many_tries() -> None:
    f = fitted(*THREE, scale=1, gradient_limit=2.0, tries=2)
    with pytest.raises(UserError, match=r"after 2 one-epoch tests.*gradient_limit=2 \(scale 1: 9\.0; scale 2: 8\.0\)"):
        play(f, [gradient(9.0), gradient(8.0)])


def test_the_best_candidate_on_validation_data_stays() -> None:
    f = fitted(*THREE, candidates={"gap": [5.0, 50.0], "layout": ["minimal", "stacked"]}, candidate_epochs=2)
    # the loss has another unit on each axis and is not looked at
    asked = play(f, [score(0.5, 9), score(0.7, 9, 1), score(0.7, 8, 3), score(0.7, 8, 2)])
    assert [t.epochs for t in asked] == [2] * 4
    assert [t.what for t in asked][2] == {"gap": 50.0, "layout": "minimal"}
    assert f.findings({})["chosen"] == {"gap": 50.0, "layout": "minimal"}  # ties: the smaller error, then the earlier
    assert (f.gap, f.offset.tolist()) == (50, [0, 60, 0])


def test_a_candidate_without_a_number_is_the_worst() -> None:
    f = fitted(*THREE, candidates={"gap": [5.0, 50.0]})
    play(f, [Outcome(math.inf, {}), score(0.1, 99)])
    assert f.gap == 50
    assert f.findings({})["candidates"][0]["val/steel/accuracy"] is None


def test_without_any_number_there_is_no_best() -> None:
    f = fitted(*THREE, candidates={"gap": [5.0, 50.0]})
    with pytest.raises(UserError, match="no candidate has a val/steel/accuracy"):
        play(f, [Outcome(math.inf, {}), Outcome(math.inf, {})])


def test_a_candidate_that_cannot_be_is_said_before_anything_is_tried() -> None:
    f = fitted(*THREE, candidates={"gap": [5.0, 1e-9]})
    with pytest.raises(UserError, match="gap=1e-09 is too small"):
        next(f.search())


def test_a_gap_that_cannot_shrink_further_ends_the_test_with_what_was_tried() -> None:
    f = fitted(*THREE, scale=1, gradient_limit=2.0, adjust="gap", gap=10.0, factor=1e6)
    with pytest.raises(UserError, match=r"after 1 one-epoch tests.*gap 10: 9\.0[\s\S]*The next, gap 1e-05.*too small"):
        play(f, [gradient(9.0)])


def test_skipped_steps_of_fp16_do_not_count() -> None:
    class Plugin:
        scaler: object = object()

    class Fake:
        precision_plugin = Plugin()

    layer = torch.nn.Linear(2, 1, bias=False)
    meter = GradientMeter()
    assert meter.mean() == math.inf
    for values in ([1.0, 3.0], [math.inf, 1.0], [2.0, 6.0]):
        layer.weight.grad = torch.tensor([values])
        meter.on_before_optimizer_step(Fake(), layer, None)  # type: ignore[arg-type]
    assert meter.mean() == 3.0  # means 2 and 4
    Plugin.scaler = None
    meter.on_before_optimizer_step(Fake(), layer, None)  # type: ignore[arg-type]
    layer.weight.grad = torch.tensor([[math.nan, 1.0]])
    meter.on_before_optimizer_step(Fake(), layer, None)  # type: ignore[arg-type]
    assert meter.mean() == math.inf  # without a scaler such a step is taken


def test_swaps_are_the_orders_with_two_neighbours_exchanged() -> None:
    f = fitted(*THREE, candidates={"order": ["mean", "swaps"]})
    asked = play(f, [score(0.5, 9), score(0.6, 9), score(0.5, 9)])
    assert [t.what["order"] for t in asked] == ["mean", ["k1", "k0", "k2"], ["k0", "k2", "k1"]]
    assert f.constants()["classes"] == ["k1", "k0", "k2"]


AXIS = (*SMALL, "data.levels=[model,weight]", "label_transform=fastcar", "head.dropout=0.3")


def config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def test_a_searched_run_is_the_run_with_those_constants(tmp_path: Path) -> None:
    """Weights, data order, augmentation and dropout begin as if nothing had been tried before."""
    paths = (f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}")
    tests = ("label_transform.scale=1", "label_transform.gradient_limit=0.5", "label_transform.factor=30")
    mtlcar("train", *AXIS, *paths, "sweep=searched", *tests)
    (searched,) = (tmp_path / "runs" / "searched").glob("*/")
    found = read_json(searched / "metrics.json")
    tries = found["findings"]["label_transform"]["one_epoch_test"]
    assert [t["passed"] for t in tries] == [False] * (len(tries) - 1) + [True]
    assert len(tries) > 1
    assert all((t["mean_gradient"] < 0.5) == t["passed"] for t in tries)
    assert found["timing"]["search_seconds"] > 0
    assert pd.read_csv(searched / "history.csv")["epoch"].tolist() == [0, 1]  # trials are no epochs of the run
    constants = config(searched)["label_transform"]["constants"]
    assert constants.pop("found") is True
    assert constants == found["findings"]["label_transform"]["constants"]
    assert constants["scale"] == tries[-1]["scale"]

    text = json.dumps(constants).replace('"', "")
    mtlcar("train", *AXIS, *paths, "sweep=given", f"label_transform.constants={text}", "label_transform.scale=1")
    (given,) = (tmp_path / "runs" / "given").glob("*/")
    again = read_json(given / "metrics.json")
    assert again["test"] == found["test"]
    assert "one_epoch_test" not in again["findings"]["label_transform"]
    one, other = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in (searched, given)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)

    # what the run leaves: predictions with their place on the axis, no confidence (scores are distances), the figure
    df = pd.read_parquet(searched / "predictions.parquet")
    assert set(df["axis/flag"]) <= {0, 1, 2, 3}
    shares = found["findings"]["label_transform"]["test_flags"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["in a gap"] == pytest.approx(np.mean(df["axis/flag"] == 1))
    assert "model/confidence" not in df
    assert len(df["model/scores"].iloc[0]) == 4
    assert (searched / "figures" / "axis.png").stat().st_size > 10_000
    values = json.loads(mtlcar("evaluate", str(searched), "--json").stdout)
    assert values == pytest.approx(found["test"], rel=1e-5)


def test_a_failed_search_leaves_what_it_tried(tmp_path: Path) -> None:
    paths = (f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}")
    done = mtlcar("train", *AXIS, *paths, "label_transform.gradient_limit=1e-12", "label_transform.tries=1", expect=2)
    assert "after 1 one-epoch tests the mean |gradient| is still not below" in done.stderr
    (record,) = (tmp_path / "runs").glob("*/*/search.json")
    assert read_json(record)["searched"]["one_epoch_test"][0]["passed"] is False


def test_candidates_are_compared_where_not_every_epoch_is_validated_and_a_restart_keeps_the_record(
    tmp_path: Path,
) -> None:
    paths = (f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}")
    words = ("label_transform.candidates={gap:[20,200]}", "trainer.check_val_every_n_epoch=2", "monitor=val/loss")
    mtlcar("train", *AXIS, *paths, *words)
    (run,) = (p.parent for p in (tmp_path / "runs").glob("*/*/DONE"))
    first = read_json(run / "metrics.json")
    tried = first["findings"]["label_transform"]["candidates"]
    best = min(tried, key=lambda t: (-t["val/model/accuracy"], t["val/weight/mae"]))
    assert first["findings"]["label_transform"]["chosen"] == {"gap": best["gap"]}
    assert first["findings"]["label_transform"]["constants"]["gap"] == best["gap"]
    assert finish(run) == 0, said(run)
    again = read_json(run / "metrics.json")
    assert again["test"] == first["test"]
    assert again["findings"] == first["findings"]
    assert again["timing"]["search_seconds"] == first["timing"]["search_seconds"]
