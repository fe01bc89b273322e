"""What a recorded command may say when `mtlcar resume` gives it again: a sweep directory may be somebody else's."""

import re
from collections.abc import Sequence
from pathlib import Path

from mtlcar.config import groups, parse
from mtlcar.errors import UserError
from mtlcar.runs.secrets import MASK
from mtlcar.runs.trust import TRUST, is_trusted, may_be_called

CODE = re.compile(r"\$\{|(?:^|[.{,+])\s*['\"]?function['\"]?\s*[:=]")
"""`weighting.function`, or an interpolation, which could read the environment."""
TARGET = re.compile(r"_target_['\"]?\s*[:=]\s*['\"]?([\w.]*)")
"""A class or function to call; those that a stored configuration may name are let through."""
CHOICES = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")
SWEEPER = re.compile(
    r"hydra\.sweeper\.(params(\..+)?|sampler\.\w+|n_trials|n_jobs|study_name|storage|direction|max_batch_size|max_failure_rate)"
)
LAUNCHER = re.compile(
    r"hydra\.launcher\.((ray\.init\.)?(num_cpus|num_gpus|object_store_memory|include_dashboard|log_to_driver)"
    r"|ray\.remote\.\w+|n_jobs|pre_dispatch|batch_size|prefer|require|verbose|timeout|max_nbytes|mmap_mode|timeout_min"
    r"|nodes|tasks_per_node|cpus_per_task|cpus_per_gpu|gpus_per_node|gpus_per_task|mem_gb|mem_per_gpu|mem_per_cpu|name|stderr_to_stdout|partition|account|qos"
    r"|signal_delay_s|max_num_timeout|array_parallelism|gres|constraint|exclude)"
)
"""Keys of a launcher that say how much and where. Others (setup, python, srun_args, runtime_env) are commands."""
WORD = re.compile(r"[\w.,:%/\[\]-]*")
STORAGE = "hydra.sweeper.storage"
FROM_ENVIRONMENT = re.compile(rf"{re.escape(STORAGE)}=['\"]?\$\{{oc\.env:\w+\}}['\"]?")


def refuse_foreign_words(overrides: Sequence[str], file: Path) -> None:
    """UserError where a recorded command names code, commands or files of configuration from outside mtlcar, unless
    `MTLCAR_TRUST_CONFIG=1` says that its user knows it."""
    if is_trusted():
        return
    for override in parse(overrides):
        line, key = str(override.input_line), override.key_or_group
        if FROM_ENVIRONMENT.fullmatch(line):
            continue
        group = "/" in key or "@" in key or key in groups()
        chooses = group or key.startswith("hydra.sweeper.params")
        outside = chooses and (".." in line or "@" in key)  # a choice is a path below conf/
        foreign = line.count("_target_") != len(known := TARGET.findall(line)) or not all(map(may_be_called, known))
        if CODE.search(line) or foreign or outside or (key.startswith("hydra") and not harmless(key, line)):
            raise UserError(
                f"{file} records {line!r}, which may call code that is no part of mtlcar.\nA sweep directory may come "
                "from somebody else, so its command is not given again with this. If it is yours, or you trust whoever "
                f"made it: {TRUST}=1 mtlcar resume ..., or give the command itself with mtlcar train -m."
            )


def harmless(key: str, line: str) -> bool:
    """Whether a recorded override of Hydra's own part chooses among what is installed, or says how much."""
    if key in CHOICES or SWEEPER.fullmatch(key):
        return True
    return LAUNCHER.fullmatch(key) is not None and WORD.fullmatch(line.partition("=")[2]) is not None


def with_storage(overrides: Sequence[str], extra: Sequence[str], storage: str | None) -> list[str]:
    """Recorded overrides with the storage's URL, whose password no record keeps.

    Args:
        extra: overrides that are given now and come later.
        storage: a URL from the environment, or None.

    Raises:
        UserError: it is nowhere.
    """
    if any(o.key_or_group == STORAGE for o in parse(extra)):
        return [o for o in overrides if not o.lstrip("+").startswith(f"{STORAGE}=")]
    found = []
    for override in overrides:
        if override.lstrip("+").startswith(f"{STORAGE}=") and MASK in override:
            if not storage:
                raise UserError(
                    f"{override}: the password of the study's storage is not kept in the sweep's record. Give it "
                    f"again: mtlcar resume DIR {STORAGE}=URL, or set MTLCAR_STORAGE=URL."
                )
            quoted = storage.replace("\\", "\\\\").replace("'", "\\'")
            override = f"{STORAGE}='{quoted}'"
        found.append(override)
    return found
