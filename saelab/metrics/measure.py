"""One sweep: every metric of every SAE, over the data once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.metrics.base import Metric, Score, View
from saelab.metrics.evaluation import Chunk, Evaluation
from saelab.sae.sae import SAE


@dataclass
class Measured:
    """What a sweep found about one SAE."""

    scores: dict[str, Score] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per latent, [L] each."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Metrics that could not run, and why."""


@torch.no_grad()
def measure(
    saes: Mapping[str, SAE], evaluation: Evaluation, metrics: Sequence[str] | None = None, show: bool = True
) -> dict[str, Measured]:
    """Measure SAEs of one site.

    Args:
        saes: by name; all as wide as the evaluation's rows, transcoders where it has targets.
        evaluation: the data.
        metrics: class names; by default every metric there is.
        show: whether to show progress.

    Raises:
        ValueError: for an SAE of another width, an unknown metric, or reconstructions that are not finite.
    """
    for name, sae in saes.items():
        _check_widths(name, sae, evaluation)
    chosen = [Metric.named(name) for name in metrics] if metrics is not None else list(Metric.variants().values())
    results = {name: Measured() for name in saes}
    running: dict[str, list[Metric]] = {name: [] for name in saes}
    for kind in chosen:
        for name in saes:
            if kind.needs_model and evaluation.why_no_model:
                results[name].skipped[kind.__name__] = evaluation.why_no_model
            else:
                running[name].append(kind())
    need_logits = any(metric.needs_model for metrics in running.values() for metric in metrics)
    with progress("measure", evaluation.tokens, "tokens", show=show) as bar:
        for chunk in evaluation.chunks(need_logits):
            for name, sae in saes.items():
                view = _view(name, sae, chunk)
                for metric in running[name]:
                    metric.update(view)
            bar.advance(len(chunk.x))
    for name, sae in saes.items():
        for metric in running[name]:
            for key, score in metric.scores(sae).items():
                if math.isfinite(score.value):
                    results[name].scores[key] = score
                else:
                    results[name].skipped[key] = "has no value here: its formula divides by zero"
            results[name].latents |= metric.latents()
    return results


def _check_widths(name: str, sae: SAE, evaluation: Evaluation) -> None:
    if sae.d_in != evaluation.d_in:
        raise ValueError(f"{name} reads rows {sae.d_in} wide, the data's are {evaluation.d_in}")
    if sae.d_out != evaluation.d_out:
        wanted = f"a target {sae.d_out} wide" if sae.d_out else "what it reads"
        found = f"a target {evaluation.d_out} wide" if evaluation.d_out else "none"
        raise ValueError(f"{name} reconstructs {wanted}, the data has {found}; measure it on data of its own site")


def _view(name: str, sae: SAE, chunk: Chunk) -> View:
    device = sae.scale.mean.device
    x = chunk.x.to(device)
    codes = sae.encode(x)
    x_hat = sae.decode(codes, x)
    if not torch.isfinite(x_hat).all():
        raise ValueError(f"{name} reconstructs NaN or infinity; its weights or the activations are not finite")
    return View(sae, x if chunk.target is None else chunk.target.to(device), x_hat, codes, chunk.group, chunk.text)
