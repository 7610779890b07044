"""Matching pursuit against a loop over rows and steps in float64, and what is known of it in closed form."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.matching_pursuit import MatchingPursuit, merged
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense

B, D, L = 7, 6, 100


def rows(n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(k: int, signed: bool = False, tied: bool = True, bias: bool = False, n_latents: int = L) -> SAE:
    sae = SAE(D, n_latents, MatchingPursuit(k, signed), dictionary=Dense(tied=tied, encoder_bias=bias)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sae.after_step()
    return sae


def by_hand(x: Tensor, weights: dict[str, Tensor], k: int, signed: bool) -> Tensor:
    """Codes [B, L] by the definition, differentiable."""
    W_dec, b_dec = weights["W_dec"], weights["b_dec"]
    W_enc, b_enc = weights.get("W_enc", W_dec), weights.get("b_enc", torch.zeros(len(W_dec), dtype=x.dtype))
    codes = []
    for row in x:
        residual, f = row - b_dec, torch.zeros(len(W_dec), dtype=x.dtype)
        for _ in range(k):
            pre = W_enc @ residual + b_enc
            chosen = int((pre.abs() if signed else pre).argmax())
            value = pre[chosen] if signed else pre[chosen].clamp_min(0)
            f = f + value * torch.eye(len(W_dec), dtype=x.dtype)[chosen]
            residual = residual - value * W_dec[chosen]
        codes.append(f)
    return torch.stack(codes)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("k", "tied", "bias"), [(1, True, False), (4, True, False), (4, False, True), (12, True, True)]
)
def test_codes_and_gradients_are_those_of_the_definition(k, tied, bias, signed):
    sae, x = make(k, signed, tied, bias), rows()
    terms, step = sae.objective(x)
    terms["reconstruction"].backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in sae.dictionary.named_parameters()}
    assert set(weights) == {"W_dec", "b_dec"} | (set() if tied else {"W_enc"}) | ({"b_enc"} if bias else set())
    f = by_hand(x, weights, k, signed)
    expected = (f @ weights["W_dec"] + weights["b_dec"] - x).square().mean()
    expected.backward()
    torch.testing.assert_close(step.codes.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms["reconstruction"], expected, rtol=1e-10, atol=1e-12)
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, weight.grad, rtol=1e-8, atol=1e-12)


def test_with_orthonormal_directions_it_is_topk():
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    dictionary = {"dictionary": Dense(tied=True, encoder_bias=False)}
    pursuit, topk = SAE(16, 16, MatchingPursuit(4), **dictionary).double(), SAE(16, 16, TopK(4), **dictionary).double()
    x = torch.randn(B, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sae in (pursuit, topk):
        with torch.no_grad():
            sae.dictionary.W_dec.copy_(basis)
    torch.testing.assert_close(pursuit.encode(x).dense(), topk.encode(x).dense())


@pytest.mark.parametrize("signed", [False, True])
def test_more_steps_never_leave_a_larger_residual(signed):
    x, before = rows(), torch.full((B,), torch.inf, dtype=torch.float64)
    for k in range(1, 30):
        after = (make(k, signed)(x) - x).norm(dim=1).detach()
        assert (after <= before + 1e-12).all()
        before = after
    assert (before < 0.2 * x.norm(dim=1)).all()


def test_each_step_removes_a_projection():
    """With the exact projection, |r|^2 falls by the square of the value."""
    sae, x = make(1), rows()
    start = (x - sae.dictionary.b_dec).square().sum(1)
    left = (sae(x) - x).square().sum(1)
    torch.testing.assert_close(start - left, sae.encode(x).values.square().sum(1))


def test_a_latent_taken_twice_has_one_code():
    """Two directions at 60 degrees: the pursuit goes back and forth, and both codes add up over its visits."""
    sae = SAE(2, 2, MatchingPursuit(2), dictionary=Dense(tied=True, encoder_bias=False)).double()
    sae.activation.k = 4
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]]))
    x = torch.tensor([[3.0, 0.75**0.5]], dtype=torch.float64)
    codes = sae.encode(x)
    # 3 at the first; then <(0, s), d_2> = 3/4, which leaves -3/8 along d_1, not taken; nothing is positive any more.
    torch.testing.assert_close(codes.dense(), torch.tensor([[3.0, 0.75]], dtype=torch.float64))
    sae.activation.signed = True
    # with signs: + 3 (1), + 3/4 (2), - 3/8 (1), + 3/16 (2)
    torch.testing.assert_close(sae.encode(x).dense(), torch.tensor([[2.625, 0.9375]], dtype=torch.float64))
    assert (sae.encode(x).l0() == 2).all()


def test_merging_adds_up_and_keeps_the_gradient():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]], requires_grad=True)
    codes = merged(values, torch.tensor([[5, 2, 5, 2], [7, 7, 7, 7]]), 9)
    dense = torch.zeros(2, 9)
    dense[0, 5], dense[0, 2], dense[1, 7] = 5.0, 10.0, 15.0
    assert torch.equal(codes.dense(), dense)
    assert codes.l0().tolist() == [2, 1]
    weights = torch.arange(9.0).expand(2, 9)
    (codes.dense() * weights).sum().backward()
    assert torch.equal(values.grad, torch.tensor([[5.0, 2, 5, 2], [7.0, 7, 7, 7]]))


def test_a_row_that_nothing_fits_has_no_codes():
    sae = SAE(2, 2, MatchingPursuit(2), dictionary=Dense(tied=True, encoder_bias=False))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.eye(2))
    x = torch.tensor([[-1.0, -2.0], [0.0, 0.0]])
    assert (sae.encode(x).l0() == 0).all()
    terms, _ = sae.objective(x)
    terms["reconstruction"].backward()
    assert torch.isfinite(sae.dictionary.W_dec.grad).all()


@pytest.mark.parametrize("k", [0, L + 1])
def test_a_k_that_does_not_fit_is_named(k):
    with pytest.raises(ValueError, match=f"MatchingPursuit: k .*{L}; got k={k}"):
        SAE(D, L, MatchingPursuit(k))


def test_it_is_not_for_transcoders():
    with pytest.raises(ValueError, match="MatchingPursuit is for SAEs"):
        SAE(D, L, MatchingPursuit(4), d_out=D)
