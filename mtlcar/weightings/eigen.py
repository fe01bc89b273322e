"""Eigenvalues of a small symmetric matrix, without waiting for the device."""

import torch
from torch import Tensor

SWEEPS = 6


def symmetric_eigen(a: Tensor) -> tuple[Tensor, Tensor]:
    """a [T, T] symmetric -> eigenvalues [T], in no order, and V [T, T] with a = V^T diag(s) V: a row a vector.

    T <= 4: Jacobi's rotations, a fixed number of sweeps. For the Gramian of gradients of very different length they
    find small eigenvalues to a relative precision that LAPACK's routines (here for T > 4) do not have: the error
    depends on the condition of the cosines, not of the Gramian (Demmel & Veselic 1992).
    """
    tasks = len(a)
    if tasks > 4:
        values, vectors = torch.linalg.eigh(a)
        return values, vectors.mT
    # Round k of a sweep turns index i against i xor k: all pairs of 0..3 in three rounds, two at a time. With three
    # tasks one index of each round has no partner, hence an empty row.
    index = torch.arange(tasks, device=a.device)
    partner = torch.bitwise_xor(index, torch.arange(1, 4 if tasks > 2 else 2, device=a.device)[:, None])
    pairs = (partner[..., None] == index).to(a.dtype)
    # Decides the sense of rotation where both diagonal elements agree; nothing next to any other difference.
    order = (2 * (partner > index).to(a.dtype) - 1) * torch.finfo(a.dtype).tiny
    eye = torch.eye(tasks, dtype=a.dtype, device=a.device)
    vectors = eye
    rounds = list(zip(pairs.unbind(), order.unbind(), strict=True))
    for _ in range(SWEEPS):
        for pair, sense in rounds:
            # Symmetric and antisymmetric in i and its partner to the last bit, or the rotation would not be one.
            twice = ((a + a.mT) * pair).sum(1)
            apart = (pair @ a.diagonal() - a.diagonal()) + sense
            t = twice / (apart + torch.copysign(torch.hypot(apart, twice), apart))
            c = torch.rsqrt(1 + t * t)
            turn = torch.addcmul(c[:, None] * eye, (-t * c)[:, None], pair)
            a = turn @ a @ turn.mT
            vectors = turn @ vectors
    return a.diagonal(), vectors
