"""ReLU keeps what is positive; its penalty and the penalty's gradient are known in closed form."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU

B, D, L = 5, 4, 11


def make(l1: float = 0.3) -> SAE:
    """An SAE in float64 with directions that are not of unit norm."""
    sae = SAE(D, L, ReLU(l1=l1)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_positive_pre_activation_is_kept():
    sae, x = make(), rows()
    dictionary = sae.dictionary
    pre = (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    torch.testing.assert_close(sae.encode(x).dense(), pre.clamp_min(0))


def test_codes_are_full_in_training_and_compact_in_reading():
    sae, x = make(), rows()
    training, reading = sae.forward_train(x).codes, sae.encode(x)
    assert training.is_full
    assert not reading.is_full
    assert reading.values.shape[1] == training.l0().max() < L
    assert torch.equal(reading.dense(), training.dense())


def test_penalty_and_its_gradient_are_the_closed_form():
    sae, x = make(), rows()
    terms, _ = sae.objective(x)
    terms["sparsity"].backward()
    W_enc, b_enc, W_dec, b_dec = (sae.dictionary.state_dict()[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    centred, norms, size = x - b_dec, W_dec.norm(dim=1), x.norm(dim=1)
    f = (centred @ W_enc.T + b_enc).clamp_min(0)
    slope = 0.3 * torch.where(f > 0, norms, 0) / size[:, None] / B  # of the penalty by each pre-activation
    expected = {
        "W_enc": slope.T @ centred,
        "b_enc": slope.sum(0),
        "W_dec": (0.3 * (f / size[:, None]).mean(0) / norms)[:, None] * W_dec,
        "b_dec": -(slope.sum(0) @ W_enc),
    }
    torch.testing.assert_close(terms["sparsity"], 0.3 * ((f * norms).sum(1) / size).mean(), rtol=1e-12, atol=1e-12)
    for name, wanted in expected.items():
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, wanted, rtol=1e-12, atol=1e-12)


def test_the_penalty_cannot_be_escaped_by_longer_directions():
    sae, x = make(), rows()
    before = sae.objective(x)[0]["sparsity"]
    with torch.no_grad():
        sae.dictionary.W_enc /= 10
        sae.dictionary.b_enc /= 10
        sae.dictionary.W_dec *= 10
    torch.testing.assert_close(sae.objective(x)[0]["sparsity"], before)


def test_a_row_of_zeros_is_not_penalised():
    sae, x = make(), rows()
    with torch.no_grad():
        sae.dictionary.b_enc += 0.1  # so that latents fire on it
    kept = [number for number in range(len(x)) if number != 2]
    others = sae.objective(x[kept])[0]["sparsity"].detach()
    x[2] = 0
    terms, _ = sae.objective(x)
    terms["sparsity"].backward()
    torch.testing.assert_close(terms["sparsity"].detach(), others * len(kept) / len(x))
    assert all(p.grad.abs().max() < 1e3 for p in sae.parameters())


def test_no_weight_is_no_penalty():
    assert make(l1=0.0).objective(rows())[0]["sparsity"] == 0


@pytest.mark.parametrize("l1", [-0.1, float("nan")])
def test_a_weight_out_of_range_is_named(l1):
    with pytest.raises(ValueError, match="ReLU: l1 must not be negative"):
        SAE(D, L, ReLU(l1=l1))
