"""One run, in its own process: `python -m mtlcar.runs.job RUN_DIR`.

Reads `config.yaml` of the run directory and needs nothing else, so every launcher, a restart and Lightning's DDP
can run the same command. Exit status: 0 finished, 2 the user can repair it, 1 anything else, 130 interrupted.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.files import read_json
from mtlcar.runs.ranks import is_main_process
from mtlcar.tasks import TaskSet

log = logging.getLogger("mtlcar")


def main(run_dir: Path, *, show_traceback: bool = False) -> int:
    if not (run_dir / "config.yaml").is_file():
        print(f"mtlcar: error: {run_dir} is no run directory (no config.yaml in it).", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console_handler()])
    to_file = logging.FileHandler(run_dir / "train.log", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(to_file)
    try:
        with only_one(run_dir):
            run(run_dir, OmegaConf.load(run_dir / "config.yaml"))  # type: ignore[arg-type]
    except (KeyboardInterrupt, SystemExit):  # Lightning ends an interrupted fit with the latter
        log.error("Interrupted; the same command begins this run again. What was finished stays.")
        return 130
    except Exception as error:
        user = isinstance(error, UserError)
        to_file.emit(logging.makeLogRecord({"msg": traceback.format_exc(), "levelname": "ERROR", "name": "mtlcar"}))
        print(f"mtlcar: error: {error if user else f'{type(error).__name__}: {error}'}", file=sys.stderr)
        if show_traceback:
            traceback.print_exc()
        elif not user:
            print(f"The whole story is in {run_dir / 'train.log'}", file=sys.stderr)
        return 2 if user else 1
    return 0


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Two jobs never work in one run directory."""
    if not is_main_process():
        yield
        return
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process is working in {run_dir}. Wait for it, or stop it, then run again.") from None
    try:
        yield
    finally:
        lock.release()


def console_handler() -> logging.Handler:
    """Rich on a terminal; plain lines elsewhere, where its wrapping at 80 columns would only hurt."""
    if not sys.stderr.isatty():
        return logging.StreamHandler()
    from rich.console import Console
    from rich.logging import RichHandler

    return RichHandler(console=Console(stderr=True), show_path=False, show_level=False)


def run(run_dir: Path, cfg: DictConfig) -> None:
    """Fit, test the best checkpoint, write metrics, predictions and figures, then DONE."""
    import lightning
    import torch

    from mtlcar.build import build, check_parts, make
    from mtlcar.runs.loggers import finish, update_config
    from mtlcar.runs.memory import keep_freed_memory
    from mtlcar.runs.results import metrics_json, score, write_results
    from mtlcar.runs.search import keep_constants, search
    from mtlcar.runs.training import fit, quiet_lightning, tag_list

    quiet_lightning()
    check_parts(cfg, TaskSet.from_dict(read_json(run_dir / "tasks.json")))  # before anything is decoded
    torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    # Deterministic mode would fill every new tensor with NaN, which finds bugs of kernels and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    parts = build(cfg)
    loggers = make(
        cfg.logger,
        run_dir=run_dir,
        run_name=run_name(cfg),
        run_id=wandb_id(cfg, run_dir),
        group=str(cfg.sweep),
        job_type="train",
        config=OmegaConf.to_container(cfg, resolve=True),
        tags=tag_list(cfg),
    )
    code = 1
    try:
        searched = search(cfg, parts, run_dir)
        keep_constants(cfg, parts, run_dir, write=is_main_process())
        update_config(loggers, {"label_transform": OmegaConf.to_container(cfg.label_transform, resolve=True)})
        timing, checkpoints = fit(cfg, parts, run_dir, loggers)
        timing.search_seconds = searched
        best = run_dir / "checkpoints" / "best.ckpt"
        values, predictions, tables = score(cfg, parts, best, loggers, checkpoints.steps)
        rows = predictions.rows()  # a collective: every process of a job takes part
        if is_main_process():
            result = metrics_json(parts, run_dir, timing, checkpoints, values, tables, loggers, rows)
            write_results(run_dir, parts, result, rows, loggers)
        code = 0
    finally:
        finish(loggers, code)
    if is_main_process():
        (run_dir / "DONE").touch()


def run_name(cfg: DictConfig) -> str:
    """What W&B and the tables call it: the answers that make the run."""
    if cfg.get("method"):
        words = (cfg.data.name, cfg.data.split, cfg.backbone.name, cfg.method, cfg.weighting.name, cfg.optimizer.name)
        return "_".join([*(str(word).replace(" ", "-") for word in words), f"s{cfg.seed}"])
    parts = [str(cfg[g].name) for g in ("data", "backbone", "architecture", "head", "weighting")]
    if cfg.label_transform.name != "identity":
        parts.append(str(cfg.label_transform.name))
    if cfg.weighting.get("weights"):
        parts.append("-".join(f"{v:g}" for v in cfg.weighting.weights.values()))
    if cfg.head.get("dropout"):
        parts.append(f"p{cfg.head.dropout:g}")
    return "_".join([*parts, f"s{cfg.seed}"])


def wandb_id(cfg: DictConfig, run_dir: Path) -> str:
    """One id for life: a hash of sweep name and fingerprint (the directory's name)."""
    import hashlib

    return hashlib.sha256(f"{cfg.sweep}/{run_dir.name}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), show_traceback="--traceback" in sys.argv[2:]))
