"""Counts of pairs, and precision, recall and F1 of latents as detectors of features."""

import pytest
import torch
from test_truth_matching import noise
from torch import Tensor

from saelab.core.codes import Codes
from saelab.geometry import pair_counts as counts
from saelab.geometry.pair_counts import PairCounts
from saelab.metrics.truth import firing


def sparse(dense: Tensor, k: int) -> Codes:
    """Codes of dense values with at most k non-zero a row; unused entries repeat latent 0."""
    values, indices = dense.abs().topk(min(k, dense.shape[1]), dim=1)
    return Codes(dense.gather(1, indices), indices.where(values > 0, 0), dense.shape[1])


def thinned(*shape: int, seed: int) -> Tensor:
    """Random signed values, four fifths of them zero."""
    values = noise(*shape, seed=seed)
    return values.where(noise(*shape, seed=seed + 100) > 0.84, 0)


def counted(left: Tensor, right: Tensor, **settings: int) -> PairCounts:
    """Counts of pairs of dense values, in three parts, with unused entries."""
    found = PairCounts(left.shape[1], right.shape[1], "cpu", **settings)
    for one, other in zip(left.split(17), right.split(17), strict=True):
        found.add(sparse(one, 6), Codes.full(other))
    return found


@pytest.mark.parametrize("dense_entries", [1 << 20, 0])
@pytest.mark.parametrize("waiting", [0, 40, 1 << 20])
def test_pairs_are_counted_as_the_product_of_dense_indicators(dense_entries, waiting, monkeypatch):
    monkeypatch.setattr(counts, "WAITING", waiting)
    left, right = thinned(51, 12, seed=1), thinned(51, 9, seed=2)
    kept = sparse(left, 6).dense()
    expected = (kept != 0).long().T @ (right != 0).long()
    found = counted(left, right, dense_entries=dense_entries)
    assert expected.min() == 0
    assert expected.max() > 2
    assert torch.equal(found.block(0, 12).long(), expected)
    assert torch.equal(found.block(4, 7).long(), expected[4:7])
    every = torch.cartesian_prod(torch.arange(12), torch.arange(9))
    assert torch.equal(found.counts(every[:, 0], every[:, 1]), expected.flatten())


@pytest.mark.parametrize("dense_entries", [100, 0])
def test_before_any_row_all_counts_are_zero(dense_entries):
    found = PairCounts(3, 4, "cpu", dense_entries)
    assert not found.block(0, 3).any()
    assert found.counts(torch.tensor([2]), torch.tensor([3])).tolist() == [0]
    found.add(Codes.full(torch.zeros(0, 3)), Codes.full(torch.zeros(0, 4)))
    found.add(Codes.full(torch.zeros(5, 3)), Codes.full(torch.ones(5, 4)))
    assert not found.block(0, 3).any()


def test_precision_recall_and_f1_by_hand():
    found = firing.detection(torch.tensor([6]), torch.tensor([8]), torch.tensor([12]))
    assert found.precision.item() == 0.75
    assert found.recall.item() == 0.5
    assert found.f1.item() == pytest.approx(2 * 0.75 * 0.5 / 1.25)


def test_a_silent_latent_has_zero_and_a_feature_that_never_occurred_nan():
    found = firing.detection(torch.tensor([0, 0, 0]), torch.tensor([0, 5, 0]), torch.tensor([7, 0, 0]))
    for values in (found.precision, found.recall, found.f1):
        assert values[0] == 0
        assert values[1:].isnan().all()


def test_each_feature_is_judged_by_its_matched_latent():
    features = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 0]]).float()
    latents = torch.tensor([[0, 2], [0, 3], [1, 0], [1, 1]]).float()
    both = counted(features, latents)
    found = firing.of_matched(both, (latents != 0).sum(0), (features != 0).sum(0), torch.tensor([1, 0, -1]))
    torch.testing.assert_close(found.precision, torch.tensor([2 / 3, 1, 0]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.recall, torch.tensor([2 / 3, 1, 0]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.f1, torch.tensor([2 / 3, 1, 0]).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_the_best_latent_is_the_best_of_all_pairs(block, monkeypatch):
    monkeypatch.setattr(firing, "BLOCK_ENTRIES", block)
    features, latents = sparse(thinned(60, 8, seed=3), 6).dense(), thinned(60, 11, seed=4)
    features[:, 5] = 0
    scores, best = firing.best(counted(features, latents), (latents != 0).sum(0), (features != 0).sum(0))
    for i in range(8):
        on = features[:, i] != 0
        f1 = [2 * (on & (latents[:, j] != 0)).sum() / (on.sum() + (latents[:, j] != 0).sum()) for j in range(11)]
        if i == 5:
            assert scores[i].isnan()
            continue
        assert scores[i].item() == pytest.approx(max(f1).item(), abs=1e-6)
        assert f1[best[i]].item() == pytest.approx(max(f1).item(), abs=1e-6)
