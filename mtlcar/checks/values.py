"""Values of a composed configuration that no part would refuse before training; kinds first."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from mtlcar.checks import kinds
from mtlcar.checks.found import Found
from mtlcar.checks.machine import typed_devices
from mtlcar.data.options import PLACEMENTS
from mtlcar.errors import did_you_mean

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
    "data.resize": ("stretch", "pad", "crop"),
    "test_time_augmentation": ("none", "flips", "dihedral"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.deterministic": (True, False, "warn"),
}
GROUPS = ("data", "backbone", "head", "optimizer", "scheduler", "trainer", "logger", "callbacks", "paths", "checkpoint")
SHARDED = ("fsdp", "deepspeed", "model_parallel")
"""How the names of strategies begin under which no device has all weights."""


def check(cfg: DictConfig) -> None:
    """Raises one UserError that lists everything found."""
    Found(problems(cfg)).refuse()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def problems(cfg: DictConfig) -> Iterator[str]:
    """One sentence for each value that is wrong by itself or beside another; where groups are not as declared, that
    alone: the rest would stumble."""
    wrong = list(kinds.problems(cfg))
    yield from wrong
    if not all(OmegaConf.is_dict(cfg.get(group)) for group in GROUPS):
        return
    told = {words.split()[0] for words in wrong}
    yield from (words for words in _of_values(cfg) if words.split()[0] not in told)


def _of_values(cfg: DictConfig) -> Iterator[str]:
    yield from _of_the_run(cfg)
    yield from _of_the_trainer(cfg)
    yield from _of_the_logger(cfg)
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
    elif len(sweep.encode()) > 255:
        yield f"sweep names a folder, of at most 255 bytes. Found {len(sweep.encode())}."
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
        value = OmegaConf.select(cfg, key, default=choices[0])  # of another group, or an older run
        if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in choices):
            listed = [_typed(choice) for choice in choices]
            near = did_you_mean(str(value), listed)
            yield f"{key} should be one of {', '.join(listed)}. Found {_typed(value)}.{near}"
    placement = OmegaConf.select(cfg, "data.placement")
    if placement in ("device", "pinned") and not cfg.data.cache:
        yield f"data.placement={placement} keeps decoded images, and data.cache=false keeps none. Use one of them."
    if placement == "pinned" and cfg.trainer.accelerator == "cpu":
        yield "data.placement=pinned is for copies to a GPU, and trainer.accelerator=cpu has none: use auto or mmap."
    for part in ("train", "val", "test"):
        value = cfg.trainer[f"limit_{part}_batches"]
        if not _is_number(value) or value <= 0 or (isinstance(value, float) and value > 1):
            yield f"trainer.limit_{part}_batches should be a number of batches or a share in (0, 1]. Found {value!r}."


def _typed(value: object) -> str:
    """As it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, str) and value.isprintable() and value.strip() else repr(value)


def _of_the_run(cfg: DictConfig) -> Iterator[str]:
    for key in ("runs", "cache"):
        value = cfg.paths.get(key)
        if not isinstance(value, str) or not value.strip():
            yield f"paths.{key} should be a folder. Found {_typed(value)}."
    for key in ("method", "monitor"):
        value = cfg.get(key)
        if value is not None and (isinstance(value, bool | int | float) or OmegaConf.is_config(value) or not value):
            yield f"{key} should be null or a name. Found {value!r}."
    value = OmegaConf.select(cfg, "data.eval_batch_size")
    if value is not None and (not _is_whole(value) or value < 1):
        yield f"data.eval_batch_size should be null or a positive whole number. Found {value!r}."
    value = OmegaConf.select(cfg, "data.split_seed", default=0)
    if not _is_whole(value) or value < 0:
        yield f"data.split_seed should be a whole number of at least 0. Found {value!r}."
    for key in ("data.root", "backbone.weights"):
        value = OmegaConf.select(cfg, key)
        if value is not None and not isinstance(value, str):
            yield f"{key} should be null or a path. Found {value!r}."


def _of_the_trainer(cfg: DictConfig) -> Iterator[str]:
    clip = cfg.trainer.get("gradient_clip_val")
    if clip is not None and (not _is_number(clip) or not 0 <= clip < float("inf")):
        yield f"trainer.gradient_clip_val should be null, or a number of at least 0 (0: no clipping). Found {clip!r}."
    devices = cfg.trainer.get("devices", 1)
    typed = typed_devices(devices)
    if isinstance(typed, list):
        good = bool(typed) and all(_is_whole(i) and i >= 0 for i in typed) and len(set(typed)) == len(typed)
    else:
        good = typed == "auto" or (_is_whole(typed) and (typed == -1 or typed >= 1))
    if not good:
        yield (
            "trainer.devices should be a positive number of devices, auto or -1 for all, or a list of different "
            f"indices such as [0,1]. Found {devices!r}."
        )
    strategy = cfg.trainer.get("strategy", "auto")
    if not isinstance(strategy, str) or not strategy:
        yield f"trainer.strategy should be the name of a strategy, such as auto or ddp. Found {strategy!r}."
    nodes = cfg.trainer.get("num_nodes", 1)
    if not _is_whole(nodes) or nodes < 1:
        yield f"trainer.num_nodes should be a positive whole number. Found {nodes!r}."
    accelerator, precision = cfg.trainer.get("accelerator"), cfg.trainer.get("precision")
    if accelerator == "cpu" and precision == "16-mixed":
        yield (
            "trainer.precision=16-mixed is for GPUs, and trainer.accelerator=cpu takes none. Use 32-true, or "
            "bf16-mixed, which a CPU has too."
        )
    if accelerator == "cpu" and cfg.trainer.get("sync_batchnorm"):
        yield "trainer.sync_batchnorm=true is for GPUs, and trainer.accelerator=cpu takes none. Leave it out."
    if accelerator == "mps" and good and typed not in (1, "auto", -1):
        yield f"trainer.accelerator=mps has one device. Found trainer.devices={devices!r}; use 1."


def _of_the_logger(cfg: DictConfig) -> Iterator[str]:
    logger = cfg.logger
    if logger.get("name") != "wandb":
        return
    for key, choices in (("mode", ("auto", "online", "offline", "disabled")), ("artifact", ("none", "best"))):
        value = logger.get(key, choices[0])
        if value not in choices:
            yield f"logger.{key} should be one of {', '.join(choices)}. Found {value!r}.{did_you_mean(value, choices)}"
    also = logger.get("also") or []
    for place in also if OmegaConf.is_list(also) else []:
        if place not in ("csv", "tensorboard"):
            near = did_you_mean(str(place), ("csv", "tensorboard"))
            yield f"logger.also should be some of csv, tensorboard. Found {place!r}.{near}"
    project = str(logger.get("project") or "mtlcar")
    if not project.strip() or len(project) > 128 or any(c in project for c in "/\\#?%:"):
        yield (
            "logger.project should be a name of at most 128 characters without any of / \\ # ? % :, as W&B takes it. "
            f"Found {project!r}." + (" Use logger.entity for the team." if "/" in project else "")
        )
