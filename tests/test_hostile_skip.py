"""`data.on_bad_image=skip` from end to end: what remains, what is refused, and what a run says was left out."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mtlcar.data.annotations import Annotations
from mtlcar.data.left_out import FILE, without, write_left_out
from mtlcar.errors import UserError
from mtlcar.runs.files import read_json
from mtlcar.tasks import Task, TaskSet
from tests.jobs import start, write_run

TASKS = TaskSet([Task("make", "classification", ("a", "b"))])


def table(n: int = 12) -> tuple[Annotations, dict[str, np.ndarray]]:
    """Twelve images of two makes in turn: eight to train, two each to validate and test."""
    annotations = Annotations(
        Path("/data"), tuple(f"{i}.png" for i in range(n)), {"make": np.arange(n) % 2}, np.array([""] * n)
    )
    return annotations, {"train": np.arange(8), "val": np.array([8, 9]), "test": np.array([10, 11])}


def test_what_is_left_out_is_in_no_split() -> None:
    annotations, indices = table()
    left = without({0: "empty", 8: "cut"}, indices, annotations, TASKS, "stratified")
    assert {name: rows.tolist() for name, rows in left.items()} == {
        "train": [1, 2, 3, 4, 5, 6, 7],
        "val": [9],
        "test": [10, 11],
    }


@pytest.mark.parametrize(("name", "rows"), [("val", (8, 9)), ("test", (10, 11)), ("train", range(8))])
def test_a_split_without_an_image_left_is_refused(name: str, rows: tuple[int, ...]) -> None:
    annotations, indices = table()
    message = (
        rf"skip left out {len(rows)} of 12 images .the first: /data/{rows[0]}\.png: cut.*all {len(rows)} of the {name}"
    )
    with pytest.raises(UserError, match=message):
        without(dict.fromkeys(rows, "cut"), indices, annotations, TASKS, "stratified")


def test_a_split_that_was_empty_before_is_no_matter() -> None:
    annotations, indices = table()
    indices["test"] = np.zeros(0, dtype=np.int64)
    assert len(without({0: "cut"}, indices, annotations, TASKS, "stratified")["test"]) == 0


def test_a_class_without_a_training_image_left_is_refused_and_skip_is_spoken_of() -> None:
    annotations, indices = table()
    with pytest.raises(UserError, match=r"skip left out 4 of 12 images[^§]*'b'.* never seen in\s+training"):
        without(dict.fromkeys((1, 3, 5, 7), "cut"), indices, annotations, TASKS, "stratified")


def test_the_list_names_file_split_and_reason_and_goes_when_nothing_is_left_out(tmp_path: Path) -> None:
    annotations, indices = table()
    write_left_out(tmp_path, {8: "the file is empty", 0: 'odd, "quoted"'}, indices, annotations)
    with (tmp_path / FILE).open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["file", "split", "reason"],
            ["0.png", "train", 'odd, "quoted"'],
            ["8.png", "val", "the file is empty"],
        ]
    write_left_out(tmp_path, {}, indices, annotations)
    assert not (tmp_path / FILE).exists()


def test_a_run_trains_without_damaged_images_and_lists_them(tmp_path: Path) -> None:
    run = write_run(tmp_path, "data.on_bad_image=skip", "trainer.max_epochs=1", "weighting=equal")
    pictures = sorted(p for p in (tmp_path / "cache" / "synthetic_cars").rglob("*") if p.suffix in (".png", ".jpg"))
    assert len(pictures) == 72
    pictures[3].write_bytes(b"")
    pictures[5].write_bytes(pictures[5].read_bytes()[: pictures[5].stat().st_size // 2])
    job = start(run)
    job.join(120)
    assert job.exitcode == 0, (run.parent / f"{run.name}.out").read_text()
    with (run / FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == [pictures[3].name, pictures[5].name]
    assert rows[0]["reason"] == "the file is empty (0 bytes)"
    assert {row["split"] for row in rows} <= {"train", "val", "test"}
    assert read_json(run / "metrics.json")["status"] == "finished"
