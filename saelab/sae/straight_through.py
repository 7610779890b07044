"""Gradients for thresholds: what a threshold lets through jumps, so its derivative is replaced by an estimate.

    jump(pre, theta) = pre * 1[pre > theta]      d/d theta := -(theta / eps) K((pre - theta) / eps)
    heaviside(pre, theta) = 1[pre > theta]       d/d theta := -(1 / eps)     K((pre - theta) / eps)

K(u) = 1[-1/2 < u < 1/2], the rectangle; eps its bandwidth (Rajamanoharan et al. 2024, arXiv 2407.14435). Averaged over
rows, each is the derivative of the mean output with the density of pre-activations at the threshold estimated by K: a
wider eps averages over more rows and blurs more. As there, the estimate is for the threshold only: pre-activations get
the true derivative, 1[pre > theta] for `jump` and none for `heaviside`.

Kernels other than the rectangle, and an estimate that reaches the pre-activations too, are left out.
"""

# Shape letters: B rows, L latents.

from typing import Any

import torch
from torch import Tensor


def jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Pre-activations [B, L] where they exceed their latent's threshold [L], zero elsewhere.

    Args:
        pre: pre-activations.
        threshold: one a latent; gets a gradient from every entry less than half a bandwidth away from it, with the
            gradient of the output there, whether the entry is let through or not.
        bandwidth: eps, in the unit of the pre-activations.
    """
    return _Jump.apply(pre, threshold, bandwidth)


def heaviside(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """One where a pre-activation [B, L] exceeds its latent's threshold [L], zero elsewhere; arguments as in `jump`."""
    return _Heaviside.apply(pre, threshold, bandwidth)


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The kernel, K((pre - theta) / eps): [B, L] bool."""
    return (pre - threshold).abs() < bandwidth / 2


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre.where(pre > threshold, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pre, threshold = ctx.saved_tensors
        needs, grad_pre, grad_threshold = ctx.needs_input_grad, None, None
        if needs[0]:
            grad_pre = grad.where(pre > threshold, 0)
        if needs[1]:
            near = grad.where(_near(pre, threshold, ctx.bandwidth), 0)
            grad_threshold = -threshold / ctx.bandwidth * near.sum(0, dtype=threshold.dtype)
        return grad_pre, grad_threshold, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None]:
        pre, threshold = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return None, None, None
        near = grad.where(_near(pre, threshold, ctx.bandwidth), 0)
        return None, -near.sum(0, dtype=threshold.dtype) / ctx.bandwidth, None
