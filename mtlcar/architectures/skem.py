"""KEM on features that lie in the span of a simplex."""

import math

import torch
from torch import Tensor

from mtlcar.architectures.kem import KEM
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.heads.base import HeadFactory
from mtlcar.options import whole
from mtlcar.tasks import TaskSet

SEED = 0
"""Of the frame: the same in every run, whatever the run's seed."""


def simplex_frame(width: int, vertices: int) -> Tensor:
    """M = sqrt(K / (K - 1)) U (I - 1 1^T / K), float32 [d, K], U^T U = I: K unit vectors in d >= K dimensions with the
    cosine -1 / (K - 1) between any two (a simplex equiangular tight frame; Papyan et al. 2020, arXiv 2008.08186).

    U is the Q of a Gaussian matrix, drawn on the CPU from a fixed seed.
    """
    generator = torch.Generator("cpu").manual_seed(SEED)
    gaussian = torch.randn(width, vertices, generator=generator, dtype=torch.float64, device="cpu")
    u = torch.linalg.qr(gaussian).Q
    frame = math.sqrt(vertices / (vertices - 1)) * (u - u.mean(1, keepdim=True))
    return frame.float()


def project(x: Tensor, frame: Tensor) -> Tensor:
    """((K - 1) / K) x M M^T, [..., d] -> [..., d].

    M M^T = K / (K - 1) U (I - 1 1^T / K) U^T, so with the constant this is the orthogonal projector on the span of the
    vertices, of rank K - 1. Taken as two products of width K: [d, d] is never formed.
    """
    vertices = frame.shape[1]
    return (vertices - 1) / vertices * (x @ frame) @ frame.mT


class SKEM(KEM):
    """KEM with F <- ((K - 1) / K) LN(F) M M^T before the exchange (stable KEM; arXiv 2410.03778), M the frame of K
    vertices, the shape to which the last features of a classifier of K classes collapse.

    The projector is fixed and common to all tasks; what the heads read is F + w_r F^ of the projected F, so without the
    exchange they see K - 1 dimensions. From the paper: that features are projected so before KEM, to steady what it
    selects. Ours: K of the finest classification, LN without a scale and shift (the maps around it are trained), U
    drawn once from a fixed seed and kept in the checkpoint, and what `KEM` says of itself.

    Args:
        vertices: K, 2 to d; None: the number of classes of the finest classification.
        width, slots, top_k, broadcast, beta: see `KEM`; width is at least K.
    """

    frame: Tensor

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "skem",
        width: int | None = 256,
        vertices: int | None = None,
        slots: int = 8,
        top_k: int = 8,
        broadcast: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__(
            tasks=tasks,
            backbone=backbone,
            head=head,
            name=name,
            width=width,
            slots=slots,
            top_k=top_k,
            broadcast=broadcast,
            beta=beta,
        )
        finest = tasks.finest()
        if vertices is None and not finest.classes:
            raise UserError(
                "architecture.vertices=null takes the number of classes of the finest classification, and there is "
                "none among the tasks. Give a number, or use architecture=kem."
            )
        chosen = len(finest.classes) if vertices is None else whole("architecture.vertices", vertices, least=2)
        if self.width < chosen:
            raise UserError(
                f"architecture.width should be at least the {chosen} vertices of the simplex "
                f"({'architecture.vertices' if vertices is not None else f'classes of {finest.name}'}). "
                f"Found {self.width}: raise architecture.width, or lower architecture.vertices."
            )
        frame = simplex_frame(self.width, chosen)
        self.register_buffer("frame", torch.empty(frame.shape).copy_(frame))  # on the device that is being built on

    def task_tokens(self, last: Tensor) -> list[Tensor]:
        own = super().task_tokens(last)
        return [project(torch.nn.functional.layer_norm(x, (self.width,)), self.frame) for x in own]
