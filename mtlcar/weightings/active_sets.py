"""Quadratic programs of a few tasks: what mgda, cagrad and upgrad have in common.

Each asks for non-negative weights, so that an optimum is known once it is known which of them are positive, its
support. Up to `ENUMERATED` tasks all supports are solved at once by an elimination written out, on the device and
without waiting for it; the candidate that violates the conditions of optimality least is the answer. The conditions
are violated in proportion to the error of the weights, whereas an objective is flat at its optimum and could not tell
weights apart that differ by 1e-8. Candidates that fulfil the conditions equally well are averaged: the sets of optima
are convex, and no order of the tasks decides.

With more tasks an active-set method (Lawson & Hanson 1974) finds the support step by step, with a small ridge that
makes the optimum unique (`nonnegative`). It works on the CPU and waits for the device.
"""

import torch
from torch import Tensor

ENUMERATED = 8
"""Tasks up to which all supports are solved at once: 256 of them."""


def all_supports(tasks: int) -> Tensor:
    """bool [2^T, T]: every set of tasks, the empty one first; [0, T] where they are too many."""
    if tasks > ENUMERATED:
        return torch.zeros(0, tasks, dtype=torch.bool)
    return (torch.arange(2**tasks)[:, None] >> torch.arange(tasks)).bitwise_and(1).bool()


def rank_tolerance(tasks: int, eps: float) -> float:
    """Pivot, of a unit diagonal, up to which rows are dependent as far as the rounding of the Gramian lets one see."""
    return 4 * tasks * eps


def solve_supports(supports: Tensor, matrix: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Solve matrix_SS x_S = right_S for every support S, x = 0 outside of S.

    Args:
        supports: bool [M, T].
        matrix: [T, T] or [M, T, T], positive semidefinite, with a unit diagonal.
        right: [T, R] or [M, T, R].

    Returns:
        x [M, T, R], finite, and bool [M]: whether the rows of the support are independent (x is 0 where not).
    """
    tasks = supports.shape[1]
    eye = torch.eye(tasks, dtype=matrix.dtype, device=matrix.device)
    both = supports[:, :, None] & supports[:, None, :]
    system = torch.cat(
        [torch.where(both, matrix, eye), torch.where(supports[:, :, None], right, right.new_zeros(()))], 2
    )
    pivots = []
    for i in range(tasks):  # Gauss-Jordan; a semidefinite matrix needs no exchange of rows
        pivot = system[:, i, i]
        pivots.append(pivot)
        row = system[:, i] / torch.where(pivot > tolerance, pivot, 1.0)[:, None]
        system = torch.addcmul(system, (system[:, :, i] - eye[i])[:, :, None], row[:, None], value=-1)
    # A small pivot makes the rounding errors of the next ones larger by its inverse.
    smallest = torch.stack(pivots).topk(2, dim=0, largest=False).values
    regular = (smallest[0] > tolerance) & (smallest[0] * smallest[1] > 64 * torch.finfo(matrix.dtype).eps)
    return torch.where(regular[:, None, None], system[:, :, tasks:], 0.0), regular


def settled_order(norms: Tensor, cosines: Tensor) -> Tensor:
    """A permutation [T] that sorts the tasks by what their gradients are.

    Which candidates count as tied is decided at a threshold, and rounding differs between orders of the tasks: solved
    in one order of their own, permuted tasks get permuted weights there as well. Only tasks that keys do not tell
    apart keep the order they come in: identical ones, and those with the same norm and the same cosines to others
    that are themselves alike.
    """
    ranks = torch.arange(1, len(norms) + 1, device=norms.device).to(norms.dtype).sqrt()
    relative = norms / norms.amax().clamp(min=torch.finfo(norms.dtype).tiny)
    return ((cosines.sort(1).values * ranks).sum(1) + relative).argsort()


def least_violated(violation: Tensor, candidates: Tensor, tolerance: Tensor | float) -> Tensor:
    """violation [M, ...] (inf: no candidate), candidates [M, ..., T] -> the mean [..., T] of those within `tolerance`
    of the best; a best one that is itself inexact lets others in as inexact as that.

    The threshold makes a jump: of gradients that are within ~ 8 eps of being equal or opposed (cosines within 1e-6 of
    1 or -1 in float32) one more or less may be averaged, though the direction of the step hardly changes. No order
    of the tasks decides (`settled_order`)."""
    best = violation.amin(0)
    tied = (violation <= 4 * best + tolerance).to(candidates.dtype).unsqueeze(-1)
    return (tied * candidates).sum(0) / tied.sum(0)


def tie(eps: float, dtype: torch.dtype) -> float:
    """Violation, relative to the problem's scale, up to which two candidates count as equally good: what rounding does
    to the solution (float64) or did to the Gramian."""
    return max(4 * eps, 512 * torch.finfo(dtype).eps)


def ridge(tasks: int, eps: float) -> float:
    """Added to a unit diagonal: above the rounding of the Gramian, so that an optimum is unique."""
    return max(1e-9, tasks * eps)


def nonnegative(matrix: Tensor, right: Tensor, eps: float, rounds: int = 3) -> Tensor:
    """argmin over x >= 0 of x^T matrix x / 2 - right^T x, on the CPU; one of them that no order of the tasks decides.

    Args:
        matrix: [T, T], positive semidefinite up to rounding `eps`, with a unit diagonal.
        right: [T].
        rounds: of the proximal point method, each with the ridge around the last point: they take its influence
            away, to the power `rounds` where the optimum is unique. 1: the optimum with the ridge.
    """
    size = ridge(len(right), eps)
    stable = matrix + size * torch.eye(len(right), dtype=matrix.dtype)
    x = torch.zeros_like(right)
    for _ in range(rounds):
        x = _lawson_hanson(stable, right + size * x, x)
    return x


def _lawson_hanson(matrix: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """`nonnegative` for a positive definite matrix, from x >= 0."""
    tasks = len(right)
    positive = x > 0
    enough = 1e-14 * float(right.abs().max())
    for _ in range(5 * tasks):  # each pass lowers the objective, so that no support comes twice; T are usual
        while bool(positive.any()):
            target = torch.zeros_like(x)
            target[positive] = torch.linalg.solve(matrix[positive][:, positive], right[positive])
            blocking = positive & (target <= 0)
            if not bool(blocking.any()):
                x = target
                break
            steps = torch.where(blocking, x / (x - target).clamp(min=torch.finfo(x.dtype).tiny), torch.inf)
            step = steps.min()
            x = x + step * (target - x)
            positive &= steps > step
            x = torch.where(positive, x, 0.0)
        downhill = (right - matrix @ x).masked_fill(positive, -torch.inf)
        if float(downhill.max()) <= enough:
            break
        positive[downhill.argmax()] = True
    return x
