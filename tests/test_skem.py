"""skem: the simplex frame and the projection of the tokens."""

import pytest
import torch

from mtlcar.architectures.skem import project, simplex_frame
from tests.networks import build


@pytest.mark.parametrize(("d", "k"), [(2, 2), (5, 3), (48, 48), (256, 196)])
def test_the_frame_has_unit_vectors_at_equal_angles_and_projects_on_their_span(d: int, k: int) -> None:
    frame = simplex_frame(d, k)
    gram = frame.T @ frame
    expected = torch.full((k, k), -1 / (k - 1)).fill_diagonal_(1)
    torch.testing.assert_close(gram, expected, atol=1e-6, rtol=0)
    projector = project(torch.eye(d), frame)
    torch.testing.assert_close(projector @ projector, projector, atol=1e-6, rtol=0)
    torch.testing.assert_close(projector, projector.T, atol=1e-6, rtol=0)
    assert float(projector.trace()) == pytest.approx(k - 1, rel=1e-5)
    torch.testing.assert_close(project(frame.T, frame), frame.T, atol=1e-6, rtol=0)


def test_skem_is_kem_on_normalised_projected_tokens() -> None:
    kem, skem = (build(name, width=8, slots=2).eval() for name in ("kem", "skem"))
    assert [n for n in skem.state_dict() if n not in kem.state_dict()] == ["frame"]
    assert skem.frame.shape == (8, 3)  # the three models, not the two makes
    skem.load_state_dict(kem.state_dict(), strict=False)
    last = skem.backbone(torch.randn(2, 3, 32, 32))[-1]
    plain = torch.cat(kem.task_tokens(last), 1)
    tokens = torch.cat(skem.task_tokens(last), 1)
    normalised = (plain - plain.mean(-1, keepdim=True)) / (plain.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(tokens, 2 / 3 * normalised @ skem.frame @ skem.frame.T)
    assert torch.linalg.matrix_rank(tokens.flatten(0, 1), rtol=1e-4) == 2


def test_the_frame_does_not_depend_on_the_runs_seed_and_comes_from_the_checkpoint() -> None:
    first = build("skem", vertices=5)
    torch.manual_seed(1)
    assert torch.equal(build("skem", vertices=5).frame, first.frame)
    other = build("skem", vertices=5)
    other.load_state_dict({**first.state_dict(), "frame": -first.frame})
    assert torch.equal(other.frame, -first.frame)
