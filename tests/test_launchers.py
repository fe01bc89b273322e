"""Hydra's launchers over mtlcar's cells: our presets, sweeps through them, and what is said when one is missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mtlcar.config import compose_config, conf_dir
from mtlcar.errors import UserError
from mtlcar.runs.files import read_json
from tests.cli import mtlcar
from tests.test_runs import SMALL

PLUGIN = {
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "ray_cluster": "hydra_ray_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
}
NAMES = sorted(PLUGIN)
HIDING = """
import pkgutil, sys
hidden, *sys.argv = sys.argv[1:]
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "hydra_plugins." + hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
walk = pkgutil.walk_packages
pkgutil.walk_packages = lambda *a, **k: (m for m in walk(*a, **k) if hidden not in m.name)
from mtlcar.cli import main
sys.exit(main(sys.argv))
"""

# Hydra says that ours and the plugin's have one name; `mtlcar.config` silences it, and pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:\\s*'hydra/:UserWarning")


def launcher(name: str, *overrides: str) -> Any:
    """The launcher's part of the composed configuration."""
    pytest.importorskip(f"hydra_plugins.{PLUGIN[name]}")
    return compose_config([f"hydra/launcher={name}", *overrides], with_hydra=True).hydra.launcher


def test_every_preset_is_known_here() -> None:
    assert sorted(p.stem for p in (conf_dir() / "hydra" / "launcher").glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_it_is_and_wins_over_the_plugins_own(name: str) -> None:
    file = conf_dir() / "hydra" / "launcher" / f"{name}.yaml"
    assert file.read_text(encoding="utf-8").startswith("# ")
    ours = OmegaConf.to_container(OmegaConf.load(file))
    found = OmegaConf.to_container(launcher(name))
    assert isinstance(ours, dict)
    assert isinstance(found, dict)
    assert {key: str(found[key]) for key in ours} == {key: str(value) for key, value in ours.items()}


def test_what_slurm_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    (tmp_path / "srun").touch(mode=0o755)  # submitit looks for it
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cfg = launcher("submitit_slurm", "hydra.launcher.partition=gpu", f"paths.runs={tmp_path / 'runs'}")
    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    del options["_target_"]
    slurm = SlurmLauncher(**options)
    slurm.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    scripts = []

    def map_array(executor: Any, *_: Any) -> list[Any]:
        scripts.append(executor._executor._make_submission_file_text("python job", "0"))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", map_array)
    slurm.launch([["seed=0"], ["seed=1"]], 0)
    (script,) = scripts
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}
    expected = ("--signal=USR2@180", "--requeue", "--partition=gpu", "--time=720", "--ntasks-per-node=1")
    assert set(expected) <= asked
    assert any(line.startswith(f"--output={tmp_path / 'runs' / 'default' / '.submitit'}") for line in asked)


def test_a_ray_cluster_is_asked_for_no_memory() -> None:
    """Ray refuses to join one when a size is named, and the plugin names one where there is no such key."""
    init = launcher("ray_cluster").ray.init
    assert "object_store_memory" in init
    assert init.object_store_memory is None


@pytest.mark.parametrize(
    ("override", "plugin", "extra"),
    [
        ("hydra/launcher=joblib", "hydra_joblib_launcher", "joblib"),
        # a process of its own, each; which extra a package has is looked up in one table
        pytest.param("hydra/launcher=submitit_slurm", "hydra_submitit_launcher", "slurm", marks=pytest.mark.slow),
        pytest.param("hydra/sweeper=optuna", "hydra_optuna_sweeper", "optuna", marks=pytest.mark.slow),
    ],
)
def test_a_plugin_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, override: str, plugin: str, extra: str
) -> None:
    words = ("train", "-m", "architecture=single,cascade", override, f"paths.runs={tmp_path / 'runs'}")
    done = subprocess.run([sys.executable, "-c", HIDING, plugin, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'mtlcar[{extra}]'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_launcher_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"no hydra/launcher=jolib.*Did you mean 'joblib'") as error:
        compose_config(["hydra/launcher=jolib"])
    assert "submitit_slurm" in str(error.value)


def sweep(folder: Path, name: str, *overrides: str, rates: str = "1e-3,1e30") -> tuple[dict[str, Any], str]:
    """Test metrics of the finished cells by fingerprint, and what the sweep said. The cell with rate 1e30 fails."""
    options = (f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", f"sweep={name}", *overrides)
    done = mtlcar(
        "train", "-m", *SMALL, "scheduler=constant", f"optimizer.lr={rates}", *options, expect=1, fresh_jobs=True
    )
    finished = [file.parent for file in (folder / "runs" / name).glob("*/DONE")]
    return {run.name: read_json(run / "metrics.json")["test"] for run in finished}, done.stdout


@pytest.mark.slow
def test_a_sweep_through_joblib_goes_past_a_failing_cell_and_names_it(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    metrics, said = sweep(tmp_path, "joblib", "hydra/launcher=joblib", "trainer.max_epochs=1")
    (name,) = metrics
    assert f"\n{name} epoch 1/1 | " in said, "whose line it is"
    assert "1 of 2 cells did not finish" in said
    assert "optimizer.lr=1e+30" in said


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("launchers")
    metrics, _ = sweep(folder, "basic", rates="1e-3,1e30,1e-2")
    assert len(metrics) == 2
    return folder, metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit_local", "ray"])
def test_every_launcher_gives_the_basic_ones_metrics(
    basic: tuple[Path, dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(f"hydra_plugins.{PLUGIN[name]}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder, expected = basic
    found, said = sweep(folder, name, f"hydra/launcher={name}", rates="1e-3,1e30,1e-2")
    assert found == expected
    assert "1 of 3 cells did not finish" in said
    assert "optimizer.lr=1e+30" in said
