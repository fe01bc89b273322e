"""What tells the cells of a report apart: parts, methods that name several parts at once, and splits."""

from pathlib import Path

import pandas as pd
import pytest

from mtlcar.config import compose_config
from mtlcar.report import command
from mtlcar.report.build import build
from mtlcar.report.collect import collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.matching import main_fixed, unmatched
from mtlcar.report.varied import settings as flatten
from mtlcar.report.varied import varied
from tests.run_dirs import CARS, config, write_run, write_steel

pytestmark = pytest.mark.usefixtures("undrawn")

WEIGHTS = ({"make": 0.1, "model": 0.9}, {"make": 0.5, "model": 0.5})


def only(folder: Path) -> Comparison:
    (comparison,) = compare(collect([folder]).runs)
    return comparison


def named(method: str | None, *args: object, **overrides: object) -> dict:
    return config(*args, **overrides) | {"method": method}


def test_a_group_that_differs_is_one_column_with_its_own_keys_folded() -> None:
    flats = [flatten(config(a, weighting__weights=w), CARS.names) for a in ("parallel", "cascade") for w in WEIGHTS]
    assert varied(flats) == ["architecture.name", "weighting.weights"]


def test_a_key_that_differs_within_one_name_is_its_own_column() -> None:
    made = [config("parallel"), config("cascade"), config("cascade", architecture__feed="softmax")]
    assert varied([flatten(c, CARS.names) for c in made]) == ["architecture.name", "architecture.feed"]


def test_paths_loggers_seeds_and_spelling_do_not_count_as_varied() -> None:
    other = config(seed=3, logger={"name": "wandb", "mode": "offline"}, paths={"runs": "/elsewhere"}, sweep="x")
    other["head"]["dropout"] = 0
    other["data"]["split_seed"] = 3
    assert varied([flatten(config(), CARS.names), flatten(other, CARS.names)]) == []


def test_a_method_comes_first_and_what_is_the_same_in_all_its_runs_is_folded_into_it() -> None:
    made = [
        named("FastCAR", "single", head__dropout=0.5, optimizer__lr=0.1),
        named("two heads", "parallel"),
        named("two heads", "parallel", weighting__weights=WEIGHTS[0]),
    ]
    flats = [flatten(c, CARS.names) for c in made]
    assert varied(flats) == ["method", "weighting.weights"]
    assert varied(flats[:2]) == ["method"]
    assert varied(flats[1:]) == ["weighting.weights"], "a method that all runs have tells none apart"


def test_constants_that_a_run_found_are_no_setting_and_given_ones_are() -> None:
    found = [
        config() | {"label_transform": {"name": "fastcar", "constants": c}} for c in (None, {"gap": 1, "found": True})
    ]
    flats = [flatten(c, CARS.names) for c in (*found, found[1])]
    assert varied(flats) == []
    given = [config() | {"label_transform": {"name": "fastcar", "constants": {"gap": g}}} for g in (1, 2)]
    flats = [flatten(c, CARS.names) for c in (found[1], *given)]
    assert varied(flats) == ["label_transform.constants"]
    assert len({f["label_transform.constants"] for f in flats}) == 3


def test_runs_from_before_a_key_pool_with_those_that_have_its_default(tmp_path: Path) -> None:
    for seed, key in ((0, {}), (1, {"test_time_augmentation": "none"}), (2, {"test_time_augmentation": "flips"})):
        write_run(tmp_path / str(seed), config(seed=seed) | key)
    assert sorted(len(cell.runs) for cell in only(tmp_path).cells) == [1, 2]


def test_runs_without_a_method_show_their_parts_as_without_methods() -> None:
    made = [named(None, "cascade"), named(None, "parallel", head__dropout=0.5), config("single", head__dropout=0.2)]
    plain = [flatten(c, CARS.names) for c in made]
    assert varied(plain) == ["architecture.name", "head.dropout"]
    assert plain[0] == flatten(config("cascade"), CARS.names), "a null method is no setting: old runs have none"
    with_method = [*plain, flatten(named("FastCAR", "single"), CARS.names)]
    assert varied(with_method) == ["method", "architecture.name", "head.dropout"]


def test_the_table_and_the_labels_call_a_cell_by_its_method(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "s", named("FastCAR", "single", seed))
        write_run(tmp_path / "s", named("two heads", "cascade", seed, optimizer__lr=0.1, head__dropout=0.5))
    comparison = only(tmp_path)
    assert comparison.titles == ["method"]
    assert [(cell.label, len(cell.runs)) for cell in comparison.cells] == [("FastCAR", 2), ("two heads", 2)]
    write_run(tmp_path / "s", config("parallel"))
    assert only(tmp_path).titles[:2] == ["method", "architecture"]
    assert [cell.values[:2] for cell in only(tmp_path).cells] == [
        ("FastCAR", "single"),
        ("two heads", "cascade"),
        ("-", "parallel"),
    ]


def test_one_method_is_named_among_the_fixed_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "s", named("FastCAR", "single"))
    write_run(tmp_path / "s", named("FastCAR", "single", head__dropout=0.5))
    comparison = only(tmp_path)
    assert comparison.titles == ["dropout"]
    assert main_fixed(comparison)[0] == "method FastCAR"


def test_a_method_does_not_hide_that_budgets_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "s", named("FastCAR", data__batch_size=64))
    write_run(tmp_path / "s", named("two heads"))
    assert only(tmp_path).titles == ["method"]
    assert unmatched(only(tmp_path)) == ["batch size (data.batch_size) differs: 32, 64"]


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two methods x two splits; the grouped one has two seeds and other test images."""
    for method in ("FastCAR", "two heads"):
        write_steel(tmp_path / "s", method=method)
        for seed in (0, 1):
            run = write_steel(tmp_path / "s", method=method, seed=seed, data__split="grouped")
            df = pd.read_parquet(run / "predictions.parquet")
            df["index"] += 1
            df.to_parquet(run / "predictions.parquet")
    return tmp_path / "s"


def test_splits_of_one_dataset_are_compared_apart_and_are_no_mismatch(splits: Path) -> None:
    comparisons = compare(collect([splits]).runs)
    assert [c.name for c in comparisons] == ["advanced_steel, split official", "advanced_steel, split grouped"]
    for comparison, runs in zip(comparisons, (1, 2), strict=True):
        assert [(cell.label, len(cell.runs)) for cell in comparison.cells] == [("FastCAR", runs), ("two heads", runs)]
        assert unmatched(comparison) == []
        assert comparison.fixed["data.split"] == comparison.split


def test_splits_have_a_page_each_with_figures_of_their_own(splits: Path, tmp_path: Path) -> None:
    page, _, _ = build([splits], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    for split in ("official", "grouped"):
        assert f"<h2>advanced_steel, split {split}</h2>" in page.read_text()
        assert f"## advanced_steel, split {split}\n" in text
        assert f"![advanced_steel, split {split}: test results per cell" in text
        assert (tmp_path / "out" / "figures" / f"advanced_steel_{split}_test.png").is_file()
    names = [line.partition("](figures/")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(names) == len(set(names)) == len(list((tmp_path / "out" / "figures").glob("*.png")))
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert list(table["data"]) == ["advanced_steel"] * 4
    assert list(table["split"]) == ["official"] * 2 + ["grouped"] * 2
    assert list(table["n"]) == [1, 1, 2, 2]


def test_one_split_is_not_in_the_title(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_steel(tmp_path / "s")
    assert command([str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out.splitlines()[0].strip() == "advanced_steel"
    assert (tmp_path / "s" / "report" / "figures" / "test.png").is_file()
    assert "split" not in pd.read_csv(tmp_path / "s" / "report" / "table.csv")


def test_the_terminal_names_the_split(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(splits)]) == 0
    out = capsys.readouterr().out
    assert "advanced_steel, split official" in out
    assert "advanced_steel, split grouped" in out


def test_the_configuration_has_the_key() -> None:
    assert compose_config([]).method is None
    assert compose_config(["method=FastCAR"]).method == "FastCAR"
