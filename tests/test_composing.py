"""The remembered composition is Hydra's: the same configuration, and the same refusals."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from mtlcar import composing, config
from mtlcar.errors import UserError

VALUES = ("data.image_size=32", "paths.runs=/tmp/a b", "head.dropout=0.5", "weighting.weights={make: 1, model: 2e-1}")
WORDS = [
    (),
    VALUES,
    ("weighting=fixed", *VALUES, "architecture=cascade", "architecture.detach=true"),
    ("weighting=fixed", "head=mlp", "architecture=cascade"),  # of the two before it
    ("architecture=cascade", "head=mlp", "head.dropout=0.5"),
    ("data=advanced_steel", "label_transform=fastcar", "monitor=null"),
    ("experiment=paper_b/quick/fastcar", "data.image_size=32", "backbone=tiny", "backbone.pretrained=false"),
    ("experiment=paper_b/quick/fastcar", "weighting=fixed"),
    ("experiment=paper_b/quick/fastcar", "weighting=fixed", "backbone=tiny"),
    ("experiment=paper_b/grid", "head=conv"),
    ("+callbacks.mine.patience=3", "head.dropout=0.1"),
    ("~logger", "seed=3"),
    ("hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "head=mlp", "sweep=x"),
]


def by_hydra(*overrides: str, with_hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=with_hydra)


def ours(*overrides: str, root: Path | None = None, with_hydra: bool = False) -> DictConfig:
    return composing.composed_by(config.by_hydra, root or config.conf_dir(), overrides, with_hydra=with_hydra)


def described(node: Any) -> Any:
    """A configuration with everything that OmegaConf knows of it."""
    about = {k: v for k, v in vars(node._metadata).items() if k != "resolver_cache"}
    if not OmegaConf.is_config(node) or node._is_none() or node._is_interpolation() or node._is_missing():
        return about, node._value()
    children = node._content
    items = list(children.items()) if isinstance(children, dict) else list(enumerate(children))
    assert all(child._parent is node for _, child in items)
    return about, [(key, described(child)) for key, child in items]


@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher/joblib' is validated against ConfigStore schema")
@pytest.mark.parametrize("with_hydra", [False, True])
@pytest.mark.parametrize("overrides", WORDS)
def test_it_is_what_hydra_composes(overrides: tuple[str, ...], with_hydra: bool) -> None:
    hydras = by_hydra(*overrides, with_hydra=with_hydra)
    for _ in range(2):  # a copy that somebody changed leaves what is remembered as it was
        found = ours(*overrides, with_hydra=with_hydra)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(hydras)
        assert described(found) == described(hydras)
        assert OmegaConf.is_struct(found)
        found.seed = 77


def counted(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """What Hydra is asked for from now on."""
    asked: list[list[str]] = []

    def counting(name: str, overrides: list[str], **kwargs: Any) -> DictConfig:
        asked.append(overrides)
        return compose(name, overrides, **kwargs)

    composing._memory.cache_clear()
    patch.setattr(config, "compose", counting)
    return asked


def test_hydra_composes_each_choice_of_a_grid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)
    for architecture in ("parallel", "cascade", "mmoe"):
        for weighting in ("equal", "fixed", "dwa"):
            for seed in (0, 1):
                words = f"architecture={architecture}", f"weighting={weighting}", f"seed={seed}"
                cfg = config.compose_config(words)
                assert (cfg.architecture.name, cfg.weighting.name, cfg.seed) == (architecture, weighting, seed)
    assert len(asked) == 5
    assert all("seed" not in " ".join(words) for words in asked)


@pytest.mark.parametrize("wrong", ["head.dropuot=0.1", "weighting=equel", "data.image_size.x=3"])
def test_a_mistake_is_refused_in_hydras_words(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["head=mlp", "seed=3", wrong]
    told = []
    for remembered in (True, True, False):
        if not remembered:
            monkeypatch.setattr(composing, "_remembered", lambda *_, **__: None)
        with pytest.raises(UserError) as found:
            config.compose_config(words)
        told.append(str(found.value))
    assert told[0] == told[1] == told[2]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `conf/` that this process composes from."""
    root = Path(shutil.copytree(config.conf_dir(), tmp_path / "conf"))
    monkeypatch.setattr(config, "conf_dir", lambda: root)
    return root


def edited(file: Path, text: str) -> None:
    file.write_text(text)
    os.utime(file, ns=(file.stat().st_mtime_ns + 10**7,) * 2)  # where a clock is too coarse to tell


def test_an_edited_file_is_composed_anew(own: Path) -> None:
    """Somebody works on their own yaml beside an open notebook."""
    assert config.compose_config([]).head.dropout == 0
    linear = own / "head" / "linear.yaml"
    edited(linear, linear.read_text().replace("dropout: 0.0", "dropout: 0.3"))
    assert config.compose_config([]).head.dropout == 0.3
    assert "mine" not in config.groups()["head"]
    edited(own / "head" / "mine.yaml", linear.read_text())
    assert config.compose_config(["head=mine"]).head.dropout == 0.3
    assert "mine" in config.groups()["head"]


@pytest.mark.parametrize(
    "text",
    [
        "# @package _global_\nweighting: {name: mine}\nhead: {dropout: 0.7}\n",
        "defaults:\n  - /loss/default@_here_\nname: mine\n",
    ],
)
def test_parts_that_look_at_each_other_are_hydras_to_put_together(
    own: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch)
    edited(own / "weighting" / "mine.yaml", text)
    for words in (["weighting=mine"], ["head=mlp"], ["weighting=mine", "head=mlp"]):
        assert OmegaConf.to_yaml(ours(*words, root=own)) == OmegaConf.to_yaml(by_hydra(*words))
    assert ["weighting=mine", "head=mlp"] in asked


def test_nothing_is_put_together_where_a_list_of_defaults_is_computed(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch)
    edited(own / "experiment" / "mine.yaml", "defaults:\n  - /special/${weighting}_${head}@_global_\n")
    for words in (["weighting=fixed"], ["head=mlp"], ["weighting=fixed", "head=mlp"]):
        ours(*words, root=own)
    assert ["weighting=fixed", "head=mlp"] in asked
