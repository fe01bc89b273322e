"""Settings of the whole suite."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# examples that read files or build networks take longer than Hypothesis' 200 ms on a busy machine
settings.register_profile("mtlcar", deadline=None)
settings.load_profile("mtlcar")

os.environ["MTLCAR_STRICT_REPORT"] = "1"  # a section that cannot be made is a fault, not a sentence

LONG = (
    "architectures", "faults", "sweeps", "runs", "compile", "architecture_matrix", "export",
    "weighting_training", "report", "summary_run", "resume", "weighting_rows", "paper_b", "launchers", "config",
    "mistakes", "fuzz", "wandb_resume", "axis_search", "paper_b_methods", "explain", "weighting_active_sets",
    "report_odd_runs", "bench_step", "weighting_bargaining", "build", "spare", "backbones", "distributed",
    "predict", "synthetic_cars", "ema", "loggers", "composing", "dashboard",
)  # fmt: skip
"""Files of more than 15 seconds, longest first."""


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Reports with empty pictures in place of their figures, which are made all the same: drawing each twice takes most
    of a report's time. For modules that look at the rest; `report` of test_report_files.py is drawn."""
    empty = {"png": b"\x89PNG", "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>'}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlcar.report.build._image", lambda figure, ending: empty[ending])
        yield


@pytest.fixture(scope="module")
def laid_out() -> Iterator[None]:
    """The same, of figures that have been laid out once, with all their texts measured."""

    def image(figure: Any, ending: str) -> bytes:
        if ending == "png":
            figure.draw_without_rendering()
        return ending.encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlcar.report.build._image", image)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take whole files in this order: a long one must not be the last, with one worker left to do it."""
    place = {f"test_{name}": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported and collected by now stays: without this each full collection looks through a million objects,
    and torch.compile, matplotlib and benches ask for many."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else some libraries' types take their leave with a page of leaks
