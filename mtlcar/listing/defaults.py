"""What a run's configuration would be if its user had only chosen the groups."""

from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf

from mtlcar.config import compose_config, groups
from mtlcar.errors import UserError
from mtlcar.listing.flat import flat
from mtlcar.listing.stored import StoredRun
from mtlcar.report.varied import Settings

BY_MACHINE = ("paths", "sweep", "method", "data.root", "backbone.weights")
"""Where things lie and what they are called: no setting to have an opinion on."""
MADE_BY_RUN = ("label_transform.constants",)


def group_defaults(run: StoredRun) -> Settings:
    """Dotted key -> default of today's `conf`, for the groups that the run chose; empty where they are gone."""
    known = groups()
    choices = tuple(f"{key}={name}" for key, name in run.parts.items() if name in known.get(key, ()))
    return flat(_composed(choices), run.task_names)


@lru_cache
def _composed(choices: tuple[str, ...]) -> dict[str, Any]:
    try:
        cfg = compose_config(choices)
        return {str(key): value for key, value in _plain(cfg).items()}
    except UserError:
        return {}


def _plain(cfg: Any) -> dict[Any, Any]:
    found: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(found)


def changed(run: StoredRun) -> dict[str, tuple[Any, Any]]:
    """Key -> (the run's value, the default) where they differ: what an experiment file or the user has set."""
    defaults = group_defaults(run)
    own = flat(run.config, run.task_names)
    return {
        key: (value, defaults[key])
        for key, value in own.items()
        if key in defaults
        and defaults[key] != value
        and not any(key == other or key.startswith(f"{other}.") for other in (*BY_MACHINE, *MADE_BY_RUN))
    }
