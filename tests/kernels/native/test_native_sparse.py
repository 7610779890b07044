"""Sums and dot products over entries against float64 loops."""

import torch

from saelab.core.codes import Entries
from saelab.kernels import tier
from saelab.kernels.decode import dot_at
from saelab.kernels.sums import bag, sum_by_latent

B, D, L, K = 37, 21, 50, 6


def entries_and_values(seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(L, generator=generator)[:K] for _ in range(B)])
    values = torch.randn(B, K, generator=generator)
    values[::5] = 0
    return indices, values, torch.randn(L, D, generator=generator), torch.randn(B, D, generator=generator)


def test_sums_and_dots(compiled):
    indices, values, weight, rows = entries_and_values()
    with tier.using("native"):
        summed, dots = bag(indices, weight, values), dot_at(indices, rows, weight)
        by_latent = sum_by_latent(Entries(indices, L), values, rows)
    picked = weight.double()[indices]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(summed.double(), (picked * values.double()[..., None]).sum(1), **close)
    torch.testing.assert_close(dots.double(), (picked * rows.double()[:, None]).sum(2), **close)
    wanted = torch.zeros(L, D, dtype=torch.float64)
    for b in range(B):
        for j in range(K):
            wanted[indices[b, j]] += values[b, j].double() * rows[b].double()
    torch.testing.assert_close(by_latent.double(), wanted, **close)


def test_the_order_by_latent_is_that_of_a_stable_sort(compiled):
    from saelab.kernels.native.sparse import by_latent

    indices, *_ = entries_and_values(1)
    sorted_by_torch, counted = Entries(indices, L), Entries(indices, L)
    by_latent(counted)
    assert torch.equal(counted.order, sorted_by_torch.order)
    assert torch.equal(counted.offsets, sorted_by_torch.offsets)


def test_nothing_in_nothing_out(compiled):
    empty = torch.empty(0, K, dtype=torch.int64)
    with tier.using("native"):
        assert bag(empty, torch.ones(L, D), torch.empty(0, K)).shape == (0, D)
        assert dot_at(empty, torch.empty(0, D), torch.ones(L, D)).shape == (0, K)
        assert not sum_by_latent(Entries(empty, L), torch.empty(0, K), torch.empty(0, D)).any()
