"""Latents per feature, coverage, and shrinkage of matched latents."""

import pytest
import torch
from test_truth_matching import lines, manifolds, noise, orthonormal

from saelab.core.codes import Codes
from saelab.geometry.pair_counts import PairCounts
from saelab.metrics.truth import shrinkage
from saelab.metrics.truth.manifolds import Coverage, latents_per_feature, single_coverage
from saelab.metrics.truth.shrinkage import Shrinkage, pair_cosines

OWNER = torch.tensor([0, 0, 1, -1])
TRUTH = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1], [0, 1.0]])
LATENTS = torch.tensor([[2, 0, 0, 0], [0, -1, 0, 5], [0, 0, 7, 0], [0, 0, 1, 1], [3, 3, 0, 1.0]])
# Feature 0 is active in rows 0 to 3: latent 0 fires in one of them, latent 1 in another. Feature 1 is active in rows
# 1, 3 and 4: its own latent 2 fires in row 3 only.


def test_coverage_is_by_all_own_latents_together():
    coverage = Coverage(OWNER, 2)
    for part in (slice(0, 2), slice(2, 5), slice(5, 5)):
        coverage.update(Codes.full(LATENTS[part]), Codes.full(TRUTH[part]))
    assert coverage.share(TRUTH.sum(0)).tolist() == pytest.approx([2 / 4, 1 / 3])


def test_single_coverage_is_that_of_the_best_own_latent():
    both = PairCounts(2, 4, "cpu")
    both.add(Codes.full(TRUTH), Codes.full(LATENTS))
    assert single_coverage(both, OWNER, TRUTH.sum(0)).tolist() == pytest.approx([1 / 4, 1 / 3])
    nobody = torch.full((4,), -1)
    assert single_coverage(both, nobody, TRUTH.sum(0)).tolist() == [0, 0]


def test_a_feature_that_never_occurred_has_no_coverage():
    coverage = Coverage(OWNER, 3)
    coverage.update(Codes.full(LATENTS), Codes.full(torch.cat([TRUTH, torch.zeros(5, 1)], 1)))
    assert coverage.share(torch.tensor([4, 3, 0])).tolist() == pytest.approx([2 / 4, 1 / 3, 0])


def test_unused_entries_cover_nothing():
    coverage = Coverage(torch.tensor([0, 1]), 2)
    codes = Codes(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0, 1], [1, 0]]), 2)
    truth = Codes(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[0, 1], [0, 1]]), 2)
    coverage.update(codes, truth)
    assert coverage.rows.tolist() == [0, 0]


def test_latents_are_counted_for_their_feature_if_they_count_at_all():
    counted = torch.tensor([True, False, True, True])
    assert latents_per_feature(OWNER, counted, 3).tolist() == [1, 1, 0]


def slope_of(codes: torch.Tensor, truth: torch.Tensor, matched: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    found = Shrinkage(matched)
    for one, other in zip(codes.split(30), truth.split(30), strict=True):
        found.update(Codes.full(one).compact(), Codes.full(other).compact())
    return found.slope(cosine)


def test_codes_four_fifths_of_the_truth_have_that_slope():
    truth = noise(100, 3).abs() * (noise(100, 3, seed=1) > 0)
    slope = slope_of(0.8 * truth, truth, torch.arange(3), torch.ones(3))
    torch.testing.assert_close(slope, torch.full((3,), 0.8, dtype=torch.float64))


def test_the_slope_is_that_of_least_squares_where_both_are_active():
    truth = noise(200, 3).abs() * (noise(200, 3, seed=1) > 0)
    codes = noise(200, 5, seed=2) * (noise(200, 5, seed=3) > 0)
    matched, cosine = torch.tensor([4, -1, 2]), torch.tensor([-0.7, torch.nan, 0.9], dtype=torch.float64)
    slope = slope_of(codes, truth, matched, cosine)
    assert slope[1].isnan()
    for i, j in ((0, 4), (2, 2)):
        on = (truth[:, i] > 0) & (codes[:, j] != 0)
        contribution = codes[on, j].double() * cosine[i]
        expected = torch.linalg.lstsq(truth[on, i : i + 1].double(), contribution[:, None]).solution.item()
        assert slope[i].item() == pytest.approx(expected, rel=1e-6)


def test_never_active_together_has_no_slope():
    truth, codes = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    assert slope_of(codes, truth, torch.tensor([0]), torch.ones(1)).isnan().all()


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_cosines_of_pairs_keep_their_sign_and_leave_manifolds_out(block, monkeypatch):
    monkeypatch.setattr(shrinkage, "BLOCK_ENTRIES", block)
    world, directions = manifolds(), noise(6, 12)
    found = pair_cosines(directions, world, torch.tensor([0, 5, 2, 3]))
    assert found.isnan().tolist() == [True, False, True, False]
    for i, j in ((1, 5), (3, 3)):
        expected = torch.cosine_similarity(world.bases_of[i][0], directions[j], dim=0)
        assert found[i].item() == pytest.approx(expected.item(), abs=1e-6)
    axes = orthonormal(2, 5)
    signs = pair_cosines(torch.stack([-axes[1], axes[0]]), lines(axes, torch.zeros(1, 2)), torch.tensor([1, 0]))
    assert signs.tolist() == pytest.approx([1, -1], abs=1e-6)
    assert pair_cosines(directions, world, torch.full((4,), -1)).isnan().all()
