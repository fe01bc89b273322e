"""Values of a composed configuration that no part would refuse before training."""

from collections.abc import Iterator

from omegaconf import DictConfig

from mtlcar.errors import UserError


def check(cfg: DictConfig) -> None:
    """Raises one UserError that lists everything found."""
    found = list(problems(cfg))
    if found:
        raise UserError("\n".join(found))


def _positive(cfg: DictConfig, key: str, kind: type = int) -> Iterator[str]:
    value = cfg
    for part in key.split("."):
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int) or value <= 0:
        yield f"{key} should be a positive {'number' if kind is float else 'whole number'}. Found {value!r}."


def problems(cfg: DictConfig) -> Iterator[str]:
    yield from _positive(cfg, "trainer.max_epochs")
    yield from _positive(cfg, "trainer.accumulate_grad_batches")
    yield from _positive(cfg, "data.batch_size")
    yield from _positive(cfg, "data.image_size")
    yield from _positive(cfg, "threads")
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        yield f"seed should be a whole number from 0 to 2^32 - 1. Found {cfg.seed!r}."
    if not str(cfg.sweep) or any(c in str(cfg.sweep) for c in "/\\") or str(cfg.sweep).startswith("."):
        yield f"sweep names a folder and should hold no slash and no leading dot. Found {cfg.sweep!r}."
    if "dropout" in cfg.head and not 0 <= float(cfg.head.dropout) < 1:
        yield f"head.dropout should be at least 0 and below 1. Found {cfg.head.dropout!r}."
    precisions = ("auto", "32-true", "bf16-mixed", "16-mixed")
    if str(cfg.trainer.precision) not in precisions:
        yield f"trainer.precision should be one of {', '.join(precisions)}. Found {cfg.trainer.precision!r}."
    if cfg.monitor_mode not in (None, "max", "min"):
        yield f"monitor_mode should be max or min. Found {cfg.monitor_mode!r}."
    if cfg.data.split not in ("official", "stratified", "grouped"):
        yield f"data.split should be official, stratified or grouped. Found {cfg.data.split!r}."
    if cfg.data.on_bad_image not in ("error", "skip"):
        yield f"data.on_bad_image should be error or skip. Found {cfg.data.on_bad_image!r}."
    for part in ("train", "val", "test"):
        value = cfg.trainer[f"limit_{part}_batches"]
        if isinstance(value, bool) or value <= 0 or (isinstance(value, float) and value > 1):
            yield f"trainer.limit_{part}_batches should be a number of batches or a share in (0, 1]. Found {value!r}."
