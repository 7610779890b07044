"""TopK keeps the k largest pre-activations, through a ReLU."""

import pytest
import torch

from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK

D, L = 6, 20


def rows(n: int = 9) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def biased(activation: TopK | ReLU, bias: float = 0.0) -> SAE:
    sae = SAE(D, L, activation)
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(bias)
    return sae


@pytest.mark.parametrize("bias", [0.0, 0.5, -0.5])
def test_k_of_all_latents_is_relu(bias):
    topk, relu = biased(TopK(L), bias), biased(ReLU(), bias)
    x = rows()
    torch.testing.assert_close(topk.encode(x).dense(), relu.encode(x).dense())
    torch.testing.assert_close(topk(x), relu(x))
    for sae in (topk, relu):
        sae(x).square().sum().backward()
    for a, b in zip(topk.parameters(), relu.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("k", [1, 3, L])
@pytest.mark.parametrize("bias", [5.0, 0.0, -0.5, -100.0])
def test_no_row_has_more_than_k_active(k, bias):
    sae, x = biased(TopK(k), bias), rows()
    codes = sae.encode(x)
    positive = ((x @ sae.dictionary.W_enc.T + bias) > 0).sum(1)
    assert torch.equal(codes.l0(), positive.clamp_max(k))
    assert (codes.values >= 0).all()


def test_a_row_with_nothing_positive_decodes_to_the_bias():
    sae = biased(TopK(3), -100.0)
    with torch.no_grad():
        sae.dictionary.b_dec.copy_(torch.arange(D))
    assert torch.equal(sae(rows()), torch.arange(D).float().expand(9, D))


def test_ties_fall_the_same_way_every_time():
    sae = SAE(D, L, TopK(4))
    with torch.no_grad():
        sae.dictionary.W_enc.fill_(1.0)
    x = rows().abs()
    first, again = sae.encode(x), sae.encode(x)
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.l0(), torch.full((9,), 4))


@pytest.mark.parametrize("k", [0, -1, L + 1])
def test_a_k_that_does_not_fit_is_named(k):
    with pytest.raises(ValueError, match=f"TopK: k .*{L}; got k={k}"):
        SAE(D, L, TopK(k))
