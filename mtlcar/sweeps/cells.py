"""A cell of a sweep: a composed configuration, its identity, and its directory."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, OmegaConf

from mtlcar.checks import machine, values
from mtlcar.checks.found import Found
from mtlcar.checks.repaired import repaired
from mtlcar.config import FOUND, composed, finish
from mtlcar.data.options import read_annotations
from mtlcar.errors import UserError
from mtlcar.runs.files import write_json, write_text
from mtlcar.runs.fingerprint import digest_of_file, fingerprint
from mtlcar.runs.secrets import without_password
from mtlcar.runs.trust import load_config
from mtlcar.sweeps.outcomes import is_done
from mtlcar.tasks import TaskSet

if TYPE_CHECKING:
    from mtlcar.checks.networks import Networks


@dataclass
class Cell:
    """One run to be. `overrides` are what the user typed for it."""

    cfg: DictConfig
    overrides: tuple[str, ...]
    tasks: TaskSet
    digests: dict[str, str]
    id: str
    images: int = 0

    @property
    def directory(self) -> Path:
        return Path(self.cfg.paths.runs) / str(self.cfg.sweep) / self.id

    @property
    def done(self) -> bool:
        return is_done(self.directory)

    def write(self) -> None:
        """What the job needs. An unfinished run's files are replaced; the constants that its label transform has found
        are kept. Whoever calls it holds the directory's lock."""
        cfg, path = self.cfg.copy(), self.directory / "config.yaml"
        if path.is_file() and cfg.label_transform.get("constants") is None:
            earlier = None
            with contextlib.suppress(UserError):  # a torn one is replaced
                earlier = OmegaConf.select(load_config(self.directory), "label_transform.constants")
            if earlier is not None and OmegaConf.is_dict(earlier) and earlier.get(FOUND):
                cfg.label_transform.constants = earlier
        write_text(self.directory / "overrides.txt", "".join(f"{without_password(o)}\n" for o in self.overrides))
        write_json(self.directory / "tasks.json", self.tasks.to_dict())
        write_json(self.directory / "digests.json", self.digests)
        write_text(path, OmegaConf.to_yaml(cfg, resolve=True))  # last: it makes the directory that of a run


class ReadData(NamedTuple):
    """What a cell needs to know of a dataset."""

    digest: str
    tasks: TaskSet
    images: int


class CellMaker:
    """Composes and checks cells; a dataset's annotations are read once for all cells that share them."""

    def __init__(self) -> None:
        self._read: dict[str, ReadData] = {}
        self._digests: dict[str, str] = {}

    def make(self, overrides: Sequence[str], *, threads: int | None = None, networks: "Networks | None" = None) -> Cell:
        """The cell that these overrides make.

        Raises:
            UserError: everything that is wrong with them.
        """
        cfg, unknown = composed(overrides)
        if cfg is None:
            Found(unknown).refuse()
            raise AssertionError
        return self.from_config(cfg, overrides, threads=threads, wrong=unknown, networks=networks)

    def from_config(
        self,
        cfg: DictConfig,
        overrides: Sequence[str],
        *,
        threads: int | None = None,
        wrong: Sequence[str] = (),
        networks: "Networks | None" = None,
    ) -> Cell:
        """A cell of a composed configuration.

        Args:
            threads: for `threads: null`; None: this machine's number.
            wrong: what is known to be wrong with it. No data is read then: a misspelt key may have been about it.

        Raises:
            UserError: everything that can be found without building a network (`check_parts` does that), and if there
                is something, what that finds too.
        """
        try:
            if cfg.threads is None:
                cfg.threads = threads
            cfg = finish(cfg)
            OmegaConf.resolve(cfg)
            given = cfg.label_transform.get("constants")
            if OmegaConf.is_dict(given) and FOUND in given:  # copied from a run that had found them: now they are given
                cfg.label_transform.constants = {key: value for key, value in given.items() if key != FOUND}
        except Exception as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            Found([*wrong, f"The configuration does not resolve: {first}"]).refuse()
        of_values = list(values.problems(cfg))
        found = Found([*wrong, *of_values])
        if not of_values:
            found.add(machine.folders(cfg))
        digests, read, known = {}, None, repaired(cfg, of_values) if of_values else cfg
        if cfg.get("backbone") and OmegaConf.select(cfg, "backbone.weights"):
            with found.trying():
                digests["weights"] = self._file_digest(Path(str(cfg.backbone.weights)))
        if not wrong and known is not None and not any(w.startswith(("data.root", "paths")) for w in found.problems):
            with found.trying():
                read = self._annotations(known)
        if found.problems and read is not None and known is not None:
            self._further(known, read.tasks, found, networks)
        found.refuse()
        assert read is not None
        digests = {"annotations": read.digest, **digests}
        return Cell(cfg, tuple(overrides), read.tasks, digests, fingerprint(cfg, digests), read.images)

    @staticmethod
    def _further(cfg: DictConfig, tasks: TaskSet, found: Found, networks: "Networks | None") -> None:
        """What building the parts finds: its imports take seconds, which only an attempt that fails anyway spends."""
        from mtlcar.checks.parts import check_parts

        with found.trying():
            check_parts(cfg, tasks, networks)

    def _annotations(self, cfg: DictConfig) -> ReadData:
        key = json.dumps([OmegaConf.to_container(cfg.data), str(cfg.paths.cache)], default=str)
        if key not in self._read:
            annotations, tasks = read_annotations(cfg.data, Path(cfg.paths.cache))
            from mtlcar.data.missing_labels import check_label_fraction
            from mtlcar.data.splits import make_splits

            splits = make_splits(annotations, tasks, cfg.data.split, list(cfg.data.fractions), cfg.data.split_seed)
            for name, use in (("val", "picks the best checkpoint"), ("test", "is what the results are about")):
                if not len(splits[name]):
                    raise UserError(f"The {name} split is empty, and it {use}. Give it a share in data.fractions.")
            check_label_fraction(OmegaConf.to_container(cfg.data).get("label_fraction"), tasks)  # type: ignore[union-attr]
            self._read[key] = ReadData(annotations.digest(), tasks, len(annotations))
        return self._read[key]

    def _file_digest(self, path: Path) -> str:
        if not path.is_file():
            raise UserError(
                f"backbone.weights={path}: no such file. Give a safetensors or state_dict file, or leave it null."
            )
        if str(path) not in self._digests:
            self._digests[str(path)] = digest_of_file(path)
        return self._digests[str(path)]
