"""Binary codes by value and gradient, against closed forms in float64."""

# Shape letters: B rows, D input width, L latents.

import math

import pytest
import torch
from torch import Tensor

from saelab.core.mesh import Mesh
from saelab.sae import SAE
from saelab.sae.activations.binary import Binary, entropies

B, D, L = 12, 4, 11
VARIANCE = 1.7
REAL = torch.float64


def make(entropy: float = 0.3) -> SAE:
    """An SAE in float64 whose parameters are nowhere special."""
    sae = SAE(D, L, Binary(entropy)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=REAL))
    sae.variance.fill_(VARIANCE)
    return sae


def rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=REAL)


def parts(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits, sizes and the slope of the sigmoid that stands in for the step's."""
    d = sae.dictionary.state_dict()
    pre = (x - d["b_dec"]) @ d["W_enc"].T + d["b_enc"]
    size = sae.activation.log_size.detach().exp()
    return (pre > 0).to(REAL), size, (-pre).exp() / (1 + (-pre).exp()).square()


def test_codes_are_the_latents_size_or_nothing():
    sae, x = make(), rows()
    h, size, _ = parts(sae, x)
    torch.testing.assert_close(sae.encode(x).dense(), h * size, rtol=1e-12, atol=0)
    with torch.no_grad():
        assert not sae.encode(x).is_full
        torch.testing.assert_close(sae.encode(x).dense(), h * size, rtol=1e-12, atol=0)
    nothing = SAE(D, L, Binary())
    assert nothing.encode(torch.zeros(1, D)).l0() == 0  # a pre-activation of exactly 0 is off


def test_the_reconstructions_gradients_are_the_closed_form():
    sae, x = make(), rows()
    h, size, slope = parts(sae, x)
    terms, _ = sae.objective(x)
    terms["reconstruction"].backward()
    W_enc, W_dec, b_dec = (sae.dictionary.state_dict()[name] for name in ("W_enc", "W_dec", "b_dec"))
    residual = (h * size) @ W_dec + b_dec - x
    by_code = 2 * residual @ W_dec.T / (B * D * VARIANCE)
    by_pre = by_code * size * slope
    expected = {
        "W_enc": by_pre.T @ (x - b_dec),
        "b_enc": by_pre.sum(0),
        "W_dec": 2 * (h * size).T @ residual / (B * D * VARIANCE),
        "b_dec": 2 * residual.sum(0) / (B * D * VARIANCE) - by_pre.sum(0) @ W_enc,
    }
    torch.testing.assert_close(terms["reconstruction"].detach(), residual.square().mean() / VARIANCE)
    torch.testing.assert_close(sae.activation.log_size.grad, (by_code * h * size).sum(0), rtol=1e-10, atol=1e-12)
    for name, wanted in expected.items():
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, wanted, rtol=1e-10, atol=1e-12)


def test_the_entropy_is_of_the_batchs_bits():
    sae, x = make(), rows()
    h, _, slope = parts(sae, x)
    terms, _ = sae.objective(x)
    terms["entropy"].backward()
    value, by_pre, constant = 0.0, torch.zeros(B, L, dtype=REAL), 0
    for j in range(L):
        p = h[:, j].sum().item() / B
        if p in (0, 1):
            constant += 1
            continue
        value += 0.3 * -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
        by_pre[:, j] = 0.3 * math.log2((1 - p) / p) / B * slope[:, j]
    assert 0 < constant < L - 3
    assert terms["entropy"].item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(sae.dictionary.b_enc.grad, by_pre.sum(0), rtol=1e-10, atol=1e-12)
    centred = x - sae.dictionary.b_dec.detach()
    torch.testing.assert_close(sae.dictionary.W_enc.grad, by_pre.T @ centred, rtol=1e-10, atol=1e-12)
    assert sae.activation.log_size.grad is None


def test_the_entropy_of_a_bit():
    p = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=REAL, requires_grad=True)
    found = entropies(p)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.tensor([0, 0.8112781244591328, 1, 0], dtype=REAL))
    torch.testing.assert_close(p.grad, torch.tensor([0, math.log2(3), 0, 0], dtype=REAL))


class Replica(Mesh):
    """One of two replicas: knows what the mean over both is."""

    def __init__(self, on: Tensor):
        super().__init__()
        self.on = on

    def mean(self, value: Tensor) -> Tensor:
        assert not value.requires_grad
        return self.on


def test_replicas_average_to_the_gradient_of_the_whole_batch():
    whole, x = make(), rows()
    h, _, _ = parts(whole, x)
    term = whole.objective(x)[0]["entropy"]
    term.backward()
    total = torch.zeros(L, D, dtype=REAL)
    for own in (x[::2], x[1::2]):
        sae = make()
        sae.mesh = Replica(h.mean(0))
        found = sae.objective(own)[0]["entropy"]
        found.backward()
        assert found.item() == pytest.approx(term.item())
        total += sae.dictionary.W_enc.grad / 2
    torch.testing.assert_close(total, whole.dictionary.W_enc.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_latents", [64, 256])
def test_sizes_start_where_they_reconstruct_best(n_latents):
    x, found, best = torch.randn(200, 32, generator=torch.Generator().manual_seed(3)), [], []
    for seed in range(8):
        sae = SAE(32, n_latents, Binary(), seed=seed)
        with torch.no_grad():
            found.append(sae.activation.log_size.exp())
            written = sae.decode(sae.encode(x)) / found[0][0]  # by bits of size one
        best.append(((x * written).sum() / written.square().sum()).item())
    sizes = torch.stack(found)
    assert torch.equal(sizes, sizes[:1, :1].expand(8, n_latents))
    assert sizes[0, 0].item() == pytest.approx(sum(best) / len(best), rel=0.1)


def test_sizes_grow_with_pre_activations_and_bits_stay():
    sae, x, factor = make(), rows(), torch.linspace(0.5, 3, L, dtype=REAL)
    before = sae.encode(x).dense()
    with torch.no_grad():
        sae.dictionary.W_enc *= factor[:, None]
        sae.dictionary.b_enc *= factor
    sae.activation.rescale(factor)
    torch.testing.assert_close(sae.encode(x).dense(), before * factor)


def test_a_shard_holds_its_own_latents_sizes():
    assert "activation.log_size" in make().sharded_names()


@pytest.mark.parametrize("entropy", [-0.1, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_named(entropy):
    with pytest.raises(ValueError, match="Binary: entropy must not be negative"):
        SAE(D, L, Binary(entropy))
