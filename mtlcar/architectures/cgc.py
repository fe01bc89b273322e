"""Customized gate control: experts common to all tasks, and experts of each task's own."""

from collections.abc import Mapping

from mtlcar.architectures.experts import OneLevel, checked_number
from mtlcar.architectures.gates import GateInput
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError, did_you_mean
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class CGC(OneLevel):
    """z_t = sum over e in S and P_t of g_te(x) f_e(x), g_t(x) = softmax(W_t x + b_t), y_t = head_t(z_t): experts S that
    every task reads, experts P_t that only task t reads, and a gate a task over both (Tang et al. 2020, RecSys,
    "Progressive layered extraction (PLE)", section 4.1).

    f_e is what the head takes of expert e: its last map [B, D, H, W], or the vector [B, D] that it pools from it. The
    stem and S are shared; the private experts and the gates are private, except that all of them send gradient into
    the stem. The experts are ordered S, P_1, ..., P_T, and a gate's outputs S, P_t.

    Departures. Tang 2020 has fully connected experts and gates that read the input vector; see `MMoE` for how these
    become trunks and what the gates read. LibMTL's class is share_until=0, gate=image.

    Args:
        shared_experts: how many experts S has, at least 1.
        task_experts: how many P_t has: one number for all, or task -> number, 1 for a task not named. A task may have
            none if there are at least two shared ones; where none has, this is `MMoE`.
        share_until, gate: see `MMoE`.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "cgc",
        shared_experts: int = 1,
        task_experts: int | Mapping[str, int] = 1,
        share_until: int = 1,
        gate: GateInput = "stem",
    ) -> None:
        super().__init__(
            tasks=tasks,
            backbone=backbone,
            head=head,
            name=name,
            reads=shared_and_own(tasks, shared_experts, task_experts),
            share_until=share_until,
            gate=gate,
        )


def shared_and_own(tasks: TaskSet, shared_experts: int, task_experts: int | Mapping[str, int]) -> list[list[int]]:
    """Per task the numbers of the experts that it reads: 0..S-1 and its own.

    Raises:
        UserError: numbers too small, or a task that there is not.
    """
    shared = checked_number(
        "shared_experts", shared_experts, 1, "With no expert in common the tasks share at most the stem."
    )
    given = dict(task_experts) if isinstance(task_experts, Mapping) else dict.fromkeys(tasks.names, task_experts)
    for task in given:
        if task not in tasks.names:
            raise UserError(
                f"architecture.task_experts names {task!r}, which is no task here.{did_you_mean(task, tasks.names)} "
                f"There are: {', '.join(tasks.names)}."
            )
    reads: list[list[int]] = []
    first = shared
    for task in tasks.names:
        key = f"task_experts.{task}" if isinstance(task_experts, Mapping) else "task_experts"
        least = 0 if shared > 1 else 1
        hint = "A task without an expert of its own needs two shared ones: its gate weighs at least two."
        own = checked_number(key, given.get(task, 1), least, hint if least else "")
        reads.append([*range(shared), *range(first, first + own)])
        first += own
    return reads
