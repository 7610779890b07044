"""Whole training steps made of the GPU kernels against autograd over dense formulas and Adam, in float64."""

# Shape letters: B rows, D width, L latents, K kept per row.

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

ROOT = Path(__file__).resolve().parents[3]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, D, L, K = 4, 6, 17, 1


def benchmark():
    spec = importlib.util.spec_from_file_location("gpu_step", ROOT / "benchmarks" / "gpu_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a TopK SAE by autograd over [B, L]."""
    own = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    pre = (x - own["centre"]) @ own["encoder"].T + own["bias"].squeeze(1)
    values, latents = pre.topk(K, dim=1)
    codes = torch.zeros_like(pre).scatter(1, latents, values.relu())
    loss = (codes @ own["decoder"] + own["centre"] - x).square().mean()
    return loss, dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


@pytest.mark.parametrize("touched", [False, True])
def test_steps_are_those_of_autograd_and_adam(touched):
    module, generator = benchmark(), torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(L, D, generator=generator), dim=1).to(DEVICE)
    step = module.Step(directions, K, touched=touched, gathered=torch.float32)
    # With encoder and decoder the same and k = 1, what is left over is at right angles, and gradients are zero.
    step.weights["encoder"] += 0.3 * torch.randn(L, D, generator=generator).to(DEVICE)
    weights = {name: weight.double().clone() for name, weight in step.weights.items()}
    means = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for number in range(1, 3):
        x = torch.randn(B, D, generator=generator).to(DEVICE)
        # Copies in full precision: a first step of Adam goes by the sign even of a gradient that is next to zero.
        step.shadows = {name: step.weights[name].clone() for name in step.shadows}
        step(x)
        loss, found = gradients(weights, x.double())
        torch.testing.assert_close(step.loss.double(), loss, rtol=1e-5, atol=1e-6)
        for name, gradient in found.items():
            w = weights[name]
            if name == "decoder":
                gradient = gradient - (gradient * w).sum(1, keepdim=True) * w
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.999 * squares[name] + 0.001 * gradient.square()
            root = (squares[name] / (1 - 0.999**number)).sqrt() + 1e-8
            w = w - float(step.lr) * means[name] / (1 - 0.9**number) / root
            weights[name] = w / w.norm(dim=1, keepdim=True) if name == "decoder" else w
    visited = torch.unique(step.indices) if touched else torch.arange(L, device=DEVICE)
    for name in ("encoder", "decoder", "bias"):
        torch.testing.assert_close(step.weights[name][visited].double(), weights[name][visited], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(step.weights["centre"].double(), weights["centre"], rtol=1e-4, atol=2e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_that_it_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_step.py"])
    assert benchmark().main() == 2
    assert capsys.readouterr().err == "gpu_step needs a CUDA GPU, and torch sees none here\n"


@pytest.mark.needs_gpu
def test_a_step_does_not_wait_and_can_be_replayed():
    module, generator = benchmark(), torch.Generator("cuda").manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4096, 128, generator=generator, device="cuda"), dim=1)
    x = module.skewed_rows(directions, 512, generator)
    for touched, narrow in ((False, False), (True, True)):
        step = module.Step(directions, 16, touched=touched, narrow=narrow)
        assert module.check_choice(step, x) == 0
        step(x)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = module.captured(step, x)
        before, loss = int(step.clock.step), float(step.loss)
        for _ in range(20):
            graph.replay()
        assert int(step.clock.step) == before + 20
        assert float(step.loss) < loss
