"""Reading a dataset from its configuration node, without importing torch."""

import inspect
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.data.annotations import Annotations
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet

PLACEMENTS = ("auto", "device", "pinned", "mmap")
"""Where images lie while a run reads them: `mtlcar.data.placement.place`."""
PIPELINE_KEYS = (
    "_target_",
    "name",
    "root",
    "read",
    "image_size",
    "batch_size",
    "eval_batch_size",
    "split",
    "fractions",
    "split_seed",
    "label_fraction",
    "resize",
    "box_margin",
    "on_bad_image",
    "cache",
    "placement",
    "augment",
)
"""Keys of every `data` yaml; all others are the reader's own options."""


def reader_options(data: DictConfig) -> dict[str, Any]:
    """The keys that only this dataset's reader knows (`levels`, say)."""
    plain = OmegaConf.to_container(data, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in PIPELINE_KEYS}


def data_root(data: DictConfig, cache: Path) -> Path:
    """The dataset's folder; a dataset that makes its own images lives in the cache where no root is given."""
    return Path(data.root) if data.root is not None else cache / str(data.name)


def read_annotations(data: DictConfig, cache: Path) -> tuple[Annotations, TaskSet]:
    """What the publisher's files say, checked."""
    from hydra.utils import instantiate

    read, root, options = instantiate(data.read), data_root(data, cache), reader_options(data)
    try:
        inspect.signature(read).bind(root, **options)
    except TypeError as error:
        raise UserError(f"data={data.name}: the reader {error}.") from error
    annotations, tasks = read(root, **options)
    return annotations.check(tasks), tasks
