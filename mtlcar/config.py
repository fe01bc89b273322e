"""Composing a configuration from the groups in `conf/`, with mistakes named before anything runs."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlcar.checks.found import Found
from mtlcar.composing import Files, composed_by, files_of, parsed_override
from mtlcar.errors import UserError

FOUND = "found"
"""Marks `label_transform.constants` in a run's config.yaml that the run has found itself."""
PLUGINS = {
    "hydra_joblib_launcher": ("joblib", "joblib"),
    "hydra_ray_launcher": ("ray", "ray"),
    "hydra_submitit_launcher": ("submitit", "slurm"),
    "hydra_optuna_sweeper": ("optuna", "optuna"),
}
"""Hydra's plugins of others: package below `hydra_plugins` -> the package it works with, the extra that brings both."""
# Our presets of plugins have the plugins' own names and win; what Hydra wants to say about that is for nobody here.
warnings.filterwarnings("ignore", message=r"\s*'hydra/\w+/\w+' is validated against ConfigStore schema")


def conf_dir() -> Path:
    """`mtlcar/conf` in a wheel, `../conf` in a checkout; absolute, because a console script has no other anchor."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(f"mtlcar's configuration is missing: neither {package.parent / 'conf'} nor {package / 'conf'}.")


def groups() -> dict[str, list[str]]:
    """Group -> its choices, as they lie on disk. Hydra's own groups (`hydra/launcher`) say nothing about a run."""
    return {group: list(names) for group, names in _groups(files_of(conf_dir())).items()}


@lru_cache(maxsize=4)
def _groups(files: Files) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(Path(name) for name, *_ in files):
        if len(path.parts) > 1 and path.parts[0] != "hydra":
            found.setdefault(path.parts[0], []).append(str(Path(*path.parts[1:]).with_suffix("")))
    return found


def architectures_with(promise: Callable[[Any], bool]) -> list[str]:
    """The choices of the group `architecture` whose class keeps `promise`."""
    found = []
    for name in groups()["architecture"]:
        target = OmegaConf.load(conf_dir() / "architecture" / f"{name}.yaml")._target_
        if promise(get_class(target)):
            found.append(name)
    return found


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides by Hydra's grammar, in mtlcar's bounds.

    Raises:
        UserError: what cannot be read; `+key` outside the declared free dictionaries, under which typos would run.
    """
    from mtlcar.checks.names import faults_of_form

    parsed, unread = parse_each(overrides)
    Found([*unread, *(fault.words for fault in faults_of_form(parsed))]).refuse()
    return parsed


def parse_each(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    """What can be read, and a sentence about each override that cannot."""
    parsed, unread = [], []
    for text in overrides:
        try:
            parsed.append(parsed_override(text))
        except Exception as error:  # mostly a HydraException; its lexer lets some others through
            first = next(iter(str(error).splitlines()), type(error).__name__)
            unread.append(
                f"Cannot read the override {text!r}: {first}\n"
                "Overrides look like key=value, group=choice or 'key={a:1,b:2}' (quote braces for the shell)."
            )
    return parsed, unread


def compose_config(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """One composed configuration in struct mode.

    Raises:
        UserError: naming each group, choice or key that does not exist and those closest to it, or with the Hydra
            configuration the extra that brings a launcher or sweeper that is not installed.
    """
    cfg, problems = composed(overrides, with_hydra=with_hydra)
    Found(problems).refuse()
    assert cfg is not None
    if not with_hydra:
        try:
            OmegaConf.to_container(cfg, resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"The configuration does not resolve: {str(error).splitlines()[0]}") from error
    if with_hydra:
        for kind in ("launcher", "sweeper"):
            package = str(cfg.hydra[kind].get("_target_")).removeprefix("hydra_plugins.").split(".")[0]
            if missing := missing_plugin(kind, package):
                raise UserError(missing)
    return cfg


def composed(overrides: Sequence[str], *, with_hydra: bool = False) -> tuple[DictConfig | None, list[str]]:
    """The configuration of those overrides that fit, and what is wrong with the others. None: it does not compose
    whatever is left out."""
    from mtlcar.checks.names import fault, faults_of_form

    parsed, problems = parse_each(overrides)
    formed = faults_of_form(parsed)
    problems += [one.words for one in formed]
    refused = {text for one in formed for text in one.overrides}
    left = [o.input_line or "" for o in parsed if o.input_line not in refused]
    while True:
        try:
            return composed_by(by_hydra, conf_dir(), left, with_hydra=with_hydra), problems
        except Exception as error:  # Hydra's own, and what its handling of odd values lets through
            one = fault(error, left)
            problems.append(one.words)
            fewer = [text for text in left if text not in one.overrides]
            if len(fewer) == len(left):
                return None, problems
            left = fewer


def by_hydra(overrides: list[str]) -> DictConfig:
    """What Hydra composes, its own part included."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


def missing_plugin(kind: str, package: str) -> str | None:
    """How to install the launcher or sweeper in `hydra_plugins.<package>`; None if it is there, or none we know. Our
    presets compose without it, and Hydra would look for it only when the sweep begins."""
    library, extra = PLUGINS.get(package, ("", ""))
    if not extra or (installed(f"hydra_plugins.{package}") and installed(library)):
        return None
    return (
        f"This hydra/{kind} needs {package.replace('_', '-')} and {library}, which are not both installed. "
        f"Install them: pip install 'mtlcar[{extra}]'"
    )


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the top-level keys of train.yaml that are younger than it, at their defaults, which
    it was made with."""
    young = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
    assert isinstance(young, dict)
    return {**{str(k): v for k, v in young.items() if k not in ("defaults", "hydra")}, **config}


def cores() -> int:
    """Those of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finish(cfg: DictConfig) -> DictConfig:
    """Fill what depends on the machine, so that the saved configuration says it: threads, and whole paths."""
    if cfg.threads is None:
        cfg.threads = cores()
    for group, key in (("paths", "runs"), ("paths", "cache"), ("data", "root"), ("backbone", "weights")):
        node = cfg.get(group)
        if OmegaConf.is_dict(node) and isinstance(node.get(key), str):  # else the checks have something to say
            node[key] = str(Path(node[key]).expanduser().resolve())
    return cfg


def choice(cfg: DictConfig, group: str) -> str:
    """The chosen name of a group."""
    return str(cfg[group].get("name", "?"))
