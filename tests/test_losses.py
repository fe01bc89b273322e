"""Losses: values, missing labels, precision, and the mean over all ranks."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, multiprocessing
from torch.nn import functional as F

from mtlcar.errors import UserError
from mtlcar.losses import TaskLosses
from mtlcar.tasks import Task, TaskSet

TASKS = TaskSet(
    [
        Task("make", "classification", classes=("a", "b", "c")),
        Task("hardness", "regression", unit="HV"),
        Task("model", "classification", classes=tuple("pqrst"), parent="make"),
    ],
    {"model": (0, 0, 1, 1, 2)},
)
NAN = float("nan")


def example(size: int, seed: int = 0, missing: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    outputs = {
        "make": torch.randn(size, 3, generator=g),
        "hardness": torch.randn(size, generator=g),
        "model": torch.randn(size, 5, generator=g),
    }
    low = -1 if missing else 0
    hardness = 700 + 300 * torch.randn(size, generator=g)
    if missing:
        hardness[torch.rand(size, generator=g) < 0.4] = NAN
    targets = {
        "make": torch.randint(low, 3, (size,), generator=g),
        "hardness": hardness,
        "model": torch.randint(low, 5, (size,), generator=g),
    }
    return {k: v.requires_grad_() for k, v in outputs.items()}, targets


def fitted(**options: object) -> TaskLosses:
    return TaskLosses(TASKS, **options).fit({"hardness": torch.tensor([400.0, 1000.0, NAN])})  # type: ignore[arg-type]


def test_losses_equal_the_hand_computation() -> None:
    losses = fitted()
    outputs = {
        "make": torch.tensor([[0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]]),
        "hardness": torch.tensor([0.0, 1.0]),
        "model": torch.zeros(2, 5),
    }
    targets = {"make": torch.tensor([1, 0]), "hardness": torch.tensor([700.0, 400.0]), "model": torch.tensor([4, -1])}
    # mean 700, std 300: the second error is 1 - (-1) = 2 deviations
    expected = [(math.log(3) + math.log(2)) / 2, (0.0 + 4.0) / 2, math.log(5)]
    torch.testing.assert_close(losses(outputs, targets), torch.tensor(expected))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("regression", ["mse", "huber"])
def test_losses_and_gradients_equal_torch_on_the_labelled_images(label_smoothing: float, regression: str) -> None:
    losses = fitted(label_smoothing=label_smoothing, regression=regression, huber_delta=0.7)
    outputs, targets = example(40)
    found = losses(outputs, targets)
    found.sum().backward()
    twins = {k: v.detach().clone().requires_grad_() for k, v in outputs.items()}
    ok = ~targets["hardness"].isnan()
    scaled = (targets["hardness"][ok] - 700) / 300
    expected = [F.cross_entropy(twins["make"], targets["make"], ignore_index=-1, label_smoothing=label_smoothing)]
    if regression == "mse":
        expected.append(F.mse_loss(twins["hardness"][ok], scaled))
    else:
        expected.append(F.huber_loss(twins["hardness"][ok], scaled, delta=0.7))
    # Smoothing must not reach images without a label: torch is asked about the labelled ones alone.
    has = targets["model"] >= 0
    expected.append(F.cross_entropy(twins["model"][has], targets["model"][has], label_smoothing=label_smoothing))
    torch.testing.assert_close(found, torch.stack(expected))
    torch.stack(expected).sum().backward()
    for name, output in outputs.items():
        torch.testing.assert_close(output.grad, twins[name].grad)


def test_smoothed_cross_entropy_equals_its_definition_with_missing_labels() -> None:
    outputs, targets = example(20, seed=3)
    log_p = outputs["make"].detach().log_softmax(1)
    rows = [
        -sum((0.9 * (c == y) + 0.1 / 3) * float(log_p[i, c]) for c in range(3))
        for i, y in enumerate(targets["make"].tolist())
        if y >= 0
    ]
    found = fitted(label_smoothing=0.1)(outputs, targets).tolist()
    assert found[0] == pytest.approx(sum(rows) / len(rows), rel=1e-5)


@pytest.mark.parametrize("regression", ["mse", "huber"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_task_without_labels_gives_zero_with_zero_gradients(label_smoothing: float, regression: str) -> None:
    losses = fitted(label_smoothing=label_smoothing, regression=regression)
    outputs, targets = example(6)
    targets = {k: torch.full_like(v, NAN if v.is_floating_point() else -1) for k, v in targets.items()}
    found = losses(outputs, targets)
    assert found.tolist() == [0.0, 0.0, 0.0]
    found.sum().backward()
    for output in outputs.values():
        assert output.grad is not None
        assert output.grad.abs().max() == 0


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 30), seed=st.integers(0, 1000), cut=st.integers(0, 30))
def test_count_weighted_batches_give_the_whole_sets_loss(size: int, seed: int, cut: int) -> None:
    losses = fitted(label_smoothing=0.1)
    outputs, targets = example(size, seed)
    parts = [slice(0, min(cut, size)), slice(min(cut, size), size)]
    total, count = torch.zeros(3), torch.zeros(3)
    for part in parts:
        y = {k: v[part] for k, v in targets.items()}
        total += losses({k: v[part] for k, v in outputs.items()}, y).detach() * losses.counts(y)
        count += losses.counts(y)
    torch.testing.assert_close(total / count.clamp(min=1), losses(outputs, targets).detach())


def test_nothing_in_a_step_waits_for_the_device() -> None:
    losses = fitted(label_smoothing=0.1).to("meta")
    outputs, targets = example(8)
    on_meta = {k: v.detach().to("meta").requires_grad_() for k, v in outputs.items()}
    # A meta tensor has no values: .item(), boolean-mask indexing or a branch on a value would raise.
    found = losses(on_meta, {k: v.to("meta") for k, v in targets.items()})
    found.sum().backward()
    assert found.shape == (3,)
    losses.predictions(on_meta)
    losses.scores(on_meta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_losses_are_float32_for_half_precision_outputs(dtype: torch.dtype, autocast: bool) -> None:
    losses = fitted()
    outputs, targets = example(16)
    half = {k: v.detach().to(dtype) for k, v in outputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = losses(half, targets)
        values = losses.predictions(half)["hardness"]
        scores = losses.scores(half)["model"]
    assert found.dtype == values.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(found, losses({k: v.float() for k, v in half.items()}, targets))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_standardised_loss_does_not_depend_on_the_unit(scale: float) -> None:
    values = torch.tensor([179.0, 446.0, 794.0, 1146.0])
    losses = TaskLosses(TASKS).fit({"hardness": values * scale})
    outputs, targets = example(4, missing=False)
    targets["hardness"] = values * scale
    constant = {**outputs, "hardness": torch.zeros(4)}
    found = losses(constant, targets).tolist()
    assert found[1] == pytest.approx(1.0, rel=1e-4)  # the variance in its own unit
    torch.testing.assert_close(losses.predictions(constant)["hardness"], values.mean().expand(4) * scale)


def test_predictions_are_in_the_labels_unit_and_scores_are_probabilities() -> None:
    losses = fitted()
    outputs = {
        "make": torch.tensor([[0.0, 2.0, 1.0]]),
        "hardness": torch.tensor([-1.5]),
        "model": torch.eye(5)[3:4],
    }
    found = losses.predictions(outputs)
    assert {k: v.tolist() for k, v in found.items()} == {"make": [1], "hardness": [250.0], "model": [3]}
    assert found["make"].dtype == torch.int64
    scores = losses.scores(outputs)
    assert list(scores) == ["make", "model"]
    torch.testing.assert_close(scores["make"], torch.tensor([[0.0, 2.0, 1.0]]).softmax(1))


def test_constants_come_from_the_labels_given_and_survive_a_checkpoint() -> None:
    losses = TaskLosses(TASKS).fit({"hardness": torch.tensor([NAN, 5.0, 5.0])})
    assert (losses.mean.tolist(), losses.std.tolist()) == ([0.0, 5.0, 0.0], [1.0, 1.0, 1.0])
    losses = fitted()
    other = TaskLosses(TASKS)
    other.load_state_dict(losses.state_dict())
    assert (other.mean.tolist(), other.std.tolist()) == ([0.0, 700.0, 0.0], [1.0, 300.0, 1.0])
    raw = fitted(standardize=False)
    assert (raw.mean.tolist(), raw.std.tolist()) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_constants_keep_float32_when_the_network_changes_its_dtype(dtype: torch.dtype) -> None:
    losses = TaskLosses(TASKS).fit({"hardness": torch.tensor([689.3, 689.3])}).to(dtype)
    assert losses.mean.dtype == losses.std.dtype == torch.float32
    assert float(losses.mean[1]) == pytest.approx(689.3, rel=1e-6)
    assert list(losses.state_dict()) == ["mean", "std"]


def test_a_column_where_a_vector_belongs_is_refused() -> None:
    outputs, targets = example(4)
    with pytest.raises(ValueError, match="hardness"):
        fitted()({**outputs, "hardness": torch.zeros(4, 1)}, targets)


@pytest.mark.parametrize("options", [{"label_smoothing": 1.5}, {"regression": "l1"}, {"huber_delta": 0.0}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(options))}"):
        fitted(**options)


def test_a_regression_without_any_training_label_is_refused() -> None:
    with pytest.raises(UserError, match="hardness"):
        TaskLosses(TASKS).fit({"hardness": torch.tensor([NAN, NAN])})


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2)
    outputs, targets = example(12)
    targets["model"][:4] = -1  # rank 0 has no model label at all
    part = slice(0, 4) if rank == 0 else slice(4, 12)
    found = fitted(label_smoothing=0.1)(
        {k: v[part] for k, v in outputs.items()}, {k: v[part] for k, v in targets.items()}
    )
    found.sum().backward()
    grads = {k: v.grad for k, v in outputs.items()}
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= 2  # as DDP averages
    found = found.detach()
    dist.all_reduce(found)
    if rank == 0:
        torch.save({"losses": found / 2, **grads}, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_with_uneven_labels_give_the_whole_batchs_loss_and_gradient(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, args=(tmp_path,), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    outputs, targets = example(12)
    targets["model"][:4] = -1
    losses = fitted(label_smoothing=0.1)(outputs, targets)
    losses.sum().backward()
    torch.testing.assert_close(found.pop("losses"), losses.detach())
    assert set(found) == set(outputs)
    for name, grad in found.items():
        torch.testing.assert_close(grad, outputs[name].grad)
