"""BlockTopK keeps whole groups by their norm, values and gradients as by a loop over groups in float64."""

import pytest
import torch
from torch import Tensor

from saelab.core.mesh import Mesh
from saelab.sae import SAE
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.block_topk import BlockTopK
from saelab.sae.dictionaries.dense import Dense

B, D, L = 9, 6, 120
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(k: int, rank: int) -> SAE:
    sae = SAE(D, L, BlockTopK(k, rank)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


def kept_groups(pre: Tensor, k: int, rank: int) -> Tensor:
    """Mask [B, L], worked out row by row."""
    mask = torch.zeros_like(pre)
    for row in range(len(pre)):
        norms = {g: sum(v * v for v in pre[row, g * rank : (g + 1) * rank].tolist()) for g in range(L // rank)}
        for g in sorted(norms, key=norms.__getitem__, reverse=True)[:k]:
            mask[row, g * rank : (g + 1) * rank] = 1
    return mask


@pytest.mark.parametrize(("k", "rank"), [(1, 1), (1, 3), (2, 4), (5, 8), (4, 30), (30, 4)])
def test_codes_and_gradients_are_those_of_the_dense_definition(k, rank):
    sae, x = make(k, rank), rows()
    terms, step = sae.objective(x)
    terms["reconstruction"].backward()
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES)
    pre = (x - b_dec) @ W_enc.T + b_enc
    f = pre * kept_groups(pre.detach(), k, rank)
    expected = (f @ W_dec + b_dec - x).square().mean()
    expected.backward()
    torch.testing.assert_close(step.codes.dense(), f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms["reconstruction"], expected, rtol=1e-12, atol=1e-12)
    for name, by_hand in zip(NAMES, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, by_hand.grad, rtol=1e-9, atol=1e-12)


def test_l0_is_k_times_rank_and_codes_have_both_signs():
    codes = make(3, 5).encode(rows())
    assert (codes.l0() == 15).all()
    assert codes.values.shape == (B, 15)
    assert (codes.values > 0).any()
    assert (codes.values < 0).any()


def test_of_rank_1_it_is_abs_topk():
    sae, other = make(6, 1), SAE(D, L, AbsTopK(6)).double()
    other.load_state_dict(sae.state_dict())
    torch.testing.assert_close(sae.encode(rows()).dense(), other.encode(rows()).dense())


def test_a_point_in_a_planted_plane_is_read_whole():
    """Planes of coordinate axes: the encoder's group of a row's plane has its coordinates, any sign, others nothing."""
    sae = SAE(6, 6, BlockTopK(k=1, rank=2), dictionary=Dense(tied=True)).double()
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.eye(6))
    x = torch.zeros(3, 6, dtype=torch.float64)
    x[0, 0:2], x[1, 2:4], x[2, 4:6] = (torch.tensor(point) for point in ([3.0, -4.0], [-1.0, 0.5], [0.0, -2.0]))
    torch.testing.assert_close(sae.encode(x).dense(), x)
    torch.testing.assert_close(sae(x), x)


def test_the_default_l0_is_that_of_topk():
    assert BlockTopK().k * BlockTopK().rank == 32


@pytest.mark.parametrize("rank", [0, -2, 7, L + 1])
def test_a_rank_that_does_not_divide_is_named(rank):
    with pytest.raises(ValueError, match=f"BlockTopK: .*{L}; got rank={rank}"):
        SAE(D, L, BlockTopK(1, rank))


@pytest.mark.parametrize("k", [0, 31])
def test_a_k_that_does_not_fit_is_named(k):
    with pytest.raises(ValueError, match=f"BlockTopK: k .*30; got k={k}"):
        SAE(D, L, BlockTopK(k, 4))


def test_groups_must_fit_into_a_shard():
    class Four(Mesh):
        def _join(self):
            """A mesh of four shards without its processes."""

    with pytest.raises(ValueError, match="of a shard, 30; got rank=4"):
        SAE(D, L, BlockTopK(1, 4), mesh=Four(1, 4))
