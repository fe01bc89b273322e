"""predictions.parquet: what is written comes back, and gives the metrics again."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.runs.predictions import PredictionCollector, read_predictions, write_predictions
from mtlcar.tasks import Task, TaskSet

TASKS = TaskSet(
    [
        Task("make", "classification", classes=("BMW", "Škoda")),
        Task("model", "classification", classes=tuple("pqrstuv"), parent="make"),
        Task("hardness", "regression", unit="HV"),
    ],
    {"model": (0, 0, 0, 1, 1, 1, 1)},
)
PATHS = [f"test/{i:03d}.jpg" for i in range(60)]
Batch = tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def example(index: list[int]) -> Batch:
    """One image's rows depend on its index alone."""
    out: list[tuple[Tensor, ...]] = []
    for i in index:
        g = torch.Generator().manual_seed(i)
        scores = torch.randn(7, generator=g).softmax(0)
        y = 700 + 200 * torch.randn((), generator=g)
        label = torch.randint(-1, 7, (), generator=g)
        value = torch.tensor(float("nan")) if i % 5 == 0 else y
        out.append((scores, label, value, y + torch.randn((), generator=g)))
    scores, label, value, predicted = (torch.stack(c) for c in zip(*out, strict=True))
    parent = torch.tensor(TASKS.parent_of["model"])
    prediction = scores.argmax(1)
    return (
        torch.tensor(index),
        {"make": parent[prediction], "model": prediction, "hardness": predicted},
        {"make": torch.where(label >= 0, parent[label.clamp(min=0)], -1), "model": label, "hardness": value},
        {"model": scores},
    )


def collect(*batches: list[int]) -> PredictionCollector:
    collector = PredictionCollector(TASKS)
    for index in batches:
        collector.update(*example(index))
    return collector


def written(tmp_path: Path, *batches: list[int]) -> Path:
    file = tmp_path / "predictions.parquet"
    write_predictions(file, TASKS, collect(*batches).rows(), PATHS)
    return file


def test_what_is_written_comes_back_sorted_by_row(tmp_path: Path) -> None:
    index = [7, 3, 41, 5, 20]
    file = written(tmp_path, index[:2], index[2:])
    frame, tasks = read_predictions(file)
    assert tasks == TASKS
    assert tasks["make"].classes[1] == "Škoda"
    order = sorted(index)
    _, prediction, target, scores = example(order)
    assert frame["index"].tolist() == order
    assert frame["path"].tolist() == [PATHS[i] for i in order]
    for name in TASKS.names:
        np.testing.assert_array_equal(frame[f"{name}/prediction"], prediction[name].numpy())
        np.testing.assert_array_equal(frame[f"{name}/target"], target[name].numpy())
    np.testing.assert_array_equal(np.stack(frame["model/scores"]), scores["model"].numpy())
    np.testing.assert_array_equal(frame["model/confidence"], scores["model"].amax(1).numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]  # no temporary file is left


def test_columns_and_types_are_the_documented_ones(tmp_path: Path) -> None:
    schema = pq.read_schema(written(tmp_path, [0, 1]))
    assert {f.name: f.type for f in schema} == {
        "index": pa.int64(),
        "path": pa.string(),
        "make/target": pa.int64(),
        "make/prediction": pa.int64(),
        "model/target": pa.int64(),
        "model/prediction": pa.int64(),
        "model/confidence": pa.float32(),
        "model/scores": pa.list_(pa.float32()),
        "hardness/target": pa.float32(),
        "hardness/prediction": pa.float32(),
    }
    assert TaskSet.from_dict(json.loads(schema.metadata[b"mtlcar.tasks"])) == TASKS


def test_groups_of_the_rows_are_a_column(tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    write_predictions(file, TASKS, collect([7, 3, 41]).rows(), PATHS, np.array([f"g{i // 5}" for i in range(60)]))
    assert pq.read_schema(file).field("group").type == pa.string()
    assert read_predictions(file)[0]["group"].tolist() == ["g0", "g1", "g8"]


def test_metrics_from_the_file_equal_those_of_the_test_epoch(tmp_path: Path) -> None:
    batches = [list(range(25)), list(range(25, 60))]
    metrics = TaskMetrics(TASKS, "")
    for index in batches:
        metrics.update(*example(index)[1:])
    expected = metrics.compute()
    frame, tasks = read_predictions(written(tmp_path, *batches))
    known = frame[frame["model/target"] >= 0]
    assert (known["model/prediction"] == known["model/target"]).mean() == pytest.approx(expected["model/accuracy"])
    best = np.argsort(-np.stack(known["model/scores"]), axis=1, kind="stable")[:, :5]
    top5 = np.mean([t in b for t, b in zip(known["model/target"], best, strict=True)])
    assert top5 == pytest.approx(expected["model/top5"])
    error = (frame["hardness/prediction"].astype(float) - frame["hardness/target"].astype(float)).abs()
    assert error.mean() == pytest.approx(expected["hardness/mae"])
    again = TaskMetrics(tasks, "")
    columns = [
        {n: torch.from_numpy(frame[f"{n}/{kind}"].to_numpy(copy=True)) for n in tasks.names}
        for kind in ("prediction", "target")
    ]
    again.update(*columns, {"model": torch.from_numpy(np.stack(frame["model/scores"]))})
    assert again.compute() == pytest.approx(expected, rel=1e-12)


def test_an_image_seen_twice_is_written_once(tmp_path: Path) -> None:
    frame, _ = read_predictions(written(tmp_path, [4, 2], [2, 9]))
    assert frame["index"].tolist() == [2, 4, 9]


def test_tasks_that_are_not_predicted_have_no_columns(tmp_path: Path) -> None:
    collector = PredictionCollector(TASKS)
    index, prediction, target, scores = example([1, 2])
    collector.update(index, {"model": prediction["model"]}, target, scores)
    write_predictions(tmp_path / "p.parquet", TASKS, collector.rows(), PATHS)
    frame, tasks = read_predictions(tmp_path / "p.parquet")
    assert {c.split("/")[0] for c in frame.columns} == {"index", "path", "model"}
    assert tasks == TASKS


def test_no_class_has_no_confidence(tmp_path: Path) -> None:
    collector = PredictionCollector(TASKS)
    index, prediction, target, scores = example([1, 2])
    collector.update(index, {**prediction, "model": torch.tensor([-1, 3])}, target, scores)
    write_predictions(tmp_path / "p.parquet", TASKS, collector.rows(), PATHS)
    frame, _ = read_predictions(tmp_path / "p.parquet")
    assert frame["model/confidence"].isna().tolist() == [True, False]


def test_an_empty_test_set_gives_an_empty_table(tmp_path: Path) -> None:
    frame, tasks = read_predictions(written(tmp_path))
    assert len(frame) == 0
    assert tasks == TASKS


def test_bf16_scores_and_a_reset_collector(tmp_path: Path) -> None:
    collector = collect([1])
    collector.reset()
    index, prediction, target, scores = example([6])
    collector.update(index, prediction, target, {"model": scores["model"].bfloat16()})
    rows = collector.rows()
    assert rows["index"].tolist() == [6]
    assert rows["model/scores"].dtype == np.float32


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = written(tmp_path, [1, 2])
    before = file.read_bytes()
    with pytest.raises(IndexError):
        write_predictions(file, TASKS, collect([3]).rows(), PATHS[:2])
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.parquet"]


def test_a_missing_damaged_or_foreign_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not been tested"):
        read_predictions(tmp_path / "none.parquet")
    file = written(tmp_path, list(range(40)))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"):
        read_predictions(file)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="no predictions file"):
        read_predictions(tmp_path / "foreign.parquet")


def test_two_ranks_give_one_table_with_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [collect([0, 2], [4]), collect([1, 3, 0])]  # a sampler pads the second share with image 0

    def all_gather_object(into: list[object], _: object) -> None:
        into[:] = [share._batches for share in shares]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    tables = [share.rows() for share in shares]
    monkeypatch.undo()
    alone = collect([0, 1, 2, 3, 4]).rows()
    for table in tables:
        assert table.keys() == alone.keys()
        for name, column in alone.items():
            np.testing.assert_array_equal(table[name], column)
