"""GradientTopK chooses by the loss's gradient while learning; values and gradients against dense float64."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.gradient_topk import GradientTopK
from saelab.sae.activations.topk import TopK

B, D, L = 8, 6, 100
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows(seed: int = 0) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(activation: GradientTopK | TopK) -> SAE:
    sae = SAE(D, L, activation).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


@pytest.mark.parametrize("beta", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("k", [1, 6, 70])
def test_codes_and_gradients_are_those_of_the_dense_definition(k, beta):
    sae, x, gradient = make(GradientTopK(k, beta)), rows(), rows(seed=5)
    terms, step = sae.objective(x, gradient=gradient)
    terms["reconstruction"].backward()
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES)
    pre = (x - b_dec) @ W_enc.T + b_enc
    effect = torch.einsum("ld,bd->bl", W_dec, gradient).abs()
    score = (pre + beta * pre * effect).detach()
    f = pre.clamp_min(0) * (score >= score.sort(dim=1, descending=True).values[:, k - 1 : k])
    expected = (f @ W_dec + b_dec - x).square().mean()
    expected.backward()
    torch.testing.assert_close(step.codes.dense(), f, rtol=1e-12, atol=1e-12)
    for name, by_hand in zip(NAMES, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, by_hand.grad, rtol=1e-9, atol=1e-12)


def test_the_gradient_changes_the_choice_while_learning_only():
    sae, plain = make(GradientTopK(6, beta=5.0)), make(TopK(6))
    expected = plain.encode(rows()).dense()
    _, step = sae.objective(rows(), gradient=rows(seed=5))
    assert ((step.codes.dense() != 0) != (expected != 0)).any()
    torch.testing.assert_close(sae.encode(rows()).dense(), expected)


@pytest.mark.parametrize(("beta", "gradient"), [(0.0, rows(seed=5)), (5.0, None), (5.0, torch.zeros(B, D).double())])
def test_without_weight_or_gradient_it_is_topk(beta, gradient):
    _, step = make(GradientTopK(6, beta)).objective(rows(), gradient=gradient)
    torch.testing.assert_close(step.codes.dense(), make(TopK(6)).encode(rows()).dense())


def test_a_planted_latent_that_matters_is_preferred():
    """Latent 0 has the larger pre-activation, latent 1 lies along the gradient, either way round."""
    sae = SAE(2, 2, GradientTopK(k=1, beta=1.0))
    with torch.no_grad():
        sae.dictionary.W_enc.copy_(torch.eye(2))
        sae.dictionary.W_dec.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 2.0]])
    for slope, expected in ((0.4, [3.0, 0.0]), (0.6, [0.0, 2.0]), (-0.6, [0.0, 2.0])):
        _, step = sae.objective(x, gradient=torch.tensor([[0.0, slope]]))
        assert step.codes.dense().tolist() == [expected]


@pytest.mark.parametrize("k", [0, L + 1])
def test_a_k_that_does_not_fit_is_named(k):
    with pytest.raises(ValueError, match=f"GradientTopK: k .*{L}; got k={k}"):
        SAE(D, L, GradientTopK(k))


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_a_beta_out_of_range_is_named(beta):
    with pytest.raises(ValueError, match="GradientTopK: beta"):
        SAE(D, L, GradientTopK(4, beta))


def test_it_is_not_for_transcoders():
    with pytest.raises(ValueError, match="GradientTopK is for SAEs"):
        SAE(D, L, GradientTopK(4), d_out=D)


def test_a_gradient_of_another_precision_is_no_trouble():
    sae, gradient = make(GradientTopK(6, 5.0)), rows(seed=5)
    _, step = sae.objective(rows(), gradient=gradient.float())
    torch.testing.assert_close(step.codes.dense(), sae.objective(rows(), gradient=gradient)[1].codes.dense())
