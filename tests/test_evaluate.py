"""`mtlcar evaluate`: what it prints, what it refuses, and how levels are decoded."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mtlcar.config import compose_config
from mtlcar.errors import UserError
from mtlcar.metrics.decoding import DECODINGS
from mtlcar.runs.evaluate import TESTED, print_tables, stored_config
from mtlcar.runs.files import read_json
from tests.cli import mtlcar

SMALL = ("data.makes=2", "data.models_per_make=2", "data.images=96", "data.size=40", "data.image_size=32",
         "data.batch_size=8", "trainer=cpu", "threads=1", "logger=none", "trainer.max_epochs=1")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two heads."""
    folder = tmp_path_factory.mktemp("evaluate")
    mtlcar("train", *SMALL, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}")
    (done,) = (folder / "runs").glob("*/*/DONE")
    return done.parent


def test_json_has_the_metrics_and_each_decoding(run: Path) -> None:
    found = json.loads(mtlcar("evaluate", str(run), "--json").stdout)
    kept = read_json(run / "metrics.json")
    decodings = found.pop("decodings")
    assert found == kept["test"]
    assert decodings == kept["decodings"]
    assert tuple(decodings) == DECODINGS
    for name, value in decodings["independent"].items():  # numpy's, against the sums on the device
        assert value == pytest.approx(kept["test"][name], abs=1e-12), name
    assert decodings["joint"]["hierarchy/consistency"] == 1.0
    assert {"make/accuracy", "model/accuracy", "hierarchy/distance"} <= set(decodings["joint"])


def test_an_unfinished_run_says_so_and_the_path_is_whole(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / ("a_rather_long_name_" * 5) / run.name
    shutil.copytree(run, copy)
    (copy / "DONE").unlink()
    done = mtlcar("evaluate", str(copy))
    assert len([line for line in done.stderr.splitlines() if "is not finished" in line]) == 1
    assert "1 of 1 epochs are trained" in done.stderr
    assert done.stdout.splitlines()[0] == f"Test metrics of {copy}"
    for word in ("top_down", "hierarchy/full_path_accuracy", "hierarchy/mistake_severity"):
        assert word in done.stdout
    assert "not finished" not in mtlcar("evaluate", str(run), "data.eval_batch_size=5").stderr


def test_tables_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    values = {f"hierarchy/{kind}": 0.123456789 for kind in ("consistency", "full_path_accuracy", "mistake_severity")}
    print_tables(Path("/x" * 60), values, dict.fromkeys(DECODINGS, values))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Test metrics of {Path('/x' * 60)}"
    assert max(map(len, lines[1:])) <= 80
    assert sum("hierarchy/full_path_accuracy" in line for line in lines) == 2, "cut nowhere"
    print_tables(Path("x"), {"hierarchy/consistency": None}, {})
    assert "decoded" not in capsys.readouterr().out


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run directory's configuration."""
    cfg = compose_config([*SMALL, f"paths.cache={tmp_path}"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return tmp_path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.ema=0.9", "would change nothing"),
        ("trainer.max_epochs=3", "would change nothing"),
        ("trainer.compile=true", "would change nothing"),
        ("optimizer.lr=1", "would change nothing"),
        ("scheduler.warmup=1", "no key"),
        ("weighting.level=parameters", "would change nothing"),
        ("seed=3", "would change nothing"),
        ("monitor=val/loss", "would change nothing"),
        ("data.augment.flip=0", "would change nothing"),
        ("data.placement=device", "would change nothing"),
        ("head.dropout=0.5", "would change nothing"),
        ("paths.runs=x", "would change nothing"),
        ("data.split=official", "some of them would be tested"),
        ("data.split_seed=1", "some of them would be tested"),
        ("trainer.devices=2", "one device"),
        ("trainer=cpu", "trainer.accelerator=cpu"),
        ("label_transform.scale=3", "fixed by the checkpoint"),
        ("data.eval_batchsize=3", "Did you mean 'data.eval_batch_size'"),
        ("data.root", "key=value"),
    ],
)
def test_what_no_test_reads_is_refused_with_what_it_reads(stored: Path, override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        stored_config(stored, [override])
    assert words in str(error.value)
    assert override in str(error.value)
    if not override.startswith("label_transform"):
        assert "test_time_augmentation" in str(error.value)


VALUES = {
    "data.root": "/tmp",
    "data.image_size": 48,
    "data.resize": "pad",
    "data.box_margin": 0.5,
    "data.on_bad_image": "skip",
    "data.batch_size": 3,
    "data.eval_batch_size": 3,
    "data.cache": False,
    "data.max_missing": 0.5,
    "paths.cache": "/tmp",
    "test_time_augmentation": "flips",
    "threads": 2,
    "trainer.accelerator": "auto",
    "trainer.precision": "bf16-mixed",
    "trainer.deterministic": False,
    "trainer.channels_last": False,
    "trainer.limit_test_batches": 2,
}


@pytest.mark.parametrize("key", TESTED)
def test_what_a_test_reads_can_be_given(stored: Path, key: str) -> None:
    if key == "data.max_missing":  # a reader's own
        with pytest.raises(UserError, match="no key"):
            stored_config(stored, [f"{key}=0.5"])
        return
    value = VALUES[key]
    assert OmegaConf.select(stored_config(stored, [f"{key}={value}"]), key) == value
