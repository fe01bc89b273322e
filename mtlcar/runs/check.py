"""Values of a composed configuration that no part would refuse before training."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from mtlcar.data.options import PLACEMENTS
from mtlcar.errors import UserError

POSITIVE = (
    "trainer.max_epochs",
    "trainer.accumulate_grad_batches",
    "trainer.log_every_n_steps",
    "data.batch_size",
    "data.image_size",
    "threads",
)
COMPILE_MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""torch's own names. The first two record the kernels of a step as CUDA graphs and play them back."""
CHOICES = {
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "monitor_mode": (None, "max", "min"),
    "data.split": ("official", "stratified", "grouped"),
    "data.on_bad_image": ("error", "skip"),
    "data.placement": PLACEMENTS,
    "trainer.compile": (False, True, *COMPILE_MODES),
    "test_time_augmentation": ("none", "flips", "dihedral"),
}
SHARDED = ("fsdp", "deepspeed", "model_parallel")
"""How the names of strategies begin under which no device has all weights."""


def check(cfg: DictConfig) -> None:
    """Raises one UserError that lists everything found."""
    found = list(problems(cfg))
    if found:
        raise UserError("\n".join(found))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def problems(cfg: DictConfig) -> Iterator[str]:
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if not _is_whole(value) or value <= 0:
            yield f"{key} should be a positive whole number. Found {value!r}."
    if cfg.jobs_per_gpu is not None and (not _is_whole(cfg.jobs_per_gpu) or cfg.jobs_per_gpu < 1):
        yield f"jobs_per_gpu should be null or a whole number of at least 1. Found {cfg.jobs_per_gpu!r}."
    minutes, steps = cfg.checkpoint.every_minutes, cfg.checkpoint.every_steps
    if minutes is not None and (not _is_number(minutes) or minutes <= 0):
        yield f"checkpoint.every_minutes should be null or a number above 0. Found {minutes!r}."
    if steps is not None and (not _is_whole(steps) or steps < 1):
        yield f"checkpoint.every_steps should be null or a whole number of at least 1. Found {steps!r}."
    every, epochs = cfg.trainer.check_val_every_n_epoch, cfg.trainer.max_epochs
    if not _is_whole(every) or every < 1 or (_is_whole(epochs) and every > epochs):
        yield (
            "trainer.check_val_every_n_epoch should be from 1 to trainer.max_epochs, because the best checkpoint is "
            f"found by validation. Found {every!r}."
        )
    ema, strategy = cfg.trainer.get("ema"), str(cfg.trainer.strategy)
    if ema is not None and (not _is_number(ema) or not 0 < ema < 1):
        yield f"trainer.ema should be null or a number above 0 and below 1, such as 0.999. Found {ema!r}."
    elif ema is not None and strategy.startswith(SHARDED):
        yield (
            "trainer.ema averages whole weights, and trainer.strategy="
            f"{strategy} gives each device a part of them. Use trainer=ddp, or trainer.ema=null."
        )
    if not _is_whole(cfg.seed) or not 0 <= cfg.seed < 2**32:
        yield f"seed should be a whole number from 0 to 2^32 - 1. Found {cfg.seed!r}."
    sweep = str(cfg.sweep)
    if not sweep or any(c in sweep for c in "/\\") or sweep.startswith("."):
        yield f"sweep names a folder and should hold no slash and no leading dot. Found {cfg.sweep!r}."
    dropout = cfg.head.get("dropout", 0)
    if dropout is not None and (not _is_number(dropout) or not 0 <= dropout < 1):
        yield f"head.dropout should be at least 0 and below 1. Found {dropout!r}."
    for name, node in cfg.callbacks.items():
        if OmegaConf.is_dict(node) and "_target_" not in node:
            yield f"callbacks.{name} names no class: give it a _target_, such as those in conf/callbacks."
    for key in ("optimizer.lr", "optimizer.weight_decay"):
        value = OmegaConf.select(cfg, key)
        if not _is_number(value):
            yield f"{key} should be a number. Found {value!r}."
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in choices):
            yield f"{key} should be one of {', '.join(map(str, choices))}. Found {value!r}."
    placement = OmegaConf.select(cfg, "data.placement")
    if placement in ("device", "pinned") and not cfg.data.cache:
        yield f"data.placement={placement} keeps decoded images, and data.cache=false keeps none. Use one of them."
    if placement == "pinned" and cfg.trainer.accelerator == "cpu":
        yield "data.placement=pinned is for copies to a GPU, and trainer.accelerator=cpu has none: use auto or mmap."
    for part in ("train", "val", "test"):
        value = cfg.trainer[f"limit_{part}_batches"]
        if not _is_number(value) or value <= 0 or (isinstance(value, float) and value > 1):
            yield f"trainer.limit_{part}_batches should be a number of batches or a share in (0, 1]. Found {value!r}."
