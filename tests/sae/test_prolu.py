"""ProLU by value, and both of its stand-in gradients against closed forms."""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.prolu import ProLU

B, D, L = 6, 4, 11
VARIANCE = 1.7
REAL = torch.float64


def make(gradient: str = "relu", l1: float = 0.3) -> SAE:
    """An SAE in float64 whose parameters are nowhere special, directions not of unit norm."""
    sae = SAE(D, L, ProLU(l1=l1, gradient=gradient)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=REAL))
    sae.variance.fill_(VARIANCE)
    return sae


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=REAL)


def parts(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m, the gate and the codes, entry by entry."""
    d = sae.dictionary.state_dict()
    m = (x - d["b_dec"]) @ d["W_enc"].T
    gate = torch.zeros(B, L, dtype=REAL)
    for b in range(B):
        for j in range(L):
            gate[b, j] = 1 if m[b, j] > 0 and m[b, j] + d["b_enc"][j] > 0 else 0
    return m, gate, m * gate


def test_the_bias_gates_and_does_not_shift():
    sae, x = make(), rows()
    m, gate, f = parts(sae, x)
    bias = sae.dictionary.b_enc.detach()
    assert ((m > 0) & (gate == 0)).any()  # cut by a negative bias
    assert ((m < 0) & (m + bias > 0)).any()  # a positive bias does not let negative ones through
    torch.testing.assert_close(sae.encode(x).dense(), f)
    with torch.no_grad():
        assert not sae.encode(x).is_full
        torch.testing.assert_close(sae.encode(x).dense(), f)


def test_codes_stay_in_proportion_to_rows():
    sae, x = make(), rows()
    with torch.no_grad():
        sae.dictionary.b_dec.zero_()
        once, twice = sae.encode(x).dense(), sae.encode(2 * x).dense()
    assert ((once == 0) & (twice > 0)).any()  # the bias does gate
    torch.testing.assert_close(twice[once > 0], 2 * once[once > 0])


@pytest.mark.parametrize("gradient", ["relu", "ste"])
@pytest.mark.parametrize("term", ["reconstruction", "sparsity"])
def test_gradients_are_the_published_stand_ins(gradient, term):
    sae, x = make(gradient), rows()
    m, gate, f = parts(sae, x)
    terms, _ = sae.objective(x)
    terms[term].backward()
    W_enc, W_dec, b_dec = (sae.dictionary.state_dict()[name] for name in ("W_enc", "W_dec", "b_dec"))
    residual, norms, size = f @ W_dec + b_dec - x, W_dec.norm(dim=1), x.norm(dim=1, keepdim=True)
    if term == "reconstruction":
        value, slope = residual.square().mean() / VARIANCE, 2 * residual @ W_dec.T / (B * D * VARIANCE)
        direct = 2 * residual.sum(0) / (B * D * VARIANCE)  # of b_dec, which is added too
    else:
        value, slope, direct = 0.3 * (f * norms / size).sum(1).mean(), 0.3 * norms / size / B * torch.ones(B, L), 0
    by_m = slope * gate * (1 if gradient == "relu" else 1 + m)
    by_b = slope * gate * (1 if gradient == "relu" else m)
    expected = {
        "W_enc": by_m.T @ (x - b_dec),
        "b_enc": by_b.sum(0),
        "b_dec": direct - by_m.sum(0) @ W_enc,
    }
    torch.testing.assert_close(terms[term].detach(), value, rtol=1e-10, atol=0)
    for name, wanted in expected.items():
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, wanted, rtol=1e-10, atol=1e-12)


def test_the_two_gradients_differ_in_nothing_but_the_gradient():
    x = rows()
    first, second = make("relu").objective(x)[0], make("ste").objective(x)[0]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_terms_are_the_same_without_gradients():
    sae, x = make(), rows()
    terms, _ = sae.objective(x)
    with torch.no_grad():
        again, _ = sae.objective(x)
    for key, term in terms.items():
        torch.testing.assert_close(again[key], term.detach())


def test_a_transcoder_is_refused():
    with pytest.raises(ValueError, match="ProLU: is for SAEs, not for transcoders"):
        SAE(D, L, ProLU(), d_out=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1": -0.1}, "ProLU: l1 must not be negative"),
        ({"l1": float("nan")}, "ProLU: l1 must not be negative"),
        ({"gradient": "rel"}, "ProLU: unknown gradient 'rel'; did you mean 'relu'"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SAE(D, L, ProLU(**settings))
