"""JumpReLU by value and gradient: closed forms by hand for thresholds, dense formulas for the weights."""

# Shape letters: B rows, D input width, L latents.

import math

import pytest
import torch
from torch import Tensor

from saelab.core.mesh import Mesh
from saelab.sae import SAE
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.base import Sizes

B, D, L = 8, 4, 11
VARIANCE = 1.7
REAL = torch.float64
NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def make(**settings) -> SAE:
    """An SAE in float64 whose weights and thresholds are nowhere special; every third latent is long dead."""
    sae = SAE(D, L, JumpReLU(**({"bandwidth": 0.9} | settings))).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=REAL))
        sae.activation.log_threshold.copy_(torch.linspace(0.3, 0.9, L).log())
    sae.variance.fill_(VARIANCE)
    sae.firing.since.copy_(torch.arange(L) % 3 // 2 * 1000)
    return sae


def rows(n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=REAL)


class Written:
    """The objective's parts as dense formulas in tensors of its own, thresholds held constant."""

    def __init__(self, sae: SAE, x: Tensor):
        state = sae.dictionary.state_dict()
        self.leaves = {name: state[name].clone().requires_grad_() for name in NAMES}
        W_enc, b_enc, W_dec, b_dec = self.leaves.values()
        self.theta = sae.activation.log_threshold.detach().exp()
        self.pre = (x - b_dec) @ W_enc.T + b_enc
        self.f = self.pre * (self.pre > self.theta)
        self.error = (self.f @ W_dec + b_dec - x).square().mean() / VARIANCE
        self.norms = W_dec.square().sum(1).sqrt()
        self.l0 = (self.pre > self.theta).sum().item() / len(x)
        self.near = ((self.pre.detach() - self.theta).abs() < sae.activation.bandwidth / 2).double()

    def through_codes(self, loss: Tensor, bandwidth: float) -> Tensor:
        """What a loss of the codes gives log theta: theta times -(theta / eps) K times the codes' gradient."""
        (slope,) = torch.autograd.grad(loss, self.f, retain_graph=True)
        return self.theta * (-self.theta / bandwidth * (slope * self.near).sum(0))

    def l0_slope(self, bandwidth: float) -> Tensor:
        """Of the batch mean of L0 by log theta."""
        return self.theta * (-self.near.sum(0) / bandwidth / len(self.pre))


def check(sae: SAE, terms: Tensor, expected: Tensor, for_threshold: Tensor, written: Written) -> None:
    sae.zero_grad()
    terms.backward()
    torch.testing.assert_close(terms, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sae.activation.log_threshold.grad, for_threshold, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad(expected, list(written.leaves.values()), allow_unused=True)
    for name, grad in zip(NAMES, wanted, strict=True):
        found = getattr(sae.dictionary, name).grad
        torch.testing.assert_close(found, torch.zeros_like(found) if grad is None else grad, rtol=1e-10, atol=1e-12)


def test_codes_are_pre_activations_above_their_thresholds():
    sae, x = make(), rows()
    written = Written(sae, x)
    assert 0 < (written.f > 0).sum() < (written.pre > 0).sum()
    torch.testing.assert_close(sae.encode(x).dense(), written.f)
    with torch.no_grad():
        reading = sae.encode(x)
    assert not reading.is_full
    torch.testing.assert_close(reading.dense(), written.f)


def test_the_reconstruction_moves_thresholds_from_both_sides():
    sae, x = make(), rows()
    written = Written(sae, x)
    assert (written.near * (written.f == 0) > 0).any()
    assert (written.near * (written.f > 0) > 0).any()
    terms, _ = sae.objective(x)
    check(sae, terms["reconstruction"], written.error, written.through_codes(written.error, 0.9), written)


def test_l0_counts_codes_and_moves_nothing_but_thresholds():
    sae, x = make(weight=0.3), rows()
    written = Written(sae, x)
    terms, step = sae.objective(x)
    terms["sparsity"].backward()
    assert terms["sparsity"].item() == pytest.approx(0.3 * written.l0, rel=1e-12)
    assert terms["sparsity"].item() == pytest.approx(0.3 * step.codes.l0().double().mean().item(), rel=1e-12)
    torch.testing.assert_close(sae.activation.log_threshold.grad, 0.3 * written.l0_slope(0.9), rtol=1e-12, atol=0)
    assert (sae.activation.log_threshold.grad < 0).any()
    assert all(parameter.grad is None for parameter in sae.dictionary.parameters())


@pytest.mark.parametrize("target", [1.5, 9.0])
def test_target_l0_pulls_l0_to_the_target(target):
    sae, x = make(penalty="target_l0", target=target, weight=0.3), rows()
    written = Written(sae, x)
    assert 1.5 < written.l0 < 9
    terms, _ = sae.objective(x)
    terms["sparsity"].backward()
    assert terms["sparsity"].item() == pytest.approx(0.3 * (written.l0 / target - 1) ** 2, rel=1e-12)
    slope = 0.3 * 2 * (written.l0 / target - 1) / target
    expected = slope * written.l0_slope(0.9)
    torch.testing.assert_close(sae.activation.log_threshold.grad, expected, rtol=1e-10, atol=1e-12)
    moved = expected[expected != 0]  # down the gradient: thresholds rise where too many are active
    assert (moved < 0).all() if target == 1.5 else (moved > 0).all()


def test_tanh_is_the_formula():
    sae, x = make(penalty="tanh", weight=0.3, tanh_scale=2.5), rows()
    written = Written(sae, x)
    expected = 0.3 * torch.tanh(2.5 * written.f * written.norms).sum() / B
    terms, _ = sae.objective(x)
    check(sae, terms["sparsity"], expected, written.through_codes(expected, 0.9), written)


def test_dead_latents_are_pulled_up_and_their_thresholds_down():
    sae, x = make(dead_weight=0.3, dead_after=500), rows()
    with torch.no_grad():
        sae.dictionary.b_enc[2::3] -= 4  # so that they stay dead in this batch
    written = Written(sae, x)
    dead = (torch.arange(L) % 3 == 2) & ~(written.f > 0).any(0)
    short = (written.theta - written.pre).clamp_min(0) * dead
    expected = 0.3 * (short * written.norms).sum() / B
    terms, _ = sae.objective(x)
    assert torch.equal(sae.firing.dead(500), dead)
    assert expected > 0
    by_theta = 0.3 * ((short > 0) * written.norms.detach()).sum(0) / B
    check(sae, terms["dead"], expected, written.theta * by_theta, written)


def test_without_dead_latents_the_term_is_zero():
    sae = make(dead_weight=0.3, dead_after=5000)
    terms, _ = sae.objective(rows())
    terms["dead"].backward()
    assert terms["dead"].item() == 0
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in sae.parameters())
    assert "dead" not in make().objective(rows())[0]


@pytest.mark.parametrize("penalty", ["l0", "tanh", "target_l0"])
def test_penalties_are_the_same_without_gradients(penalty):
    sae, x = make(penalty=penalty, dead_weight=0.1, dead_after=500), rows()
    terms, _ = sae.objective(x)
    with torch.no_grad():
        again, _ = sae.objective(x)
    assert terms.keys() == again.keys()
    assert all(torch.equal(terms[key].detach(), again[key]) for key in ("sparsity", "dead"))


class Replica(Mesh):
    """One of two replicas: knows what the mean over both is."""

    def __init__(self, l0: float):
        super().__init__()
        self.l0 = l0

    def mean(self, value: Tensor) -> Tensor:
        assert not value.requires_grad
        return torch.full_like(value, self.l0)


def test_replicas_average_to_the_gradient_of_the_whole_batch():
    settings, x = {"penalty": "target_l0", "target": 2.0, "weight": 0.3}, rows()
    whole = make(**settings)
    term = whole.objective(x)[0]["sparsity"]
    term.backward()
    total = torch.zeros(L, dtype=REAL)
    for own in (x[::2], x[1::2]):
        sae = make(**settings)
        sae.mesh = Replica(Written(sae, x).l0)
        found = sae.objective(own)[0]["sparsity"]
        found.backward()
        assert found.item() == pytest.approx(term.item())
        total += sae.activation.log_threshold.grad / 2
    torch.testing.assert_close(total, whole.activation.log_threshold.grad, rtol=1e-10, atol=0)


def test_the_threshold_settles_where_a_code_is_worth_its_weight():
    # One latent that copies its input x: dropping a code of theta costs theta^2 / (D variance), keeping it the weight.
    sae = SAE(1, 1, JumpReLU(weight=0.09, threshold=0.7, bandwidth=0.1)).double()
    with torch.no_grad():
        for name, value in (("W_enc", 1.0), ("W_dec", 1.0), ("b_enc", 0.0), ("b_dec", 0.0)):
            getattr(sae.dictionary, name).fill_(value)
    sae.variance.fill_(4.0)
    x = torch.linspace(0, 2, 1001, dtype=REAL)[:, None]
    optimizer = torch.optim.Adam(sae.activation.parameters(), lr=0.03)
    for _ in range(100):
        terms, _ = sae.objective(x)
        optimizer.zero_grad()
        (terms["reconstruction"] + terms["sparsity"]).backward()
        optimizer.step()
    assert sae.activation.theta.item() == pytest.approx(math.sqrt(0.09 * 4), abs=0.02)


def test_one_threshold_reads_another_saes_weights():
    trained, x = SAE(D, L, ReLU()).double(), 3 * rows(50)
    sae = SAE(D, L, JumpReLU(threshold=0.37)).double()
    sae.dictionary.load_state_dict(trained.dictionary.state_dict())
    pre = (x - trained.dictionary.b_dec) @ trained.dictionary.W_enc.T + trained.dictionary.b_enc
    kept = torch.where(pre > 0.37, pre, 0)
    assert 0 < (kept > 0).sum() < (pre > 0).sum()
    torch.testing.assert_close(sae.encode(x).dense(), kept, rtol=1e-12, atol=0)


def test_a_threshold_of_zero_is_a_relu_and_stays():
    sae, x = SAE(D, L, JumpReLU(threshold=0.0, weight=1.0)), rows().float()
    pre = sae.dictionary.pre(x).dense()
    assert torch.equal(sae.encode(x).dense(), pre.relu())
    terms, _ = sae.objective(x)
    torch.stack(list(terms.values())).sum().backward()
    assert torch.equal(sae.activation.log_threshold.grad, torch.zeros(L))
    torch.optim.Adam(sae.activation.parameters(), lr=0.1).step()
    assert torch.equal(sae.activation.theta, torch.zeros(L))


def test_thresholds_grow_with_pre_activations():
    sae = make()
    before, factor = sae.activation.theta.detach().clone(), torch.linspace(0.5, 3, L, dtype=REAL)
    sae.activation.rescale(factor)
    torch.testing.assert_close(sae.activation.theta.detach(), before * factor)


def test_a_shard_holds_its_own_latents_thresholds():
    mesh, activation = Mesh(), JumpReLU()
    mesh.shards = 2
    activation.setup(Sizes(D, D, 10, mesh=mesh))
    assert activation.log_threshold.shape == (5,)
    assert "activation.log_threshold" in make().sharded_names()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "l2"}, "JumpReLU: unknown penalty 'l2'; did you mean 'l0'"),
        ({"weight": -1.0}, "JumpReLU: weight must not be negative"),
        ({"threshold": -0.1}, "JumpReLU: threshold must not be negative"),
        ({"dead_weight": float("nan")}, "JumpReLU: dead_weight must not be negative"),
        ({"target": 0.0}, "JumpReLU: target must be positive"),
        ({"bandwidth": 0.0}, "JumpReLU: bandwidth must be positive"),
        ({"tanh_scale": float("inf")}, "JumpReLU: tanh_scale must be positive"),
        ({"dead_after": 0}, "JumpReLU: dead_after must be at least 1 row, got 0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SAE(D, L, JumpReLU(**settings))
