"""NormMatch, the AFA loss: value and gradients in both modes against plain autograd in float64."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.norm_match import NormMatch

B, D, L = 9, 6, 200
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows(n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(loss: NormMatch, k: int = 5) -> SAE:
    """An SAE whose directions are not of unit norm, with a unit of the objective of its own."""
    sae = SAE(D, L, TopK(k), [loss]).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sae.variance.fill_(1.7)
    return sae


@pytest.mark.parametrize("k", [5, 60])
@pytest.mark.parametrize("mode", ["consistent", "reference"])
def test_value_and_gradients_are_those_of_the_definition(mode, k):
    sae, x = make(NormMatch(0.3, mode), k), rows()
    terms, _ = sae.objective(x)
    terms["NormMatch"].backward()
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES)
    pre = (x - b_dec) @ W_enc.T + b_enc
    f = pre.clamp_min(0) * torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    if mode == "consistent":
        found, wanted = (f * W_dec.norm(dim=1)).norm(dim=1), (x - b_dec.detach()).norm(dim=1)
    else:
        found, wanted = f.norm(dim=1), x.norm(dim=1)
    expected = 0.3 * sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True)) / B / 1.7
    gradients = torch.autograd.grad(expected, (W_enc, b_enc, W_dec, b_dec), allow_unused=True)
    torch.testing.assert_close(terms["NormMatch"], expected, rtol=1e-12, atol=0)
    for name, wanted_grad in zip(NAMES, gradients, strict=True):
        grad = getattr(sae.dictionary, name).grad
        if wanted_grad is None:
            assert mode == "reference"
            assert name == "W_dec"
            assert grad is None
        else:
            torch.testing.assert_close(grad, wanted_grad, rtol=1e-9, atol=1e-12)


def test_the_modes_agree_with_unit_directions_and_no_bias():
    values = []
    for mode in ("consistent", "reference"):
        sae = make(NormMatch(1.0, mode))
        with torch.no_grad():
            sae.dictionary.b_dec.zero_()
        sae.dictionary.after_step()
        values.append(sae.objective(rows())[0]["NormMatch"])
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("mode", ["consistent", "reference"])
def test_orthonormal_directions_that_reconstruct_cost_nothing(mode):
    sae = SAE(D, D, TopK(D), [NormMatch(1.0, mode)], Dense(tied=True)).double()
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.linalg.qr(rows(D))[0])
    x = rows().abs() @ sae.dictionary.W_dec.detach()
    terms, _ = sae.objective(x)
    assert terms["reconstruction"].item() < 1e-20
    assert terms["NormMatch"].item() < 1e-20


def test_codes_of_nothing_cost_the_rows_norm_with_a_finite_gradient():
    sae, x = make(NormMatch(0.5)), rows()
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1000.0)
        sae.dictionary.b_dec.zero_()
    terms, step = sae.objective(x)
    assert step.codes.l0().sum() == 0
    torch.testing.assert_close(terms["NormMatch"], 0.5 * x.square().sum(1).mean() / 1.7)
    terms["NormMatch"].backward()
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters() if p.grad is not None)


def test_its_unit_is_the_objectives():
    """Folding the scale of the data into the weights changes codes and rows, not the loss."""
    sae = SAE(D, L, TopK(5), [NormMatch()]).double()
    x = 3 * rows(40) + 1
    sae.initialise(x)
    before = sae.objective(x)[0]["NormMatch"].item()
    sae.fold()
    assert before > 0
    assert sae.objective(x)[0]["NormMatch"].item() == pytest.approx(before)


def test_a_transcoder_matches_what_it_reconstructs():
    dictionary = Dense(skip_connection=True)
    sae = SAE(D, L, TopK(5), [NormMatch(1.0)], dictionary, d_out=3).double()
    with torch.no_grad():
        dictionary.W_skip.normal_(generator=torch.Generator().manual_seed(0))
        dictionary.b_dec.fill_(0.5)
    x, target = rows(), 2 * rows()[:, :3]
    terms, step = sae.objective(x, target)
    wanted = (target - 0.5 - x @ dictionary.W_skip.T).norm(dim=1)
    torch.testing.assert_close(terms["NormMatch"], (step.codes.values.norm(dim=1) - wanted).square().mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must not be negative, infinite or NaN, got -1.0"),
        ({"weight": float("nan")}, "weight"),
        ({"mode": "authors"}, "mode must be 'consistent' or 'reference', got 'authors'"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=f"NormMatch: {message}"):
        SAE(D, L, TopK(4), [NormMatch(**settings)])
