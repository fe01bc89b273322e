"""The last steps that all backbones share: cut, load, freeze."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from mtlcar.backbones.cut import CutBackbone, cut
from mtlcar.backbones.weights import load_weights, read_weights
from mtlcar.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def assemble(
    network: nn.Module,
    *,
    name: str,
    own_mean: Sequence[float],
    own_std: Sequence[float],
    download: Callable[[], Mapping[str, Tensor]] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    frozen_stages: int = 0,
    checkpointing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> CutBackbone:
    """A library's network -> StagedBackbone.

    Args:
        own_mean, own_std: the normalisation the library's weights expect; `mean` and `std` override it.
        download: gives the ImageNet weights; None where there are none.
        pretrained: start from ImageNet weights, downloaded by the library.
        weights: a local safetensors or state_dict file; goes before `pretrained`, so that an experiment written for
            a machine with a network runs on one without.
        frozen_stages, checkpointing: see `CutBackbone`.
    """
    backbone = CutBackbone(
        cut(network),
        mean=own_mean if mean is None else mean,
        std=own_std if std is None else std,
        frozen_stages=frozen_stages,
        checkpointing=checkpointing,
    )
    if weights is not None:
        path = Path(weights).expanduser()
        load_weights(network, backbone, read_weights(path), f"backbone.weights={path}")
    elif pretrained:
        if download is None:
            raise UserError(f"backbone={name} has no ImageNet weights. Set backbone.pretrained=false.")
        try:
            state = download()
        except Exception as error:  # each library raises its own kinds, not all of them OSErrors
            raise UserError(
                f"backbone={name} backbone.pretrained=true: the ImageNet weights could not be downloaded "
                f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}).\n"
                "Without a network give a local file: backbone.weights=<path of a safetensors or state_dict file>."
            ) from error
        load_weights(network, backbone, state, f"the ImageNet weights of {name}")
    return backbone


def at_least(image_size: int, smallest: int, name: str) -> None:
    """UserError where the last map would vanish."""
    if image_size < smallest:
        raise UserError(f"backbone={name} needs data.image_size of at least {smallest} px. Found {image_size}.")


def multiple_of(image_size: int, step: int, name: str) -> None:
    """UserError naming the nearest sizes that do work, where the network divides the image into `step` px."""
    if image_size < 1 or image_size % step:
        below = image_size // step * step
        sizes = " or ".join(str(s) for s in (below, below + step) if s > 0)
        raise UserError(
            f"backbone={name} needs data.image_size to be a multiple of {step} px. Found {image_size}; use {sizes}."
        )
