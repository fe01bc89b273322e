"""Composing a configuration from the groups in `conf/`, with mistakes named before anything runs."""

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlcar.errors import UserError, did_you_mean

FREE = ("callbacks.",)
"""Prefixes under which `+key=value` may add what no yaml declares. Elsewhere it would hide a typo."""
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
    root = conf_dir()
    found: dict[str, list[str]] = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and p.name != "hydra"):
        names = [str(p.relative_to(folder).with_suffix("")) for p in sorted(folder.rglob("*.yaml"))]
        if names:
            found[folder.name] = names
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
    """Overrides by Hydra's grammar; `+key` outside the declared free dictionaries is refused."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise UserError(
                f"Cannot read the override {text!r}: {str(error).splitlines()[0]}\n"
                "Overrides look like key=value, group=choice or 'key={a:1,b:2}' (quote braces for the shell)."
            ) from error
        key = override.key_or_group
        if (override.is_add() or override.is_force_add()) and not key.startswith(FREE) and not key.startswith("hydra."):
            raise UserError(
                f"{text!r}: a leading + adds a key that nothing reads. Leave the + out; if the key is then refused, it "
                "is misspelt. (New keys are possible under callbacks only.)"
            )
        parsed.append(override)
    return parsed


def compose_config(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """One composed configuration in struct mode.

    Raises:
        UserError: naming the group, choice or key that does not exist and those closest to it, or with the Hydra
            configuration the extra that brings a launcher or sweeper that is not installed.
    """
    parse(overrides)
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=with_hydra)
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error
    if with_hydra:
        for kind in ("launcher", "sweeper"):
            package = str(cfg.hydra[kind].get("_target_")).removeprefix("hydra_plugins.").split(".")[0]
            if missing := missing_plugin(kind, package):
                raise UserError(missing)
    return cfg


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


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message in our words, with the nearest names."""
    text = str(error)
    choices = groups()
    found = re.search(r"Could not find 'hydra/(\w+)/([^']+)'", text)
    if found:
        kind, name = found.groups()
        if missing := missing_plugin(kind, f"hydra_{name}_{kind}"):
            return missing
        known = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"There is no hydra/{kind}={name}.{did_you_mean(name, known)}\nChoices: {', '.join(known)}."
    found = re.search(r"Could not find '([^']+)/([^']+)'", text)
    if found and found.group(1) in choices:
        group, choice = found.groups()
        return (
            f"There is no {group}={choice}.{did_you_mean(choice, choices[group])}\n"
            f"Choices for {group}: {', '.join(choices[group])}."
        )
    found = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if found:
        key = found.group(1)
        known = known_keys(overrides)
        close = did_you_mean(key, known) or did_you_mean(key.rsplit(".", 1)[-1], known)
        tail = key.rsplit(".", 1)[-1]
        if not close:
            same = [k for k in known if k.rsplit(".", 1)[-1] == tail]
            close = f" Did you mean {' or '.join(map(repr, same[:3]))}?" if same else ""
        return f"There is no configuration key {key!r}.{close}\n`mtlcar train --cfg [overrides]` prints all keys."
    first = [line for line in text.splitlines() if line.strip()][:3]
    return f"The configuration does not compose ({' '.join(overrides)}):\n" + "\n".join(first)


def known_keys(overrides: Sequence[str]) -> list[str]:
    """Every group, and every key there is with the groups chosen in `overrides`."""
    choices = groups()
    chosen = [o.input_line or "" for o in parse(overrides) if o.value() in choices.get(o.key_or_group, [])]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", chosen)
    keys: list[str] = list(choices)

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                if not str(name).startswith("_") and name != "name":  # what a choice is made of is not for overriding
                    keys.append(f"{prefix}{name}")
                walk(child, f"{prefix}{name}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return keys


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
    for node, key in ((cfg.paths, "runs"), (cfg.paths, "cache"), (cfg.data, "root"), (cfg.backbone, "weights")):
        if node.get(key) is not None:
            node[key] = str(Path(node[key]).expanduser().resolve())
    return cfg


def choice(cfg: DictConfig, group: str) -> str:
    """The chosen name of a group."""
    return str(cfg[group].get("name", "?"))
