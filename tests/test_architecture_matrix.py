"""Every architecture, trunk and kind of head take a step under a weighting of each kind, or are refused with the reason
and with what would do."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mtlcar.bench.rig import Driven, Rig, settings
from mtlcar.bench.step import with_architecture
from mtlcar.build import make
from mtlcar.config import compose_config, conf_dir, finish, groups
from mtlcar.errors import UserError
from mtlcar.module import refuse_impossible
from mtlcar.runs.training import make_trainer
from tests.networks import node
from tests.test_build import cache as data_cache  # noqa: F401  (a fixture)
from tests.test_build import parts

ARCHITECTURES = [n for n in groups()["architecture"] if n not in ("single", "constant")]  # which share nothing
HEADS = {
    "linear": ("head=linear",),
    "mlp": ("head=mlp", "head.hidden=8"),
    "conv": ("head=conv", "head.hidden=8"),
    "mixed": ("head=per_task", "head.kinds={make:conv,model:mlp}", "head.options={make:{hidden:8},model:{hidden:8}}"),
}
TRUNKS = {
    "tiny": ("backbone=tiny", "data.image_size=32"),
    "vit_tiny": ("backbone=vit_tiny", "data.image_size=32"),
    "resnet18": ("backbone=resnet18", "data.image_size=64"),
    "convnext": ("backbone=efficientnet_lite0", "backbone.model=convnext_atto", "data.image_size=64"),
    "swin": ("backbone=swin_t", "data.image_size=64"),
}
# A library's stages are those of `tiny` to an architecture: quick are one with a trunk, the one that looks into stages,
# one with a trunk a task, one that takes stages apart, and one that reads positions. All others are slow.
LARGE = {"resnet18": ("mtan",), "convnext": ("parallel", "mtan", "cross_stitch", "mmoe", "kem")}
FEW = ("data.batch_size=4", "trainer=cpu", "threads=1")
# Of each kind: functions of the losses, of the Gramian at both levels, more than the Gramian at both.
WEIGHTINGS = (
    ("weighting=uncertainty",),
    ("weighting=cagrad", "weighting.level=parameters"),
    ("weighting=cagrad", "weighting.level=representation"),
    ("weighting=moco",),
    ("weighting=graddrop",),
)


FEW_WEIGHTINGS = (WEIGHTINGS[0], WEIGHTINGS[1], WEIGHTINGS[4])
"""On further trunks: what the losses, the shared parameters and the representations or the bottleneck come to."""


def cases() -> list[object]:
    found = []
    for trunk in TRUNKS:
        for head in HEADS:
            for a in ARCHITECTURES:
                quick = trunk == "tiny" or (head == "mixed" and (trunk == "vit_tiny" or a in LARGE.get(trunk, ())))
                marks = () if quick else (pytest.mark.slow,)
                found.append(pytest.param(a, trunk, head, id=f"{a}-{trunk}-{head}", marks=marks))
    return found


@cache  # composing takes longer than a step
def composed(*words: str) -> DictConfig:
    return finish(compose_config(list(words)))


def rig_of(architecture: str, *words: str) -> Rig:
    narrow = {"kem": {"width": 16}, "skem": {"width": 16, "vertices": 8}, "cross_attention": {"width": 16}}
    rig = Rig(
        with_architecture(composed(*words), node("architecture", architecture, **narrow.get(architecture, {}))), 2
    )
    rig.finish([])
    return rig


@pytest.mark.parametrize(("architecture", "trunk", "head"), cases())
def test_every_pair_takes_a_step_or_says_why_not(architecture: str, trunk: str, head: str) -> None:
    taken = []
    with settings(1):
        rig = rig_of(architecture, *TRUNKS[trunk], *HEADS[head], *FEW)
        network = rig.architecture
        for overrides in WEIGHTINGS if trunk == "tiny" else FEW_WEIGHTINGS:
            weighting = make(composed(*overrides).weighting, tasks=rig.tasks)
            possible = network.has_bottleneck or (weighting.name == "graddrop" and network.has_representations)
            if weighting.needs_bottleneck and not possible:
                with pytest.raises(UserError, match=r"architecture=\w+ has none. Choose one of \w+"):
                    refuse_impossible(network, weighting)
                continue
            assert without_gradient(rig, weighting) == [], overrides
            taken.append(weighting.name)
    assert taken[:2] == ["uncertainty", "cagrad"]


def grid_of_paper_b() -> dict[str, list[str]]:
    params = OmegaConf.load(conf_dir() / "experiment" / "paper_b" / "grid.yaml").hydra.sweeper.params
    return {key: str(values).split(",") for key, values in params.items()}


@pytest.mark.parametrize("head", grid_of_paper_b()["head"])
@pytest.mark.parametrize("architecture", grid_of_paper_b()["architecture"])
def test_every_cell_of_paper_bs_grid_takes_a_step(architecture: str, head: str) -> None:
    words = ("experiment=paper_b/grid", *TRUNKS["tiny"], *FEW, "backbone.pretrained=false")
    with settings(1):
        rig = rig_of(architecture, *words, *HEADS[head])
        for name in grid_of_paper_b()["weighting"]:
            weighting = make(composed(*words, f"weighting={name}").weighting, tasks=rig.tasks)
            refuse_impossible(rig.architecture, weighting)
            assert without_gradient(rig, weighting) == [], name


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(
    ("architecture", "weighting", "precision"),
    [
        ("cross_stitch", "equal", "32-true"),
        ("cross_stitch", "pcgrad", "32-true"),
        ("cross_stitch", "graddrop", "32-true"),
        ("mtan", "equal", "bf16-mixed"),
        ("mtan", "pcgrad", "bf16-mixed"),
        ("mtan", "graddrop", "32-true"),
    ],
)
def test_training_moves_every_parameter(
    data_cache: Path,  # noqa: F811
    architecture: str,
    weighting: str,
    precision: str,
) -> None:
    """Also where gradients are taken apart, which leaves LibMTL's masks untrained."""
    chosen = (f"architecture={architecture}", f"weighting={weighting}", f"trainer.precision={precision}")
    fixed = ("data.levels=[make,model,weight]", "optimizer=sgd", "optimizer.lr=0.1", "scheduler=constant",
             "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")  # fmt: skip
    cfg, built = parts(data_cache, *fixed, *chosen)
    before = {n: p.detach().clone() for n, p in built.module.architecture.named_parameters()}
    make_trainer(cfg, [], [], data_cache).fit(built.module, datamodule=built.data, weights_only=True)
    after: dict[str, Any] = dict(built.module.architecture.named_parameters())
    assert [n for n, p in before.items() if torch.equal(p, after[n])] == []
    assert all(p.isfinite().all() for p in after.values())


def without_gradient(rig: Rig, weighting: nn.Module) -> list[str]:
    """The trainable parameters of the network that a step gives no finite gradient."""
    bad: list[str] = []

    def look() -> None:
        trained = ((n, p) for n, p in rig.architecture.named_parameters() if p.requires_grad)
        bad.extend(n for n, p in trained if p.grad is None or not bool(p.grad.isfinite().all()))
        rig.clear()

    rig.update = look  # type: ignore[method-assign]
    Driven(rig, weighting)()  # type: ignore[arg-type]
    return bad
