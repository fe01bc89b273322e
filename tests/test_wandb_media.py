"""Figures at the end of a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mtlcar.logs.wandb_media import confusion_figure, finish_figures, worst_errors
from tests.run_dirs import CARS, predictions


def test_a_confusion_matrix_shows_the_share_of_each_true_class() -> None:
    figure = confusion_figure(CARS["make"], np.array([0, 0, 0, 1, -1, 2]), np.array([0, 0, 1, 1, 3, -1]))
    assert isinstance(figure, Figure)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (6, 6)
    assert shown[0].tolist() == pytest.approx([200 / 3, 100 / 3, 0, 0, 0, 0])
    assert shown[1, 1] == 100
    assert shown[2:].sum() == 0, "missing labels and predictions take no part"
    assert figure.axes[0].get_title() == "make: 75.0 % of 4 images right"
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(CARS["make"].classes)


def test_the_worst_errors_are_the_surest_wrong_ones_and_the_largest_in_size() -> None:
    df = predictions(0.5, 40)
    wrong = worst_errors(CARS["model"], df, 5)
    assert (wrong["model/target"] != wrong["model/prediction"]).all()
    assert wrong["model/confidence"].is_monotonic_decreasing
    every = df[df["model/target"] != df["model/prediction"]]["model/confidence"]
    assert wrong["model/confidence"].iloc[0] == every.max()
    df.loc[7, "weight/prediction"] = df.loc[7, "weight/target"] - 9999
    df.loc[8, "weight/target"] = np.nan
    rows = worst_errors(CARS["weight"], df, 40)
    assert rows.index[0] == 7
    assert 8 not in rows.index


def test_figures_ask_for_the_pictures_of_the_rows_they_show(tmp_path: Path) -> None:
    df, asked = predictions(0.5, 50), []

    def gather(rows: list[int]) -> torch.Tensor:
        asked.extend(rows)
        return torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)

    files = finish_figures(tmp_path, CARS, df, gather)
    assert [f.name for f in files] == ["confusion_make.png", "confusion_model.png", "worst_errors.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    assert len(asked) == 24
    assert set(asked) <= set(df["index"])


def test_errors_without_confidences_are_still_shown(tmp_path: Path) -> None:
    df = predictions(0.5, 30).drop(columns=["model/confidence", "model/scores"])
    files = finish_figures(tmp_path, CARS.subset(["model"]), df, lambda rows: np.zeros((len(rows), 3, 8, 8), np.uint8))
    assert [f.stem for f in files] == ["confusion_model", "worst_errors"]


def test_a_perfect_network_has_no_worst_errors(tmp_path: Path) -> None:
    df = predictions(0.9, 20)
    for task in CARS:
        df[f"{task.name}/prediction"] = df[f"{task.name}/target"]
    assert [f.stem for f in finish_figures(tmp_path, CARS, df, lambda rows: 1 / 0)] == [
        "confusion_make",
        "confusion_model",
    ]
