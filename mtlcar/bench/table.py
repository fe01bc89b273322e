"""What the tables of `mtlcar bench` have in common: the machine they are of, and Markdown."""

import datetime
from collections.abc import Callable, Sequence

import torch
from omegaconf import DictConfig
from rich.console import Console

from mtlcar.machine import device_name
from mtlcar.runs.training import precision


def stderr() -> Callable[[str], None]:
    """Says things next to the table, which alone goes to stdout."""
    console = Console(stderr=True)
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def machine(cfg: DictConfig) -> str:
    """What the figures are of."""
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    return (
        f"{cfg.backbone.name}, {cfg.data.image_size} px, batch {cfg.data.batch_size}, precision "
        f"{precision(cfg)}; {device_name('cuda' if gpu else 'cpu')}, {cfg.threads} threads, torch {torch.__version__}, "
        f"{datetime.datetime.now(tz=datetime.UTC).date()}"
    )


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, words: int) -> str:
    """A Markdown table whose first `words` columns are text, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def times(row: dict[str, float], baseline: str) -> str:
    """A ratio to the baseline's step, with the middle half of the rounds."""
    return f"{row[f'ratio_to_{baseline}']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
