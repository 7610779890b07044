"""Multi-TopK adds the reconstruction with a larger k: value and gradients against plain autograd in float64."""

import pytest
import torch

from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.multi_topk import MultiTopK

B, D, L = 30, 6, 200
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows() -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fitted(*losses: MultiTopK) -> SAE:
    sae = SAE(D, L, TopK(2), losses).double()
    sae.initialise(rows())
    return sae


@pytest.mark.parametrize("k", [1, 8, 60, L])
def test_value_and_gradients_are_those_of_a_dense_reconstruction(k):
    sae = fitted(MultiTopK(k, weight=0.3))
    terms, _ = sae.objective(rows())
    terms["MultiTopK"].backward()
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES)
    x = sae.scale.apply_to(rows())
    pre = (x - b_dec) @ W_enc.T + b_enc
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    expected = 0.3 * ((pre.relu() * kept) @ W_dec + b_dec - x).square().mean() / sae.variance
    expected.backward()
    torch.testing.assert_close(terms["MultiTopK"], expected, rtol=1e-12, atol=0)
    for name, by_hand in zip(NAMES, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, by_hand.grad, rtol=1e-9, atol=1e-12)


def test_with_the_activations_own_k_it_is_the_weighted_reconstruction():
    terms, _ = fitted(MultiTopK(2, weight=0.5)).objective(rows())
    torch.testing.assert_close(terms["MultiTopK"], 0.5 * terms["reconstruction"])


def test_the_activation_keeps_its_own_k():
    assert (fitted(MultiTopK(40)).encode(rows()).l0() <= 2).all()


@pytest.mark.parametrize(("settings", "message"), [((L + 1,), "k must be from 1 to .* 200; got k=201"), ((0,), "k=0")])
def test_a_k_that_does_not_fit_is_named(settings, message):
    with pytest.raises(ValueError, match=f"MultiTopK: .*{message}"):
        SAE(D, L, TopK(2), [MultiTopK(*settings)])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_named(weight):
    with pytest.raises(ValueError, match="MultiTopK: weight"):
        SAE(D, L, TopK(2), [MultiTopK(4, weight)])
