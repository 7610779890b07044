"""Assignments against every permutation, the Hungarian method, and their own bound."""

from functools import partial
from itertools import permutations

import pytest
import torch
from planted import drawn
from scipy.optimize import linear_sum_assignment

from saelab.analysis import assignment
from saelab.analysis.assignment import assign, auction


def table_of(a, b, by):
    if by == "cosine":
        return torch.nn.functional.cosine_similarity(a.double()[:, None], b.double()[None], dim=2)
    return -(a.double()[:, None] - b.double()[None]).square().sum(2) / 2


@pytest.mark.parametrize("by", ["cosine", "distance"])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 4)])
@pytest.mark.parametrize("exact", [True, False])
def test_the_best_of_all_permutations(by, n, m, exact):
    a, b = drawn(n, 3), 2 * drawn(m, 3, seed=1)
    table = table_of(a, b, by)
    if n <= m:
        best = max(sum(table[i, p[i]].item() for i in range(n)) for p in permutations(range(m), n))
    else:
        best = max(sum(table[p[j], j].item() for j in range(m)) for p in permutations(range(n), m))
    found = assign(a, b, by, exact_entries=1 << 20 if exact else 0)
    pairs = [(i, j) for i, j in enumerate(found.partner.tolist()) if j >= 0]
    assert len(pairs) == len({j for _, j in pairs}) == min(n, m)
    assert found.similarity[[i for i, _ in pairs]].tolist() == pytest.approx(
        [table[i, j].item() for i, j in pairs], abs=1e-6
    )
    assert found.similarity.isnan().sum() == n - min(n, m)
    reached = found.similarity.nansum().item()
    assert found.exact == exact
    assert reached == pytest.approx(best, abs=1e-5) if exact else reached >= best - 6 * assignment.INCREMENT - 1e-5
    assert best - reached <= min(n, m) * found.bound + 1e-5


@pytest.mark.parametrize("m", [300, 420])
@pytest.mark.parametrize("kind", ["a hidden permutation", "nothing in common", "everything alike"])
def test_the_bound_holds_and_is_small(kind, m):
    b = drawn(m, 24) + (5 * drawn(24, seed=2) if kind == "everything alike" else 0)
    a = b[torch.randperm(m, generator=torch.Generator().manual_seed(3))[:300]] + 0.5 * drawn(300, 24, seed=4)
    if kind == "nothing in common":
        a = drawn(300, 24, seed=5)
    table = table_of(a, b, "cosine")
    best = table.numpy()[linear_sum_assignment(table.numpy(), maximize=True)].mean()
    found = assign(a, b, exact_entries=0)
    mean = found.similarity.mean().item()
    assert sorted(set(found.partner.tolist())) == sorted(found.partner.tolist())
    assert best - mean <= found.bound + 1e-6
    assert best - mean <= (0.02 if m > 300 or kind == "a hidden permutation" else 0.06)
    assert found.bound <= (0.005 if kind == "a hidden permutation" else 0.2)


@pytest.mark.parametrize("increment", [1e-3, 0.2])
@pytest.mark.parametrize("by", ["cosine", "distance"])
def test_the_bound_is_that_of_the_prices_over_the_whole_table(monkeypatch, by, increment):
    monkeypatch.setattr(assignment, "CANDIDATES", 3)
    coarse = partial(auction, increment=increment)  # so that rows end up with less than their weakest candidate
    monkeypatch.setattr(assignment, "auction", coarse)
    for seed in range(6):
        a, b = drawn(60, 5, seed=seed), drawn(60 + 10 * seed, 5, seed=seed + 50)
        table = table_of(a, b, by)
        values, columns = table.topk(3, dim=1)
        partner, prices = coarse(values, columns, len(b))
        assert seed > 1 or (partner < 0).any()  # some are outbid on every candidate
        found = assign(a, b, by, exact_entries=0)
        dual = (table - prices).max(1).values.sum() + prices.sum()
        gap = (dual - found.similarity.sum()).item() / 60
        assert gap - 1e-6 <= found.bound <= gap + increment + 1e-6


def test_a_hidden_permutation_is_found_by_both_ways():
    b = drawn(500, 32)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    for entries in (0, 1 << 20):
        assert torch.equal(assign(b[order] * 3, b, exact_entries=entries).partner, order)


def test_an_auction_ends_within_its_increment_of_the_best():
    values = torch.rand(60, 60, generator=torch.Generator().manual_seed(0)).double()
    columns = torch.arange(60).expand(60, 60)
    best = values.numpy()[linear_sum_assignment(values.numpy(), maximize=True)].sum()
    for increment in (1e-2, 1e-4):
        partner, prices = auction(values, columns, 60, increment)
        assert sorted(partner.tolist()) == list(range(60))
        reached = values[torch.arange(60), partner].sum().item()
        assert best - 60 * increment <= reached <= best + 1e-9
        assert (prices >= 0).all()
        dual = (values - prices).max(1).values.sum() + prices.sum()
        assert dual.item() == pytest.approx(reached, abs=60 * increment + 1e-9)


def test_what_cannot_be_assigned_is_refused():
    with pytest.raises(ValueError, match="of equal width, got .3, 4. and .3, 5."):
        assign(drawn(3, 4), drawn(3, 5))
    with pytest.raises(ValueError, match="expected vectors"):
        assign(drawn(0, 4), drawn(3, 4))
    with pytest.raises(ValueError, match="cosine or distance, got 'angle'"):
        assign(drawn(3, 4), drawn(3, 4), "angle")
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        assign(drawn(3, 4) / 0, drawn(3, 4))
