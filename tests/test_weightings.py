"""The three kinds of weighting enter exactly the gradients that their definitions give."""

import pytest
import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.weightings.base import GradientCombiner, GramianWeighting
from mtlcar.weightings.gradients import Step
from mtlcar.weightings.products import BUCKET, LARGE, buckets, combine_rows, gramian
from tests.weighting_net import TASKS, Net, X, autograd_of_sum, grads, make


class Sum(GramianWeighting):
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)


class SeesWhatItIsGiven(GramianWeighting):
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        self.gramian, self.losses = gramian, losses
        return gramian.diagonal().rsqrt()


class SumOfRows(GradientCombiner):
    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        self.jacobian, self.features = jacobian, features
        return jacobian.sum(0)


@pytest.mark.parametrize("kind", [Sum, SumOfRows])
@pytest.mark.parametrize("level", ["parameters", "representation"])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_summing_task_gradients_equals_one_backward(kind: type, level: str, scale: float, accumulate: int) -> None:
    net = Net()
    kind(TASKS, name="x", level=level).backward(net.step(X, factor=scale / accumulate, scale=scale))
    torch.testing.assert_close([g / scale for g in grads(net)], autograd_of_sum(factor=1 / accumulate))


@pytest.mark.parametrize("level", ["parameters", "representation"])
def test_gradients_add_to_those_that_are_there(level: str) -> None:
    net = Net()
    for _ in range(2):
        Sum(TASKS, name="x", level=level).backward(net.step(X, factor=0.5))
    torch.testing.assert_close(grads(net), autograd_of_sum())


@pytest.mark.parametrize("level", ["parameters", "representation"])
def test_what_a_weighting_sees_does_not_depend_on_the_loss_scale(level: str) -> None:
    seen = []
    for scale in (1.0, 65536.0):
        net, weighting = Net(), SeesWhatItIsGiven(TASKS, name="x", level=level)
        weighting.backward(net.step(X, factor=scale, scale=scale))
        seen.append((weighting.gramian, weighting.losses, [g / scale for g in grads(net)]))
    torch.testing.assert_close(seen[0], seen[1])


def jacobian_of(net: Net) -> Tensor:
    step = net.step(X)
    rows = []
    for t in range(2):
        losses, _ = net(X)
        g = torch.autograd.grad(losses[t], step.shared, materialize_grads=True)
        rows.append(torch.cat([v.flatten() for v in g]))
    return torch.stack(rows)


def test_parameters_level_sees_the_gramian_of_the_shared_parameters_only() -> None:
    net, weighting = Net(), SeesWhatItIsGiven(TASKS, name="x")
    J = jacobian_of(net)
    step = net.step(X)
    weighting.backward(step)
    torch.testing.assert_close(weighting.gramian, J @ J.T)
    d = torch.cat([p.grad.flatten() for p in step.shared])
    torch.testing.assert_close(d, (J @ J.T).diagonal().rsqrt() @ J)


def test_a_combiner_sees_the_unscaled_jacobian_of_the_shared_parameters() -> None:
    net, combiner = Net(), SumOfRows(TASKS, name="x")
    J = jacobian_of(net)
    combiner.backward(net.step(X, factor=512.0, scale=1024.0))
    torch.testing.assert_close(combiner.jacobian, J)


def test_private_parameters_keep_their_own_gradient_whatever_the_weights() -> None:
    net = Net()
    SeesWhatItIsGiven(TASKS, name="x").backward(net.step(X))
    for mine, plain in zip([p.grad for p in net.second.parameters()], autograd_of_sum()[-2:], strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize(("level", "passes"), [("representation", 1), ("parameters", 2)])
@pytest.mark.parametrize("kind", [Sum, SumOfRows])
def test_the_trunk_is_walked_once_or_once_a_task(kind: type, level: str, passes: int) -> None:
    net, calls = Net(), []
    net.trunk[0].register_forward_hook(lambda _, __, y: y.register_hook(lambda g: calls.append(1)) and None)
    kind(TASKS, name="x", level=level).backward(net.step(X))
    assert len(calls) == passes


@pytest.mark.parametrize("level", ["parameters", "representation"])
@pytest.mark.parametrize("kind", [Sum, SumOfRows])
def test_a_regulariser_of_the_architecture_is_added_unweighted(kind: type, level: str) -> None:
    net = Net()
    step = net.step(X, factor=3.0, scale=1.0)
    step.extra = net.trunk(X).square().sum()
    kind(TASKS, name="x", level=level).backward(step)
    other = Net()
    losses, z = other(X)
    (3 * (losses.sum() + z.square().sum())).backward()
    torch.testing.assert_close(grads(net), grads(other))


def test_combiner_gets_features_at_representation_level_only() -> None:
    for level, shape in (("representation", (8, 4)), ("parameters", None)):
        combiner = SumOfRows(TASKS, name="x", level=level)
        combiner.backward(Net().step(X))
        assert (None if combiner.features is None else tuple(combiner.features.shape)) == shape


def test_a_bottleneck_that_losses_do_not_pass_is_an_error_and_not_a_zero() -> None:
    step = Net().step(X)
    step.bottleneck = (step.bottleneck[0] * 1,)  # a copy beside the path, as the output of a compiled network would be
    with pytest.raises(RuntimeError, match="bottleneck"):
        Sum(TASKS, name="x", level="representation").backward(step)


def test_expanded_gradients_are_combined_like_any_other() -> None:
    """The gradient of a plain sum is one number in every place."""
    p = torch.nn.Parameter(torch.ones(3, 2))
    losses = torch.stack([p.sum(), 2 * p.sum()])
    one = torch.ones(())
    Sum(TASKS, name="x").backward(Step(losses, one, one, [p], [], []))
    assert torch.equal(p.grad, torch.full((3, 2), 3.0))


def test_two_parameters_with_one_gradient_are_combined_each() -> None:
    """autograd gives p and q of p + q the same tensor."""
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    y, one = (p + q).square(), torch.ones(())
    losses = torch.stack([y.sum(), 2 * y.sum()])
    Sum(TASKS, name="x").backward(Step(losses, one, one, [p, q], [], []))
    assert p.grad.tolist() == q.grad.tolist() == [12.0, 12.0, 12.0]


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradvac", "famo"])
def test_state_keeps_its_precision_in_a_bfloat16_network(name: str) -> None:
    weighting = make(name)
    before = {k: v.dtype for k, v in weighting.named_buffers()}
    weighting.to(torch.bfloat16)
    assert {k: v.dtype for k, v in weighting.named_buffers()} == before


# --- products and combinations ----------------------------------------------------------------------------------------


def random_rows(tasks: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    g = torch.Generator().manual_seed(tasks)
    shapes = [(64,), (7, 3, 3, 3), (512, 512, 3, 3), (LARGE,), (5, 1), ()]
    rows = [[torch.randn(s, generator=g).to(dtype) for s in shapes] for _ in range(tasks)]
    for row in rows[:-1]:  # layouts may differ between tasks; products must not
        row[2] = row[2].contiguous(memory_format=torch.channels_last)
    return rows


def flat(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([t.reshape(-1).double() for t in row]) for row in rows])


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gramian_of_any_layout_is_that_of_the_flat_jacobian(tasks: int, dtype: torch.dtype) -> None:
    rows = random_rows(tasks, dtype)
    J = flat(rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = gramian(rows, torch.tensor(8.0))
    assert found.dtype == torch.float32
    exact = J @ J.T / 64
    close = 1e-6 if dtype == torch.float32 else 1e-5  # sums of numbers with few bits round more often the same way
    torch.testing.assert_close(found.double(), exact, rtol=close, atol=close * float(exact.abs().max()))


def test_combination_takes_the_place_of_the_first_row() -> None:
    rows = random_rows(3)
    J, w, first = flat(rows), torch.tensor([0.3, -2.0, 5.0]), rows[0][2].data_ptr()
    found = combine_rows(rows, w)
    assert found[2].data_ptr() == first
    assert rows == []
    torch.testing.assert_close(flat([found])[0], w.double() @ J, rtol=1e-5, atol=1e-5)


def test_large_tensors_are_buckets_of_their_own_and_small_ones_share() -> None:
    sizes = [LARGE, 10, LARGE - 1, 20]
    assert buckets([torch.empty(n, device="meta") for n in sizes]) == [[0], [1, 2, 3]]
    many = buckets([torch.empty(LARGE - 1, device="meta")] * 200)
    assert len(many) == 200 * (LARGE - 1) // BUCKET + 1
    assert sorted(i for b in many for i in b) == list(range(200))


def test_no_gradient_is_copied_on_its_way_into_grad() -> None:
    net, kept = Net(), {}

    class Keeps(Sum):
        def _backward(self, step):  # type: ignore[no-untyped-def]
            from mtlcar.weightings import base

            gradients = base.task_gradients(self.level, step)
            combined = combine_rows(gradients.rows, torch.ones(2))
            kept.update({id(p): g.data_ptr() for p, g in zip(gradients.targets, combined, strict=True)})
            base.enter(step, gradients, combined)
            return base.Applied(None)

    step = net.step(X)
    Keeps(TASKS, name="x").backward(step)
    assert [p.grad.data_ptr() for p in step.shared] == [kept[id(p)] for p in step.shared]


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("fixed", {"weights": {"make": 1.0}}, "weight"),
        ("fixed", {"weights": {"make": 1.0, "wieght": 1.0}}, "Did you mean 'weight'"),
        ("fixed", {"weights": {"make": -1.0, "weight": 1.0}}, "at least 0"),
        ("fixed", {"weights": {"make": float("nan"), "weight": 1.0}}, "finite"),
        ("fixed", {"weights": {"make": 0.0, "weight": 0.0}}, "not all 0"),
        ("equal", {"weights": {"make": 1.0, "weight": 1.0}}, "weighting=fixed"),
        ("equal", {"level": "representations"}, "Did you mean 'representation'"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(name: str, overrides: dict, says: str) -> None:
    with pytest.raises(Exception, match=says) as caught:
        make(name, **overrides)
    assert isinstance(caught.value, UserError) or isinstance(caught.value.__cause__, UserError)
