"""The distance from the training images is Mahalanobis's, its threshold keeps its promise, and the run keeps both."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis

from mtlcar.build import build_data
from mtlcar.errors import UserError
from mtlcar.inference.network import load_network
from mtlcar.inference.reference import FEWEST, make_reference, mark_of, reference_of, write_reference
from mtlcar.inference.unlike import FILE, LIKE, RANK, Reference, fit, read_reference, save, threshold
from mtlcar.runs.evaluate import stored_config
from tests.trained import alone, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
SPLIT = ("data.images=160", "data.split=stratified", "data.fractions=[0.35,0.35,0.3]")


def clusters(n: int, features: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, D] around a mean for each class, with one covariance that is far from round."""
    g = torch.Generator().manual_seed(seed)
    means = 4 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    mix = torch.randn(features, features, generator=torch.Generator().manual_seed(98)) / features**0.5
    label = torch.arange(n) % classes
    return 3 + means[label] + torch.randn(n, features, generator=g) @ mix, label


def plain(features: np.ndarray, label: np.ndarray, new: np.ndarray) -> list[float]:
    """The distance of each new row to the nearest class mean, the covariance inverted as it is."""
    z, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (features, new))
    means = [z[label == c].mean(0) for c in np.unique(label)]
    inside = np.concatenate([z[label == c] - z[label == c].mean(0) for c in np.unique(label)])
    inverse = np.linalg.inv(inside.T @ inside / (len(z) - len(means)))
    return [min(mahalanobis(row, mean, inverse) for mean in means) for row in x]


def test_the_score_is_the_distance_to_the_nearest_class_mean_where_no_direction_is_cut() -> None:
    features, label = clusters(400, 12, 3)
    new = clusters(20, 12, 3, seed=5)[0] * torch.rand(20, 1)
    found = fit(features, label)
    assert found.factor.shape == (11, 12)  # the last direction is the rest
    expected = plain(features.double().numpy(), label.numpy(), new.double().numpy())
    np.testing.assert_allclose(found.scores(new), expected, rtol=1e-3)


def test_directions_beyond_the_rank_share_their_mean_variance() -> None:
    features, label = clusters(2400, RANK + 40, 2)
    found = fit(features, label)
    z = (features / features.norm(dim=1, keepdim=True)).double()
    inside = torch.cat([z[label == c] - z[label == c].mean(0) for c in (0, 1)])
    values, vectors = np.linalg.eigh((inside.T @ inside / (len(z) - 2)).numpy())
    values[: len(values) - RANK] = values[: len(values) - RANK].mean()  # ascending
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    x = z[:9].numpy()
    expected = [min(mahalanobis(row, z[label == c].mean(0).numpy(), inverse) for c in (0, 1)) for row in x]
    np.testing.assert_allclose(found.scores(features[:9]), expected, rtol=1e-3)


def test_length_does_not_matter_and_what_is_no_number_is_infinitely_far() -> None:
    features, label = clusters(300, 10, 2)
    found = fit(features, label)
    np.testing.assert_allclose(found.scores(7 * features), found.scores(features), rtol=1e-6)
    odd = features[:3].clone()
    odd[0, 2], odd[1] = torch.nan, torch.inf
    assert found.scores(odd)[:2].tolist() == [math.inf, math.inf]
    assert np.isfinite(found.scores(torch.zeros(1, 10)))


def test_about_one_in_a_hundred_alike_is_above_the_threshold_and_what_is_unlike_is() -> None:
    features, label = clusters(3000, 40, 5)
    found = fit(features, label)
    limit = threshold(found.scores(clusters(2000, 40, 5, seed=1)[0]))
    alike = found.scores(clusters(4000, 40, 5, seed=2)[0]) > limit
    assert 0.005 < alike.mean() < 0.016
    g = torch.Generator().manual_seed(3)
    assert (found.scores(torch.randn(500, 40, generator=g)) > limit).mean() > 0.99


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=500))
@settings(max_examples=50)
def test_the_threshold_is_the_conformal_quantile(scores: list[float]) -> None:
    rank = min(len(scores), math.ceil(LIKE * (len(scores) + 1)))
    limit = threshold(np.array(scores))
    assert sum(s < limit for s in scores) < rank <= sum(s <= limit for s in scores)


@pytest.mark.parametrize(
    ("features", "label"),
    [
        (torch.randn(4, 8), torch.arange(4)),  # an image a class
        (torch.ones(30, 8), torch.arange(30) % 2),
        (torch.full((30, 8), torch.nan), torch.arange(30) % 2),
    ],
)
def test_features_that_give_no_covariance_are_refused(features: torch.Tensor, label: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        fit(features, label)


def test_fewer_images_than_features_still_tell_what_is_unlike() -> None:
    features, label = clusters(80, 200, 2)
    found = fit(features, label)
    limit = threshold(found.scores(clusters(60, 200, 2, seed=1)[0]))
    assert (found.scores(clusters(400, 200, 2, seed=2)[0]) > limit).mean() < 0.06
    assert (found.scores(torch.randn(100, 200, generator=torch.Generator().manual_seed(0))) > limit).mean() > 0.9


# --- of a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("unlike"), *SPLIT, tested=False)


def test_what_a_run_keeps_comes_back(run: Path, tmp_path: Path) -> None:
    features, label = clusters(300, 10, 2)
    made = fit(features, label)
    made = Reference(made.means, made.factor, made.rest, 3.25, 300, 40, "abc")
    save(made, tmp_path)
    kept = read_reference(tmp_path)
    assert kept is not None
    assert (kept.threshold, kept.images, kept.held_out, kept.mark) == (3.25, 300, 40, "abc")
    np.testing.assert_array_equal(kept.scores(features), made.scores(features))
    assert read_reference(tmp_path / "none") is None
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read_reference(tmp_path)


def test_writing_it_at_the_end_of_a_run_draws_nothing_and_leaves_the_network_alone(run: Path) -> None:
    cfg = stored_config(run, [])
    data = build_data(cfg)
    state = torch.get_rng_state()
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    path = write_reference(run, cfg, data)
    assert path == run / FILE
    assert torch.equal(torch.get_rng_state(), state)
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before
    network = load_network(run, cfg)
    kept = read_reference(run)
    assert kept is not None
    rows = data.indices["val"]
    scores = kept.scores(network.features(data.gather(rows)))
    assert kept.threshold == pytest.approx(scores.max(), rel=1e-6)  # of fewer than a hundred
    assert (kept.images, kept.held_out) == (len(data.indices["train"]), len(rows))
    again = reference_of(network)
    assert again is not None
    assert again.threshold == kept.threshold


def test_the_mark_changes_with_the_network(run: Path) -> None:
    network = load_network(run, stored_config(run, []))
    before = mark_of(network)
    assert before == mark_of(load_network(run, stored_config(run, [])))
    with torch.no_grad():
        next(network.architecture.heads.parameters()).mul_(1.001)
    assert mark_of(network) != before


def test_without_data_or_enough_validation_images_nothing_is_said(run: Path, tmp_path: Path) -> None:
    copy = alone(run, tmp_path / "alone")
    (copy / FILE).unlink(missing_ok=True)
    assert reference_of(load_network(copy, stored_config(copy, []))) is None
    cfg = stored_config(run, [])
    data = build_data(cfg)
    data.indices["val"] = data.indices["val"][: FEWEST - 1]
    assert make_reference(load_network(run, cfg), data) is None


def test_a_network_without_a_trunk_has_no_reference(tmp_path: Path) -> None:
    run = trained_run(tmp_path, "architecture=constant", "weighting=equal", tested=False)
    assert reference_of(load_network(run, stored_config(run, []))) is None
    assert not (run / FILE).exists()
