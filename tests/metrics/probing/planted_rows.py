"""Rows of tasks that are made up: a world of directions of which a task's labels and an SAE's latents are known."""

import torch
from torch import Tensor

from saelab.metrics import Metric, Score
from saelab.metrics.base import Setting
from saelab.sae.activations.relu import ReLU
from saelab.sae.sae import SAE
from saelab.tasks.rows import Examples, TaskRows
from saelab.tasks.task import WHOLE, Task, Texts


class Data:
    """Stands for an evaluation."""

    why_no_model, model = None, object()


def made(labels: dict[str, Tensor], x: Tensor, at: int = 0) -> TaskRows:
    """Tasks with a row [n, D] an example; half of the rows are for testing, two neighbours are a document."""
    n = len(x)
    numbers = torch.arange(n)
    texts = Texts(tuple(map(str, range(n))), "here")
    test = numbers // 2 % 2 == 0
    examples = [
        Examples(Task(name, texts, numbers, torch.full((n,), at), label, test, numbers // 2), numbers, numbers * 0 + 1)
        for name, label in labels.items()
    ]
    return TaskRows(x, examples, {})


def whole(labels: dict[str, Tensor], x: Tensor) -> TaskRows:
    """The same about whole texts."""
    return made(labels, x, WHOLE)


def sae_of(directions: Tensor, encoder: Tensor | None = None, bias: float = 0.0) -> SAE:
    """A ReLU SAE with these directions [L, D], that reads along them or along other rows."""
    sae = SAE(directions.shape[1], len(directions), ReLU(l1=0.0))
    with torch.no_grad():
        sae.dictionary.W_enc.copy_(directions if encoder is None else encoder)
        sae.dictionary.W_dec.copy_(directions)
        sae.dictionary.b_enc.fill_(bias)
        sae.dictionary.b_dec.zero_()
    return sae


def told(metric: Metric, rows: TaskRows, sae: SAE) -> dict[str, Score]:
    """Scores of an SAE on rows of tasks."""
    setting = Setting("sae", {"sae": sae}, Data(), [one.task for one in rows.examples], {TaskRows: rows})
    metric.begin(setting)
    return metric.scores(sae)


def values(metric: Metric, rows: TaskRows, sae: SAE) -> dict[str, float]:
    return {name: score.value for name, score in told(metric, rows, sae).items()}
