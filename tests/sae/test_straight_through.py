"""Straight-through gradients are the closed forms, and on average the derivatives of what they stand in for."""

import math

import pytest
import torch
from torch import Tensor

from saelab.sae.straight_through import heaviside, jump

B, L = 40, 7
BANDWIDTH = 0.8
REAL = torch.float64


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, thresholds and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(B, L, generator=generator, dtype=REAL)
    grad = torch.randn(B, L, generator=generator, dtype=REAL)
    return pre.requires_grad_(), torch.linspace(0.1, 0.9, L, dtype=REAL).requires_grad_(), grad


def test_values_are_cut_at_the_threshold():
    pre, threshold, _ = drawn()
    jumped, above = jump(pre, threshold, BANDWIDTH), heaviside(pre, threshold, BANDWIDTH)
    for b in range(B):
        for j in range(L):
            passes = pre[b, j].item() > threshold[j].item()
            assert jumped[b, j] == (pre[b, j] if passes else 0)
            assert above[b, j] == (1 if passes else 0)


def test_what_equals_the_threshold_is_cut():
    at = torch.tensor([[0.5]])
    assert jump(at, torch.tensor([0.5]), 1.0).item() == 0
    assert heaviside(at, torch.tensor([0.5]), 1.0).item() == 0


@pytest.mark.parametrize("function", [jump, heaviside])
def test_gradients_are_the_closed_forms(function):
    pre, threshold, grad = drawn()
    function(pre, threshold, BANDWIDTH).backward(grad)
    for_pre, for_threshold = torch.zeros(B, L, dtype=REAL), torch.zeros(L, dtype=REAL)
    counted = {True: 0, False: 0}
    for b in range(B):
        for j in range(L):
            theta, passes = threshold[j].item(), pre[b, j].item() > threshold[j].item()
            if function is jump and passes:
                for_pre[b, j] = grad[b, j]
            if abs(pre[b, j].item() - theta) / BANDWIDTH < 0.5:
                counted[passes] += 1
                for_threshold[j] -= (theta if function is jump else 1) / BANDWIDTH * grad[b, j].item()
    assert min(counted.values()) > 10  # rows on both sides of the threshold count
    torch.testing.assert_close(for_threshold, threshold.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(for_pre, torch.zeros(B, L, dtype=REAL) if pre.grad is None else pre.grad)


def normal(t: Tensor, mean: float = 0.4, deviation: float = 0.5) -> tuple[Tensor, Tensor]:
    """Density and distribution function of pre-activations."""
    z = (t - mean) / deviation
    return (-z.square() / 2).exp() / (deviation * math.sqrt(2 * math.pi)), (1 + (z / math.sqrt(2)).erf()) / 2


def mean_gradient(function, theta: float, bandwidth: float, loss=lambda output: output) -> float:
    """Of the mean loss of many rows, spread as `normal` says, with respect to the threshold."""
    pre = torch.linspace(-4, 5, 180_001, dtype=REAL)
    threshold = torch.tensor([theta], dtype=REAL, requires_grad=True)
    losses = loss(function(pre[:, None], threshold, bandwidth))[:, 0]
    (losses * normal(pre)[0]).sum().mul(pre[1] - pre[0]).backward()
    return threshold.grad.item()


def smoothed_mean(function, theta: float, bandwidth: float) -> float:
    """Mean output of rows whose density has been convolved with the rectangle."""
    t = torch.linspace(theta, 6, 60_001, dtype=REAL)
    density = (normal(t + bandwidth / 2)[1] - normal(t - bandwidth / 2)[1]) / bandwidth
    return torch.trapezoid((t if function is jump else torch.ones_like(t)) * density, t).item()


@pytest.mark.parametrize("function", [jump, heaviside])
@pytest.mark.parametrize("bandwidth", [0.1, 0.7])
@pytest.mark.parametrize("theta", [0.2, 0.9])
def test_on_average_they_differentiate_the_smoothed_mean(function, bandwidth, theta):
    h = 1e-3
    slope = (smoothed_mean(function, theta + h, bandwidth) - smoothed_mean(function, theta - h, bandwidth)) / (2 * h)
    assert mean_gradient(function, theta, bandwidth) == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("theta", [0.2, 0.9])
def test_on_average_a_narrow_one_differentiates_the_mean_squared_error(theta):
    # d/d theta of E (a - f)^2 is the density at theta times what it costs to lose a code of theta: a^2 - (a - theta)^2.
    a = 1.3
    expected = normal(torch.tensor(theta, dtype=REAL))[0].item() * (a**2 - (a - theta) ** 2)
    found = mean_gradient(jump, theta, 0.02, lambda f: (a - f).square())
    assert found == pytest.approx(expected, rel=1e-2)


def test_the_kernel_is_open_at_both_ends():
    pre = torch.tensor([[0.25], [0.75]])
    threshold = torch.tensor([0.5], requires_grad=True)
    heaviside(pre, threshold, 0.5).sum().backward()
    assert threshold.grad.item() == 0
    heaviside(pre, threshold, 0.5001).sum().backward()
    assert threshold.grad.item() == pytest.approx(-2 / 0.5001)


def test_half_precision_rows_keep_the_thresholds_precision():
    pre, threshold = torch.ones(1001, 1, dtype=torch.bfloat16, requires_grad=True), torch.ones(1, requires_grad=True)
    jumped = jump(pre, threshold, 1.0)
    jumped.sum().backward()
    assert jumped.dtype == pre.grad.dtype == torch.bfloat16
    assert threshold.grad.item() == -1001  # which is no bf16 number


@pytest.mark.parametrize("function", [jump, heaviside])
def test_no_rows_are_no_trouble(function):
    threshold = torch.ones(3, requires_grad=True)
    function(torch.zeros(0, 3), threshold, 1.0).sum().backward()
    assert torch.equal(threshold.grad, torch.zeros(3))
