"""One network, one optimizer and one resident batch, through which any weighting can be driven."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.build import build_architecture, factory, make
from mtlcar.compiled import compile_network
from mtlcar.errors import UserError
from mtlcar.module import MultiTaskModule
from mtlcar.runs.memory import keep_freed_memory
from mtlcar.runs.training import make_trainer, quiet_lightning
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.base import Weighting

MAKES, MODELS = 49, 196
"""Classes of the made-up tasks: those of Stanford Cars."""


def made_up_tasks(n: int) -> TaskSet:
    """make, model, then regressions."""
    tasks = [
        Task("make", "classification", classes=tuple(f"make {i}" for i in range(MAKES))),
        Task("model", "classification", classes=tuple(f"model {i}" for i in range(MODELS)), parent="make"),
        *(Task(f"value_{i}", "regression") for i in range(n - 2)),
    ]
    return TaskSet(tasks, {"model": [i % MAKES for i in range(MODELS)]})


def made_up_batch(tasks: TaskSet, cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Random images and labels as the data module would give them, on the device."""
    n, size = cfg.data.batch_size, cfg.data.image_size
    target: dict[str, Tensor] = {}
    for task in tasks:
        drawn = torch.randint(len(task.classes), (n,)) if task.classes else torch.randn(n)
        target[task.name] = drawn.to(device)
    return {
        "image": torch.randn(n, 3, size, size).to(device),
        "target": target,
        "index": torch.arange(n, device=device),
    }


class StandIn:
    """A trainer that never fits: the counters are its own, everything else is the trainer's that a run would have."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.global_step = 0
        self.current_epoch = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class Rig:
    """What all candidates of a comparison share.

    Args:
        cfg: composed and finished; its data group gives sizes only, nothing is read.
        tasks: the number of made-up tasks.
    """

    def __init__(self, cfg: DictConfig, tasks: int) -> None:
        self._begin(cfg)
        dataset_tasks = made_up_tasks(tasks)
        self.label_transform = make(cfg.label_transform, tasks=dataset_tasks)
        self.architecture: Architecture = build_architecture(cfg, self.label_transform.encoded_tasks(dataset_tasks))
        self.tasks = self.architecture.tasks
        if len(self.tasks) != tasks:
            raise UserError(f"architecture={cfg.architecture.name} trains {len(self.tasks)} of {tasks} tasks only.")
        self.batch = made_up_batch(dataset_tasks, cfg, self.device)
        module = MultiTaskModule(
            tasks=dataset_tasks,
            architecture=self.architecture,
            weighting=make(cfg.weighting, tasks=self.tasks),
            losses=make(cfg.loss, tasks=self.tasks),
            label_transform=self.label_transform,
            optimizer=factory(cfg.optimizer),
            scheduler=factory(cfg.scheduler),
            steps_per_epoch=1,
            total_steps=1,
            monitor="val/loss",
            channels_last=cfg.trainer.channels_last,
        )
        self._hold(module)

    def _begin(self, cfg: DictConfig) -> None:
        """The trainer that a run would have, and with it the device."""
        quiet_lightning()
        torch.manual_seed(cfg.seed)
        self.cfg = cfg
        try:
            self.trainer = make_trainer(cfg, [], [], Path())
        except (TypeError, ValueError) as error:
            raise UserError(f"trainer={cfg.trainer.name}: {error}") from error
        if self.trainer.world_size > 1:
            raise UserError("mtlcar bench measures one process: use trainer.devices=1.")
        self.device = self.trainer.strategy.root_device

    def _hold(self, module: MultiTaskModule) -> None:
        """The module on the device, ready to be trained."""
        self.module = module.to(self.device)
        self.module.train()
        if self.cfg.trainer.compile:
            compile_network(module.architecture, Path(self.cfg.paths.cache), self.cfg.trainer.compile)
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None  # type: ignore[assignment,method-assign]
        self.optimizer: torch.optim.Optimizer | None = None

    def finish(self, own: Sequence[nn.Module]) -> None:
        """The one optimizer, of the network and of every candidate's own parameters: those without a gradient in a
        step are passed over."""
        self.optimizer = make(self.cfg.optimizer, architecture=self.architecture, weighting=nn.ModuleList(own))

    def update(self) -> None:
        """The end of a step; the gradients go, so that every candidate clears up what it made."""
        assert self.optimizer is not None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.clear()

    def clear(self) -> None:
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def check_finite(self) -> None:
        found = self.module.finite.read(self.tasks.names)
        if found is not None:
            raise UserError(f"The figures would mean nothing: {found}. Use a lower optimizer.lr or trainer.precision.")


class Driven:
    """A training step under one weighting, by the module itself and with the weighting's hooks."""

    def __init__(self, rig: Rig, weighting: Weighting) -> None:
        self.rig = rig
        self.weighting = weighting
        self.trainer: Any = StandIn(rig.trainer)

    def __call__(self) -> None:
        rig, weighting, trainer, module = self.rig, self.weighting, self.trainer, self.rig.module
        module.weighting = weighting
        module.trainer = trainer
        n = trainer.global_step
        weighting.on_train_batch_start(trainer, module, rig.batch, n)
        with trainer.precision_plugin.train_step_context():
            losses = module.training_step(rig.batch, n)
        module.backward(losses)
        rig.update()
        trainer.global_step += 1
        weighting.on_train_batch_end(trainer, module, losses, rig.batch, n)

    def epoch(self) -> None:
        """An epoch of one step, for what a method does when one begins or ends."""
        self.rig.module.trainer = self.trainer
        self.weighting.on_train_epoch_start(self.trainer, self.rig.module)
        self()
        self.weighting.on_train_epoch_end(self.trainer, self.rig.module)
        self.trainer.current_epoch += 1


@contextmanager
def settings(threads: int) -> Iterator[None]:
    """The settings of a run; torch's are put back at the end."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
