"""AbsTopK keeps the k largest absolute values with their signs, values and gradients as by a dense mask."""

import pytest
import torch

from saelab.sae import SAE
from saelab.sae.activations.abs_topk import AbsTopK

B, D, L = 9, 6, 100
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows() -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(k: int) -> SAE:
    sae = SAE(D, L, AbsTopK(k)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


@pytest.mark.parametrize("k", [1, 5, 40, L])
def test_codes_and_gradients_are_those_of_the_dense_definition(k):
    sae, x = make(k), rows()
    terms, step = sae.objective(x)
    terms["reconstruction"].backward()
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES)
    pre = (x - b_dec) @ W_enc.T + b_enc
    cut = pre.abs().sort(dim=1, descending=True).values[:, k - 1 : k]
    f = pre * (pre.abs() >= cut)
    expected = (f @ W_dec + b_dec - x).square().mean()
    expected.backward()
    torch.testing.assert_close(step.codes.dense(), f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.encode(x).dense(), f, rtol=1e-12, atol=1e-12)
    for name, by_hand in zip(NAMES, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, by_hand.grad, rtol=1e-9, atol=1e-12)


def test_l0_is_k_and_codes_have_both_signs():
    codes = make(7).encode(rows())
    assert (codes.l0() == 7).all()
    assert (codes.values > 0).any()
    assert (codes.values < 0).any()


def test_the_opposite_row_has_the_opposite_codes():
    sae = make(5)
    with torch.no_grad():
        sae.dictionary.b_enc.zero_()
        sae.dictionary.b_dec.zero_()
    torch.testing.assert_close(sae.encode(-rows()).dense(), -sae.encode(rows()).dense())


@pytest.mark.parametrize("k", [0, -1, L + 1])
def test_a_k_that_does_not_fit_is_named(k):
    with pytest.raises(ValueError, match=f"AbsTopK: k .*{L}; got k={k}"):
        SAE(D, L, AbsTopK(k))
