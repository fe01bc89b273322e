"""The report's numbers, its account of what varied, and its files."""

import html.parser
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtlcar.errors import UserError
from mtlcar.report import build_report, command
from mtlcar.report.build import build
from mtlcar.report.collect import collect
from mtlcar.report.comparison import compare
from mtlcar.report.figures import test_figure as results_figure
from mtlcar.report.intervals import over_images, over_seeds, wilson
from mtlcar.report.matching import unmatched
from mtlcar.report.per_image import per_image
from mtlcar.report.table import headings, rows
from mtlcar.report.varied import settings as flatten
from mtlcar.report.varied import varied
from tests.run_dirs import CARS, config, plain_metrics, predictions, write_run

pytestmark = pytest.mark.usefixtures("undrawn")

WEIGHTS = ({"make": 0.1, "model": 0.9}, {"make": 0.5, "model": 0.5})


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two architectures x two weights x two seeds, and one run that is not finished."""
    folder = tmp_path_factory.mktemp("runs") / "grid"
    for i, architecture in enumerate(("parallel", "cascade")):
        for j, weights in enumerate(WEIGHTS):
            for seed in (0, 1):
                write_run(folder, config(architecture, seed, weighting__weights=weights), 0.6 + 0.1 * i + 0.05 * j)
    write_run(folder, config("single"), done=False)
    return folder


@pytest.fixture(scope="module")
def report(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report([grid], tmp_path_factory.mktemp("out"))


def only(folder: Path):
    comparisons = compare(collect([folder]).runs)
    assert len(comparisons) == 1
    return comparisons[0]


def test_neither_severity_nor_minutes_have_a_best(tmp_path: Path) -> None:
    """Each cell's severity is of its own mistakes, and minutes depend on what else the machine does."""
    for i, name in enumerate(("parallel", "cascade")):
        run = write_run(tmp_path / "s", config(name), 0.5 + 0.4 * i)
        stored = json.loads((run / "metrics.json").read_text())
        stored["timing"]["fit_seconds"] = 60.0 * (i + 1)
        (run / "metrics.json").write_text(json.dumps(stored))
    comparison = only(tmp_path)
    bold = {h for row in rows(comparison) for h, (_, best) in zip(headings(comparison), row, strict=True) if best}
    values = {h: {row[i][0].split()[0] for row in rows(comparison)} for i, h in enumerate(headings(comparison))}
    for never in ("severity, levels", "fit, min"):
        assert len(values[never]) == 2, "they differ, and one is less"
        assert never not in bold
    assert "model %" in bold


def test_two_architectures_two_weights_two_seeds_are_four_rows_of_two(report: Path) -> None:
    table = pd.read_csv(report.parent / "table.csv")
    assert len(table) == 4
    assert (table["n"] == 2).all()
    assert set(table["architecture"]) == {"parallel", "cascade"}
    assert set(table["weights"]) == {"make 0.1, model 0.9", "make 0.5, model 0.5"}
    results = (report.parent / "report.md").read_text().partition("### Results\n")[2].partition("\n#")[0]
    lines = [line for line in results.splitlines() if line.startswith("| parallel |")]
    assert len(lines) == 2


def test_numbers_are_the_mean_and_t_interval_of_the_seeds(grid: Path, report: Path) -> None:
    table = pd.read_csv(report.parent / "table.csv")
    t95 = 12.706204736174698  # Student's t, 1 degree of freedom, from a printed table
    for _, row in table.iterrows():
        a, b = (json.loads((grid / name.split("/")[1] / "metrics.json").read_text()) for name in row["runs"].split())
        for metric in ("model/accuracy", "make/implied_accuracy", "hierarchy/full_path_accuracy", "weight/mape"):
            x, y = a["test"][metric], b["test"][metric]
            assert row[metric] == pytest.approx((x + y) / 2)
            half = t95 * abs(x - y) / 2  # s / sqrt(2) of two values
            assert row[f"{metric}/low"] == pytest.approx((x + y) / 2 - half)
            assert row[f"{metric}/high"] == pytest.approx((x + y) / 2 + half)
        assert row["minutes"] == pytest.approx((90 + 91) / 2 / 60)


def test_table_shows_accuracies_in_percent_with_one_decimal_and_the_best_in_bold(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.5, parameters=7_204_981)
    write_run(tmp_path / "s", config("cascade"), 0.9, parameters=7_214_585)
    comparison = only(tmp_path)
    heads = headings(comparison)
    table = {row[0][0]: dict(zip(heads, row, strict=True)) for row in rows(comparison)}
    truth = collect([tmp_path]).runs[1].test["model/accuracy"]
    shown, bold = table["cascade"]["model %"]
    assert shown.startswith(f"{100 * truth:.1f} [")
    assert bold
    assert not table["parallel"]["model %"][1]
    assert table["cascade"]["weight MAE, kg"][1], "the lower error is the better one"
    assert table["parallel"]["parameters, M"] == ("7.205", True)
    assert not any(table[a]["fit, min"][1] for a in table), "equal values have no best"
    assert (
        table["cascade"]["weight MAPE %"][0].split(" ")[0] == f"{collect([tmp_path]).runs[1].test['weight/mape']:.1f}"
    )


@pytest.mark.parametrize("metric", sorted(plain_metrics(predictions(0.7))))
def test_per_image_values_average_to_the_metric(metric: str) -> None:
    df = predictions(0.7)
    values = per_image(metric, df, CARS)
    assert values is not None
    assert values.mean() == pytest.approx(plain_metrics(df)[metric], rel=1e-6)


def test_missing_labels_take_no_part() -> None:
    df = predictions(0.7, n=10)
    df.loc[:3, "model/target"] = -1
    df.loc[:5, "weight/target"] = math.nan
    assert len(per_image("model/accuracy", df, CARS)) == 6
    assert len(per_image("hierarchy/full_path_accuracy", df, CARS)) == 6
    assert len(per_image("hierarchy/consistency", df, CARS)) == 10
    assert len(per_image("weight/mae", df, CARS)) == 4
    df["weight/target"] = math.nan
    assert per_image("weight/mae", df, CARS) is None


def test_implied_make_of_a_network_that_predicts_models_alone() -> None:
    df = predictions(0.7)
    expected = plain_metrics(df)["make/implied_accuracy"]
    alone = df.drop(columns=[c for c in df if c.startswith("make/")])
    assert per_image("make/implied_accuracy", alone, CARS).mean() == pytest.approx(expected)
    assert per_image("make/accuracy", alone, CARS) is None
    assert per_image("hierarchy/consistency", alone, CARS) is None
    alone.loc[0, "model/target"] = -1
    assert per_image("make/implied_accuracy", alone, CARS) is None, "the make of that image may be labelled"


def test_a_metric_that_only_some_cells_have_leaves_the_others_empty(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.5)
    run = write_run(tmp_path / "s", config("single"), 0.9)
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["test"]["make/accuracy"], metrics["cost"]
    metrics["test"]["hierarchy/consistency"] = None
    (run / "metrics.json").write_text(json.dumps(metrics))
    comparison = only(tmp_path)
    table = {row[0][0]: dict(zip(headings(comparison), row, strict=True)) for row in rows(comparison)}
    for head in ("make %", "consistent %", "parameters, M"):
        assert table["single"][head] == ("-", False)
        assert not table["parallel"][head][1], "the only value of a column is not the best of several"
    assert math.isnan(pd.read_csv(build_report([tmp_path], tmp_path / "out").parent / "table.csv")["make/accuracy"][1])


def test_single_seed_gets_an_interval_close_to_the_normal_one(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config(), 0.8)
    estimate = only(tmp_path).cells[0].numbers["model/accuracy"]
    p = estimate.mean
    half = 1.96 * math.sqrt(p * (1 - p) / 300)
    assert estimate.low == pytest.approx(p - half, abs=0.012)
    assert estimate.high == pytest.approx(p + half, abs=0.012)


def test_t_interval_agrees_with_scipy() -> None:
    x = [0.81, 0.83, 0.80, 0.86]
    low, high = stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))
    assert over_seeds(x).low == pytest.approx(low)
    assert over_seeds(x).high == pytest.approx(high)
    assert not over_seeds([0.8]).has_interval


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    seeds = [over_seeds(list(rng.normal(0.8, 0.01, 3))) for _ in range(1000)]
    assert 0.93 < np.mean([e.low <= 0.8 <= e.high for e in seeds]) < 0.97
    errors = [over_images(rng.exponential(2.0, 200), resamples=400) for _ in range(500)]
    assert 0.92 < np.mean([low <= 2.0 <= high for low, high in errors]) < 0.98  # test_coverage.py: 93 to 97 of 100


@pytest.mark.parametrize("p", [0.8, 0.99, 0.998])
def test_an_accuracy_near_one_is_covered_too(p: float) -> None:
    n, right = 648, np.arange(649)
    covers = [low <= p <= high for low, high in (over_images(np.arange(n) < k) for k in right)]
    assert 0.92 < stats.binom.pmf(right, n, p)[covers].sum() < 0.985
    low, high = over_images(np.full(n, True))
    assert (low, high) == (pytest.approx(n / (n + stats.norm.ppf(0.975) ** 2)), 1.0)


def test_images_of_one_group_count_as_one_draw() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    covers = {True: [], False: []}
    for _ in range(200):
        values = rng.exponential(2.0, 30)[groups]  # all images of a group have the same error
        for grouped, found in covers.items():
            low, high = over_images(values, groups if grouped else None, resamples=300)
            found.append(low <= 2.0 <= high)
    assert np.mean(covers[True]) > 0.85
    assert np.mean(covers[False]) < 0.6
    right = groups % 3 > 0
    low, high = over_images(right, groups)
    assert high - low > 3 * np.subtract(*over_images(right)[::-1])
    assert (low, high) == over_images(right, groups)
    assert over_images(np.full(600, True), groups) == wilson(1.0, 30)
    assert math.isnan(over_images(np.array([1.0, 2.0]), np.zeros(2))[0]), "one group has no spread"


def test_the_report_resamples_groups_where_the_predictions_name_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", config(), 0.8)
    alone = only(tmp_path).cells[0].numbers
    df = pd.read_parquet(run / "predictions.parquet")
    df["group"] = [f"g{i // 12}" for i in range(len(df))]
    df.to_parquet(run / "predictions.parquet")
    page, (comparison,), _ = build([tmp_path], tmp_path / "out")
    grouped = comparison.cells[0].numbers
    for metric in ("model/accuracy", "weight/mae"):
        assert grouped[metric].mean == alone[metric].mean
        assert (grouped[metric].low, grouped[metric].high) != (alone[metric].low, alone[metric].high)
    assert "bootstrap over whole groups (25 groups)" in page.read_text()
    df["group"] = [str(i) for i in range(len(df))]
    df.to_parquet(run / "predictions.parquet")
    single = only(tmp_path).cells[0].numbers["model/accuracy"]
    assert (single.low, single.high) == (alone["model/accuracy"].low, alone["model/accuracy"].high)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_bootstrap_interval_lies_within_the_values_and_is_the_same_each_time(values: list[float]) -> None:
    low, high = over_images(np.array(values), resamples=50)
    slack = 1e-9 * (1 + max(values))
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert (low, high) == over_images(np.array(values), resamples=50)


def test_pretrained_weights_count_as_varied_by_file_name() -> None:
    made = [config(backbone__weights=w) for w in (None, "/a/lite0.safetensors", "/b/lite0.safetensors")]
    flats = [flatten(c, CARS.names) for c in made]
    assert varied(flats) == ["backbone.weights"]
    assert flats[1] == flats[2]


def change_metrics(run: Path, **changes: object) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | changes))


def test_weights_of_one_name_and_two_contents_are_two_cells(tmp_path: Path) -> None:
    for folder, digest in (("a", "1" * 16), ("b", "2" * 16), ("c", "1" * 16)):
        run = write_run(
            tmp_path / folder, config(seed=int(folder == "c"), backbone__weights=f"/{folder}/w.safetensors")
        )
        change_metrics(run, digests={"annotations": "0" * 16, "weights": digest})
    cells = only(tmp_path).cells
    assert sorted((cell.values, len(cell.runs)) for cell in cells) == [
        (("w.safetensors 111111",), 2), (("w.safetensors 222222",), 1),
    ]  # fmt: skip


def test_one_content_under_two_names_is_one_cell(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        run = write_run(tmp_path / "s", config(seed=seed, data__root=f"/data/{name}"))
        change_metrics(run, digests={"annotations": "0" * 16})
    assert [len(cell.runs) for cell in only(tmp_path).cells] == [2]


def test_a_data_folder_whose_annotations_changed_is_flagged(tmp_path: Path) -> None:
    for architecture, digest in (("parallel", "1" * 16), ("cascade", "2" * 16)):
        change_metrics(
            write_run(tmp_path / "s", config(architecture, data__root="/d/cars")), digests={"annotations": digest}
        )
    assert "data folder (data.root) differs: cars 111111, cars 222222" in unmatched(only(tmp_path))


def test_other_annotations_that_a_setting_explains_are_no_other_folder(tmp_path: Path) -> None:
    for seed, digest in ((0, "1" * 16), (1, "2" * 16)):
        made = config(seed=seed)
        made["data"]["seed"] = seed
        change_metrics(write_run(tmp_path / "s", made), digests={"annotations": digest})
    assert [len(cell.runs) for cell in only(tmp_path).cells] == [2]


def test_runs_that_look_alike_with_other_fingerprints_are_named(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "a", config()), write_run(tmp_path / "b", config())
    os.utime(old / "DONE", (1e9, 1e9))
    change_metrics(old, fingerprint="f" * 12)
    comparison = only(tmp_path)
    assert [run.directory for run in comparison.runs] == [new]
    assert comparison.repeats == []
    (sentence,) = unmatched(comparison)
    assert sentence.startswith("a/000000000000 is not counted")
    assert "fingerprint" in sentence


def test_the_note_says_whether_the_seeds_share_a_test_set(tmp_path: Path, grid: Path) -> None:
    assert "(same test set)" in build_report([grid], tmp_path / "same").read_text()
    for seed in (0, 1):
        run = write_run(tmp_path / "s", config(seed=seed, data__split_seed=seed))
    df = pd.read_parquet(run / "predictions.parquet")
    df["index"] += 1
    df.to_parquet(run / "predictions.parquet")
    text = build_report([tmp_path / "s"], tmp_path / "two").read_text()
    assert "(same test set)" not in text
    assert "2 different test sets" in text
    (run / "predictions.parquet").unlink()
    assert "not every run says" in build_report([tmp_path / "s"], tmp_path / "unknown").read_text()


def test_an_implied_level_has_no_consistency_and_is_bold_once(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.5)
    write_run(tmp_path / "s", config("cascade"), 0.6)
    write_run(tmp_path / "s", config("single"), 0.95)
    comparison = only(tmp_path)
    table = {row[0][0]: dict(zip(headings(comparison), row, strict=True)) for row in rows(comparison)}
    assert table["single"]["consistent %"] == ("-", False)
    assert table["cascade"]["consistent %"][1]
    shown, bold = table["single"]["make %"]
    assert shown != "-"
    assert not bold
    assert table["single"]["make implied %"][1]


def test_a_large_grid_draws_its_best_cells_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = 5
    monkeypatch.setattr("mtlcar.report.figures.SHOWN_CELLS", shown)
    monkeypatch.setattr("mtlcar.report.results_section.SHOWN_CELLS", shown)
    for i in range(shown + 2):
        write_run(tmp_path / "s", config(head__dropout=i / 100), 0.5 + i / 100)
    comparison = only(tmp_path)
    figure = results_figure(comparison)
    assert figure is not None
    drawn = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    worst = sorted(comparison.cells, key=lambda cell: cell.numbers["model/accuracy"].mean)[:2]
    assert drawn == [cell.label for cell in comparison.cells if cell not in worst]
    page = build_report([tmp_path], tmp_path / "out").read_text()
    assert f"Only the best {shown} of {shown + 2} cells by test model/accuracy" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data__batch_size": 64}, "batch size (data.batch_size) differs: 32, 64"),
        ({"trainer__max_epochs": 2}, "number of epochs (trainer.max_epochs) differs: 2, 4"),
        ({"data__image_size": 96}, "image size (data.image_size) differs: 64, 96"),
        ({"seed": 5}, "seeds differ"),
    ],
)
def test_unmatched_comparisons_are_flagged(tmp_path: Path, change: dict, words: str) -> None:
    write_run(tmp_path / "s", config("parallel"))
    write_run(tmp_path / "s", config("cascade", **change))
    assert any(sentence.startswith(words) for sentence in unmatched(only(tmp_path)))


def test_a_matched_comparison_is_not_flagged(grid: Path) -> None:
    assert unmatched(only(grid)) == []


def test_different_test_images_are_flagged(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel"))
    run = write_run(tmp_path / "s", config("cascade"))
    df = pd.read_parquet(run / "predictions.parquet")
    df["index"] += 1
    df.to_parquet(run / "predictions.parquet")
    assert unmatched(only(tmp_path)) == ["test images differ between runs of seed 0"]


def test_a_metric_that_its_predictions_contradict_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", config())
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"]["model/accuracy"] = 0.99
    (run / "metrics.json").write_text(json.dumps(metrics))
    comparison = only(tmp_path)
    assert len(comparison.disagree) == 1
    assert "model/accuracy is 0.99" in comparison.disagree[0]
    assert not comparison.cells[0].numbers["model/accuracy"].has_interval


def test_the_same_settings_and_seed_twice_count_once_the_newer_one(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "a", config(), 0.5), write_run(tmp_path / "b", config(), 0.9)
    os.utime(old / "DONE", (1e9, 1e9))
    comparison = only(tmp_path)
    assert [run.directory for run in comparison.runs] == [new]
    assert comparison.repeats == ["a/000000000000"]


def test_cells_come_in_the_order_they_finished_and_numbers_by_size(tmp_path: Path) -> None:
    made = [("single", 0.5), ("parallel", 0.5), ("cascade", 0.5), ("cascade", 0.25), ("single", 0.0), ("parallel", 0.0)]
    for i, (architecture, dropout) in enumerate(made):
        run = write_run(tmp_path / "s", config(architecture, head__dropout=dropout))
        run.rename(run.with_name(f"{9 - i}"))
        os.utime(run.with_name(f"{9 - i}") / "DONE", (1e9 + i, 1e9 + i))
    expected = ["single 0", "single 0.5", "parallel 0", "parallel 0.5", "cascade 0.25", "cascade 0.5"]
    assert [" ".join(cell.values) for cell in only(tmp_path).cells] == expected


class Links(html.parser.HTMLParser):
    """What a page would load, and its images."""

    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action") and not str(value).startswith(
                ("data:image/png;base64,", "#")
            ):
                self.external.append(f"{tag} {value}")
        if tag in ("script", "link", "iframe", "object"):
            self.external.append(tag)


def test_the_page_is_self_contained_and_fits_a_phone(report: Path) -> None:
    page = report.read_text()
    links = Links()
    links.feed(page)
    assert links.external == []
    assert links.images >= 3
    assert "url(" not in page
    assert "@import" not in page
    assert 'name="viewport"' in page


def test_names_from_a_configuration_cannot_break_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel", head__name="<script>alert(1)</script>"))
    write_run(tmp_path / "s", config("cascade", head__name="a|b"))
    page = build_report([tmp_path], tmp_path / "out")
    assert "<script" not in page.read_text()
    row = next(line for line in (page.parent / "report.md").read_text().splitlines() if line.startswith("| cascade |"))
    assert "a\\|b" in row


def test_no_name_of_a_run_leads_out_of_the_reports_folder(tmp_path: Path) -> None:
    for name in ("../../../outside", "plain"):  # two data sets: their files are told apart by names
        write_run(tmp_path / "runs" / "s", config("parallel", data__name=name))
        write_run(tmp_path / "runs" / "s", config("cascade", data__name=name))
    before = set(tmp_path.rglob("*"))
    build_report([tmp_path / "runs"], tmp_path / "deep" / "down" / "out")
    made = set(tmp_path.rglob("*")) - before - {tmp_path / "deep", tmp_path / "deep" / "down"}
    assert made
    assert all((tmp_path / "deep" / "down" / "out") in (path, *path.parents) for path in made)


def test_unfinished_and_damaged_runs_are_listed_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_run(folder, config())
    write_run(folder, config("cascade"), done=False)
    (write_run(folder, config("single")) / "metrics.json").write_text('{"schema": 1, ')
    (write_run(folder, config("single", 1)) / "tasks.json").unlink()
    write_run(folder, config("parallel", data__batch_size=64))
    page, comparisons, found = build([tmp_path], tmp_path / "out")
    assert len(comparisons[0].runs) == 2
    for file in (page, page.parent / "report.md"):
        assert "batch size (data.batch_size) differs: 32, 64" in file.read_text()
    reasons = dict(found.left_out)
    assert reasons["s/000000000001"] == "not finished (no DONE)"
    assert reasons["s/000000000002"].startswith("unreadable")
    assert reasons["s/000000000003"] == "tasks.json is missing"
    assert "s/000000000003" in page.read_text()


def test_no_runs_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DONE"):
        build_report([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match=r"no such folder"):
        build_report([tmp_path / "nowhere"], tmp_path / "out")
    write_run(tmp_path / "s", config(), done=False)
    with pytest.raises(UserError, match=r"1 runs there are not finished"):
        build_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_runs_own_subfolders_are_not_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", config())
    inner = run / "wandb" / "offline-run" / "files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("a: 1")
    found = collect([tmp_path, run, tmp_path / "s"])
    assert [r.directory for r in found.runs] == [run]
    assert found.left_out == []


def test_a_report_survives_missing_histories_predictions_and_costs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", config())
    (run / "history.csv").unlink()
    (run / "predictions.parquet").write_bytes(b"no parquet")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({"status": "finished", "test": metrics["test"]}))
    page = build_report([tmp_path], tmp_path / "out")
    assert "model %" in page.read_text()


def test_two_datasets_get_a_table_each(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config())
    write_run(tmp_path / "s", config(data__name="stanford_cars", data__batch_size=64))
    page, comparisons, _ = build([tmp_path], tmp_path / "out")
    assert [c.dataset for c in comparisons] == ["synthetic_cars", "stanford_cars"]
    assert all(unmatched(c) == [] for c in comparisons)
    assert "Not matched" not in page.read_text()
    names = {file.name for file in (page.parent / "figures").iterdir()}
    assert {"synthetic_cars_test.png", "stanford_cars_test.png", "stanford_cars_test.svg"} <= names


def test_the_command_writes_beside_the_first_folder_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.5)
    write_run(tmp_path / "s", config("cascade"), 0.9)
    assert command([str(tmp_path / "s")], None) == 0
    out = capsys.readouterr().out
    assert "cascade" in out
    assert out.splitlines()[-1] == str(tmp_path / "s" / "report" / "report.html")
    assert command([str(tmp_path / "s")], None) == 0, "a second time, with the first report lying there"
    assert not list((tmp_path / "s" / "report").rglob("*.tmp"))
