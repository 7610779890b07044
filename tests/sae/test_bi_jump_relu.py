"""Bi-Jump-ReLU by value and gradient: closed forms by hand, row by row and latent by latent."""

# Shape letters: B rows, D input width, L latents.

import math

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.bi_jump_relu import BiJumpReLU

B, D, L = 12, 4, 11
VARIANCE, BANDWIDTH = 1.7, 0.9
REAL = torch.float64


def make(tied: bool, **settings) -> SAE:
    """An SAE in float64 whose parameters are nowhere special, directions not of unit norm."""
    sae = SAE(D, L, BiJumpReLU(**({"l1": 0.3, "tied": tied, "bandwidth": BANDWIDTH} | settings))).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=REAL))
        sae.activation.log_plus.copy_(torch.linspace(0.3, 1.2, L).log())
        if not tied:
            sae.activation.log_minus.copy_(torch.linspace(1.0, 0.2, L).log())
    sae.variance.fill_(VARIANCE)
    return sae


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=REAL)


def thresholds(sae: SAE) -> tuple[list[float], list[float]]:
    state = sae.activation.state_dict()
    return state["log_plus"].exp().tolist(), state.get("log_minus", state["log_plus"]).exp().tolist()


def parts(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, codes and softened gate, entry by entry."""
    d = sae.dictionary.state_dict()
    u = (x - d["b_dec"]) @ d["W_enc"].T + d["b_enc"]
    f, soft = torch.zeros(B, L, dtype=REAL), torch.zeros(B, L, dtype=REAL)
    (plus, minus), gain = thresholds(sae), sae.activation.r_mag.detach().exp()
    for b in range(B):
        for j in range(L):
            if u[b, j] > plus[j]:
                f[b, j], soft[b, j] = gain[j] * u[b, j], u[b, j] - plus[j]
            elif u[b, j] < -minus[j]:
                f[b, j], soft[b, j] = gain[j] * u[b, j], u[b, j] + minus[j]
    return u, f, soft


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_codes_are_what_lies_beyond_the_thresholds(tied):
    sae, x = make(tied), rows()
    _, f, _ = parts(sae, x)
    assert min((f > 0).sum(), (f < 0).sum(), (f == 0).sum()) > 10
    torch.testing.assert_close(sae.encode(x).dense(), f)
    with torch.no_grad():
        assert not sae.encode(x).is_full
        torch.testing.assert_close(sae.encode(x).dense(), f)


def error_slope(sae: SAE, x: Tensor, values: Tensor) -> Tensor:
    """Of the error of a reconstruction by its codes."""
    W_dec, b_dec = sae.dictionary.W_dec.detach(), sae.dictionary.b_dec.detach()
    return 2 * (values @ W_dec + b_dec - x) @ W_dec.T / (B * D * VARIANCE)


def found(sae: SAE, tied: bool) -> list[Tensor]:
    """Gradients of the log thresholds, both signs added where one threshold serves both."""
    return [sae.activation.log_plus.grad] if tied else [sae.activation.log_plus.grad, sae.activation.log_minus.grad]


def combined(plus: Tensor, minus: Tensor, tied: bool) -> list[Tensor]:
    return [plus + minus] if tied else [plus, minus]


def test_the_reconstructions_gradients_are_the_closed_form(tied):
    sae, x = make(tied), rows()
    u, f, _ = parts(sae, x)
    sae.objective(x)[0]["reconstruction"].backward()
    slope, gain = error_slope(sae, x, f), sae.activation.r_mag.detach().exp()
    plus, minus, used = torch.zeros(L, dtype=REAL), torch.zeros(L, dtype=REAL), [0, 0]
    for b in range(B):
        for j in range(L):
            theta, below = (sides[j] for sides in thresholds(sae))
            if abs(u[b, j] - theta) < BANDWIDTH / 2:
                plus[j] -= theta * theta / BANDWIDTH * gain[j] * slope[b, j]
                used[0] += 1
            if abs(u[b, j] + below) < BANDWIDTH / 2:
                minus[j] += below * below / BANDWIDTH * gain[j] * slope[b, j]
                used[1] += 1
    assert min(used) > 5
    for grad, expected in zip(found(sae, tied), combined(plus, minus, tied), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sae.activation.r_mag.grad, (slope * f).sum(0), rtol=1e-10, atol=1e-12)
    centred, passed = x - sae.dictionary.b_dec.detach(), slope * gain * (f != 0)
    torch.testing.assert_close(sae.dictionary.W_enc.grad, passed.T @ centred, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sae.dictionary.b_enc.grad, passed.sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("term", ["sparsity", "gate"])
def test_the_softened_gates_gradients_are_the_closed_form(tied, term):
    sae, x = make(tied), rows()
    _, _, soft = parts(sae, x)
    terms, _ = sae.objective(x)
    terms[term].backward()
    W_dec, b_dec = sae.dictionary.W_dec.detach(), sae.dictionary.b_dec.detach()
    norms, size = W_dec.norm(dim=1), x.norm(dim=1, keepdim=True)
    if term == "gate":
        value, slope = (soft @ W_dec + b_dec - x).square().mean() / VARIANCE, error_slope(sae, x, soft)
    else:
        value, slope = 0.3 * (soft.abs() * norms / size).sum(1).mean(), 0.3 * soft.sign() * norms / size / B
    torch.testing.assert_close(terms[term].detach(), value, rtol=1e-10, atol=0)
    above, below = thresholds(sae)
    plus = -(slope * (soft > 0)).sum(0) * torch.tensor(above, dtype=REAL)
    minus = (slope * (soft < 0)).sum(0) * torch.tensor(below, dtype=REAL)
    for grad, expected in zip(found(sae, tied), combined(plus, minus, tied), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
    passed = slope * (soft != 0)
    torch.testing.assert_close(sae.dictionary.b_enc.grad, passed.sum(0), rtol=1e-10, atol=1e-12)
    assert sae.activation.r_mag.grad is None
    assert (sae.dictionary.W_dec.grad is None) == (term == "gate")


def test_an_unfrozen_decoder_learns_from_the_gate():
    sae, x = make(True, frozen=False), rows()
    _, _, soft = parts(sae, x)
    sae.objective(x)[0]["gate"].backward()
    residual = soft @ sae.dictionary.W_dec.detach() + sae.dictionary.b_dec.detach() - x
    expected = 2 * soft.T @ residual / (B * D * VARIANCE)
    torch.testing.assert_close(sae.dictionary.W_dec.grad, expected, rtol=1e-10, atol=1e-12)


def test_tied_thresholds_treat_both_signs_alike():
    sae, x = make(True), rows()
    with torch.no_grad():
        sae.dictionary.b_enc.zero_()
        sae.dictionary.b_dec.zero_()
    torch.testing.assert_close(sae.encode(-x).dense(), -sae.encode(x).dense())


def test_it_starts_without_a_magnitude_of_its_own():
    sae, x = SAE(D, L, BiJumpReLU(threshold=0.25)), rows().float()
    u = sae.dictionary.pre(x).dense()
    torch.testing.assert_close(sae.encode(x).dense(), torch.where(u.abs() > 0.25, u, 0))


def test_terms_are_the_same_without_gradients(tied):
    sae, x = make(tied), rows()
    terms, _ = sae.objective(x)
    with torch.no_grad():
        again, _ = sae.objective(x)
    for key, term in terms.items():
        torch.testing.assert_close(again[key], term.detach())


def test_thresholds_and_codes_grow_with_pre_activations(tied):
    sae, x, factor = make(tied), rows(), torch.linspace(0.5, 3, L, dtype=REAL)
    before = sae.encode(x).dense()
    with torch.no_grad():
        sae.dictionary.W_enc *= factor[:, None]
        sae.dictionary.b_enc *= factor
    sae.activation.rescale(factor)
    torch.testing.assert_close(sae.encode(x).dense(), before * factor)


def test_shards_hold_their_own_latents_parameters():
    names = {"activation.r_mag", "activation.log_plus", "activation.log_minus"}
    assert names <= make(False).sharded_names()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1": -1.0}, "BiJumpReLU: l1 must not be negative"),
        ({"threshold": 0.0}, "BiJumpReLU: threshold must be positive"),
        ({"bandwidth": math.nan}, "BiJumpReLU: bandwidth must be positive"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SAE(D, L, BiJumpReLU(**settings))
