"""A configuration as if some of its mistakes were repaired, to see what else is wrong."""

import copy
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import conf_dir


def repaired(cfg: DictConfig, problems: Sequence[str]) -> DictConfig | None:
    """A copy with the yaml's own value of each key that a problem begins with; None where one begins with none."""
    fixed = copy.deepcopy(cfg)
    for problem in problems:
        key = next(iter(problem.split()), "").split("=")[0]
        group, _, rest = key.partition(".")
        if OmegaConf.is_dict(fixed.get(group)) and rest and "name" in fixed[group]:
            file = conf_dir() / group / f"{fixed[group].name}.yaml"
        else:
            file, rest = conf_dir() / "train.yaml", key
        declared = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
        default = OmegaConf.select(declared, rest, default=OmegaConf)
        if default is OmegaConf:
            return None
        OmegaConf.update(fixed, key, default)
    return fixed
