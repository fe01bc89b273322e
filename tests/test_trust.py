"""A run or sweep directory that somebody passed on cannot run its maker's code; what a user types still can."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.job import prepared
from mtlcar.runs.trust import TRUST, load_config, own_targets, refuse_code, refuse_foreign
from mtlcar.sweeps.record import read_record
from mtlcar.sweeps.recorded_words import refuse_foreign_words, with_storage
from mtlcar.sweeps.worker import job_environment, others_folder
from tests.jobs import write_run
from tests.run_dirs import config


@pytest.fixture(autouse=True)
def untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST, raising=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("trust"), "callbacks=early_stopping", "trainer.max_epochs=1")


def with_node(written: Path, to: Path, key: str, value: Any) -> tuple[Path, Path]:
    """A run directory whose configuration has this node, and the file that its code would make."""
    to.mkdir()
    mark = to / "touched"
    cfg = OmegaConf.load(written / "config.yaml")
    OmegaConf.update(cfg, key, json.loads(json.dumps(value).replace("MARK", str(mark))), force_add=True)
    (to / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    for name in ("tasks.json", "digests.json"):
        (to / name).write_bytes((written / name).read_bytes())
    return to, mark


TOUCH = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["MARK"]}]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks.mine", TOUCH),
        ("logger._target_", "os.system"),
        ("data.read", TOUCH),
        ("optimizer.optimizer", {**TOUCH, "_partial_": True}),
        ("scheduler.x", [[{"deep": TOUCH}]]),
        ("weighting", {"_target_": "mtlcar.weightings.from_callable.FromCallable", "function": "os.remove"}),
        ("label_transform", {"_target_": "mtlcar.weightings.from_callable.FromCallable", "function": "os.remove"}),
        ("label_transform.constants", {"found": True, "scale": TOUCH}),
        ("architecture._target_", "mtlcar.runs.files.os.remove"),
        ("head._target_", "mtlcar.cli.main"),
        ("callbacks.mine._target_", "lightning.pytorch.callbacks.os.remove"),
        ("callbacks.mine._target_", {"_target_": "os.getcwd"}),
        ("optimizer.optimizer._target_", "torch.optim.adam.torch.hub.load"),
        ("callbacks._target_", "os.getcwd"),
    ],
)
def test_a_job_calls_nothing_that_a_stored_configuration_names_from_outside(
    written: Path, tmp_path: Path, key: str, value: Any
) -> None:
    run, mark = with_node(written, tmp_path / "run", key, value)
    with pytest.raises(UserError) as refused, prepared(run):
        pytest.fail("it was opened")
    said = str(refused.value)
    assert f"{key.split('.')[0]}." in said
    assert TRUST in said
    assert len(said.splitlines()) < 25
    assert not mark.exists()


def test_the_switch_and_the_word_of_the_command_line_call_it(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = OmegaConf.load(with_node(written, tmp_path / "run", "callbacks.mine", TOUCH)[0] / "config.yaml")
    assert isinstance(cfg, DictConfig)
    with pytest.raises(UserError, match=r"callbacks\.mine\._target_: pathlib\.Path\.touch"):
        refuse_foreign(cfg, tmp_path)
    refuse_foreign(cfg, tmp_path, ("data", "architecture"))
    monkeypatch.setenv(TRUST, "1")
    refuse_foreign(cfg, tmp_path)


def test_what_a_run_finds_itself_is_no_code_even_where_the_rest_was_typed(written: Path, tmp_path: Path) -> None:
    run, _ = with_node(written, tmp_path / "run", "label_transform.constants", {"found": True, "scale": TOUCH})
    with pytest.raises(UserError, match="constants are numbers"):
        refuse_code(load_config(run), run)


def test_every_part_of_mtlcar_may_be_named(written: Path) -> None:
    assert {"mtlcar.architectures.cascade.Cascade", "mtlcar.data.compcars.read"} <= own_targets()
    assert not any(target.startswith("hydra") for target in own_targets())
    refuse_foreign(load_config(written), written)


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.decode:'1'}", "a ${paths.runs}", "${x:1}"])
def test_an_interpolation_in_a_stored_configuration_is_refused(
    written: Path, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = with_node(written, tmp_path / "run", "logger.notes", ["x"])
    plain = yaml.safe_load((run / "config.yaml").read_text())
    plain["logger"]["notes"] = [{"x": text}]
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(UserError, match=r"logger\.notes\.0\.x"):
        load_config(run)
    monkeypatch.setenv(TRUST, "1")
    load_config(run)


@pytest.mark.parametrize(
    "content",
    [
        b"a: &a [1]\nb: [*a, *a]\n",
        b"",
        b"[1, 2]",
        b"a: [",
        b"\xff\xfe\x00",
        b"[" * 3000,
        b"a: !!python/object/apply:os.getcwd []",
        b"x" * (5 << 20),
        b"a: ${",
    ],
    ids=["alias", "empty", "list", "torn", "bytes", "deep", "python", "large", "interpolation"],
)
def test_a_config_file_that_is_none_is_a_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=os.system",
        "callbacks.x={_target_:os.system}",
        "weighting.function=a.b",
        "weighting={function:a.b}",
        "hydra.sweeper.params={weighting.function:a.b}",
        "+hydra.sweeper.params.data='../../evil'",
        "+callbacks.x={_target_:lightning.pytorch.callbacks.Timer,y:{_target_:os.system}}",
        '+callbacks.x={_target_: "os.system"}',
        "logger.notes='${oc.env:HOME}'",
        "hydra.launcher.setup=['touch x']",
        "hydra.launcher.partition='a\nb'",
        "hydra.launcher.ray.init.runtime_env={a:b}",
        "hydra.launcher.ray.init.address=elsewhere",
        "hydra.sweeper.custom_search_space=a.b",
        "hydra.searchpath=[file:///tmp]",
        "hydra.job.env_set={A:b}",
        "hydra/callbacks=a",
        "callbacks=../../tmp/x",
        "hydra={}",
    ],
)
def test_a_recorded_command_with_foreign_words_is_not_given_again(override: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{TRUST}=1 mtlcar resume"):
        refuse_foreign_words(["seed=0,1", override], tmp_path / "sweep.json")


def test_a_usual_recorded_command_is_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ["data=stanford_cars", "data.root=../cars", "architecture=parallel,cascade", "hydra/launcher=joblib",
             "hydra.launcher.n_jobs=4", "hydra.sweeper.n_trials=9", "hydra.sweeper.params.optimizer.lr='interval(1,2)'",
             "hydra.launcher.partition=gpu-a100", "callbacks=early_stopping", "hydra.sweeper.sampler.seed=3",
             "hydra.sweeper.storage=${oc.env:DB}", "weighting=fixed",
             "weighting.weights={make:0.1,model:0.9}", "logger.notes='function: of x'", "hydra.launcher.mem_per_cpu=4G",
             "+callbacks.t={_target_:lightning.pytorch.callbacks.Timer,duration:null}"]  # fmt: skip
    refuse_foreign_words(usual, tmp_path)
    monkeypatch.setenv(TRUST, "1")
    refuse_foreign_words(["+callbacks.x._target_=os.system"], tmp_path)


def test_the_storage_comes_from_the_command_or_the_environment() -> None:
    recorded = ["seed=0", "hydra.sweeper.storage='postgresql://me:***@host/db'"]
    with pytest.raises(UserError, match="MTLCAR_STORAGE"):
        with_storage(recorded, [], None)
    assert with_storage(recorded, ["hydra.sweeper.storage=sqlite:///x"], None) == ["seed=0"]
    url = "postgresql://me:pa'ss@host/db"
    (_, found) = with_storage(recorded, [], url)
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(found).value() == url


@pytest.mark.parametrize("fingerprint", ["../x", "/etc", "a/b"])
def test_a_cell_is_no_path_out_of_the_sweep(tmp_path: Path, fingerprint: str) -> None:
    cell = {"fingerprint": fingerprint, "overrides": [], "name": "x"}
    record = {"folder": "x", "overrides": [], "cwd": ".", "threads": 1, "cells": [cell], "first_started": "x",
              "last_started": "x"}  # fmt: skip
    (tmp_path / "sweep-00000000.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is a path"):
        read_record(tmp_path / "sweep-00000000.json")


def test_a_resumed_job_imports_nothing_from_the_folder_that_its_command_was_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('read')")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "mtlcar", "--version"]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with others_folder():
        env = {**job_environment(), "PYTHONPATH": str(Path(__file__).parents[1])}
    assert env["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in job_environment(), "what a user types may be of code beside it"
    assert subprocess.run([*command[:2], "yaml"], check=False, env=env, capture_output=True).stderr != b"read\n"
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with others_folder():
        assert "PYTHONSAFEPATH" not in job_environment()


def test_a_report_config_is_read_as_data(tmp_path: Path) -> None:
    """`runs` and `report` never build what a configuration names, so they need no such check."""
    from mtlcar.listing.stored import StoredRun, read

    made = config(architecture___target_="os.system")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made))
    assert isinstance(read(tmp_path), StoredRun)
