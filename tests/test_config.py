"""Composition: every yaml binds, and mistakes are named with the nearest right word."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mtlcar.config import compose_config, conf_dir, groups
from mtlcar.data.options import PIPELINE_KEYS, reader_options
from mtlcar.errors import UserError

YAMLS = [(group, name) for group, names in groups().items() for name in names]
PARTS = [(g, n) for g, n in YAMLS if g != "experiment"]


def load(group: str, name: str) -> DictConfig:
    cfg = OmegaConf.load(conf_dir() / group / f"{name}.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def test_the_groups_are_those_of_the_design() -> None:
    expected = "data backbone architecture head weighting label_transform optimizer scheduler trainer logger callbacks"
    assert set(expected.split()) <= set(groups())


def test_a_part_knows_its_name_and_composes() -> None:
    """A choice of every group at a time: composing takes Hydra a fifth of a second."""
    choices: dict[str, list[str]] = {}
    for group, name in PARTS:
        assert load(group, name).name == name
        choices.setdefault(group, []).append(name)
    for i in range(max(map(len, choices.values()))):
        chosen = {group: names[i % len(names)] for group, names in choices.items()}
        cfg = compose_config([f"{group}={name}" for group, name in chosen.items()])
        assert {group: cfg[group].name for group in chosen} == chosen


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_a_yaml_begins_with_what_it_is(group: str, name: str) -> None:
    lines = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    first = lines[1] if group == "experiment" else lines[0]
    assert first.startswith("# ")
    assert len(first) > 15


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_a_part_stands_alone(group: str, name: str) -> None:
    cfg = load(group, name)
    assert "defaults" not in cfg
    OmegaConf.to_container(cfg, resolve=True)  # an interpolation that leaves the node would raise


def bound(node: DictConfig) -> None:
    """Every key of a node with `_target_` is a parameter of what it names."""
    if "_target_" in node:
        target = get_object(node._target_)
        known: set[str] = set()
        free = False
        for maker in [c.__init__ for c in target.__mro__] if isinstance(target, type) else [target]:
            parameters = inspect.signature(maker).parameters
            known |= set(parameters)
            free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            if "common" not in parameters:  # `**common` goes to the base, which says what it knows
                break
        for key in node:
            assert free or str(key) in known or str(key).startswith("_"), f"{node._target_} has no {key!r}"
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            bound(node[key])


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_every_key_of_a_yaml_is_a_parameter_of_its_target(group: str, name: str) -> None:
    bound(load(group, name))


@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_experiment_composes_and_binds(name: str) -> None:
    cfg = compose_config([f"experiment={name}"])
    assert cfg.sweep != "default"
    for group in groups():
        if group != "experiment":
            bound(cfg[group])
    reader = inspect.signature(get_object(cfg.data.read._target_)).parameters
    assert set(reader_options(cfg.data)) <= set(reader)


def test_readers_know_the_keys_that_the_pipeline_does_not() -> None:
    from mtlcar.data.datamodule import MultiTaskData

    parameters = inspect.signature(MultiTaskData).parameters
    own = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD} - {"cache_dir", "seed", "sharing"}
    assert own == set(PIPELINE_KEYS) - {"_target_"}
    for name in groups()["data"]:
        cfg = load("data", name)
        reader = inspect.signature(get_object(cfg.read._target_)).parameters
        for key in set(cfg) - set(PIPELINE_KEYS):
            assert str(key) in reader, f"data/{name}.yaml: its reader has no {key!r}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["weighting=equel"], "Did you mean 'equal'"),
        (["wieghting=equal"], "Did you mean 'weighting'"),
        (["trainer.max_epoch=3"], "Did you mean 'trainer.max_epochs'"),
        (["data.batchsize=3"], "'data.batch_size'"),
        (["+trainer.max_epoch=3"], "leading \\+"),
        (["++trainer.max_epoch=3"], "leading \\+"),
        (["+experimnt=demo"], "leading \\+"),
        (["experiment=dmo"], "demo"),
        (["nonsense"], "Cannot read"),
        (["weighting.weights={make:0.1"], "Cannot read"),
    ],
)
def test_typos_are_refused_with_the_nearest_name(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        compose_config(overrides)
    assert len(str(caught.value).splitlines()) <= 25


def test_a_dictionary_given_again_says_why_it_cannot_be() -> None:
    second = "weighting.weights={make:0.5,year:0.5}"
    for before in (["weighting=fixed", "weighting.weights={make:0.1,model:0.9}"], ["experiment=paper_a/stanford_cars"]):
        with pytest.raises(UserError, match="adds keys to a dictionary that is there already"):
            compose_config([*before, second])
    with pytest.raises(UserError, match=r"'data\.augment\.flipp'.* Did you mean 'data\.augment\.flip'"):
        compose_config(["data.augment={flipp:0.5}"])


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from mtlcar.cli import main\n"
        "for args in (['--help'], ['train', '--help'], ['data', '--help']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(args)\n"
        "heavy = {'torch', 'lightning', 'hydra', 'omegaconf', 'numpy', 'pandas', 'wandb'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_free_keys_are_possible_where_declared() -> None:
    assert compose_config(["+callbacks.mine._target_=a.b", "+callbacks.mine.patience=3"]).callbacks.mine.patience == 3


def test_conf_is_found_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtlcar", "train", "--choices"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "weighting: " in done.stdout


@pytest.mark.parametrize("name", groups()["experiment"])
def test_the_choices_that_an_experiment_sweeps_over_exist(name: str) -> None:
    cfg = OmegaConf.load(conf_dir() / "experiment" / f"{name}.yaml")
    for key, values in (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).items():
        for value in str(values).split(",") if key in groups() else ():
            assert value in groups()[key], f"{key}={value}"


def test_the_grid_of_paper_b_has_its_204_cells() -> None:
    params = OmegaConf.load(conf_dir() / "experiment" / "paper_b" / "grid.yaml").hydra.sweeper.params
    assert [len(set(v.split(","))) for v in params.values()] == [6, 17, 2]
