"""Worst confusions in the report: the most frequent wrong pairs, within a parent class and across, with pictures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.confusion_figure import Example, matrix_figure, pairs_figure
from mtlcar.report.confusion_pairs import Level, counts, level, pooled, wrong_pairs
from mtlcar.report.pictures import Pictures
from mtlcar.report.ranking import main_metric, ranked
from mtlcar.report.render import Row
from mtlcar.report.section import Drawing, Section, Sheet
from mtlcar.report.varied import NONE

TOP = 10
"""Pairs in a table."""
CELLS = 6
"""Most cells whose pairs are shown."""
MATRIX_CLASSES, MATRIX_PARENTS = 30, 50
"""Most classes, and most parents of more classes, of a confusion matrix that can be read."""
PICTURES = 4
"""Pairs with pictures, of each kind."""


def section(comparison: Comparison) -> Section | None:
    """The best cell's pairs, a confusion matrix and pictures; None where no run predicts a class."""
    found = _cells(comparison)
    if found is None:
        return None
    of, cells = found
    cell = cells[0]
    df = pooled(cell.runs, of)
    pairs = wrong_pairs(df, of)
    made = Section(f"Worst confusions of {of.name}", [_summary(comparison, cell, of, df, pairs)])
    for kind, where, some in _kinds(of, pairs):
        if len(some):
            made.sheets.append(_sheet(kind, where, of, [(cell, df, some)]))
    if len(of.classes) <= MATRIX_CLASSES:
        made.drawings.append(_matrix(comparison, cell, of, df, of.name, of.classes, None))
    elif of.parent is not None and len(of.parents) <= MATRIX_PARENTS:
        made.drawings.append(_matrix(comparison, cell, of, df, of.parent, of.parents, of.parent_of))
    _add_pictures(made, comparison, cell, of, df, pairs)
    return made


def by_cell_section(comparison: Comparison) -> Section | None:
    """The pairs of the best `CELLS` cells, folded; None where there is one cell."""
    found = _cells(comparison)
    if found is None or len(found[1]) < 2:
        return None
    of, cells = found
    made = Section(f"Worst confusions of {of.name}, by cell", folded=True)
    frames = [(cell, pooled(cell.runs, of)) for cell in cells[:CELLS]]
    parts = [(cell, df, _kinds(of, wrong_pairs(df, of))) for cell, df in frames]
    for i, (kind, where, _) in enumerate(parts[0][2]):
        some = [(cell, df, kinds[i][2]) for cell, df, kinds in parts]
        if any(len(pairs) for *_, pairs in some):
            made.sheets.append(_sheet(kind, where, of, some))
    if len(cells) > CELLS:
        made.paragraphs.append(f"Only the best {CELLS} of {len(cells)} cells by test {main_metric(comparison)}.")
    return made if made.sheets else None


def _cells(comparison: Comparison) -> tuple[Level, list[Cell]] | None:
    """The finest level that a run predicts, and the cells that predict it, the best first."""
    levels = [found for run in comparison.runs if (found := level(run)) is not None]
    if not levels:
        return None
    # A network of the coarse task alone, or of fewer tasks, is not what the others' classes can be compared with.
    of = max(levels, key=lambda found: (found.parent is not None, len(found.classes)))
    having = [cell for cell in comparison.cells if any(level(run) == of for run in cell.runs)]
    return of, ranked(comparison, having)


def _kinds(of: Level, pairs: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(name for files, where in words, the pairs) of each kind."""
    if of.parent is None:
        return [("pairs", "", pairs)]
    inside = pairs["within"].astype(bool)
    return [
        ("within", f"within a {of.parent}", pairs[inside]),
        ("across", f"across {_plural(of.parent)}", pairs[~inside]),
    ]


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"


def _summary(comparison: Comparison, cell: Cell, of: Level, df: pd.DataFrame, pairs: pd.DataFrame) -> str:
    runs, wrong, none = df["run"].nunique(), int(pairs["times"].sum()), int((df["predicted"] < 0).sum())
    text = f"{cell.label}, the best cell by test {main_metric(comparison)}" if len(comparison.cells) > 1 else "All runs"
    text += f", {runs} seeds together" if runs > 1 else ", one seed"
    text += f": {wrong:,} of {len(df):,} predictions are another {of.name}"
    if of.parent is not None and wrong:
        same = np.bincount(np.asarray(of.parent_of), minlength=len(of.parents))[np.asarray(of.parent_of)] - 1
        chance = float(np.average(same[pairs["true"]], weights=pairs["times"]) / (len(of.classes) - 1))
        inside = float(pairs.loc[pairs["within"], "times"].sum() / wrong)
        text += (
            f", {100 * inside:.0f} % of these of the right {of.parent} ({100 * chance:.0f} % if all other classes were "
            "as likely)"
        )
    return text + (f"; {none:,} name no class and are in no pair." if none else ".")


def _sheet(kind: str, where: str, of: Level, cells: list[tuple[Cell, pd.DataFrame, pd.DataFrame]]) -> Sheet:
    several = len(cells) > 1
    sure = any(df["confidence"].notna().any() for _, df, _ in cells)  # a FastCAR's scores are no probabilities
    rows: list[Row] = []
    records = []
    for cell, df, pairs in cells:
        seeds = df["run"].nunique()
        for rank, row in enumerate(pairs.head(TOP).to_dict("records"), 1):
            true, predicted = (of.classes[row[column]] for column in ("true", "predicted"))
            up, down = (of.parents[of.parent_of[row[c]]] if of.parent else "" for c in ("true", "predicted"))
            names = {"pairs": [true, predicted], "within": [true, predicted, up], "across": [true, up, predicted, down]}
            numbers = [str(row["times"]), str(row["of"]), f"{100 * row['share']:.0f}"]
            if sure:
                numbers.append(NONE if np.isnan(row["confidence"]) else f"{100 * row['confidence']:.0f}")
            numbers.append(f"{row['seeds']} of {seeds}")
            rows.append([(text, False) for text in ([cell.label] if several else []) + names[kind] + numbers])
            record = {"cell": cell.label, "rank": rank, "true": true, "predicted": predicted}
            record |= {"true_parent": up, "predicted_parent": down} if of.parent else {}
            kept = ("times", "of", "share", *(["confidence"] if sure else []), "seeds")
            records.append(record | {k: row[k] for k in kept})
    heads = [f"true {of.name}", f"predicted {of.name}"]
    if kind == "within":
        heads.append(str(of.parent))
    if kind == "across":
        heads = [heads[0], f"true {of.parent}", heads[1], f"predicted {of.parent}"]
    heads = [
        *(["cell"] if several else []),
        *heads,
        "times",
        "of",
        "share %",
        *(["mean confidence %"] if sure else []),
        "seeds",
    ]
    note = (
        "times: how often a test image of the true class was given the predicted one, all seeds together; of: the test "
        "images of the true class, times the seeds; seeds: in how many of them."
    )
    title = " ".join(["Most frequent confusions of", of.name, *([where] if where else []), *["by cell"] * several])
    return Sheet(f"confusions_{kind}{'_by_cell' * several}", title, heads, rows, pd.DataFrame(records), note)


def _matrix(
    comparison: Comparison,
    cell: Cell,
    of: Level,
    df: pd.DataFrame,
    task: str,
    names: tuple[str, ...],
    table: Sequence[int] | None,
) -> Drawing:
    matrix = counts(df, len(names), table)
    own = f" (that of the predicted {of.name})" if table is not None else ""
    caption = (
        f"{comparison.name}, {cell.label}: true {task} of each test image (row) against the predicted one{own}, all "
        "seeds together. Grey: the share of the row, darker for more, on a square-root scale; behind a class: its "
        "images."
    )
    if table is None:
        caption += " Numbers: images; none is 0."
    return Drawing(f"confusion_matrix_{task}", caption, matrix_figure(matrix, names, task, annotate=table is None))


def _add_pictures(
    made: Section, comparison: Comparison, cell: Cell, of: Level, df: pd.DataFrame, pairs: pd.DataFrame
) -> None:
    """Pictures of the worst pairs, or a sentence on why there are none."""
    read = Pictures()
    most = PICTURES if of.parent is not None else 2 * PICTURES
    kinds = [(where, some.head(most)) for _, where, some in _kinds(of, pairs) if len(some)]
    columns = [(where, _examples(cell, of, df, some, read)) for where, some in kinds]
    examples = [example for _, column in columns for pair in column for example in pair]
    if not examples:
        return
    if not any(example.image is not None for example in examples):
        made.paragraphs.append("The pictures of the test images are not where the runs read them, and none is shown.")
        return
    sure = df["confidence"].notna().any()
    caption = (
        f"{comparison.name}, {cell.label}: the most frequent confusions. Left of each pair, under its true class: "
        f"{'of the test images that were' if sure else 'a test image that was'} taken for the class on the right"
        f"{' the one with the highest confidence' if sure else ''}; right, under that class: a test image of it that "
        f"was recognised{' with high confidence' if sure else ''}. Cut to its box and resized as the network was shown "
        "it."
    )
    if read.whole:
        caption = caption.replace("Cut to its box and resized", "Resized")
        caption += " Whole pictures: the boxes that they were cut to could not be read."
    if any(example.image is None for example in examples):
        caption += " Grey: a picture that is missing or damaged."
    made.drawings.append(Drawing("confusion_pictures", caption, pairs_figure(columns)))


def _examples(
    cell: Cell, of: Level, df: pd.DataFrame, pairs: pd.DataFrame, read: Pictures
) -> list[tuple[Example, Example]]:
    """For each pair the most confidently wrong image, and the most confidently right one of the predicted class; one of
    its own for each pair, as long as there are several."""
    order = ["confidence", "run", "index"]
    surest = df.sort_values(order, ascending=[False, True, True], na_position="last").drop_duplicates(
        ["index", "true", "predicted"]
    )
    shown: set[str] = set()
    found = []
    for row in pairs.to_dict("records"):
        true, predicted = int(row["true"]), int(row["predicted"])
        wrong = surest[(surest["true"] == true) & (surest["predicted"] == predicted)].iloc[0]
        words = f"so confused {row['times']} of {row['of']} times{_sure(wrong, ';{}this image with')}"
        left = Example(of.classes[true], words.format("\n"), str(wrong["path"]), _image(cell, wrong, read))
        own = surest[surest["true"] == predicted]
        right = own[own["predicted"] == predicted]
        some = right if len(right) else own
        new = some[~some["path"].isin(shown)]
        if not len(some):
            found.append((left, Example(of.classes[predicted], "not in the test set", "", None)))
            continue
        chosen = (new if len(new) else some).iloc[0]
        shown.add(str(chosen["path"]))
        words = f"recognised{_sure(chosen, ' with')}" if len(right) else "never recognised"
        found.append((left, Example(of.classes[predicted], words, str(chosen["path"]), _image(cell, chosen, read))))
    return found


def _image(cell: Cell, row: pd.Series, read: Pictures) -> np.ndarray | None:
    return read(cell.runs[int(row["run"])], str(row["path"]))


def _sure(row: pd.Series, words: str) -> str:
    return "" if np.isnan(row["confidence"]) else f"{words} {100 * row['confidence']:.0f} %"
