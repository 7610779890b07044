"""Gated by value and gradient, against the dense formulas in float64."""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.relu import ReLU

B, D, L = 6, 4, 11
VARIANCE = 1.7
REAL = torch.float64


def make(**settings) -> SAE:
    """An SAE in float64 whose parameters are nowhere special, directions not of unit norm."""
    sae = SAE(D, L, Gated(**({"l1": 0.3} | settings))).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=REAL))
    sae.variance.fill_(VARIANCE)
    return sae


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=REAL)


def leaves(sae: SAE) -> dict[str, Tensor]:
    return {name.split(".")[1]: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}


def written(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gate's pre-activations and the codes, the gate itself held constant."""
    linear = (x - p["b_dec"]) @ p["W_enc"].T
    gate = linear + p["b_enc"]
    magnitude = (linear * p["r_mag"].exp() + p["b_mag"]).clamp_min(0)
    return gate, (gate > 0).to(REAL) * magnitude


def error(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).square().mean() / VARIANCE


def check(sae: SAE, term: Tensor, expected: Tensor, p: dict[str, Tensor]) -> None:
    term.backward()
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=1e-12)
    wanted = dict(zip(p, torch.autograd.grad(expected, list(p.values()), allow_unused=True), strict=True))
    for name, parameter in sae.named_parameters():
        found, grad = parameter.grad, wanted[name.split(".")[1]]
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(
            zero if found is None else found, zero if grad is None else grad, rtol=1e-10, atol=1e-12
        )


def test_codes_are_gate_times_magnitude():
    sae, x = make(), rows()
    gate, f = written(leaves(sae), x)
    assert ((gate > 0) & (f == 0)).any()  # open, but with no magnitude
    torch.testing.assert_close(sae.encode(x).dense(), f)
    with torch.no_grad():
        assert not sae.encode(x).is_full
        torch.testing.assert_close(sae.encode(x).dense(), f)


def test_it_starts_as_a_relu():
    x = rows().float()
    gated, relu = SAE(D, L, Gated()), SAE(D, L, ReLU())
    torch.testing.assert_close(gated.encode(x).dense(), relu.encode(x).dense())


def test_the_reconstruction_passes_the_gate_by():
    sae, x = make(), rows()
    p = leaves(sae)
    _, f = written(p, x)
    check(sae, sae.objective(x)[0]["reconstruction"], error(f @ p["W_dec"] + p["b_dec"], x), p)
    assert torch.equal(sae.dictionary.b_enc.grad, torch.zeros(L, dtype=REAL))


def test_the_magnitudes_gradients_are_the_closed_form():
    sae, x = make(), rows()
    p = leaves(sae)
    _, f = written(p, x)
    sae.objective(x)[0]["reconstruction"].backward()
    slope = 2 * ((f @ p["W_dec"] + p["b_dec"] - x) @ p["W_dec"].T) / (B * D * VARIANCE) * (f > 0)
    linear = (x - p["b_dec"]) @ p["W_enc"].T
    torch.testing.assert_close(sae.activation.b_mag.grad, slope.sum(0).detach())
    torch.testing.assert_close(sae.activation.r_mag.grad, (slope * linear * p["r_mag"].exp()).sum(0).detach())


def test_the_penalty_is_of_the_gate():
    sae, x = make(), rows()
    p = leaves(sae)
    gate, _ = written(p, x)
    norms = p["W_dec"].square().sum(1).sqrt()
    expected = 0.3 * ((gate.clamp_min(0) * norms).sum(1) / x.square().sum(1).sqrt()).mean()
    check(sae, sae.objective(x)[0]["sparsity"], expected, p)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_gate_learns_to_reconstruct(frozen):
    sae, x = make(frozen=frozen), rows()
    p = leaves(sae)
    gate, _ = written(p, x)
    W_dec, b_dec = (p["W_dec"].detach(), p["b_dec"].detach()) if frozen else (p["W_dec"], p["b_dec"])
    check(sae, sae.objective(x)[0]["gate"], error(gate.clamp_min(0) @ W_dec + b_dec, x), p)
    assert (sae.dictionary.b_enc.grad != 0).any()
    assert (sae.dictionary.W_dec.grad is None) == frozen


def test_terms_are_the_same_without_gradients():
    sae, x = make(), rows()
    terms, _ = sae.objective(x)
    with torch.no_grad():
        again, _ = sae.objective(x)
    for key, term in terms.items():
        torch.testing.assert_close(again[key], term.detach())


def test_magnitudes_grow_with_pre_activations():
    sae, x, factor = make(), rows(), torch.linspace(0.5, 3, L, dtype=REAL)
    before = sae.encode(x).dense()
    with torch.no_grad():
        sae.dictionary.W_enc *= factor[:, None]
        sae.dictionary.b_enc *= factor
    sae.activation.rescale(factor)
    torch.testing.assert_close(sae.encode(x).dense(), before * factor)


def test_shards_hold_their_own_latents_parameters():
    assert {"activation.r_mag", "activation.b_mag"} <= make().sharded_names()


def test_a_transcoder_is_refused():
    with pytest.raises(ValueError, match="Gated: is for SAEs, not for transcoders"):
        SAE(D, L, Gated(), d_out=3)


@pytest.mark.parametrize("l1", [-0.1, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_named(l1):
    with pytest.raises(ValueError, match="Gated: l1 must not be negative"):
        SAE(D, L, Gated(l1=l1))
