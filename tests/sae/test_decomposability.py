"""Decomposability: value, and who learns from which half of it, by plain autograd in float64."""

# Shape letters: D width, L latents, M latents of the meta-SAE.

import math

import pytest
import torch
from torch import Tensor

import saelab
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.expander import Expander
from saelab.sae.losses.decomposability import Decomposability

D, L, M = 8, 40, 12
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows() -> Tensor:
    return torch.randn(30, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(loss: Decomposability, **more: object) -> SAE:
    """In float64, with a meta-SAE whose weights are nowhere special."""
    sae = SAE(D, L, TopK(3), [loss], **more).double()
    sae.initialise(rows())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loss.meta.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


def by_hand(directions: Tensor, meta: list[Tensor], k: int) -> Tensor:
    """The meta-SAE's reconstruction of directions [L, D]."""
    W_enc, b_enc, W_dec, b_dec = meta
    pre = (directions - b_dec) @ W_enc.T + b_enc
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    return (pre.relu() * kept) @ W_dec + b_dec


@pytest.mark.parametrize(("n_meta", "k", "weight", "sigma"), [(M, 2, 0.3, 1.0), (200, 3, 2.0, 0.6), (M, M, 0.1, 3.0)])
def test_value_and_both_gradients(n_meta, k, weight, sigma):
    loss = Decomposability(n_meta, k, weight, sigma)
    sae = made(loss)
    term = sae.objective(rows())[0]["Decomposability"]
    term.backward()
    d = sae.dictionary.W_dec.detach().clone().requires_grad_()
    meta = [getattr(loss.meta, name).detach().clone().requires_grad_() for name in NAMES]
    rebuilt = by_hand(d.detach(), meta, k)
    gaps = ((d - rebuilt.detach()) ** 2).sum(1)
    penalty = weight * sum(math.e ** (-gap / sigma**2) for gap in gaps) / L
    unexplained = ((d.detach() - rebuilt) ** 2).sum() / ((d - d.mean(0)).detach() ** 2).sum()
    torch.testing.assert_close(term, penalty + unexplained, rtol=1e-11, atol=0)
    (direct,) = torch.autograd.grad(penalty, [d])
    torch.testing.assert_close(sae.dictionary.W_dec.grad, direct, rtol=1e-9, atol=1e-14)
    for name, gradient in zip(NAMES, torch.autograd.grad(unexplained, meta), strict=True):
        torch.testing.assert_close(getattr(loss.meta, name).grad, gradient, rtol=1e-9, atol=1e-14)
        assert (gradient != 0).any()
    assert all(parameter.grad is None for name, parameter in sae.dictionary.named_parameters() if name != "W_dec")


def test_a_direction_that_is_explained_moves_away():
    loss = Decomposability(M, 2, weight=1.0, sigma=0.7)
    sae = made(loss)
    gaps = (sae.dictionary.W_dec - loss.rebuild(sae.dictionary.W_dec)).square().sum(1)
    sae.objective(rows())[0]["Decomposability"].backward()
    with torch.no_grad():
        moved = sae.dictionary.W_dec - 0.1 * sae.dictionary.W_dec.grad
        after = (moved - loss.rebuild(sae.dictionary.W_dec)).square().sum(1)
    assert (after > gaps).all()


def test_the_penalty_in_closed_form():
    loss = Decomposability(M, 2, weight=1.0, sigma=2.0)
    sae = made(loss)
    with torch.no_grad():  # a meta-SAE that always says zero explains none of a unit direction's square norm
        for parameter in loss.meta.parameters():
            parameter.zero_()
        loss.meta.b_enc.fill_(-1)
        d = sae.dictionary.W_dec
        expected = math.exp(-1 / 4) + 1 / (d - d.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(sae.objective(rows())[0]["Decomposability"].item(), expected.item())


def test_the_meta_sae_learns_planted_parts():
    generator = torch.Generator().manual_seed(1)
    parts = torch.nn.functional.normalize(torch.randn(10, 16, generator=generator), dim=1)
    pairs = torch.stack([torch.randperm(10, generator=generator)[:2] for _ in range(200)])
    mixed = (parts[pairs] * torch.rand(200, 2, 1, generator=generator)).sum(1)
    sae = SAE(16, 200, TopK(3), [Decomposability(12, 2, weight=0.0)])
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.nn.functional.normalize(mixed, dim=1))
    loss, start = sae.losses[0], sae.dictionary.W_dec.detach().clone()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    values = []
    for _ in range(300):
        optimizer.zero_grad()
        term = sae.objective(torch.ones(2, 16))[0]["Decomposability"]
        term.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
        values.append(term.item())
    assert values[-1] < 0.02 < 0.5 < values[0]
    assert (parts @ loss.meta.W_dec.T).max(1).values.mean() > 0.9
    torch.testing.assert_close(loss.meta.W_dec.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(sae.dictionary.W_dec, start)


def test_the_hooks_of_the_meta_sae_are_called():
    loss = Decomposability(M, 2)
    sae = made(loss)
    sae.objective(rows())[0]["Decomposability"].backward()
    loss.meta.after_step()
    sae.before_step()
    along = (loss.meta.W_dec.grad * loss.meta.W_dec).sum(1)
    torch.testing.assert_close(along, torch.zeros(M, dtype=torch.float64), rtol=0, atol=1e-12)
    with torch.no_grad():
        loss.meta.W_dec.mul_(3)
    sae.after_step()
    torch.testing.assert_close(loss.meta.W_dec.norm(dim=1), torch.ones(M, dtype=torch.float64))


def test_the_meta_sae_does_not_start_as_a_copy_of_the_directions():
    sae = SAE(D, L, TopK(3), [Decomposability()])
    cosines = sae.losses[0].meta.W_dec @ sae.dictionary.W_dec.T
    assert cosines.abs().max() < 0.999


@pytest.mark.parametrize(("n_latents", "k", "n_meta"), [(40, 4, 10), (41, 4, 10), (8, 4, 4), (2, 1, 1)])
def test_by_default_it_has_a_quarter_of_the_latents(n_latents, k, n_meta):
    loss = Decomposability(k=k)
    SAE(D, n_latents, TopK(1), [loss])
    assert loss.meta.W_dec.shape == (n_meta, D)
    assert loss.config()["n_meta"] is None


def test_any_dictionary_will_do():
    loss = Decomposability(M, 2)
    sae = made(loss, dictionary=Expander(3))
    sae.objective(rows())[0]["Decomposability"].backward()
    assert (sae.dictionary.W_dec.grad != 0).all()


def test_the_meta_sae_is_saved_with_the_sae(tmp_path):
    sae = made(Decomposability(M, 2))
    sae.save(tmp_path)
    again = saelab.load(tmp_path)
    assert {f"losses.0.meta.{name}" for name in NAMES} <= set(again.state_dict())
    for key, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_meta": 0}, "n_meta must be positive and divide by 1 shards, got 0"),
        ({"n_meta": M, "k": M + 1}, "k must be from 1 to the meta-SAE's 12 latents, got 13"),
        ({"k": 0}, "k must be from 1"),
        ({"weight": -1.0}, "weight must not be negative, infinite or NaN"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": float("nan")}, "sigma must be positive"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=f"Decomposability: {message}"):
        SAE(D, L, TopK(3), [Decomposability(**settings)])
