"""One sweep: every metric of every SAE, over the data once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.metrics.base import Metric, Score, View
from saelab.metrics.evaluation import Chunk, Evaluation, TextEvaluation
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
        saes: by name; all as wide as the evaluation's rows.
        evaluation: the data.
        metrics: class names; by default every metric there is.
        show: whether to show progress.

    Raises:
        ValueError: for an SAE of another width, an unknown metric, or reconstructions that are not finite.
    """
    for name, sae in saes.items():
        if sae.d_in != evaluation.d_in:
            raise ValueError(f"{name} reads rows {sae.d_in} wide, the data's are {evaluation.d_in}")
    chosen = [Metric.named(name) for name in metrics] if metrics is not None else list(Metric.variants().values())
    has_model = isinstance(evaluation, TextEvaluation)
    results = {name: Measured() for name in saes}
    running: dict[str, list[Metric]] = {name: [] for name in saes}
    for kind in chosen:
        for name in saes:
            if kind.needs_model and not has_model:
                results[name].skipped[kind.__name__] = "needs a model, and this data is activations only"
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


def _view(name: str, sae: SAE, chunk: Chunk) -> View:
    x = chunk.x.to(sae.scale.mean.device)
    codes = sae.encode(x)
    x_hat = sae.decode(codes)
    if not torch.isfinite(x_hat).all():
        raise ValueError(f"{name} reconstructs NaN or infinity; its weights or the activations are not finite")
    return View(sae, x, x_hat, codes, chunk.group, chunk.text)
