"""The step: batch -> architecture -> per-task losses [T] -> weighting -> gradient. It never names a method."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.config import architectures_with
from mtlcar.errors import UserError
from mtlcar.exact import exact
from mtlcar.finite import FiniteState
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.losses import TaskLosses
from mtlcar.metrics.hierarchy import imply
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.step_log import StepMeans
from mtlcar.symmetries import averaged
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import Applied, Weighting
from mtlcar.weightings.gradients import Step


def refuse_impossible(architecture: Architecture, weighting: Weighting) -> None:
    """UserError for a weighting that cannot act on this architecture."""
    if not weighting.takes_gradients_apart:
        return
    if not any(True for _ in architecture.backbone.parameters()):
        raise UserError(
            f"weighting={weighting.name} balances what tasks share. architecture={architecture.name} has no trunk and "
            "shares nothing. Choose another architecture, or a weighting of the losses such as weighting=equal."
        )
    at = f"weighting={weighting.name} at weighting.level={weighting.level}"
    others = [level for level in weighting.levels if level != weighting.level]
    apart = weighting.takes_representations and architecture.has_representations
    if weighting.needs_bottleneck and not architecture.has_bottleneck and not apart:
        possible = ", ".join(architectures_with(lambda c: c.has_bottleneck))
        remedy = f", or weighting.level={others[0]}" if others else ""
        if weighting.takes_representations:  # then heads of different kinds are what stands in its way
            remedy = ", or one kind of head for all tasks: here some take maps and others vectors"
        raise UserError(
            f"{at} needs a bottleneck: an architecture in which all sharing passes through one tensor. "
            f"architecture={architecture.name} has none. Choose one of {possible}{remedy}."
        )
    if weighting.needs_bottleneck and not any(p.requires_grad for p in architecture.backbone.parameters()):
        remedy = f" or choose weighting.level={others[0]}" if others else ""
        raise UserError(
            f"{at} balances what the trunk learns, and the whole trunk is frozen. Lower backbone.frozen_stages{remedy}."
        )
    if not any(True for _ in architecture.shared_parameters()):
        raise UserError(
            f"{at} balances what tasks share, and nothing that trains is shared here. Lower backbone.frozen_stages, or "
            "choose a weighting of the losses such as equal."
        )


def refuse_averaging(architecture: Architecture, augmentation: str) -> None:
    """UserError for test-time augmentation of a network whose outputs cannot be averaged."""
    if augmentation != "none" and not architecture.can_be_averaged:
        raise UserError(
            f"test_time_augmentation={augmentation} averages outputs, and with architecture.combine=select a value "
            "belongs to the predicted class, which may be another in each position. Use test_time_augmentation=none."
        )


class MultiTaskModule(LightningModule):
    """Glue between the five answers of a configuration.

    `training_step` returns the vector of raw losses, float32 [T]; `backward` gives it to the weighting, so that
    Lightning's automatic optimization (precision, accumulation, clipping, schedulers, DDP) keeps working.

    Args:
        tasks: the dataset's tasks; metrics are computed on these, in the labels' units.
        architecture, weighting, losses, label_transform: the parts, built for the trained tasks.
        optimizer: (architecture, weighting) -> optimizer.
        scheduler: keyword arguments optimizer, total_steps, steps_per_epoch, monitor -> Lightning's scheduler dict or
            None.
        steps_per_epoch, total_steps: optimisation steps. Asked of the data module and not of
            `trainer.estimated_stepping_batches`, which keeps Lightning from restoring a loader's state.
        monitor: the metric that a plateau scheduler watches.
        test_time_augmentation: a key of `symmetries.SYMMETRIES`: what the outputs for test images are averaged over.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        architecture: Architecture,
        weighting: Weighting,
        losses: TaskLosses,
        label_transform: LabelTransform,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., dict[str, Any] | None],
        steps_per_epoch: int,
        total_steps: int,
        monitor: str,
        channels_last: bool = False,
        test_time_augmentation: str = "none",
    ) -> None:
        super().__init__()
        refuse_impossible(architecture, weighting)
        refuse_averaging(architecture, test_time_augmentation)
        self.tasks = tasks
        self.architecture = architecture.to(memory_format=torch.channels_last) if channels_last else architecture
        self.weighting = weighting
        self.losses = losses
        self.label_transform = label_transform
        self.val_metrics = TaskMetrics(tasks, "val/")
        self.test_metrics = TaskMetrics(tasks, "test/")
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.monitor = monitor
        self.channels_last = channels_last
        self.test_time_augmentation = test_time_augmentation
        self.finite = FiniteState()
        self.test_tables: dict[str, Any] = {}
        # DDP would send them from the first process to the others in every forward; all have the same.
        self._ddp_params_and_buffers_to_ignore = [f"weighting.{name}" for name in weighting.replicated]
        self._loss_sums: Tensor | None = None
        self._step: Step | None = None
        self.step_means = StepMeans(architecture.tasks.names)
        self.step_losses: Tensor | None = None
        self._resumed_means: dict[str, Any] = {}
        self._parameters_of_step: tuple[list[Any], list[Any], list[Any]] | None = None

    def forward(self, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normalised image [B, 3, H, W] -> (predictions {task: [B]}, class probabilities {task: [B, classes]}),
        both decoded to the dataset's tasks and units."""
        return self.decode(self._outputs(image))

    def decode(self, outputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trained, scores = self.losses.predictions(outputs), self.losses.scores(outputs)
        predictions = self.label_transform.decode(trained, scores)
        return imply(self.tasks, predictions), self.label_transform.decode_scores(scores, trained)

    def _layout(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=torch.channels_last) if self.channels_last else image

    def losses_of(self, batch: dict[str, Any]) -> Tensor:
        """The raw losses [T] of one forward pass; nothing is logged."""
        return self._forward(batch)[0]

    def _forward(self, batch: dict[str, Any]) -> tuple[Tensor, Shared]:
        target = self.label_transform.encode(batch["target"])
        shared = self.architecture(self._layout(batch["image"]), target)
        return self.losses(shared.outputs, target), shared

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses, shared = self._forward(batch)
        shared.extra_loss = self.losses.add_matching(shared.extra_loss, shared.outputs)
        seen = losses.detach()
        if shared.extra_loss is not None:  # with the tasks' losses, which it may spoil in the next step
            seen = torch.where(shared.extra_loss.detach().isfinite(), seen, torch.nan)
        self.finite.update(seen, batch["index"], self.global_step)
        accumulated = self.trainer.accumulate_grad_batches
        last = (batch_idx + 1) % accumulated == 0 or self.trainer.is_last_batch
        scale = self._fp16_scale(torch.ones((), device=losses.device))
        self._step = self.make_step(losses, shared, scale, accumulated, self.trainer.world_size, last)
        return losses

    def make_step(
        self, losses: Tensor, shared: Shared, scale: Tensor, accumulated: int = 1, world: int = 1, last: bool = True
    ) -> Step:
        """What the weighting gets to see of one forward pass."""
        all_shared, private, above = self._split_parameters()
        return Step(
            losses=losses,
            factor=scale / accumulated,
            scale=scale,
            shared=all_shared,
            private=private,
            above=above,
            bottleneck=shared.representations if shared.bottleneck is None else (shared.bottleneck,),
            extra=shared.extra_loss,
            world=world,
            last=last,
            guarded=getattr(self.trainer.precision_plugin, "scaler", None) is not None,
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The documented hook. `loss` comes divided by the accumulated batches and multiplied by the fp16 scale; the
        step holds the raw losses, because what a weighting computes must not depend on either."""
        step = self._step
        assert step is not None
        self._step = None
        applied = self.weighting.backward(step)
        self._log_step(step, applied)

    def _log_step(self, step: Step, applied: Applied) -> None:
        """Keep what the rows of the log are made of; a callback writes them (`mtlcar.runs.history`)."""
        self.step_losses = step.losses.detach()
        self.step_means.add(self.step_losses, applied, step.extra)

    def on_train_start(self) -> None:
        if self.trainer.is_global_zero:
            self.step_means.load_state_dict(self._resumed_means, self.device)
        self._resumed_means = {}
        self._begin_epoch()  # Lightning leaves the hook of an epoch out when it resumes within one

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._parameters_of_step = None  # a callback may have frozen or unfrozen some
        self.architecture.begin_epoch(self.current_epoch, self.trainer.max_epochs or 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # not in on_train_epoch_end: callbacks that write the epoch's row come before it
            self._log_means()

    def _log_means(self) -> None:
        means = self.step_means.take(self._add_up)
        if self.weighting.takes_gradients_apart or not self.weighting.constant:
            means["weighting/degenerate"] = self.weighting.degenerate.float()
        several = self.trainer.world_size > 1  # the values are those of all processes already
        for name, value in means.items():
            self.log(f"train/{name}", value.float(), prog_bar=name == "loss", logger=False, sync_dist=several)

    def _add_up(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        total = self.trainer.strategy.reduce(x, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _fp16_scale(self, one: Tensor) -> Tensor:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return one if scaler is None else scaler.scale(one)

    def _split_parameters(self) -> tuple[list[Any], list[Any], list[Any]]:
        if self._parameters_of_step is None:
            shared = list(dict.fromkeys(p for p in self.architecture.shared_parameters() if p.requires_grad))
            shared_ids = {id(p) for p in shared}
            trainable = [p for p in self.architecture.parameters() if p.requires_grad]
            self._parameters_of_step = (
                shared,
                [p for p in trainable if id(p) not in shared_ids],
                list(self.architecture.above_bottleneck()),
            )
        return self._parameters_of_step

    def _outputs(self, image: Tensor) -> dict[str, Tensor]:
        return self.architecture(self._layout(image)).outputs

    def _evaluate(self, batch: dict[str, Any], outputs: dict[str, Tensor], metrics: TaskMetrics) -> dict[str, Any]:
        target = batch["target"]
        encoded = self.label_transform.encode(target)
        counts = self.losses.counts(encoded)
        wide = exact(counts.device)
        sums = torch.stack([self.losses(outputs, encoded).to(wide) * counts, counts.to(wide)])
        self._loss_sums = sums if self._loss_sums is None else self._loss_sums + sums
        predictions, scores = self.decode(outputs)
        metrics.update(predictions, target, scores)
        return {"index": batch["index"], "target": target, "prediction": predictions, "scores": scores}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, self._outputs(batch["image"]), self.val_metrics)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        tasks = self.architecture.tasks
        outputs = averaged(self._outputs, batch["image"], tasks, self.test_time_augmentation)
        columns = self.label_transform.columns(self.losses.predictions(outputs))
        return {**self._evaluate(batch, outputs, self.test_metrics), "columns": columns}

    def on_validation_epoch_start(self) -> None:
        self._loss_sums = None
        # Lightning keeps the last value of a metric that an epoch does not have (no mistake: no severity), and a
        # resumed run would lack it.
        for name in [n for n in self.trainer.callback_metrics if n.startswith("val/")]:
            del self.trainer.callback_metrics[name]

    def on_test_epoch_start(self) -> None:
        self._loss_sums = None

    def on_validation_epoch_end(self) -> None:
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self.test_tables = self.test_metrics.tables()
        self._log_metrics(self.test_metrics)

    def _log_metrics(self, metrics: TaskMetrics) -> None:
        values = {**metrics.compute(), **self._mean_losses(metrics.prefix)}
        metrics.reset()
        # The values are those of all processes already; `sync_dist` only keeps Lightning from warning.
        several = self.trainer.world_size > 1
        numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
        # `Trainer.test` returns what it logs; the rows of a fit are written by a callback.
        self.log_dict(numbers, sync_dist=several, logger=None if metrics is self.test_metrics else False)

    def _mean_losses(self, prefix: str) -> dict[str, float]:
        """`<task>/loss` as means over the labelled images of all processes, and `loss`, their sum."""
        assert self._loss_sums is not None
        sums, counts = self.trainer.strategy.reduce(self._loss_sums, reduce_op="sum").tolist()
        names = self.architecture.tasks.names
        means = {f"{prefix}{n}/loss": s / c for n, s, c in zip(names, sums, counts, strict=True) if c}
        return {**means, f"{prefix}loss": sum(means.values())}

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.architecture, self.weighting)
        scheduler = self.make_scheduler(
            optimizer=optimizer,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            monitor=self.monitor,
        )
        if scheduler is None:
            return optimizer
        if "monitor" in scheduler:  # there is a new value only after a validation
            scheduler["frequency"] = self.trainer.check_val_every_n_epoch
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning looks at a monitored metric after the epoch's checkpoint is written, so that a run resumed from
        there would never hear of it. `on_train_epoch_end` does it before."""
        if metric is None:
            scheduler.step()

    def on_train_epoch_end(self) -> None:
        if (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1):
            return
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.scheduler.step(self.trainer.callback_metrics[self.monitor])  # type: ignore[call-arg, arg-type]

    def on_fit_start(self) -> None:
        # An epoch that a failed fit left unfinished is no part of this one.
        self.step_means = StepMeans(self.architecture.tasks.names)
        self.finite = FiniteState()
        strategy = self.trainer.strategy
        own = any(p.requires_grad for p in self.weighting.parameters())
        if own and isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters"):
            raise UserError(
                f"weighting={self.weighting.name} trains parameters outside the network's forward pass, which "
                "find_unused_parameters takes for unused. Use trainer.strategy=ddp: every trainable parameter is used."
            )
        if not self.weighting.takes_gradients_apart:
            return
        if self.weighting.level == "parameters" and not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(
                f"weighting={self.weighting.name} at weighting.level=parameters needs whole gradients on every device, "
                f"which {type(strategy).__name__} does not give. Use trainer.strategy=ddp, "
                "weighting.level=representation, or a weighting of the losses."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["step_means"] = self.step_means.state_dict(self._add_up)
        # The parts are modules of this one and callbacks of the trainer: the second copy of their state goes.
        for part in (self.weighting, self.label_transform):
            checkpoint.get("callbacks", {}).pop(part.state_key, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_means = checkpoint.get("step_means", {})

    def configure_callbacks(self) -> list[Callback]:
        return [self.weighting, self.label_transform]
