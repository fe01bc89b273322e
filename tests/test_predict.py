"""`mtlcar predict`: says what the run's test said, consistently, with intervals that hold, from the run alone."""

import csv
import io
import itertools
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcar import cli_trained
from mtlcar.errors import UserError
from mtlcar.inference.images import picture_files
from mtlcar.inference.intervals import COVERAGE, ENOUGH, Interval, half_width, read_intervals
from mtlcar.inference.network import load_network
from mtlcar.inference.predict import command
from mtlcar.inference.predictor import Predictor
from mtlcar.inference.table import as_csv
from mtlcar.inference.unlike import FILE, read_reference, save
from mtlcar.label_transforms.class_mean import ClassMean
from mtlcar.metrics.decoding import DECODINGS
from mtlcar.runs.evaluate import stored_config
from mtlcar.runs.predictions import read_predictions
from mtlcar.tasks import Task, TaskSet
from tests.run_dirs import CARS, config, predictions, steel, write_run, write_steel
from tests.trained import alone, pictures, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

ALL = "data.levels=[make,model,weight]"
KINDS = {
    "parallel": (ALL,),
    "cascade": (ALL, "architecture=cascade"),
    "single": ("architecture=single",),
    "fastcar": ("data.levels=[model,weight]", "label_transform=fastcar"),
    "class_mean": (ALL, "label_transform=class_mean"),
    "flips": ("test_time_augmentation=flips", "architecture=cross_stitch"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return trained_run(folder, *KINDS["cascade"])


def rows_of(text: str) -> list[dict]:
    return json.loads(text)


# --- what the test said -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_test_images_are_predicted_as_the_test_of_the_run_did(folder: Path, kind: str) -> None:
    run = trained_run(folder, *KINDS[kind])
    df, tasks = read_predictions(run / "predictions.parquet")
    files = pictures(run)
    assert [str(f).endswith(p) for f, p in zip(files, df["path"], strict=True)] == [True] * len(df)
    network = load_network(run, stored_config(run, []))
    rows = list(Predictor(network, "independent", top=100, intervals={}).rows(files, 5))
    for task in tasks:
        if f"{task.name}/prediction" not in df:
            assert all(task.name not in row["tasks"] for row in rows)
            continue
        said = [row["tasks"][task.name] for row in rows]
        expected = df[f"{task.name}/prediction"]
        if task.kind == "regression":
            np.testing.assert_allclose([s["value"] for s in said], expected, rtol=1e-5)
            continue
        assert [s["index"] for s in said] == list(expected)
        assert [s["class"] for s in said] == [task.classes[i] for i in expected]
        if f"{task.name}/scores" in df:
            key = "probability" if kind != "fastcar" else "score"
            found = [{best["index"]: best[key] for best in s["top"]} for s in said]
            for row, scores in zip(found, df[f"{task.name}/scores"], strict=True):
                np.testing.assert_allclose([row[c] for c in range(len(scores))], scores, atol=1e-5)
    assert len({row["tasks"]["model"]["index"] for row in rows}) > 1  # of a network that says one thing all would agree


def test_a_level_that_is_not_trained_is_the_one_that_the_model_implies(folder: Path) -> None:
    run = trained_run(folder, *KINDS["single"])
    network = load_network(run, stored_config(run, []))
    table = network.tasks.parent_of["model"]
    for row in Predictor(network, "joint", top=4).rows(pictures(run)):
        model, make = row["tasks"]["model"], row["tasks"]["make"]
        assert make["index"] == table[model["index"]]
        own = sum(best["probability"] for best in model["top"] if table[best["index"]] == make["index"])
        assert make["probability"] == pytest.approx(own)


# --- consistent levels ------------------------------------------------------------------------------------------------


def test_the_default_takes_the_path_with_the_largest_product(
    folder: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    files = [str(f) for f in pictures(run)]
    assert command(str(run), files, form="json") == 0
    found = rows_of(capsys.readouterr().out)
    df, tasks = read_predictions(run / "predictions.parquet")
    table = tasks.parent_of["model"]
    changed = 0
    for row, makes, models in zip(found, df["make/scores"], df["model/scores"], strict=True):
        products = [makes[table[c]] * p for c, p in enumerate(models)]
        best = max(range(len(products)), key=lambda c: products[c])
        said = row["tasks"]
        assert (said["model"]["index"], said["make"]["index"]) == (best, table[best])
        assert said["model"]["probability"] == pytest.approx(products[best] / sum(products), rel=1e-4)
        whole = sum(p for c, p in enumerate(products) if table[c] == table[best])
        assert said["make"]["probability"] == pytest.approx(whole / sum(products), rel=1e-4)
        changed += int(models.argmax()) != best or int(makes.argmax()) != table[best]
    assert changed


def test_a_value_looked_up_from_a_class_is_that_of_the_decoded_class(folder: Path) -> None:
    run = trained_run(folder, *KINDS["class_mean"])
    network = load_network(run, stored_config(run, []))
    transform = network.label_transform
    assert isinstance(transform, ClassMean)
    table = transform.table[0]
    differ = 0
    for decoding in ("independent", "joint", "top_down"):
        rows = list(Predictor(network, decoding).rows(pictures(run)))
        for row in rows:
            assert row["tasks"]["weight"]["value"] == pytest.approx(float(table[row["tasks"]["model"]["index"]]))
            makes = network.tasks.parent_of["model"][row["tasks"]["model"]["index"]], row["tasks"]["make"]["index"]
            differ += makes[0] != makes[1]
            assert decoding == "independent" or makes[0] == makes[1]
    assert differ


# --- the run alone ----------------------------------------------------------------------------------------------------


def test_nothing_but_the_run_directory_is_needed(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = [str(shutil.copy(f, tmp_path)) for f in pictures(run)[:3]]
    command(str(run), files, form="json")
    expected = rows_of(capsys.readouterr().out)
    assert command(str(alone(run, tmp_path / "alone")), files, form="json") == 0
    out, err = capsys.readouterr()
    assert [row["tasks"] for row in rows_of(out)] == [row["tasks"] for row in expected]
    assert rows_of(out)[0]["unlike"] is None
    assert "was not checked" in err


def test_a_run_without_test_predictions_has_no_intervals_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained_run(folder, ALL, "seed=3", tested=False)
    assert command(str(run), [str(pictures(run)[0])], form="json") == 0
    out, err = capsys.readouterr()
    assert rows_of(out)[0]["tasks"]["weight"]["interval"] is None
    assert "No intervals" in err


def test_an_unfinished_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="may not have finished its first epoch"):
        command(str(copy), [str(pictures(run)[0])])


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_damaged_picture_is_named_and_the_others_are_predicted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = [str(f) for f in pictures(run)[:4]]
    command(str(run), files, form="json", batch_size=3)
    expected = rows_of(capsys.readouterr().out)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(files[0]).read_bytes()[:200])
    empty = tmp_path / "empty.png"
    empty.touch()
    assert command(str(run), [*files[:2], str(broken), *files[2:], str(empty)], form="json", batch_size=3) == 2
    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert [row["file"] for row in rows if "error" in row] == [str(broken), str(empty)]
    assert f"{empty}: the file is empty" in err
    assert str(broken) in err
    assert "2 of 6 pictures could not be read" in err
    for row, other in zip([row for row in rows if "error" not in row], expected, strict=True):
        assert row["tasks"]["model"]["index"] == other["tasks"]["model"]["index"]
        assert row["tasks"]["weight"]["value"] == pytest.approx(other["tasks"]["weight"]["value"], rel=1e-6)


def test_only_damaged_pictures_still_give_rows(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.png").write_text("no picture")
    for form in ("json", "csv", None):
        assert command(str(run), [str(tmp_path)], form=form) == 2
        assert "a.png" in capsys.readouterr().out


def test_folders_are_searched_in_order_without_hidden_files_and_each_picture_is_taken_once(tmp_path: Path) -> None:
    names = ("b.PNG", "a.jpg", "sub/c.tif", "sub/.hidden.png", ".dir/d.png", "notes.txt", "no_ending", "sub2/e.webp")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [str(p.relative_to(tmp_path)) for p in picture_files([str(tmp_path)])]
    assert found == ["a.jpg", "b.PNG", "sub/c.tif", "sub2/e.webp"]
    words = [str(tmp_path / "no_ending"), str(tmp_path / "sub"), str(tmp_path / "sub" / "c.tif")]
    assert [p.name for p in picture_files(words)] == ["no_ending", "c.tif"]


def test_no_picture_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for words, message in (
        ([str(tmp_path)], "no pictures in this folder"),
        ([str(tmp_path / "gone.jpg")], "no such file or folder"),
        (["x" * 5000], "."),
        ([], "No pictures were given"),
    ):
        with pytest.raises(UserError, match=message):
            picture_files(words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read"):
        picture_files([str(tmp_path)])


def test_boxes_are_spoken_of_only_where_the_run_used_them(
    run: Path, capsys: pytest.CaptureFixture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = {"weight": Interval(90.0, images=40)}  # the run itself has too few test images for any
    monkeypatch.setattr("mtlcar.inference.predictor.read_intervals", lambda *_: enough)
    file = str(pictures(run)[0])
    command(str(run), [file])
    assert "box" not in (whole := capsys.readouterr().err)
    assert "they hold for pictures like those." in whole
    boxed = trained_run(folder, ALL, "data.box_margin=0.05", tested=False)
    command(str(boxed), [file])
    err = capsys.readouterr().err
    assert err.count("data.box_margin=0.05") == 1
    assert "they hold for pictures like those, cut to the object." in err


def test_the_command_offers_the_decodings_that_there_are() -> None:
    """It repeats them, because `mtlcar --help` should not wait for numpy."""
    assert cli_trained.DECODINGS == DECODINGS


# --- output -----------------------------------------------------------------------------------------------------------


def test_tasks_that_are_called_like_other_columns_overwrite_none() -> None:
    names = ("file", "error", "unlike", "errors")
    tasks = TaskSet([*(Task(n, "classification", ("a", "b")) for n in names), Task("mass", "regression", unit="kg")])
    best = {"class": "b", "index": 1, "score": 2.5}
    said: dict = {name: {**best, "top": [best]} for name in names}
    said["mass"] = {"value": 3.0, "unit": "kg", "interval": [2.0, 4.0], "coverage": 0.95}
    unlike = {"score": 0.5, "threshold": 1.0, "flag": False}
    row = {"file": "x.png", "tasks": said, "columns": {"error/further": 7.0}, "unlike": unlike}
    lines = list(csv.DictReader(io.StringIO(as_csv([row, {"file": "y.png", "error": "torn"}], tasks, 1))))
    assert [(line["file"], line["error"], line["unlike/score"]) for line in lines] == [
        ("x.png", "", "0.5"),
        ("y.png", "torn", ""),
    ]
    for name in ("task/file", "task/error", "task/unlike", "errors"):
        assert (lines[0][name], lines[0][f"{name}/score"], lines[0][f"{name}/top1"]) == ("b", "2.5", "b")
    assert (lines[0]["mass"], lines[0]["error/further"]) == ("3.0", "7.0")


def test_the_ending_of_the_file_says_what_is_written_and_all_forms_say_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = [str(f) for f in pictures(run)[:5]]
    for name in ("out.json", "out.csv", "out.txt"):
        assert command(str(run), files, output=str(tmp_path / name), top=2) == 0
        assert capsys.readouterr().out == ""
    rows = json.loads((tmp_path / "out.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    text = (tmp_path / "out.txt").read_text()
    for row, line in zip(rows, lines, strict=True):
        assert line["file"] == row["file"]
        assert line["error"] == ""
        for name in ("make", "model"):
            said = row["tasks"][name]
            assert line[name] == said["class"]
            assert float(line[f"{name}/probability"]) == said["probability"]
            assert len(said["top"]) == 2
            assert [line[f"{name}/top{k}"] for k in (1, 2)] == [best["class"] for best in said["top"]]
        assert float(line["weight"]) == row["tasks"]["weight"]["value"]
        assert line["weight/unit"] == "kg"
        shown = next(shown for shown in text.splitlines() if shown.startswith(row["file"]))
        assert row["tasks"]["model"]["class"] in shown
        assert f"{100 * row['tasks']['model']['probability']:.1f}" in shown
    assert "weight (kg)" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "x.xml"}, "Expected .json, .csv or .txt"),
        ({"output": "x.csv", "form": "json"}, "contradict"),
        ({"output": "."}, "is a folder"),
        ({"top": 0}, "--top should be at least 1"),
        ({"batch_size": 0}, "--batch-size should be at least 1"),
        ({"device": "gpu"}, "--device should be auto, cpu or cuda"),
        ({"device": "cuda:99"}, "no such GPU"),
        ({"decoding": "nonsense"}, "no decoding 'nonsense'"),
    ],
)
def test_mistakes_are_said(run: Path, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        command(str(run), [str(pictures(run)[0])], **given)


def test_a_regressor_of_two_tasks_shows_no_probability(folder: Path, capsys: pytest.CaptureFixture) -> None:
    run = trained_run(folder, *KINDS["fastcar"])
    files = [str(f) for f in pictures(run)[:2]]
    command(str(run), files, form="json")
    said = rows_of(capsys.readouterr().out)[0]
    assert "probability" not in said["tasks"]["model"]
    assert set(said["columns"]) == {"axis/position", "axis/flag"}
    command(str(run), files)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # the class alone, not the next ones


# --- intervals --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), max_size=120))
@settings(max_examples=60)
def test_the_half_width_is_the_conformal_quantile(errors: list[float]) -> None:
    found, n = half_width(np.array(errors)), len(errors)
    rank = math.ceil(COVERAGE * (n + 1))
    if rank > n:
        assert found == math.inf
    else:
        assert found == sorted(abs(e) for e in errors)[rank - 1]
        assert half_width(np.array(errors), [f"image {i}" for i in range(n)]) == found


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 9)), min_size=1, max_size=200))
@settings(max_examples=60)
def test_groups_weigh_the_same_however_many_images_they_have(rows: list[tuple[int, float]]) -> None:
    groups, errors = zip(*rows, strict=True)
    own = {g: [e for other, e in rows if other == g] for g in set(groups)}
    enough = [
        q
        for q in sorted(set(errors))
        if sum(np.mean([e <= q for e in es]) for es in own.values()) >= COVERAGE * (len(own) + 1) - 1e-9
    ]
    assert half_width(np.array(errors), groups) == (enough[0] if enough else math.inf)


def test_intervals_hold_for_images_of_new_groups_and_would_not_if_images_counted_alone() -> None:
    rng = np.random.default_rng(0)
    held, naive = [], []
    for _ in range(3000):
        scale = rng.exponential(1, 41)
        sizes = np.where(scale[:40] > 2, 2, 20)  # groups with large errors have few images
        groups = np.repeat(np.arange(40), sizes)
        errors = scale[groups] * rng.standard_normal(len(groups))
        new = abs(scale[40] * rng.standard_normal())
        held.append(new <= half_width(errors, groups))
        naive.append(new <= half_width(errors))
    assert np.mean(held) >= COVERAGE - 0.008  # two standard errors of 3000 draws
    assert np.mean(naive) < COVERAGE - 0.02


def test_classes_with_enough_test_images_have_intervals_of_their_own(tmp_path: Path) -> None:
    df = predictions(0.9, n=900)
    counts = df["model/prediction"].value_counts()
    frequent, rare = int(counts.index[0]), int(counts.index[-1])
    extra = pd.concat([df[df["model/prediction"] == frequent]] * 3)
    df = pd.concat([df, extra], ignore_index=True)
    df.loc[df["model/prediction"] == frequent, "weight/prediction"] += 500
    df.loc[3, "weight/target"] = np.nan
    run = write_run(tmp_path, config())
    write_frame(run, df)
    found = read_intervals(run)["weight"]
    own = df[(df["model/prediction"] == frequent) & df["weight/target"].notna()]
    assert len(own) >= ENOUGH > counts[rare]
    assert set(found.classes) == {c for c in range(24) if (df["model/prediction"] == c).sum() >= ENOUGH}
    error = (own["weight/prediction"].astype(float) - own["weight/target"].astype(float)).to_numpy()
    assert found.classes[frequent] == half_width(error) > found.half * 0.9
    assert (found.by, found.images, found.groups) == ("model", len(df) - 1, None)
    assert found.around(1500.0, frequent) == (1500 - found.classes[frequent], 1500 + found.classes[frequent])
    assert found.around(1500.0, rare) == (1500 - found.half, 1500 + found.half)
    assert found.around(math.nan, rare) is None


def test_few_specimens_give_no_interval(tmp_path: Path) -> None:
    run = write_steel(tmp_path, steel())
    write_frame(run, steel(), json.loads((run / "tasks.json").read_text()))
    found = read_intervals(run)["property"]
    assert (found.images, found.groups) == (24, 6)
    assert found.half == math.inf
    assert found.around(500.0, 0) is None
    assert Interval(math.inf).around(1.0, None) is None


def write_frame(run: Path, df: pd.DataFrame, tasks: dict | None = None) -> None:
    """A frame as predictions.parquet, with the task set in the metadata as the project writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(df, preserve_index=False)
    meta = {b"mtlcar.tasks": json.dumps(tasks or CARS.to_dict()).encode()}
    pq.write_table(table.replace_schema_metadata(meta), run / "predictions.parquet")


def test_intervals_of_a_decoding_are_by_the_classes_it_decodes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtlcar.inference.intervals.ENOUGH", 1)
    monkeypatch.setattr("mtlcar.inference.intervals.COVERAGE", 0.4)
    df, tasks = read_predictions(run / "predictions.parquet")
    df["make/scores"] = list(df["make/scores"])[::-1]  # so that levels contradict each other
    write_frame(tmp_path, df, tasks.to_dict())
    table = tasks.parent_of["model"]
    error = (df["weight/prediction"].astype(float) - df["weight/target"].astype(float)).to_numpy()
    products = np.stack(list(df["model/scores"])) * np.stack(list(df["make/scores"]))[:, list(table)]
    groups = df["group"].to_numpy()
    assert (df["model/prediction"].to_numpy() != products.argmax(1)).any()
    for decoding, label in (("independent", df["model/prediction"].to_numpy()), ("joint", products.argmax(1))):
        halves = {c: half_width(error[label == c], groups[label == c]) for c in np.unique(label)}
        found = read_intervals(tmp_path, decoding)["weight"].classes
        assert found == {c: half for c, half in halves.items() if math.isfinite(half)} != {}


# --- unlike -----------------------------------------------------------------------------------------------------------


SPLIT = ("data.images=160", "data.split=stratified", "data.fractions=[0.35,0.35,0.3]")


def test_an_older_run_gets_its_reference_once_and_pictures_unlike_it_are_named(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained_run(folder, *SPLIT, tested=False)
    files = [*map(str, pictures(run))]
    command(str(run), files, form="json")
    out, err = capsys.readouterr()
    first = rows_of(out)
    assert "Looking at the run's training images once" in err
    scores = [row["unlike"]["score"] for row in first]
    assert sum(row["unlike"]["flag"] for row in first) <= 0.1 * len(first)
    kept = read_reference(run)
    assert kept is not None
    save(replace(kept, threshold=sorted(scores)[-3]), run)  # then two of them are beyond it
    command(str(run), files, form="json")
    out, err = capsys.readouterr()
    assert "once" not in err
    rows = rows_of(out)
    assert [row["unlike"]["score"] for row in rows] == scores
    flagged = [row["file"] for row in rows if row["unlike"]["flag"]]
    assert flagged == [file for file, score in zip(files, scores, strict=True) if score > sorted(scores)[-3]]
    assert len(flagged) == 2
    assert f"2 of {len(files)} pictures are unlike" in err
    assert all(file in err for file in flagged)
    command(str(run), files)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "unlike the training images" in line] == flagged


def test_a_reference_of_another_checkpoint_and_a_torn_one_are_made_anew(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(trained_run(folder, *SPLIT, tested=False), tmp_path / "run")
    file = [str(pictures(run)[0])]
    command(str(run), file, form="json")
    score = rows_of(capsys.readouterr().out)[0]["unlike"]["score"]
    kept = read_reference(run)
    assert kept is not None
    save(replace(kept, mark="of another network", rest=kept.rest * 9), run)
    command(str(run), file, form="json")
    out, err = capsys.readouterr()
    assert "once" in err
    assert rows_of(out)[0]["unlike"]["score"] == score
    (run / FILE).write_bytes(b"torn")
    command(str(run), file, form="json")
    out, err = capsys.readouterr()
    assert "made again" in err
    assert rows_of(out)[0]["unlike"]["score"] == score


def test_rows_do_not_depend_on_the_batch(run: Path) -> None:
    network, files = load_network(run, stored_config(run, [])), pictures(run)
    one, many = (list(Predictor(network).rows(files, n)) for n in (1, 7))
    for a, b in itertools.zip_longest(one, many):
        assert a["tasks"]["model"]["index"] == b["tasks"]["model"]["index"]
        assert a["tasks"]["weight"]["value"] == pytest.approx(b["tasks"]["weight"]["value"], rel=1e-5)


def test_what_is_no_number_has_no_class_no_value_and_valid_json(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = load_network(run, stored_config(run, []))
    with torch.no_grad():
        for p in real.architecture.heads[2].parameters():
            p.fill_(float("nan"))
    monkeypatch.setattr("mtlcar.inference.network.load_network", lambda *_, **__: real)
    for form in ("json", "csv", None):
        assert command(str(run), [str(pictures(run)[0])], form=form) == 0
        out = capsys.readouterr().out
        if form == "json":
            assert rows_of(out)[0]["tasks"]["weight"]["value"] is None
