"""Other libraries' weightings on our network, batch and optimizer, for `mtlcar bench weightings --peers`.

LibMTL's classes get what its trainer would give them, TorchJD's aggregators what its `mtl_backward` gives them. Both
are measured as they are, with their own default settings.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlcar.architectures.common import as_output, represent
from mtlcar.architectures.parallel import Parallel
from mtlcar.bench.rig import Rig
from mtlcar.bench.weightings import Candidate, Say
from mtlcar.build import make
from mtlcar.errors import UserError

LIBMTL_OPTIONS: dict[str, dict[str, Any]] = {
    "DWA": {"T": 2.0},
    "GradNorm": {"alpha": 1.5},
    "MGDA": {"mgda_gn": "none"},
    "GradVac": {"beta": 0.5},
    "GradDrop": {"leak": 0.0},
    "CAGrad": {"calpha": 0.5, "rescale": 1},
    "RLW": {"dist": "Normal"},
}
"""The defaults of LibMTL.config."""
LIBMTL_OF_LOSSES = ("EW", "UW", "DWA", "GLS", "RLW")
TORCHJD_BASES = ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator")


def peer_candidates(rig: Rig, say: Say) -> list[Candidate]:
    """Every method of the libraries that can be imported.

    Raises:
        UserError: none can, or the architecture is not theirs.
    """
    if not isinstance(rig.architecture, Parallel):
        raise UserError("--peers compares on hard parameter sharing: use architecture=parallel.")
    found: list[Candidate] = []
    libraries = 0
    kinds: tuple[tuple[str, Callable[[ModuleType, Rig, Say], Iterator[Candidate]]], ...] = (
        ("LibMTL.weighting", libmtl),
        ("torchjd.aggregation", torchjd),
    )
    for name, candidates in kinds:
        try:
            if name.startswith("LibMTL"):
                without_init("LibMTL")
            library = importlib.import_module(name)
        except ImportError as error:
            say(f"left out: {name}: {error}")
            continue
        libraries += 1
        found += candidates(library, rig, say)
    if not libraries:
        raise UserError("--peers found neither LibMTL nor TorchJD: install them, or put them on PYTHONPATH.")
    return found


def without_init(package: str) -> None:
    """Let a package's modules be imported without its `__init__`: LibMTL's imports all of its networks, and these parts
    of torchvision that are no longer there."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is not None:
        bare = ModuleType(package)
        bare.__spec__ = spec
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = bare


class Network:
    """Our network as the libraries see one: a trunk, then a head a task."""

    def __init__(self, rig: Rig) -> None:
        assert isinstance(rig.architecture, Parallel)
        self.rig = rig
        self.architecture: Any = rig.architecture
        self.shared = [p for p in rig.architecture.shared_parameters() if p.requires_grad]
        self.private = [[p for p in head.parameters() if p.requires_grad] for head in self.architecture.heads]
        self.losses = [make(rig.cfg.loss, tasks=rig.tasks.subset([t.name])).to(rig.device) for t in rig.tasks]

    def trunk(self) -> Tensor:
        image = self.rig.module._layout(self.rig.batch["image"])
        return represent(self.architecture.backbone, self.architecture.heads[0], self.architecture.backbone(image)[-1])

    def loss(self, i: int, features: Tensor) -> Tensor:
        """The loss of task i, a scalar with a graph of its own above the features."""
        task, head = self.rig.tasks[i], self.architecture.heads[i]
        output = as_output(task, head.output(head.hidden(head.input_dropout(features))))
        target = self.rig.label_transform.encode(self.rig.batch["target"])
        found: Tensor = self.losses[i]({task.name: output}, target)[0]
        return found


def libmtl(library: ModuleType, rig: Rig, say: Say) -> Iterator[Candidate]:
    """LibMTL's classes; those of gradients at the parameters and (`rep_grad`) at the representation."""
    network = Network(rig)
    for name in library.__all__:
        if name == "AbsWeighting":
            continue
        levels = ("loss",) if name in LIBMTL_OF_LOSSES else ("parameters", "representation")
        for level in levels:
            driver = libmtl_driver(getattr(library, name), network, level == "representation")
            step = libmtl_step(driver, network, LIBMTL_OPTIONS.get(name, {}))
            yield Candidate(f"libmtl:{name}", level, step, step, driver)


def libmtl_driver(method: Any, network: Network, at_representation: bool) -> nn.Module:
    """What LibMTL's trainer makes of a method and an architecture (its `HPS`)."""

    class Driver(method):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.task_name = list(network.rig.tasks.names)
            self.task_num = len(self.task_name)
            self.device = network.rig.device
            self.rep_grad = at_representation
            self.epoch = 2  # past the first epochs, in which GradNorm and DWA do nothing yet
            self.train_loss_buffer = np.ones((self.task_num, 3))
            self.rep: dict[str, Tensor] = {}
            self.rep_tasks: dict[str, Tensor] = {}
            self.init_param()

        def get_share_params(self) -> Iterator[nn.Parameter]:
            return iter(network.shared)

        def zero_grad_share_params(self) -> None:
            # As torch 1 did. To None, as torch 2 does, LibMTL 1.1.5 cannot take it: it writes into `.grad`.
            for p in network.shared:
                if p.grad is not None:
                    p.grad.zero_()

    return Driver()


def libmtl_step(driver: Any, network: Network, options: dict[str, Any]) -> Callable[[], None]:
    rig = network.rig

    def step() -> None:
        with rig.trainer.precision_plugin.train_step_context():
            features = network.trunk()
            losses = torch.zeros(len(rig.tasks), device=rig.device)
            for i, task in enumerate(rig.tasks):
                seen = features
                if driver.rep_grad:
                    driver.rep[task.name] = features
                    seen = driver.rep_tasks[task.name] = features.detach().clone().requires_grad_()
                losses[i] = network.loss(i, seen)
        driver.backward(losses, **options)
        rig.update()
        driver.rep.clear()
        driver.rep_tasks.clear()

    return step


def torchjd(library: ModuleType, rig: Rig, say: Say) -> Iterator[Candidate]:
    """TorchJD's aggregators behind `mtl_backward` and `jac_to_grad`."""
    autojac = importlib.import_module("torchjd.autojac")
    network = Network(rig)
    n = len(rig.tasks)
    options: dict[str, dict[str, Any]] = {
        "CAGrad": {"c": 0.5},
        "FairGrad": {"alpha": 1.0},
        "NashMTL": {"n_tasks": n},
        "Constant": {"weights": torch.ones(n, device=rig.device)},
    }
    for name in sorted(vars(library)):
        cls = getattr(library, name)
        if name in TORCHJD_BASES or not isinstance(cls, type) or not issubclass(cls, library.Aggregator):
            continue
        try:
            aggregator = cls(**options.get(name, {}))
        except Exception as error:  # no solver; an argument that only a user can choose
            say(f"left out: torchjd:{name}: {str(error).splitlines()[0]}")
            continue
        step = torchjd_step(autojac, aggregator, network)
        yield Candidate(f"torchjd:{name}", "parameters", step, step, nn.Module())


def torchjd_step(autojac: ModuleType, aggregator: nn.Module, network: Network) -> Callable[[], None]:
    rig = network.rig

    def step() -> None:
        with rig.trainer.precision_plugin.train_step_context():
            features = network.trunk()
            losses = [network.loss(i, features) for i in range(len(rig.tasks))]
        autojac.mtl_backward(losses, features=features, tasks_params=network.private, shared_params=network.shared)
        autojac.jac_to_grad(network.shared, aggregator)
        rig.update()

    return step
