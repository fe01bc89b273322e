"""Worst confusions in the report: the pairs, the matrix, and the pictures, which must never stop a report."""

import json
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mtlcar.data import stanford_cars, synthetic_cars
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.layouts import write_stanford_cars
from mtlcar.report import confusions
from mtlcar.report.collect import Run, collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.confusion_figure import SIDE, Example, matrix_figure, pairs_figure
from mtlcar.report.confusion_pairs import Level, counts, level, pooled, wrong_pairs
from mtlcar.report.pictures import Pictures
from mtlcar.report.section import Section
from mtlcar.tasks import Task, TaskSet
from tests.layout_samples import sample_cars
from tests.run_dirs import CARS, PER_MAKE, config, predictions, steel, write_run, write_steel

READER = {"_target_": "mtlcar.data.synthetic_cars.read", "_partial_": True}
DRAWN = {"makes": 2, "models_per_make": 2, "images": 72, "images_per_car": 2, "size": 48, "difficulty": 0.5}
DRAWN |= {"draw_seed": 0}


def only(folder: Path) -> Comparison:
    comparisons = compare(collect([folder]).runs)
    assert len(comparisons) == 1
    return comparisons[0]


def made(folder: Path) -> Section:
    section = confusions.section(only(folder))
    assert section is not None
    return section


def run_of(**data: Any) -> Run:
    """A run that exists in its configuration alone."""
    node = {"name": "synthetic_cars", "root": None, "resize": "stretch", "box_margin": None, **data}
    return Run(Path("sweep/run"), {"data": node, "paths": {"cache": "/nowhere"}}, {}, CARS, 0.0)


def picture(file: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of drawn cars, whose pictures have the same names."""
    folder = tmp_path_factory.mktemp("cache")
    for seed in (0, 1):
        synthetic_cars.read(folder / "synthetic_cars", **{**DRAWN, "draw_seed": seed})
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[tuple[Example, Example]]]]:
    """What is handed over to be drawn."""
    columns: list[tuple[str, list[tuple[Example, Example]]]] = []

    def instead(given: list[tuple[str, list[tuple[Example, Example]]]]) -> Figure:
        columns.extend(given)
        return Figure()

    monkeypatch.setattr(confusions, "pairs_figure", instead)
    return columns


def two_seeds(folder: Path) -> list[pd.DataFrame]:
    for seed in (0, 1):
        write_run(folder, config(seed=seed), 0.6)
    return [run.predictions for run in only(folder).runs if run.predictions is not None]


def test_pairs_are_those_counted_one_by_one(tmp_path: Path) -> None:
    frames = two_seeds(tmp_path / "s")
    comparison = only(tmp_path / "s")
    of = level(comparison.runs[0])
    assert of == Level("model", CARS["model"].classes, "make", CARS["make"].classes, CARS.parent_of["model"])
    pairs = wrong_pairs(pooled(comparison.runs, of), of)
    times: Counter[tuple[int, int]] = Counter()
    sure: dict[tuple[int, int], list[float]] = {}
    seeds: dict[tuple[int, int], set[int]] = {}
    images: Counter[int] = Counter()
    for seed, df in enumerate(frames):
        for true, guess, confidence in zip(
            df["model/target"], df["model/prediction"], df["model/confidence"], strict=True
        ):
            images[true] += 1
            if true != guess:
                times[true, guess] += 1
                sure.setdefault((true, guess), []).append(confidence)
                seeds.setdefault((true, guess), set()).add(seed)
    assert len(pairs) == len(times)
    for row in pairs.to_dict("records"):
        key = (row["true"], row["predicted"])
        assert row["times"] == times[key]
        assert row["of"] == images[key[0]]
        assert row["share"] == pytest.approx(times[key] / images[key[0]])
        assert row["confidence"] == pytest.approx(np.mean(sure[key]))
        assert row["seeds"] == len(seeds[key])
        assert row["within"] == (key[0] // PER_MAKE == key[1] // PER_MAKE)
    assert all(a >= b for a, b in pairwise(pairs["times"]))


def test_tables_have_the_most_frequent_of_each_kind_with_names_and_parents(tmp_path: Path) -> None:
    two_seeds(tmp_path / "s")
    comparison = only(tmp_path / "s")
    of = level(comparison.runs[0])
    assert of is not None
    pairs = wrong_pairs(pooled(comparison.runs, of), of)
    within, across = made(tmp_path / "s").sheets
    assert (within.name, across.name) == ("confusions_within", "confusions_across")
    assert within.title.endswith("within a make")
    assert across.heads[:4] == ["true model", "true make", "predicted model", "predicted make"]
    for sheet, some in ((within, pairs[pairs["within"]]), (across, pairs[~pairs["within"]])):
        assert len(sheet.rows) == 10
        assert sheet.data is not None
        assert sheet.data["times"].tolist() == some["times"].head(10).tolist()
        assert [int(row[sheet.heads.index("times")][0]) for row in sheet.rows] == sheet.data["times"].tolist()
        for (_, row), pair in zip(sheet.data.iterrows(), some.head(10).to_dict("records"), strict=True):
            assert row["true"] == CARS["model"].classes[pair["true"]]
            assert row["predicted_parent"] == CARS["make"].classes[pair["predicted"] // PER_MAKE]
            assert (row["true_parent"] == row["predicted_parent"]) == (sheet is within)


def test_the_summary_compares_with_chance(tmp_path: Path) -> None:
    df = predictions(0.0, n=4000)
    run = write_run(tmp_path / "s", config())
    df.to_parquet(run / "predictions.parquet")
    text = made(tmp_path / "s").paragraphs[0]
    wrong = df[df["model/target"] != df["model/prediction"]]
    assert f"{len(wrong):,} of 4,000 predictions are another model" in text
    inside = (wrong["model/target"] // PER_MAKE == wrong["model/prediction"] // PER_MAKE).mean()
    assert f"{100 * inside:.0f} % of these of the right make" in text
    assert "13 % if all other classes were as likely" in text  # 3 of the 23 others


def test_the_matrix_is_that_of_torchmetrics_and_no_class_has_a_column(tmp_path: Path) -> None:
    frames = two_seeds(tmp_path / "s")
    comparison = only(tmp_path / "s")
    of = level(comparison.runs[0])
    assert of is not None
    df = pooled(comparison.runs, of)
    target, guess = (torch.tensor(np.concatenate([f[f"model/{c}"] for f in frames])) for c in ("target", "prediction"))
    matrix = counts(df, 24)
    assert np.array_equal(matrix[:, :-1], multiclass_confusion_matrix(guess, target, 24).numpy())
    assert not matrix[:, -1].any()
    lifted = multiclass_confusion_matrix(guess // PER_MAKE, target // PER_MAKE, 6).numpy()
    assert np.array_equal(counts(df, 6, of.parent_of)[:, :-1], lifted)
    df.loc[df.index[:7], "predicted"] = -1
    for table, classes in ((None, 24), (of.parent_of, 6)):
        matrix = counts(df, classes, table)
        assert matrix[:, -1].sum() == 7
        assert matrix.sum() == len(df)


def test_no_class_is_in_no_pair_and_is_said(tmp_path: Path) -> None:
    df = predictions(0.7)
    df.loc[:4, "model/prediction"] = -1
    df.loc[5:9, "model/target"] = -1
    run = write_run(tmp_path / "s", config())
    df.to_parquet(run / "predictions.parquet")
    section = made(tmp_path / "s")
    assert "5 name no class" in section.paragraphs[0]
    of = level(only(tmp_path / "s").runs[0])
    assert of is not None
    rows = pooled(only(tmp_path / "s").runs, of)
    assert len(rows) == len(df) - 5
    assert wrong_pairs(rows, of)["predicted"].min() >= 0


def test_few_classes_are_drawn_with_counts_and_many_as_their_parents(tmp_path: Path) -> None:
    write_run(tmp_path / "few", config(), 0.6)
    drawing = next(d for d in made(tmp_path / "few").drawings if d.name.startswith("confusion_matrix"))
    assert drawing.name == "confusion_matrix_model"
    df = predictions(0.6, seed=60)
    pairs = Counter(zip(df["model/target"], df["model/prediction"], strict=True))
    written = {tuple(map(int, t.get_position()[::-1])): t.get_text() for t in drawing.figure.axes[0].texts}
    assert written == {key: str(n) for key, n in pairs.items()}

    run = write_run(tmp_path / "many", config(), 0.6)
    names = tuple(f"Make {i // PER_MAKE} M{i}" for i in range(40))
    model = Task("model", "classification", names, parent="make")
    make = Task("make", "classification", tuple(f"Make {i}" for i in range(10)))
    many = TaskSet((make, model), {"model": [i // PER_MAKE for i in range(40)]})
    (run / "tasks.json").write_text(json.dumps(many.to_dict()))
    drawing = next(d for d in made(tmp_path / "many").drawings if d.name.startswith("confusion_matrix"))
    assert drawing.name == "confusion_matrix_make"
    assert "of the predicted model" in drawing.caption
    assert not drawing.figure.axes[0].texts
    assert drawing.figure.axes[0].get_ylabel() == "true make (images)"


def test_flat_classes_have_one_table(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", steel(wrong=7))
    section = made(tmp_path / "s")
    (sheet,) = section.sheets
    assert sheet.name == "confusions_pairs"
    assert sheet.heads[:2] == ["true class", "predicted class"]
    # 7 of the 8 tiles of the first class are called the second. None has a confidence, and there is no column of them.
    assert not any("confidence" in head for head in sheet.heads)
    assert sheet.data is not None
    assert "confidence" not in sheet.data
    assert [[text for text, _ in row] for row in sheet.rows] == [["soft", "mid", "7", "8", "88", "1 of 1"]]
    assert [d.name for d in section.drawings] == ["confusion_matrix_class"]


def test_a_network_without_errors_has_a_matrix_and_no_pairs(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config(), 1.0)
    section = made(tmp_path / "s")
    assert not section.sheets
    assert "0 of 300 predictions" in section.paragraphs[0]
    assert [d.name for d in section.drawings] == ["confusion_matrix_model"]


def test_the_best_cell_is_told_and_the_coarse_one_is_no_candidate(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.5)
    write_run(tmp_path / "s", config("cascade"), 0.8)
    run = write_run(tmp_path / "s", config("single"), 1.0)
    df = predictions(1.0)
    df[[name for name in df if not str(name).startswith("model/")]].to_parquet(run / "predictions.parquet")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["test"]["model/accuracy"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert made(tmp_path / "s").paragraphs[0].startswith("cascade, the best cell by test model/accuracy")
    by_cell = confusions.by_cell_section(only(tmp_path / "s"))
    assert by_cell is not None
    assert by_cell.folded
    for sheet in by_cell.sheets:
        assert list(dict.fromkeys(row[0][0] for row in sheet.rows)) == ["cascade", "parallel"]
        assert max(Counter(row[0][0] for row in sheet.rows).values()) <= 10


def test_at_most_six_cells_and_none_by_itself(tmp_path: Path) -> None:
    for i in range(8):
        write_run(tmp_path / "s", config(head__dropout=i / 100), 0.3 + 0.05 * i)
        if i == 0:
            assert confusions.by_cell_section(only(tmp_path / "s")) is None
    section = confusions.by_cell_section(only(tmp_path / "s"))
    assert section is not None
    assert {row[0][0] for row in section.sheets[1].rows} == {f"dropout {i / 100:g}" for i in range(2, 8)}
    assert "best 6 of 8 cells" in section.paragraphs[0]


def test_without_predictions_there_is_no_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", config())
    (run / "predictions.parquet").unlink()
    assert confusions.section(only(tmp_path / "s")) is None
    assert confusions.by_cell_section(only(tmp_path / "s")) is None


def test_pictures_are_the_most_confidently_wrong_and_right(
    tmp_path: Path, seen: list[tuple[str, list[tuple[Example, Example]]]]
) -> None:
    df = predictions(0.4)
    run = write_run(tmp_path / "s", config(data__root=str(tmp_path / "data")), 0.4)
    df.to_parquet(run / "predictions.parquet")
    for i, path in enumerate(df["path"]):
        picture(tmp_path / "data" / path, seed=i)
    section = made(tmp_path / "s")
    assert [where for where, _ in seen] == ["within a make", "across makes"]
    read = ImageDecoder(160)
    names = list(CARS["model"].classes)
    for (_, pairs), sheet in zip(seen, section.sheets, strict=True):
        assert len(pairs) == 4
        assert sheet.data is not None
        for (left, right), (_, row) in zip(pairs, sheet.data.iterrows(), strict=False):
            true, guess = names.index(row["true"]), names.index(row["predicted"])
            wrong = df[(df["model/target"] == true) & (df["model/prediction"] == guess)]
            top = wrong.loc[wrong["model/confidence"].idxmax()]
            assert (left.name, left.path) == (names[true], top["path"])
            assert f"so confused {len(wrong)} of {(df['model/target'] == true).sum()} times" in left.words
            assert f"{100 * top['model/confidence']:.0f} %" in left.words
            assert left.image is not None
            assert np.array_equal(left.image, read(tmp_path / "data" / top["path"]))
            own = df[df["model/target"] == guess]
            good = own[own["model/prediction"] == guess]
            assert right.name == names[guess]
            assert right.path in set(good["path"] if len(good) else own["path"])
        first = pairs[0][1]
        good = df[(df["model/target"] == names.index(first.name)) & (df["model/prediction"] == df["model/target"])]
        assert first.path == good.loc[good["model/confidence"].idxmax(), "path"]
        assert len({right.path for _, right in pairs}) == 4


def test_missing_and_damaged_pictures_are_grey_and_said(
    tmp_path: Path, seen: list[tuple[str, list[tuple[Example, Example]]]]
) -> None:
    df = predictions(0.4)
    run = write_run(tmp_path / "s", config(data__root=str(tmp_path / "data")), 0.4)
    df.to_parquet(run / "predictions.parquet")
    made(tmp_path / "s")
    assert not seen  # a figure of grey boxes says nothing
    for i, path in enumerate(df["path"]):
        picture(tmp_path / "data" / path, seed=i)
    made(tmp_path / "s")
    broken, gone = seen[0][1][0][0].path, seen[0][1][1][0].path
    seen.clear()
    (tmp_path / "data" / broken).write_bytes(b"no picture")
    (tmp_path / "data" / gone).unlink()
    section = made(tmp_path / "s")
    images = {example.path: example.image for _, pairs in seen for pair in pairs for example in pair}
    assert images[broken] is None
    assert images[gone] is None
    assert sum(image is not None for image in images.values()) == len(images) - 2
    assert "Grey: a picture that is missing or damaged." in section.drawings[-1].caption


def test_pictures_are_not_said_to_be_chosen_by_a_confidence_that_is_not_there(tmp_path: Path) -> None:
    """As of FastCAR, whose scores are no probabilities."""
    df = predictions(0.4)
    run = write_run(tmp_path / "s", config(data__root=str(tmp_path / "data")), 0.4)
    for i, path in enumerate(df["path"]):
        picture(tmp_path / "data" / path, seed=i)
    for some, said in ((df, True), (df.drop(columns=["make/confidence", "model/confidence"]), False)):
        some.to_parquet(run / "predictions.parquet")
        section = made(tmp_path / "s")
        assert section.drawings[-1].name == "confusion_pictures"
        assert ("confidence" in section.drawings[-1].caption) == said
        assert all(("mean confidence %" in sheet.heads) == said for sheet in section.sheets)


def test_without_the_data_a_sentence_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config(), 0.5)
    section = made(tmp_path / "s")
    assert [d.name for d in section.drawings] == ["confusion_matrix_model"]
    assert "pictures of the test images are not where" in section.paragraphs[-1]


def test_nothing_outside_the_folder_of_the_data_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "data" / "inside.png")
    run, read = run_of(root=str(tmp_path / "data")), Pictures()
    assert read(run, "inside.png") is not None
    for path in ("../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png", "..\\secret.png", "", "C:/x.png"):
        assert read(run, path) is None


def test_pictures_are_resized_as_the_network_was_shown_them(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", size=(90, 30))
    for resize in ("stretch", "pad", "crop"):
        image = Pictures(32)(run_of(root=str(tmp_path / "data"), resize=resize), "a.png")
        assert image is not None
        assert np.array_equal(image, ImageDecoder(32, resize)(tmp_path / "data" / "a.png"))
    assert Pictures(32)(run_of(root=str(tmp_path / "data"), resize="nonsense"), "a.png") is not None


@pytest.mark.parametrize("margin", [0.1, None])
@pytest.mark.parametrize("draw_seed", [0, 1])
def test_drawn_cars_are_those_of_the_run_cut_to_their_box(cache: Path, draw_seed: int, margin: float | None) -> None:
    options = {**DRAWN, "draw_seed": draw_seed}
    run = run_of(**options, read=READER, box_margin=margin, levels=["make", "model"])
    run.config["paths"]["cache"] = str(cache)
    annotations, _ = synthetic_cars.read(cache / "synthetic_cars", **options)
    assert annotations.boxes is not None
    read = Pictures()
    for i in (0, 17):
        image = read(run, annotations.paths[i])
        assert image is not None
        assert np.array_equal(image, ImageDecoder(160, margin=margin)(annotations.file(i), annotations.boxes[i]))
        whole = ImageDecoder(160, margin=None)(annotations.file(i))
        assert np.array_equal(image, whole) == (margin is None)
    assert not read.whole


def test_a_report_never_draws_cars(tmp_path: Path) -> None:
    """Neither what is missing of a set nor a set that was never drawn."""
    root = tmp_path / "synthetic_cars"
    annotations, _ = synthetic_cars.read(root, **DRAWN)
    annotations.file(3).unlink()
    before = sorted(tmp_path.rglob("*"))
    run = run_of(**DRAWN, read=READER, box_margin=0.1, levels=["make", "model"])
    run.config["paths"]["cache"] = str(tmp_path)
    read = Pictures()
    assert read(run, annotations.paths[3]) is None
    image = read(run, annotations.paths[4])
    assert image is not None
    assert np.array_equal(image, ImageDecoder(160)(annotations.file(4)))
    assert read.whole
    other = run_of(**{**DRAWN, "draw_seed": 5}, read=READER, box_margin=0.1, levels=["make", "model"])
    other.config["paths"]["cache"] = str(tmp_path)
    assert read(other, annotations.paths[4]) is None
    empty = run_of(**DRAWN, read=READER, box_margin=0.1, levels=["make", "model"])
    empty.config["paths"]["cache"] = str(tmp_path / "empty")
    assert read(empty, annotations.paths[4]) is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "reader",
    [
        {"_target_": "sys.exit"},
        {"_target_": "mtlcar.data.synthetic_cars.read", "_partial_": True, "levels": {"_target_": "sys.exit"}},
        "sys.exit",
    ],
)
def test_no_function_but_our_readers_is_called(tmp_path: Path, reader: Any) -> None:
    picture(tmp_path / "data" / "a.png")
    read = Pictures()
    assert read(run_of(root=str(tmp_path / "data"), read=reader, box_margin=0.0), "a.png") is not None
    assert read.whole


def test_data_in_a_folder_below_the_root_are_found(tmp_path: Path) -> None:
    """As the publisher's archive unpacks; the reader knows where."""
    folder = write_stanford_cars(tmp_path / "data" / "stanford_cars", sample_cars())
    annotations, _ = stanford_cars.read(folder)
    reader = {"_target_": "mtlcar.data.stanford_cars.read", "_partial_": True}
    for margin in (0.0, None):
        for root in (tmp_path / "data", folder):
            run = run_of(name="stanford_cars", root=str(root), read=reader, box_margin=margin)
            image = Pictures(64)(run, annotations.paths[5])
            assert image is not None
            assert annotations.boxes is not None
            assert np.array_equal(image, ImageDecoder(64, margin=margin)(annotations.file(5), annotations.boxes[5]))


@pytest.mark.parametrize("length", [8, 40, 90])
def test_long_names_run_into_nothing(length: int) -> None:
    words = " ".join(["Chevrolet", "Silverado", "1500", "Hybrid", "Crew", "Cab", "2012"] * 3)[:length]
    image = np.zeros((160, 160, 3), np.uint8)
    names = [words, "Audi $A$ 4", "x" * length, "Ram"]
    pairs = [
        (
            Example(n, "so confused 12 of 30 times;\nthis image with 93 %", "a", image),
            Example("B", "recognised", "b", None),
        )
        for n in names
    ]
    figure = pairs_figure([("within a make", pairs), ("across makes", pairs[:2])])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = [ax for part in figure.subfigs for ax in part.axes if ax.axison]
    boxes = [ax.get_tightbbox() for ax in axes]
    assert min(ax.get_window_extent().width for ax in axes) > 0.85 * SIDE * figure.dpi
    assert len(boxes) == 12
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b) and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]
    assert min(box.x0 for box in boxes) >= -1
    assert max(box.x1 for box in boxes) <= figure.bbox.width + 1


def test_labels_of_a_matrix_are_inside_the_figure() -> None:
    for classes in (2, 12):
        names = [f"Chevrolet Silverado Hybrid {i}" for i in range(classes)]
        matrix = np.hstack([np.eye(classes, dtype=int) * 10, np.ones((classes, 1), int)])
        figure = matrix_figure(matrix, names, "model", annotate=True)
        FigureCanvasAgg(figure).draw()
        box = figure.axes[0].get_tightbbox()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [*names, "no class"]


def test_pictures_are_read_without_torch(cache: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; import mtlcar.report.confusions, mtlcar.report.calibration\n"
        "from mtlcar.report.collect import Run; from mtlcar.report.pictures import Pictures\n"
        "run = Run(Path('s/r'), json.loads(sys.argv[1]), {}, None, 0.0)\n"
        "assert Pictures()(run, 'images/000001.png') is not None\n"
        "assert 'torch' not in sys.modules"
    )
    data = {**DRAWN, "name": "synthetic_cars", "root": None, "read": READER, "box_margin": 0.1, "resize": "stretch"}
    settings = json.dumps({"data": data, "paths": {"cache": str(cache)}})
    subprocess.run([sys.executable, "-c", code, settings], check=True)
