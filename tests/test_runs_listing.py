"""`mtlcar runs list | show | diff`: finding runs, saying what differs, and never changing anything."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from rich.console import Console

from mtlcar.cli import main
from mtlcar.config import compose_config
from mtlcar.errors import UserError
from mtlcar.listing.columns import Listing
from mtlcar.listing.differences import settings_differences
from mtlcar.listing.filters import matches
from mtlcar.listing.finding import find, find_run
from mtlcar.listing.life import STATES
from mtlcar.listing.listing import show_listing
from mtlcar.listing.tables import markdown_lines, plain_lines, seconds_text
from mtlcar.runs.lock import run_lock
from mtlcar.runs.names import wandb_id
from tests.run_dirs import config, write_run, write_steel


def composed(*overrides: str, **changes: Any) -> dict[str, Any]:
    """A configuration as `mtlcar train` stores it."""
    found: Any = OmegaConf.to_container(compose_config([*overrides, "threads=1"]), resolve=True)
    return {**found, **changes}


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["runs", *words]) == 0
    return capsys.readouterr().out.splitlines()


def cells(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    """The rows of `runs list`, by heading."""
    assert main(["runs", "list", "--markdown", *words]) == 0
    table = [[text.strip() for text in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """runs/first with two architectures, runs/second with another learning rate and seed."""
    write_run(tmp_path / "runs" / "first", config("single", sweep="first"), 0.7)
    write_run(tmp_path / "runs" / "first", config("cascade", sweep="first"), 0.9)
    write_run(tmp_path / "runs" / "second", config("cascade", seed=1, sweep="second", optimizer__lr=0.01), 0.8)
    return tmp_path / "runs"


def test_the_list_has_the_settings_that_differ_and_no_others(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = cells(capsys, str(three))
    assert list(rows[0]) == ["run", "state", "age", "epoch", "architecture", "lr", "seed", "best val/model/accuracy"]
    assert [row["architecture"] for row in rows] == ["single", "cascade", "cascade"]
    assert [(row["lr"], row["seed"]) for row in rows] == [("0.001", "0"), ("0.001", "0"), ("0.01", "1")]
    assert [row["best val/model/accuracy"] for row in rows] == ["0.7", "0.9", "0.8"]
    assert {row["epoch"] for row in rows} == {"4/4"}
    assert [row["run"] for row in rows] == ["first/000000000000", "first/000000000001", "second/000000000000"]
    assert "lr" not in cells(capsys, str(three / "first"))[0]


def test_runs_of_other_datasets_are_told_apart_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "cars", config(sweep="cars"))
    write_steel(tmp_path / "steel", method="FastCAR", sweep="steel")
    rows = cells(capsys, str(tmp_path))
    assert [row["data"] for row in rows] == ["synthetic_cars", "advanced_steel"]
    assert [row["method"] for row in rows] == ["-", "FastCAR"]
    assert {row["state"] for row in rows} == {"finished"}


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("architecture=cascade", 2),
        ("architecture=c*,parallel", 2),
        ("architecture.name=single", 1),
        ("seed=1", 1),
        ("seed=0,1", 3),
        ("optimizer.lr=1e-2", 1),
        ("optimizer.lr=0.010", 1),
        ("data.fractions=[0.8,0.1,0.1]", 3),
        ("backbone.weights=null", 3),
        ("sweep=second", 1),
        ("architecture=mmoe", 0),
        ("seed=true", 0),
    ],
)
def test_key_value_words_filter(three: Path, word: str, left: int) -> None:
    assert sum(matches(run, word) for run in find([three]).runs) == left


def test_filters_add_up_and_a_key_nobody_has_is_refused(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["run"] for row in cells(capsys, str(three), "architecture=cascade", "seed=0")] == ["first/000000000001"]
    assert main(["runs", "list", str(three), "architectur=cascade"]) == 2
    assert "Did you mean 'architecture'" in capsys.readouterr().err
    assert main(["runs", "list", str(three / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def unfinished(folder: Path, state: str | None = None, log: str | None = None, **status: Any) -> Path:
    run = write_run(folder, config(), done=False)
    if state is not None:
        (run / "status.json").write_text(json.dumps({"state": state, "updated": "2026-01-02T03:04:05+00:00", **status}))
    if log is not None:
        (run / "train.log").write_text(log)
    return run


def test_the_state_of_a_run_comes_from_what_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dated = "2026-01-02 03:04:05,006 INFO mtlcar 100 images\n"
    expected = {
        write_run(tmp_path, config()): "finished",
        unfinished(tmp_path, "failed", error="boom"): "failed",
        unfinished(tmp_path, "interrupted"): "interrupted",
        unfinished(tmp_path, "running", pid=1): "killed",
        unfinished(tmp_path): "unstarted",
        # of older versions, which had no status.json
        unfinished(tmp_path, log=dated): "killed",
        unfinished(tmp_path, log=dated + "2026-01-02 03:04:06,000 ERROR mtlcar Interrupted; again\n"): "interrupted",
        unfinished(tmp_path, log=dated + "2026-01-02 ERROR mtlcar Traceback:\n  x\nValueError: boom\n"): "failed",
    }
    working = unfinished(tmp_path, "running", pid=os.getpid())
    with run_lock(working):
        found = {run.directory: run.state for run in find([tmp_path]).runs}
        assert found == {**expected, working: "running"}
        assert [row["run"] for row in cells(capsys, str(tmp_path), "--state", "running")] == [
            f"{tmp_path.name}/{working.name}"
        ]


def test_every_state_can_be_asked_for(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [len(cells(capsys, str(three), "--state", state)) for state in STATES] == [3, 0, 0, 0, 0, 0]


def test_an_unfinished_run_shows_how_far_it_is(tmp_path: Path) -> None:
    run = unfinished(tmp_path, "interrupted")
    (run / "history.csv").write_text("epoch,step,val/model/accuracy\n0,10,0.25\n1,20,0.5\n2,30,0.375\n3,40,\n")
    (found,) = find([tmp_path]).runs
    assert (found.epochs_done, found.epochs, found.best) == (4, 4, 0.5)
    (run / "config.yaml").write_text(yaml.safe_dump(config(monitor=None)))
    (found,) = find([tmp_path]).runs
    assert (found.monitor, found.best) == ("val/model/accuracy", 0.5)
    (run / "config.yaml").write_text(yaml.safe_dump({**config(), "monitor_mode": "min"}))
    assert find([tmp_path]).runs[0].best == 0.25


def test_long_filters_and_damaged_versions_are_no_crash(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cells(capsys, str(three), f"seed={','.join('1' * 400)}")
    first, second = sorted((three / "first").iterdir())
    metrics = json.loads((first / "metrics.json").read_text())
    (first / "metrics.json").write_text(json.dumps(metrics | {"versions": ["torch"]}))
    assert lines(capsys, "diff", str(first), str(second))


def test_damaged_runs_are_named_and_foreign_folders_passed_over(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((three / "first").iterdir())
    (first / "config.yaml").write_text("data: [")
    (second / "metrics.json").write_text('{"best": {"va')
    (three / "first" / "0123456789ab" / "checkpoints").mkdir(parents=True)
    (three / "first" / "ba9876543210").mkdir()
    (three / "first" / "ba9876543210" / "config.yaml").write_text("- 1\n")
    foreign = three / "report" / "notes"
    foreign.mkdir(parents=True)
    (foreign / "config.yaml").write_text("title: mine\n")
    (three / "wandb" / "run-20260101_010101-abc" / "files").mkdir(parents=True)
    (three / "wandb" / "run-20260101_010101-abc" / "files" / "config.yaml").write_text(yaml.safe_dump(config()))
    (three / "first" / "loose.txt").write_text("x")
    assert main(["runs", "list", str(three)]) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == [f"first/{second.name}", "second/000000000000"]
    (last,) = [line for line in shown.err.splitlines() if line.startswith("Damaged")]
    for name in (first.name, second.name, "0123456789ab", "ba9876543210"):
        assert f"first/{name} (" in last
    assert "notes" not in shown.err
    assert "Traceback" not in shown.err


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


def test_nothing_is_changed(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished(three / "first", "running", pid=1)
    before = snapshot(three)
    assert main(["runs", "list", str(three)]) == 0
    assert main(["runs", "show", str(three / "first" / "000000000002")]) == 0
    assert main(["runs", "diff", "--runs", str(three), "first/000000000000", "second/0"]) == 0
    assert snapshot(three) == before


def test_a_list_imports_neither_torch_nor_pandas(three: Path) -> None:
    code = (
        "import sys; from mtlcar.cli import main; status = main(['runs', 'list', sys.argv[1]]);"
        "print([name for name in ('torch', 'lightning', 'pandas', 'wandb') if name in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(three)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("best", ["0.9", "0.8", "0.7", "-"]),
        ("test/weight/mae", ["0.9", "0.8", "0.7", "-"]),
        ("test/make/accuracy", ["0.9", "0.8", "0.7", "-"]),
        ("architecture", ["0.9", "0.8", "-", "0.7"]),
        ("optimizer.lr", ["0.7", "0.9", "-", "0.8"]),
        ("data.image_size", ["0.7", "0.9", "0.8", "-"]),
    ],
)
def test_sorting_puts_the_best_first_and_what_has_no_value_last(three: Path, key: str, order: list[str]) -> None:
    unfinished(three / "third")
    listing = Listing(find([three]).runs)
    listing.sort(key)
    best = next(column for column in listing.columns() if column.names == ("best",))
    assert [best.text(run) for run in listing.runs] == order


def test_a_metric_sorted_by_is_shown_and_an_unknown_key_refused(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = cells(capsys, str(three), "--sort", "test/weight/mae")
    values = [float(row["test/weight/mae"]) for row in rows]
    assert values == sorted(values)
    assert main(["runs", "list", str(three), "--sort", "test/weight/mea"]) == 2
    assert "'test/weight/mae'" in capsys.readouterr().err


def test_options_may_stand_between_the_words(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--json", str(three), "--sort", "best", "architecture=cascade"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["best"], run["settings"]["seed"]) for run in found] == [
        ("first/000000000001", 0.9, 0),
        ("second/000000000000", 0.8, 1),
    ]
    assert {run["state"] for run in found} == {"finished"}
    assert found[0]["metrics"]["test/model/accuracy"] == find_run(found[0]["directory"]).numbers["test/model/accuracy"]


def test_a_narrow_terminal_loses_no_setting_and_a_file_no_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        odd = {"optimizer__lr": 0.0625, "data__image_size": 96, "head__dropout": 0.375} if i == 4 else {}
        odd |= {"trainer__max_epochs": 7} if i == 2 else {}
        write_run(tmp_path / "wide", config("cascade" if i % 2 else "single", seed=i, **odd), 0.5 + i / 100)
    listing = Listing(find([tmp_path]).runs)
    shown = io.StringIO()
    show_listing(listing, Console(file=shown, force_terminal=True, width=80, color_system=None))
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    words = text.replace(",", " ").split()
    for wanted in ("cascade", "0.0625", "96", "0.375", "7", *(run.name for run in listing.runs)):
        assert wanted in words
    assert words.count("96") == words.count("0.375") == 1
    assert "64" not in words  # what most runs have is not worth a word
    plain = lines(capsys, "list", str(tmp_path))
    assert len(plain) == 7
    assert len({line.index("0.") for line in (plain[1], plain[2])}) == 1
    assert plain[0].endswith("best val/model/accuracy")


def test_tables_align_and_escape() -> None:
    assert plain_lines(("a", "bb"), [("long", "1"), ("x", "22")], right=(1,)) == ["a     bb", "long   1", "x     22"]
    assert markdown_lines(("a", "b"), [("x|y", "1")], right=(1,)) == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]
    assert [seconds_text(s) for s in (-1, 45, 720, 9000, 40000, 200000)] == [
        *("0 s", "45 s", "12 min", "2.5 h", "11 h", "2 d")
    ]


def test_a_run_is_found_by_any_beginning_that_is_enough(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = three / "first" / "000000000001"
    monkeypatch.chdir(three.parent)
    for text in (str(run), "first/000000000001", "runs/first/000000000001", "000000000001", str(run)[:-1] + "1"):
        assert find_run(text).directory == run
    assert find_run("second/0").directory == three / "second" / "000000000000"
    with pytest.raises(UserError, match="any of 3 runs") as error:
        find_run("0")
    assert "first/000000000000" in str(error.value)
    for text, words in (
        ("ff", "no run 'ff'"),
        ("runs/first", "Runs below it"),
        (str(three / "first" / "0"), "any of 2"),
    ):
        with pytest.raises(UserError, match=words):
            find_run(text)


def test_show_says_what_was_changed_what_became_of_it_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = {"name": "wandb", "project": "cars", "entity": "team", "mode": "offline"}
    made = composed("architecture=cascade", "head.dropout=0.25", "sweep=mine", logger=logger)
    run = write_run(tmp_path / "mine", made, done=False)
    (run / "overrides.txt").write_text("architecture=cascade\nhead.dropout=0.25\nweighting.weights={a: 1}\n")
    (run / "history.csv").write_text("epoch,step,val/model/accuracy\n0,10,0.25\n1,20,0.5\n")
    (run / "status.json").write_text(
        json.dumps({"state": "failed", "sessions": 3, "resumed_step": 20, "seconds": 61.5, "error": "out of memory"})
    )
    assert main(["runs", "show", str(run)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "mine/000000000000  failed"
    assert "head.dropout" in text
    assert "0.25  (default: 0)" in text
    assert "architecture.feed" not in text
    assert "data.root" not in text
    assert "3, the last went on at step 20" in text
    assert "out of memory" in text
    assert "2 of 10 epochs, 20 steps" in text
    assert "0.5 so far" in text
    assert "mtlcar train architecture=cascade head.dropout=0.25 'weighting.weights={a: 1}'" in text
    assert f"team/cars/{wandb_id(OmegaConf.create(made), run)}" in text
    assert text.splitlines()[-1].split() == ["go", "on", "mtlcar", "resume", str(run)]
    assert main(["runs", "show", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"]["head.dropout"] == {"value": 0.25, "default": 0}
    assert found["parts"]["architecture"] == "cascade"


def test_show_of_a_finished_run_has_its_metrics_and_files(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = three / "first" / "000000000001"
    text = "\n".join(lines(capsys, "show", str(run)))
    row = next(line for line in text.splitlines() if line.strip().startswith("model/accuracy"))
    assert float(row.split()[-1]) == pytest.approx(find_run(str(run)).numbers["test/model/accuracy"], abs=1e-4)
    assert "best val/model/accuracy 0.9 at epoch 3 (from 0), step 40" in text
    assert "predictions.parquet" in text
    assert f"mtlcar evaluate {run}" in text
    assert "go on" not in text


def test_diff_marks_what_does_not_matter_and_what_is_not_matched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", composed("architecture=single", "sweep=a"), 0.7)
    b = write_run(tmp_path / "b", composed("architecture=cascade", "data.batch_size=16", "sweep=b"), 0.9)
    metrics = json.loads((b / "metrics.json").read_text())
    (b / "metrics.json").write_text(json.dumps({**metrics, "versions": {"torch": "2.16"}}))
    text = lines(capsys, "diff", str(a), str(b))

    def row(name: str) -> list[str]:
        return next(line.split() for line in text if line.split()[:1] == [name])

    assert row("architecture") == ["architecture", "single", "cascade"]
    assert row("architecture.feed") == ["architecture.feed", "-", "logits"]
    assert row("sweep") == ["sweep", "a", "b", "does", "not", "change", "the", "result"]
    assert row("torch") == ["torch", "2.15", "2.16"]
    assert "- batch size differs (data.batch_size): 64, 16" in text
    assert "seed" not in {line.split()[0] for line in text if line.strip()}
    one, two = find_run(str(a)).numbers, find_run(str(b)).numbers
    more = two["test/model/accuracy"] - one["test/model/accuracy"]
    mean, low, _, high, word = row("test/model/accuracy")[3:]
    assert (mean, word) == (f"{more:+.3g}", "better")
    right = [
        t["model/prediction"] == t["model/target"]
        for t in (pd.read_parquet(run / "predictions.parquet") for run in (a, b))
    ]
    each = right[1].to_numpy(float) - right[0].to_numpy(float)
    drawn = np.random.default_rng(0).choice(each, (4000, len(each))).mean(1)
    assert [float(low.strip("(")), float(high.strip(")"))] == pytest.approx(
        np.quantile(drawn, (0.025, 0.975)), abs=0.01
    )
    assert row("test/weight/mae")[-1] == "better"
    assert row("test/model/loss")[3:] == ["0"]
    assert "worse" not in " ".join(text)
    same = lines(capsys, "diff", str(a), str(write_run(tmp_path / "c", composed("architecture=single"), 0.71)))
    assert "better" not in " ".join(same), "one in a hundred images is no difference"
    assert main(["runs", "diff", str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["sweep"]["effect"] == "does not change the result"
    assert found["settings"]["architecture.feed"]["absent"] == [True, False]
    assert found["differences"][0]["test/model/accuracy"]["mean"] == pytest.approx(more)
    (b / "predictions.parquet").unlink()
    assert lines(capsys, "diff", str(a), str(b)) != text
    assert " to " not in " ".join(lines(capsys, "diff", str(a), str(b)))


def test_diff_fills_what_an_older_run_lacks_with_its_default(tmp_path: Path) -> None:
    old, new = composed(), composed("loss.label_smoothing=0.3", "test_time_augmentation=flips")
    default = old["loss"].pop("label_smoothing")
    for key in ("max_missing", "split_seed"):  # both runs have their defaults
        old["data"].pop(key, None)
    del old["test_time_augmentation"]
    runs = [find_run(str(write_run(tmp_path / "x", made))) for made in (old, new)]
    found = {d.key: d for d in settings_differences(runs)}
    assert set(found) == {"loss.label_smoothing", "test_time_augmentation"}
    assert found["loss.label_smoothing"].values == (default, 0.3)
    assert found["loss.label_smoothing"].texts() == [f"{default:g} (default)", "0.3"]
    assert found["test_time_augmentation"].values == ("none", "flips")


def test_diff_says_when_other_images_were_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path, config())
    b = write_run(tmp_path, config(data__split_seed=1))
    text = "\n".join(lines(capsys, "diff", str(a), str(b)))
    assert "though the test images are the same" in text  # predictions.parquet of both lists the same images
    c = write_run(tmp_path, config(data__split_seed=1), done=False)
    text = "\n".join(lines(capsys, "diff", str(a), str(c)))
    assert "the test images are others: data.split_seed 0, 1" in text
    assert f"not finished: {tmp_path.name}/{c.name}" in text
    assert main(["runs", "diff", str(a), str(a)]) == 2
    assert "two runs or more" in capsys.readouterr().err


def test_paths_are_told_apart_by_their_content(tmp_path: Path) -> None:
    def differing(digests: tuple[str, str]) -> set[str]:
        runs = []
        for i, digest in enumerate(digests):
            run = write_run(tmp_path / f"{digests}", config(data__root=f"/somewhere/{i}"))
            (run / "digests.json").write_text(json.dumps({"annotations": digest}))
            runs.append(find_run(str(run)))
        return {d.key for d in settings_differences(runs)}

    assert differing(("aaaa", "aaaa")) == set()
    assert differing(("aaaa", "bbbb")) == {"data.root"}
