"""Logistic regressions against scipy's minimiser in float64, closed forms, and inputs without an optimum."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from saelab.metrics.probing import logistic
from saelab.metrics.probing.logistic import least_loss, one_each, together


def reference(z: np.ndarray, label: np.ndarray, ridge: float) -> tuple[float, float, float]:
    """Weight and bias of the standardised input and the loss without ridge, by scipy."""
    z = (z - z.mean()) / z.std()
    sign = 2.0 * label - 1

    def loss(p: np.ndarray) -> float:
        return float(np.logaddexp(0, -sign * (p[0] * z + p[1])).mean() + ridge / 2 * p[0] ** 2)

    w, b = scipy.optimize.minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    return w, b, float(np.logaddexp(0, -sign * (w * z + b)).mean())


def sample(n: int = 300, c: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(n, generator=generator) < 0.4
    z = torch.randn(n, c, generator=generator)
    z = z + torch.linspace(-2, 2, c) * label[:, None]
    z[:, 3] = z[:, 3].exp() * 50  # heavy tails
    z[:, 4] = z[:, 4] * 1e-3 + 7  # far from zero
    z[:, 5] = z[:, 5].relu()  # zero for most
    z[0, 6] = 1000.0  # one outlier
    return z, label


@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_each_input_alone_is_what_scipy_finds(ridge):
    z, label = sample()
    found = one_each(z, label, ridge, cap=1e6)
    for column in range(z.shape[1]):
        own = z[:, column].double().numpy()
        w, b, loss = reference(own, label.double().numpy(), ridge)
        assert found.loss[column].item() == pytest.approx(loss, abs=2e-5 if ridge < 1e-3 else 3e-4), column
        assert found.weight[column].item() * own.std() == pytest.approx(w, rel=2e-2, abs=2e-3), column
        inside = torch.tensor(w * (own - own.mean()) / own.std() + b)
        outside = found.weight[column].double() * z[:, column].double() + found.bias[column].double()
        torch.testing.assert_close(outside, inside, rtol=2e-2, atol=5e-3)


def test_the_loss_of_examples_averages_to_the_loss():
    z, label = sample()
    found = one_each(z, label)
    torch.testing.assert_close(found.losses(z, label).mean(0), found.loss, rtol=1e-4, atol=1e-5)


def test_an_input_that_separates_has_a_capped_weight_and_a_loss_near_zero():
    label = torch.arange(100) >= 50
    z = torch.stack([label.float() * 2 - 1, 1 - label.float() * 2], 1)
    found = one_each(z, label, cap=10.0)
    assert found.weight.tolist() == pytest.approx([10, -10])
    assert found.loss.tolist() == pytest.approx([math.log1p(math.exp(-10))] * 2, rel=1e-2)


def test_an_input_that_says_nothing_gives_the_entropy_of_the_labels():
    label = torch.arange(100) < 25
    z = torch.stack([torch.full((100,), 3.0), torch.zeros(100), torch.full((100,), 1e6)], 1)
    found = one_each(z, label)
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert found.loss.tolist() == pytest.approx([entropy] * 3, abs=1e-4)
    assert found.weight.tolist() == [0, 0, 0]


def test_shifting_and_scaling_an_input_changes_nothing():
    z, label = sample()
    torch.testing.assert_close(one_each(z * 7 - 2, label).loss, one_each(z, label).loss, rtol=1e-3, atol=1e-4)


def test_a_step_never_makes_the_loss_worse_than_no_input_at_all():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(60, 500, generator=generator).pow(5)
    label = torch.rand(60, generator=generator) < 0.5
    share = label.double().mean().item()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert one_each(z, label).loss.max().item() <= entropy + 1e-5


def test_no_fit_goes_below_the_bound():
    z, label = sample()
    generator = torch.Generator().manual_seed(1)
    labels = torch.stack([label, torch.rand(len(label), generator=generator) < 0.5])
    bounds = least_loss(z, labels)
    assert bounds.shape == (2, z.shape[1])
    for bound, own in zip(bounds, labels, strict=True):
        losses = torch.tensor([reference(z[:, i].double().numpy(), own.numpy(), 0)[2] for i in (0, 1, 4, 6, 7, 8, 11)])
        assert (bound[[0, 1, 4, 6, 7, 8, 11]] <= losses + 1e-6).all()
    assert (bounds[1] > 0.6).sum() > 6  # inputs without a relation to the labels are told as such


def test_the_bound_by_hand():
    label = torch.tensor([False, True, False, True, False, True])
    constant, related, outlier = [3.0] * 6, [0.0, 0, 0, 1, 1, 1], [0.0, 1, 0, 1, 0, 6]
    found = least_loss(torch.tensor([constant, related, outlier]).T, label[None])[0]
    # r = 1/3 for the second; least squares give p = 1.18 for the last example of the third.
    torch.testing.assert_close(found, torch.tensor([math.log(2), math.log(2) * 8 / 9, 0.0]))


def test_the_bound_of_an_input_with_an_outlier_by_hand():
    """An answer p that is orthogonal to what its errors must be orthogonal to, and its entropy from below."""
    label = torch.arange(40) % 2 == 0
    raw = torch.arange(40.0) % 3 + label * 0.4
    raw[6] = 8.0
    z, y = raw.double(), label.double()
    z = (z - z.mean()) / z.std(correction=0)
    slope = (y - 0.5) @ z / 40
    assert 0.5 + slope * z.max() > 1 or 0.5 + slope * z.max() < 0  # least squares would not do
    v = 1 / (1 + z * z / 4)
    moments = torch.stack([torch.stack([v.sum(), v @ z]), torch.stack([v @ z, v @ (z * z)])])
    a, b = torch.linalg.solve(moments, torch.stack([0 * slope, slope * 40]))
    p = 0.5 + v * (a + b * z)
    assert p.min() > 0
    assert p.max() < 1
    assert abs((p - y).sum()) < 1e-9
    assert abs((p - y) @ z) < 1e-9
    (found,) = least_loss(raw[:, None], label[None])[0].tolist()
    assert found == pytest.approx(4 * math.log(2) * (p * (1 - p)).mean().item(), rel=1e-5)


def test_the_bound_of_inputs_with_outliers_is_below_their_losses_and_says_something():
    generator = torch.Generator().manual_seed(5)
    label = torch.rand(300, generator=generator) < 0.4
    z = torch.randn(300, 60, generator=generator) + torch.linspace(0, 1.5, 60) * label[:, None]
    z[:, ::2] = z[:, ::2].pow(3)
    z[:5, 1::2] *= 15
    found = least_loss(z, torch.stack([label, label.roll(7)]))
    for bound, own in zip(found, (label, label.roll(7)), strict=True):
        losses = torch.tensor([reference(z[:, i].double().numpy(), own.numpy(), 0)[2] for i in range(60)])
        assert (bound <= losses + 1e-6).all()
        said = bound > 0
        assert said.double().mean() > 0.5
        assert (losses - bound)[said].median() < 0.03


def test_all_inputs_together_are_at_the_optimum():
    z, label = sample()
    x = z[:, :3]
    found = together(x, label, ridge=0.05)
    inputs = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    w = (found.weight * x.double().std(0, correction=0)).requires_grad_()
    b = (found.bias + (found.weight * x.double().mean(0)).sum()).requires_grad_()
    sign = label.double() * 2 - 1
    loss = torch.nn.functional.softplus(-sign * (inputs @ w + b)).mean() + 0.025 * w.square().sum()
    for gradient in torch.autograd.grad(loss, [w, b]):
        assert gradient.abs().max().item() < 1e-5
    logits = inputs @ w + b
    torch.testing.assert_close(found.logits(x.double()), logits.detach(), rtol=1e-4, atol=1e-4)
    assert found.accuracy(x, label).mean().item() == pytest.approx(((logits > 0) == label).double().mean().item())


def test_constant_inputs_together_get_no_weight():
    label = torch.arange(20) % 2 == 0
    found = together(torch.stack([torch.ones(20), label.float()], 1), label)
    assert found.weight[0] == 0
    assert found.accuracy(torch.stack([torch.ones(20), label.float()], 1), label).mean() == 1


def test_a_few_steps_are_enough_where_weight_and_bias_depend_on_each_other(monkeypatch):
    """Skewed inputs and rare positives: the Hessian is far from diagonal, and Newton's method is quadratic still."""
    monkeypatch.setattr(logistic, "ITERATIONS", 9)
    generator = torch.Generator().manual_seed(2)
    label = torch.rand(4000, generator=generator) < 0.03
    z = torch.randn(4000, 3, generator=generator) + 2 * label[:, None]
    z[:, 1], z[:, 2] = z[:, 1].exp(), -z[:, 2]
    found = one_each(z, label, 1e-6, cap=1e6)
    for column in range(3):
        w, _, loss = reference(z[:, column].double().numpy(), label.double().numpy(), 1e-6)
        assert found.loss[column].item() == pytest.approx(loss, abs=2e-6)
        assert found.weight[column].item() * z[:, column].std(correction=0).item() == pytest.approx(w, rel=1e-3)


@pytest.mark.parametrize("d", [5, 1100])
def test_many_inputs_together_are_at_the_optimum_too(d, monkeypatch):
    """Beyond NEWTON_INPUTS another method is used, which must find the same."""
    generator = torch.Generator().manual_seed(3)
    label = torch.rand(150, generator=generator) < 0.4
    x = torch.randn(150, d, generator=generator) * 3 + 7 + label[:, None] * torch.rand(d, generator=generator)
    x[:, 2] = 4.0
    newton = together(x, label, ridge=0.05) if d <= 1024 else None
    asked = []
    minimise = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", lambda *a, **k: asked.append(k["method"]) or minimise(*a, **k))
    monkeypatch.setattr(logistic, "NEWTON_INPUTS", min(d - 1, 1024))
    found = together(x, label, ridge=0.05)
    assert asked == ["L-BFGS-B"]
    std = x.double().std(0, correction=0)
    scale = torch.where(std > 1e-9, 1 / std.clamp_min(1e-9), 0)
    w = (found.weight * std).requires_grad_()
    b = (found.bias + (found.weight * x.double().mean(0)).sum()).requires_grad_()
    sign = label.double() * 2 - 1
    inputs = (x.double() - x.double().mean(0)) * scale
    loss = torch.nn.functional.softplus(-sign * (inputs @ w + b)).mean() + 0.025 * w.square().sum()
    for gradient in torch.autograd.grad(loss, [w, b]):
        assert gradient.abs().max().item() < 1e-4
    assert found.weight[2] == 0
    if newton is not None:
        torch.testing.assert_close(found.weight, newton.weight, rtol=1e-3, atol=1e-5)
        assert found.bias == pytest.approx(newton.bias, rel=1e-3)
