"""Hydra's composition, remembered: it takes a fifth of a second, and a sweep's cells differ in some choices and values.

Hydra composes choices of groups. What it has found for a choice is put beside what it has found for others, where the
files say that neither looks at the other; `key=value` is applied to a copy, as Hydra applies it. All else, and all that
fails in another way than by an unknown key, is Hydra's from the beginning, and so are its words.
"""

import contextlib
import copy
import os
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

Files = tuple[tuple[str, int, int], ...]
Texts = tuple[str, ...]
Composer = Callable[[list[str]], DictConfig]
"""From overrides to the configuration, Hydra's own part included."""
REACHING = re.compile(r"@package|^\s*[\"']?defaults[\"']?\s*:", re.MULTILINE)
"""In the file of a choice that may change, or depend on, what other groups hold."""
COMPUTED = re.compile(r"^\s*-.*\$\{", re.MULTILINE)
"""An item of a list of defaults that depends on other choices."""
KEPT = 2000
"""Configurations of some 40 kB; more choices are in no sweep."""
EXPERIMENT = "experiment"
PRIMARY = "train.yaml"


def files_of(root: Path) -> Files:
    """(path below `root`, nanoseconds since the epoch of its last change, bytes) of each yaml, in order."""
    found: list[tuple[str, int, int]] = []
    _list(str(root), "", found)
    return tuple(sorted(found))


def _list(folder: str, below: str, found: list[tuple[str, int, int]]) -> None:
    """Quickly: it is asked for with every cell of a sweep."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # an editor's, which has gone by now or leads nowhere
                if entry.is_dir():
                    _list(entry.path, f"{below}{entry.name}/", found)
                elif entry.name.endswith(".yaml"):
                    state = entry.stat()
                    found.append((f"{below}{entry.name}", state.st_mtime_ns, state.st_size))


def composed_by(by_hydra: Composer, root: Path, overrides: Sequence[str], *, with_hydra: bool) -> DictConfig:
    """What `by_hydra` makes of the overrides, without Hydra's own part unless that is asked for.

    Raises:
        Exception: whatever Hydra raises.
    """
    cfg = _remembered(by_hydra, root, overrides, with_hydra=with_hydra)
    if cfg is None:
        cfg = by_hydra(list(overrides))
        if not with_hydra:
            with open_dict(cfg):
                del cfg["hydra"]
    return cfg


def _remembered(by_hydra: Composer, root: Path, overrides: Sequence[str], *, with_hydra: bool) -> DictConfig | None:
    """None: the overrides are of other forms, or fail in a way that Hydra can tell better."""
    memory = _memory(root, files_of(root))
    try:
        parsed = [parsed_override(text) for text in overrides]
    except Exception:  # Hydra's lexer lets some others than its own through
        return None
    values = [o for o in parsed if memory.is_value(o)]
    choices = [o for o in parsed if memory.is_choice(o)]
    hydras = [o for o in parsed if _is_hydras(o)]
    if len(values) + len(choices) + len(hydras) < len(parsed):
        return None
    try:
        cfg = memory.compose(by_hydra, choices, hydras, with_hydra=with_hydra)
    except Exception:
        if hydras and values:  # which of them is told first depends on their order
            return None
        raise
    try:
        for override in values:
            try:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
            except (ConfigAttributeError, ConfigKeyError) as error:
                raise ConfigCompositionException(f"Could not override '{override.key_or_group}'.") from error
    except ConfigCompositionException:
        raise
    except Exception:
        return None
    if with_hydra:
        _tell_hydra(cfg, parsed, choices, hydras)
    return cfg


@lru_cache(maxsize=4096)
def parsed_override(text: str) -> Override:
    """By Hydra's grammar. Raises whatever Hydra raises."""
    return OverridesParser.create().parse_override(text)


def _tell_hydra(
    cfg: DictConfig, parsed: Sequence[Override], choices: Sequence[Override], hydras: Sequence[Override]
) -> None:
    """What Hydra's part says about the command line."""
    own = [o for o in parsed if not _is_hydras(o)]
    cfg.hydra.overrides.hydra = [o.input_line for o in hydras]
    cfg.hydra.overrides.task = [o.input_line for o in own]
    cfg.hydra.runtime.choices.update({o.key_or_group: o.value() for o in choices})
    cfg.hydra.runtime.cwd = os.getcwd()  # noqa: PTH109
    form = cfg.hydra.job.config.override_dirname
    lines = sorted(str(o.input_line) for o in own if o.key_or_group not in form.exclude_keys)
    cfg.hydra.job.override_dirname = form.item_sep.join(lines).replace("=", form.kv_sep)


@lru_cache(maxsize=4)
def _memory(root: Path, files: Files) -> "_Memory":
    return _Memory(root, files)


class _Memory:
    """What has been composed of one state of the yaml files.

    Attributes:
        groups: folders of choices.
        parts: groups whose choice is one key of a configuration, as those of experiments and of Hydra are not.
        alone: `group=choice` whose file says what is in its own key, and nothing that depends on another choice.
        whole: texts of choices -> the pickled configuration with Hydra's part, and without.
        where: other choices, group, its choice or None -> in which of `whole` that was composed.
    """

    def __init__(self, root: Path, files: Files) -> None:
        paths = [Path(name) for name, *_ in files]
        self.groups = {str(folder) for path in paths for folder in path.parents if folder.name}
        self.parts = sorted({path.parts[0] for path in paths if len(path.parts) > 1} - {EXPERIMENT, "hydra"})
        texts = {path: _text(root / path) for path in paths}
        several = [text for path, text in texts.items() if path.parts[0] in (PRIMARY, EXPERIMENT)]
        self.alone = {
            f"{path.parts[0]}={Path(*path.parts[1:]).with_suffix('')}"
            for path, text in texts.items()
            if len(path.parts) > 1 and not REACHING.search(text)
        }
        if any(COMPUTED.search(text) for text in several):
            self.alone.clear()
        self.whole: dict[Texts, tuple[bytes, bytes]] = {}
        self.failed: dict[Texts, Exception] = {}
        self.where: dict[tuple[Texts, str, str | None], Texts] = {}

    def is_value(self, override: Override) -> bool:
        key = override.key_or_group
        return _is_plain(override) and "/" not in key and not key.startswith("hydra") and key not in self.groups

    def is_choice(self, override: Override) -> bool:
        key = override.key_or_group
        plain = _is_plain(override) and not key.startswith("hydra")
        return plain and key in self.groups and isinstance(override.value(), str)

    def compose(
        self, by_hydra: Composer, choices: Sequence[Override], hydras: Sequence[Override], *, with_hydra: bool
    ) -> DictConfig:
        """A configuration of the caller's own."""
        texts = _texts((*choices, *hydras))
        if texts in self.failed:
            raise self.failed[texts].with_traceback(None)
        if texts not in self.whole:
            if len(self.whole) + len(self.failed) >= KEPT:
                for memory in (self.whole, self.failed, self.where):
                    memory.clear()
            typed = {o.key_or_group: str(o.value()) for o in choices}
            others = _texts(o for o in (*choices, *hydras) if o.key_or_group not in self.parts)
            wanted = {part: (others, part, typed.get(part)) for part in self.parts}
            if len(typed) == len(choices) and all(key in self.where for key in wanted.values()):
                cfg = self._assembled({part: self.where[key] for part, key in wanted.items()})
            else:
                try:
                    cfg = by_hydra(list(texts))
                except Exception as error:
                    self.failed[texts] = error
                    raise
                chosen = cfg.hydra.runtime.choices
                if all(f"{part}={chosen.get(part)}" in self.alone and part in cfg for part in self.parts):
                    for key in wanted.values():
                        self.where.setdefault(key, texts)
            entire = pickle.dumps(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
            self.whole[texts] = entire, pickle.dumps(cfg)
        found: DictConfig = pickle.loads(self.whole[texts][0 if with_hydra else 1])
        return found

    def _assembled(self, where: dict[str, Texts]) -> DictConfig:
        """One whose parts have each been composed before."""
        wholes = {texts: pickle.loads(self.whole[texts][0]) for texts in set(where.values())}
        cfg: DictConfig = copy.deepcopy(wholes[next(iter(where.values()))])
        for part, texts in where.items():
            cfg[part] = wholes[texts][part]
            cfg.hydra.runtime.choices[part] = wholes[texts].hydra.runtime.choices[part]
        return cfg


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # Hydra will have something to say
        return "@package"


def _texts(overrides: Iterable[Override]) -> Texts:
    return tuple(str(o.input_line) for o in overrides)


def _is_plain(override: Override) -> bool:
    adds = override.is_add() or override.is_force_add() or override.is_delete()
    return not (adds or override.is_sweep_override() or override.package)


def _is_hydras(override: Override) -> bool:
    return _is_plain(override) and override.key_or_group.startswith(("hydra.", "hydra/"))
