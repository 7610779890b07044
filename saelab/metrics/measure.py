"""Every metric of every SAE: one sweep over the data, and another one only for metrics that ask for it."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.metrics.base import Metric, Score, Setting, Table, View
from saelab.metrics.chunks import Chunk
from saelab.metrics.evaluation import Evaluation
from saelab.metrics.sample import codes_of
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.task import Task

DEFAULT = "default"
"""Stands for the metrics that run where none are named."""
ENTRIES = 1 << 26
"""Rows times latents that are encoded at once."""
MODEL, CODES = "(model)", "(encode and decode)"
"""Where time goes beside the metrics."""


@dataclass
class Measured:
    """What was found about one SAE."""

    scores: dict[str, Score] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per latent, [L] each."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Curves and samples, in columns."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Metrics that could not run, and why."""
    broken: str | None = None
    """What is wrong with the SAE, if it could not be measured."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by metric, and for the model (spent once for all SAEs) and the codes."""

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The scores as JSON has them."""
        return {key: score.as_json() for key, score in self.scores.items()}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    @contextmanager
    def attempt(self, metric: Metric) -> Iterator[None]:
        """A metric at work: if it cannot go on, the reason is kept."""
        name = type(metric).__name__
        with self.timed(name):
            try:
                yield
            except (ValueError, OSError) as error:
                self.skipped[name] = str(error)

    def runs(self, metric: Metric) -> bool:
        """Whether a metric is still at work."""
        return self.broken is None and type(metric).__name__ not in self.skipped


Running = Mapping[str, Sequence[Metric]]


@torch.no_grad()
def measure(
    saes: Mapping[str, Autoencoder],
    evaluation: Evaluation,
    metrics: Sequence[str | Mapping[str, Any]] | None = None,
    show: bool = True,
    tasks: Sequence[Task] = (),
) -> dict[str, Measured]:
    """Measure SAEs of one site.

    An SAE whose reconstructions are not finite is said to be broken, and the others are measured.

    Args:
        saes: by name; all as wide as the evaluation's rows, transcoders where it has targets.
        evaluation: the data.
        metrics: class names, or their settings with the class under "name"; "default" stands for those that run by
            default, which is all that run where none are given.
        show: whether to show progress.
        tasks: labelled tasks, for probes.

    Raises:
        ValueError: for an SAE of another width, an unknown metric, activations that are not finite, or if every SAE
            is broken.
    """
    for name, sae in saes.items():
        _check_widths(name, sae, evaluation)
    chosen = metric_settings(metrics)
    shared: dict[Any, Any] = {}
    settings = {name: Setting(name, saes, evaluation, tasks, shared, show) for name in saes}
    results = {name: Measured() for name in saes}
    running: Running = {name: [Metric.build(one) for one in chosen] for name in saes}
    for name, metric, found in _at_work(running, results):
        if (metric.needs_model or metric.needs_tasks) and evaluation.why_no_model:
            found.skipped[type(metric).__name__] = evaluation.why_no_model
            continue
        if metric.needs_tasks and not tasks:
            found.skipped[type(metric).__name__] = "needs labelled tasks: give --tasks"
            continue
        with found.attempt(metric):
            metric.begin(settings[name])
    _sweeps(saes, evaluation, running, results, show)
    for name, metric, found in _at_work(running, results):
        with found.attempt(metric):
            _take(found, metric.scores(saes[name]), metric.latents())
            found.tables |= metric.tables()
    broken = [found.broken for found in results.values()]
    if broken and all(broken):
        raise ValueError(broken[0])
    return results


def metric_settings(metrics: Sequence[str | Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """Settings of the metrics that are asked for, each metric once; the last settings of it count."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in [DEFAULT] if metrics is None else metrics:
        if one == DEFAULT:
            found |= {name: {"name": name} for name, kind in Metric.variants().items() if kind.by_default}
            continue
        config = {"name": one} if isinstance(one, str) else one
        found[type(Metric.build(config)).__name__] = config
    return list(found.values())


def _at_work(running: Running, results: Mapping[str, Measured]) -> Iterator[tuple[str, Metric, Measured]]:
    """Metrics that still can run, one after the other."""
    for name, metrics in running.items():
        for metric in metrics:
            if results[name].runs(metric):
                yield name, metric, results[name]


def _sweeps(
    saes: Mapping[str, Autoencoder],
    evaluation: Evaluation,
    running: Running,
    results: Mapping[str, Measured],
    show: bool,
) -> None:
    """Go through the data as often as metrics want it."""
    watching = {name: [metric for metric in metrics if metric.needs_chunks()] for name, metrics in running.items()}
    title = "measure"
    while any(True for _ in _at_work(watching, results)):
        _sweep(saes, evaluation, watching, results, (title, show))
        title = "measure again"
        more: dict[str, list[Metric]] = {}
        for name, metrics in watching.items():
            more[name] = []
            for metric in metrics:
                if results[name].runs(metric):
                    with results[name].attempt(metric):
                        more[name] += [metric] if metric.needs_another_pass() else []
        watching = more


def _sweep(
    saes: Mapping[str, Autoencoder],
    evaluation: Evaluation,
    watching: Running,
    results: Mapping[str, Measured],
    shown: tuple[str, bool],
) -> None:
    need_logits = any(metric.needs_logits() for _, metric, _ in _at_work(watching, results))
    title, show = shown
    with progress(title, evaluation.tokens, "tokens", show=show) as bar:
        start = time.perf_counter()
        for chunk in evaluation.chunks(need_logits):
            if not torch.isfinite(chunk.x).all():
                raise ValueError("the activations to measure on hold NaN or infinity")
            for found in results.values():
                found.seconds[MODEL] = found.seconds.get(MODEL, 0.0) + time.perf_counter() - start
            for name, sae in saes.items():
                _watch(name, sae, chunk, [m for m in watching[name] if results[name].runs(m)], results[name])
            bar.advance(len(chunk.x))
            start = time.perf_counter()


def _watch(name: str, sae: Autoencoder, chunk: Chunk, metrics: Sequence[Metric], found: Measured) -> None:
    """Show a chunk to the metrics of an SAE."""
    if not metrics:
        return
    with found.timed(CODES):
        view = _view(sae, chunk)
    if not torch.isfinite(view.x_hat).all():
        found.broken = f"{name} reconstructs NaN or infinity; its weights are not finite"
        return
    for metric in metrics:
        with found.attempt(metric):
            metric.update(view)


def _take(found: Measured, scores: Mapping[str, Score], latents: Mapping[str, Tensor]) -> None:
    for key, score in scores.items():
        if math.isfinite(score.value):
            found.scores[key] = score
        else:
            found.skipped[key] = "has no value here: its formula divides by zero"
    found.latents |= latents


def _check_widths(name: str, sae: Autoencoder, evaluation: Evaluation) -> None:
    if sae.d_in != evaluation.d_in:
        raise ValueError(f"{name} reads rows {sae.d_in} wide, the data's are {evaluation.d_in}")
    if sae.d_out != evaluation.d_out:
        wanted = f"a target {sae.d_out} wide" if sae.d_out else "what it reads"
        found = f"a target {evaluation.d_out} wide" if evaluation.d_out else "none"
        raise ValueError(f"{name} reconstructs {wanted}, the data has {found}; measure it on data of its own site")


def _view(sae: Autoencoder, chunk: Chunk) -> View:
    device = sae.device
    x = chunk.x.to(device)
    codes = sae.encode(x) if len(x) * sae.n_latents <= ENTRIES else codes_of(sae, x)
    x_hat = sae.decode(codes, x)
    target = x if chunk.target is None else chunk.target.to(device)
    read = None if chunk.target is None else x
    return View(sae, target, x_hat, codes, chunk.group, chunk.text, read, chunk.places)
