"""A trained network on its own: without the data it was trained on, a trainer, or what weighted its losses."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mtlcar.architectures.base import Architecture
from mtlcar.build import build_architecture, make, without_weights
from mtlcar.data.augment import Augment
from mtlcar.data.datamodule import make_augment
from mtlcar.data.decode import ImageDecoder
from mtlcar.errors import UserError
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.losses import TaskLosses
from mtlcar.metrics.decoding import decode_levels
from mtlcar.metrics.hierarchy import imply
from mtlcar.metrics.scored_levels import scored_levels
from mtlcar.runs.checkpoint_files import load_weights
from mtlcar.runs.trust import refuse_foreign
from mtlcar.symmetries import averaged
from mtlcar.tasks import TaskSet


class Said(NamedTuple):
    """What a network says of a batch, decoded to the dataset's tasks.

    Attributes:
        predictions: {task: class index int64 [B] or value float32 [B] in the label's unit}; coarser tasks that the
            network does not predict itself are implied by the finest one that it does.
        scores: {classification: class scores float32 [B, classes]} of the tasks that it scores itself; probabilities
            where `TrainedNetwork.probabilities`.
        columns: what the label transform adds to predictions.parquet, [B] each.
        features: the trunk's last map averaged over positions, float32 [B, channels]; of the first trunk, where an
            architecture has several.
    """

    predictions: dict[str, Tensor]
    scores: dict[str, Tensor]
    columns: dict[str, Tensor]
    features: Tensor


class _Parts(torch.nn.Module):
    """The modules of a checkpoint that predictions need, under the names that `MultiTaskModule` gives them."""

    def __init__(self, architecture: Architecture, losses: TaskLosses, label_transform: LabelTransform) -> None:
        super().__init__()
        self.architecture, self.losses, self.label_transform = architecture, losses, label_transform


@dataclass
class TrainedNetwork:
    """The network of a run's best checkpoint, in evaluation.

    Attributes:
        directory: the run's.
        cfg: its configuration.
        tasks: the dataset's tasks; those that are trained are `architecture.tasks`.
        decoder: picture file -> uint8 [S, S, 3], as the run's images were made.
        augment: its `normalize` makes input of uint8 images.
        symmetries: `test_time_augmentation` of the run, a key of `mtlcar.symmetries.SYMMETRIES`.
    """

    directory: Path
    cfg: DictConfig
    tasks: TaskSet
    architecture: Architecture
    losses: TaskLosses
    label_transform: LabelTransform
    decoder: ImageDecoder
    augment: Augment
    symmetries: str

    @property
    def image_size(self) -> int:
        """S, the side of the network's input, pixels."""
        return self.decoder.size

    @property
    def probabilities(self) -> bool:
        """Whether scores are class probabilities (FastCAR's are not)."""
        return self.label_transform.probabilities

    @property
    def device(self) -> torch.device:
        return self.augment.scale.device

    def to(self, device: torch.device | str) -> "TrainedNetwork":
        for part in (self.architecture, self.losses, self.label_transform, self.augment):
            part.to(device)
        return self

    def read(self, file: Path, box: np.ndarray | None = None) -> Tensor:
        """One picture file as uint8 [3, S, S]; `box` as in `ImageDecoder`.

        Raises:
            DamagedImageError: it cannot be decoded.
        """
        return torch.from_numpy(self.decoder(file, box)).permute(2, 0, 1)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, S, S] -> {trained task: logits [B, classes] or standardised value [B]}, averaged
        over the run's symmetries."""
        network: Callable[[Tensor], dict[str, Tensor]] = lambda x: self.architecture(x).outputs  # noqa: E731
        return averaged(network, image, self.architecture.tasks, self.symmetries)

    def decode(
        self, outputs: dict[str, Tensor], decoding: str = "independent"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """`predictions`, `scores` and `columns` of `Said`.

        Args:
            decoding: one of `mtlcar.metrics.decoding.DECODINGS`; `independent` is what the test of the run scored. A
                value that a label transform reads from its class is read from the decoded one.
        """
        trained, scores = self.losses.predictions(outputs), self.losses.scores(outputs)
        decoded_scores = self.label_transform.decode_scores(scores, trained)
        columns = self.label_transform.columns(trained)
        if decoding != "independent" and self.has_levels(decoded_scores):
            levels = decode_levels({name: x.cpu() for name, x in decoded_scores.items()}, self.tasks, decoding)
            trained |= {n: torch.from_numpy(levels[n]).to(x.device) for n, x in trained.items() if n in levels}
        predictions = imply(self.tasks, self.label_transform.decode(trained, scores))
        return predictions, decoded_scores, columns

    def has_levels(self, scores: Iterable[str]) -> bool:
        """Whether decodings may differ: two levels of the hierarchy or more have probabilities."""
        return self.probabilities and len(scored_levels(self.tasks, set(scores))) > 1

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, decoding: str = "independent") -> Said:
        """uint8 images [B, 3, S, S] -> what the network says of them, on its device."""
        image = self.augment.normalize(pixels.to(self.device))
        with self._last_map() as kept:
            predictions, scores, columns = self.decode(self.outputs(image), decoding)
        return Said(predictions, scores, columns, self._pooled(image, kept))

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, S, S] -> `Said.features` alone, [B, channels]."""
        image = self.augment.normalize(pixels.to(self.device))
        with self._last_map() as kept:
            self.architecture(image)
        return self._pooled(image, kept)

    @contextmanager
    def _last_map(self) -> Iterator[list[Tensor]]:
        """What the trunk's last stage gives first within the block: for the image as it is, before its symmetries. The
        stage, because some architectures never call their trunk as a whole."""
        kept: list[Tensor] = []

        def keep(module: torch.nn.Module, inputs: Any, last: Tensor | tuple[Tensor, ...]) -> None:
            if not kept:
                kept.append(last if isinstance(last, Tensor) else last[-1])  # MTAN takes what is within the stage too

        handles = [stage.register_forward_hook(keep) for stage in self.architecture.backbone.stages[-1:]]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    def _pooled(self, image: Tensor, kept: list[Tensor]) -> Tensor:
        backbone = self.architecture.backbone
        if not backbone.stages:
            return torch.zeros(len(image), 0, device=self.device)
        last = kept[0] if kept else backbone(image)[-1]  # a tree in which no task reads the first trunk's last stage
        return last.float().mean(dim=(2, 3))


PARTS = ("backbone", "architecture", "head", "loss", "label_transform")
"""What is built of a run's configuration to predict with."""


def load_network(run_dir: Path, cfg: DictConfig, device: torch.device | str = "cpu") -> TrainedNetwork:
    """The network of `checkpoints/best.ckpt`. Nothing of the data is read, no weight file, nothing downloaded.

    Args:
        run_dir: a run directory with tasks.json.
        cfg: its configuration (`mtlcar.runs.evaluate.stored_config`).

    Raises:
        UserError: the run has no checkpoint or no tasks.json, or the checkpoint is of another configuration.
    """
    file = run_dir / "tasks.json"
    try:
        tasks = TaskSet.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a run writes it before its first step. Train it again.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}). `mtlcar train` writes it again.") from error
    cfg = without_weights(cfg)
    refuse_foreign(cfg, run_dir, PARTS)
    label_transform = make(cfg.label_transform, tasks=tasks)
    architecture = build_architecture(cfg, label_transform.encoded_tasks(tasks))
    losses = make(cfg.loss, tasks=architecture.tasks)
    load_weights(_Parts(architecture, losses, label_transform), run_dir / "checkpoints" / "best.ckpt", cfg)
    augment = make_augment({})
    augment.set_normalization(architecture.backbone.mean, architecture.backbone.std)
    network = TrainedNetwork(
        directory=run_dir,
        cfg=cfg,
        tasks=tasks,
        architecture=architecture.eval(),
        losses=losses.eval(),
        label_transform=label_transform.eval(),
        decoder=ImageDecoder(cfg.data.image_size, cfg.data.get("resize", "stretch"), cfg.data.get("box_margin", 0.0)),
        augment=augment.eval(),
        symmetries=cfg.get("test_time_augmentation", "none"),
    )
    return network.to(device)
