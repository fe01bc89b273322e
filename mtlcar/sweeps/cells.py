"""A cell of a sweep: a composed configuration, its identity, and its directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import FOUND, compose_config, finish
from mtlcar.data.options import read_annotations
from mtlcar.errors import UserError
from mtlcar.runs.files import write_json, write_text
from mtlcar.runs.fingerprint import digest_of_file, fingerprint
from mtlcar.sweeps.outcomes import is_done
from mtlcar.tasks import TaskSet


@dataclass
class Cell:
    """One run to be. `overrides` are what the user typed for it."""

    cfg: DictConfig
    overrides: tuple[str, ...]
    tasks: TaskSet
    digests: dict[str, str]
    id: str

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
            earlier = OmegaConf.select(OmegaConf.load(path), "label_transform.constants")
            if OmegaConf.is_dict(earlier) and earlier.get(FOUND):
                cfg.label_transform.constants = earlier
        write_text(self.directory / "overrides.txt", "".join(f"{o}\n" for o in self.overrides))
        write_json(self.directory / "tasks.json", self.tasks.to_dict())
        write_json(self.directory / "digests.json", self.digests)
        write_text(path, OmegaConf.to_yaml(cfg, resolve=True))  # last: it makes the directory that of a run


class CellMaker:
    """Composes and checks cells; a dataset's annotations are read once for all cells that share them."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, TaskSet]] = {}
        self._digests: dict[str, str] = {}

    def make(self, overrides: Sequence[str], *, threads: int | None = None) -> Cell:
        return self.from_config(compose_config(overrides), overrides, threads=threads)

    def from_config(self, cfg: DictConfig, overrides: Sequence[str], *, threads: int | None = None) -> Cell:
        """A cell of a composed configuration.

        Args:
            threads: for `threads: null`; None: this machine's number.

        Raises:
            UserError: everything that can be found without building a network (`check_parts` does that).
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
            raise UserError(f"The configuration does not resolve: {str(error).splitlines()[0]}") from error
        from mtlcar.runs.check import check

        check(cfg)
        digest, tasks = self._annotations(cfg)
        digests = {"annotations": digest}
        if cfg.backbone.get("weights"):
            digests["weights"] = self._file_digest(Path(cfg.backbone.weights))
        return Cell(cfg, tuple(overrides), tasks, digests, fingerprint(cfg, digests))

    def _annotations(self, cfg: DictConfig) -> tuple[str, TaskSet]:
        key = OmegaConf.to_yaml(cfg.data) + str(cfg.paths.cache)
        if key not in self._read:
            annotations, tasks = read_annotations(cfg.data, Path(cfg.paths.cache))
            from mtlcar.data.missing_labels import check_label_fraction
            from mtlcar.data.splits import make_splits

            splits = make_splits(annotations, tasks, cfg.data.split, list(cfg.data.fractions), cfg.data.split_seed)
            for name, use in (("val", "picks the best checkpoint"), ("test", "is what the results are about")):
                if not len(splits[name]):
                    raise UserError(f"The {name} split is empty, and it {use}. Give it a share in data.fractions.")
            check_label_fraction(OmegaConf.to_container(cfg.data).get("label_fraction"), tasks)  # type: ignore[union-attr]
            self._read[key] = annotations.digest(), tasks
        return self._read[key]

    def _file_digest(self, path: Path) -> str:
        if not path.is_file():
            raise UserError(f"backbone.weights={path}: no such file. Give a safetensors or state_dict file.")
        if str(path) not in self._digests:
            self._digests[str(path)] = digest_of_file(path)
        return self._digests[str(path)]
