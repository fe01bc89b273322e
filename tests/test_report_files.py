"""What a report leaves on disk: figures and tables as files, LaTeX, the page's links; and the terminal's table."""

import io
import re
import xml.etree.ElementTree
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from mtlcar.report.build import build
from mtlcar.report.comparison import Comparison
from mtlcar.report.latex import escaped, latex_table
from mtlcar.report.section import Sheet
from mtlcar.report.terminal import print_comparison
from tests.run_dirs import config, write_run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    folder = tmp_path_factory.mktemp("runs")
    for architecture, skill in (("parallel", 0.6), ("cascade", 0.7)):
        for seed in (0, 1):
            write_run(folder / "s", config(architecture, seed), skill)
    page, (comparison,), _ = build([folder], folder / "report")
    return page, comparison


@pytest.fixture(scope="module")
def report(built: tuple[Path, Comparison]) -> Path:
    return built[0]


def test_each_figure_is_there_as_png_and_svg(report: Path) -> None:
    figures = report.parent / "figures"
    stems = {file.stem for file in figures.iterdir()}
    assert {"test", "curves_val_model_accuracy"} <= stems
    for stem in stems:
        assert (figures / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        root = xml.etree.ElementTree.fromstring((figures / f"{stem}.svg").read_text())
        assert root.tag.endswith("svg")


def test_each_table_is_there_as_csv_and_latex(report: Path) -> None:
    tables = report.parent / "tables"
    stems = {file.stem for file in tables.iterdir()}
    assert {"results", "runs"} <= stems
    for stem in stems:
        assert len(pd.read_csv(tables / f"{stem}.csv"))
        text = (tables / f"{stem}.tex").read_text()
        assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 1
    full = pd.read_csv(tables / "results.csv")
    assert full["model/accuracy"].tolist() == pd.read_csv(report.parent / "table.csv")["model/accuracy"].tolist()


def test_latex_has_one_column_a_head_and_escapes_what_is_special() -> None:
    rows = [[("a_b & 5 %", False), ("84.1 ± 0.9", True)], [("{x}", False), ("on [1, 2]", False)]]
    text = latex_table(Sheet("some_name", "Title #1", ["who", "acc %"], rows, note="How\nmeasured."))
    assert "\\begin{tabular}{ll}" in text
    assert r"a\_b \& 5 \% & \textbf{84.1 $\pm$ 0.9} \\" in text
    assert r"\{x\} & on {[}1, 2{]} \\" in text
    assert text.startswith("% How\n% measured.\n")
    assert r"\label{tab:some-name}" in text
    numbers = [[("a", False), ("1.5", False)], [("b", False), ("-2", True)]]
    assert "\\begin{tabular}{lr}" in latex_table(Sheet("n", "N", ["x", "y"], numbers))
    unescaped = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\\[a-z]+|\$[^$]*\$", "", escaped("50 % of $5 & a_b^2 {~} \\ #"))
    assert not set("&%#_^~\\") & set(unescaped)


def test_every_link_of_the_page_has_its_heading(report: Path) -> None:
    page = report.read_text()
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(links) == len(set(links)) >= 3
    assert all(f'id="{link}"' in page for link in links)


def test_a_report_built_twice_has_the_same_bytes(report: Path, tmp_path: Path) -> None:
    again = build([report.parent.parent / "s"], tmp_path / "again")[0]
    ours = {f.relative_to(report.parent): f.read_bytes() for f in report.parent.rglob("*") if f.is_file()}
    theirs = {f.relative_to(again.parent): f.read_bytes() for f in again.parent.rglob("*") if f.is_file()}
    assert ours == theirs


def test_a_page_that_refreshes_itself_says_so(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "http-equiv" not in report.read_text()
    monkeypatch.setattr("mtlcar.report.build._image", lambda figure, ending: b"")  # drawn above
    page = build([report.parent.parent / "s"], tmp_path / "watched", refresh=30.0)[0]
    assert '<meta http-equiv="refresh" content="30">' in page.read_text()


@pytest.mark.parametrize("width", [50, 80, 120, 300])
def test_the_terminal_table_fits_and_names_what_it_leaves_out(built: tuple[Path, Comparison], width: int) -> None:
    comparison = built[1]
    console = Console(file=io.StringIO(), width=width)
    print_comparison(console, comparison)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(table) >= 6
    assert max(map(len, table)) <= width
    assert ("Too wide for this terminal" in text) == (width < 150)
    values = [comparison.cells[0].numbers["make/accuracy"].mean]
    assert f"{100 * values[0]:.1f} ±" in text
