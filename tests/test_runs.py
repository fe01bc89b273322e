"""A run and a sweep from the command line, on the embedded cars: files, numbers, exit status, reproducibility."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from mtlcar.runs.files import read_json, replacing, write_json
from mtlcar.runs.predictions import read_predictions
from tests.cli import mtlcar

SMALL = (
    "data.image_size=32",
    "data.images=160",
    "data.size=48",
    "data.makes=2",
    "data.models_per_make=2",
    "data.batch_size=16",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "threads=1",
    "logger=none",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def paths(folder: Path) -> tuple[str, str]:
    return f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"


@pytest.fixture(scope="module")
def sweep(folder: Path, paths: tuple[str, str]) -> Path:
    """Two architectures on a few embedded cars."""
    mtlcar("train", "-m", *SMALL, *paths, "architecture=single,cascade", "sweep=first")
    return folder / "runs" / "first"


def runs(sweep: Path) -> dict[str, Path]:
    found = {}
    for config in sorted(sweep.glob("*/config.yaml")):
        name = "single" if "architecture=single" in (config.parent / "overrides.txt").read_text() else "cascade"
        found[name] = config.parent
    return found


def test_each_cell_leaves_all_its_files(sweep: Path) -> None:
    assert sorted(runs(sweep)) == ["cascade", "single"]
    for run in runs(sweep).values():
        expected = {"config.yaml", "overrides.txt", "tasks.json", "train.log", "history.csv", "metrics.json",
                    "predictions.parquet", "DONE", "checkpoints"}  # fmt: skip
        assert expected <= {p.name for p in run.iterdir()}
        assert {"best.ckpt", "last.ckpt", "previous.ckpt"} == {p.name for p in (run / "checkpoints").iterdir()}
        assert not list(run.rglob("*.tmp"))


def test_metrics_json_keeps_the_contract(sweep: Path) -> None:
    found = read_json(runs(sweep)["cascade"] / "metrics.json")
    assert found["schema"] == 1
    assert found["status"] == "finished"
    assert found["fingerprint"] == runs(sweep)["cascade"].name
    assert found["best"]["monitor"] == "val/model/accuracy"
    assert found["best"]["value"] == found["val"]["model/accuracy"]
    for key in ("make/accuracy", "model/accuracy", "make/implied_accuracy", "hierarchy/consistency",
                "hierarchy/full_path_accuracy", "make/loss", "model/loss", "loss"):  # fmt: skip
        assert key in found["test"], key
    assert {"fit_seconds", "epochs", "train_images_per_second", "step_ms_median"} <= set(found["timing"])
    assert found["timing"]["epochs"] == 2
    assert found["timing"]["train_images_per_second"] > 0
    assert {"parameters", "shared_parameters", "forward_gmacs", "latency_device"} <= set(found["cost"])
    assert set(found["cost"]["task_gmacs"]) == set(found["cost"]["latency_ms"]) - {"all"} == {"make", "model"}
    assert all(0 < ms < 1e4 for ms in found["cost"]["latency_ms"].values())
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert found["wandb"] is None


def test_a_single_networks_make_is_that_of_its_model(sweep: Path) -> None:
    found = read_json(runs(sweep)["single"] / "metrics.json")["test"]
    assert found["make/accuracy"] == found["make/implied_accuracy"] >= found["model/accuracy"]
    assert found["hierarchy/consistency"] == 1.0
    assert "make/loss" not in found


def test_predictions_give_the_metrics_again(sweep: Path) -> None:
    for run in runs(sweep).values():
        df, tasks = read_predictions(run / "predictions.parquet")
        assert isinstance(df, pd.DataFrame)
        metrics = read_json(run / "metrics.json")["test"]
        for task in tasks.classification:
            accuracy = (df[f"{task.name}/target"] == df[f"{task.name}/prediction"]).mean()
            assert accuracy == pytest.approx(metrics[f"{task.name}/accuracy"], abs=1e-12)


def test_evaluate_finds_the_same_numbers_and_touches_nothing(sweep: Path) -> None:
    run = runs(sweep)["cascade"]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = json.loads(mtlcar("evaluate", str(run), "--json").stdout)
    stored = read_json(run / "metrics.json")
    assert again.pop("decodings") == stored["decodings"]
    assert again == stored["test"]
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_the_same_command_again_trains_nothing(sweep: Path, paths: tuple[str, str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in sweep.rglob("*.ckpt")}
    done = mtlcar("train", "-m", *SMALL, *paths, "architecture=cascade,single", "sweep=first")
    assert "All 2 cells were finished before." in done.stdout
    assert {p: p.stat().st_mtime_ns for p in sweep.rglob("*.ckpt")} == before


def test_the_same_seed_gives_the_same_bits(sweep: Path, folder: Path, paths: tuple[str, str]) -> None:
    again = (f"paths.runs={folder / 'again'}", paths[1], "architecture=cascade", "sweep=second")
    mtlcar("train", *SMALL, *again, fresh_jobs=True)  # and whoever starts the job
    (other,) = (folder / "again" / "second").glob("*/DONE")
    run = runs(sweep)["cascade"]
    assert other.parent.name == run.name
    for part in ("val", "test", "best"):
        assert read_json(run / "metrics.json")[part] == read_json(other.parent / "metrics.json")[part]
    mine, theirs = (
        torch.load(r / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for r in (run, other.parent)
    )
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert mine.keys() == theirs.keys()


def test_checkpoints_hold_each_part_once(sweep: Path) -> None:
    checkpoint = torch.load(runs(sweep)["cascade"] / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [k for k in checkpoint["callbacks"] if k.startswith(("weighting.", "label_transform."))]


def test_a_failing_cell_does_not_stop_the_sweep(folder: Path, paths: tuple[str, str]) -> None:
    done = mtlcar(
        "train", "-m", *SMALL, *paths, "optimizer.lr=1e30,1e-3", "scheduler=constant", "sweep=failing", expect=1
    )
    dirs = list((folder / "runs" / "failing").glob("*/config.yaml"))
    assert sorted((d.parent / "DONE").exists() for d in dirs) == [False, True]
    assert "1 of 2 cells did not finish" in done.stdout
    assert "mtlcar train data.image_size=32" in done.stdout
    (failed,) = (d.parent for d in dirs if not (d.parent / "DONE").exists())
    assert "not finite" in (failed / "train.log").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("weighting=equel",), "Did you mean 'equal'"),
        (("data=stanford_cars", "data.root=/nowhere"), "nowhere"),
        (("architecture=single,cascade",), "train -m"),
        (("weighting=fixed", "weighting.weights={make:1,modle:2}"), "Did you mean 'model'"),  # found by the job
        (("monitor=val/model/acuracy",), "Did you mean 'val/model/accuracy'"),
    ],
)
def test_mistakes_end_with_status_2_and_leave_nothing(
    words: tuple[str, ...], says: str, folder: Path, paths: tuple[str, str]
) -> None:
    """With a real job; tests/test_mistakes.py has the others."""
    place = folder / "mistakes"
    own = () if words[0].startswith("data=") else SMALL  # the embedded cars' keys are not those of other datasets
    done = mtlcar("train", *own, f"paths.runs={place}", paths[1], *words, expect=2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 25
    assert not list(place.rglob("*.yaml"))


def test_one_wrong_cell_stops_a_sweep_before_it_starts(folder: Path, paths: tuple[str, str]) -> None:
    place = folder / "wrong"
    mtlcar("train", "-m", *SMALL, f"paths.runs={place}", paths[1], "head.dropout=0,2", expect=2)
    weights = "weighting.weights={make:1,modle:2},{make:1,model:2}"
    done = mtlcar("train", "-m", *SMALL, f"paths.runs={place}", paths[1], "weighting=fixed", weights, expect=2)
    assert "Did you mean 'model'" in done.stderr
    assert not place.exists()


@pytest.mark.parametrize(
    "words", [("evaluate", "nowhere"), ("report", "nowhere"), ("data", "show"), ("train", "--bad")]
)
def test_every_command_refuses_with_status_2(words: tuple[str, ...], tmp_path: Path) -> None:
    mtlcar(*words, expect=2, cwd=tmp_path)


def test_half_a_file_never_has_the_name_of_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})

    def crash_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("{")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash_half_way()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("weighting", ["pcgrad", "moco"])
def test_a_run_with_a_state_of_the_weighting_is_tested_and_evaluated_again(
    weighting: str, folder: Path, paths: tuple[str, str]
) -> None:
    """pcgrad's draws are an extra state, moco's averages a buffer that a fresh module lacks: the best checkpoint is
    loaded into the module that was trained, then into a new one."""
    small = (*SMALL[:-3], "trainer.max_epochs=1", "backbone=tiny", *SMALL[-2:])
    mtlcar("train", *small, *paths, f"weighting={weighting}", f"sweep={weighting}")
    (done,) = (folder / "runs" / weighting).glob("*/DONE")
    run = done.parent
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    own = "weighting._extra_state" if weighting == "pcgrad" else "weighting.tracked"
    assert own in kept, "the state is in the checkpoint"
    again = json.loads(mtlcar("evaluate", str(run), "--json").stdout)
    again.pop("decodings", None)
    assert again == read_json(run / "metrics.json")["test"]
