"""Probe loss: does one latent know what we know to be in the text? (Gao et al. 2024, arXiv 2406.04093)

    loss(task) = min over latents i of  min over w, b of  -E[ y log s(w z_i + b) + (1 - y) log(1 - s(w z_i + b)) ]

z_i is latent i's pre-activation, s the logistic function, in nats; chance on balanced labels is ln 2 = .693. A probe of
one input is fitted for every latent and task (`logistic.py`); a task's latent is the one with the smallest loss on the
training part.

    probe_loss           its loss on the test part, mean over tasks: without selection bias
    probe_loss_train     its loss on the training part: the formula above, biased down by the choice among many
    probe_loss_null      probe_loss with the labels of each part permuted: what is above or below it is not luck
    probe_loss_null_train   probe_loss_train so: how far the choice alone goes down from .693
    probe_loss_channels  probe_loss of the best channel of the rows themselves in place of a latent
    probe_accuracy       share of test examples that the task's latent answers right

Pre-activation and Newton's method are as we read the paper; its value is not split into parts, and its 61 tasks are not
ours. An example about a whole text has the pre-activation of its last token, or the mean or largest over its rows.
Nothing of size [tokens, latents] is made: latents come in blocks. A latent is not fitted where a bound (`least_loss`)
says that it cannot be a task's best.
"""

# Shape letters: N rows of all tasks, D width, c latents of a block, n examples of a task.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.data.source import generator_for
from saelab.metrics.base import Metric, Score, Setting, Table
from saelab.metrics.probing.codes import rows_of, spread
from saelab.metrics.probing.logistic import RIDGE, least_loss, one_each
from saelab.metrics.probing.score import mean_over_tasks
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.sae import SAE
from saelab.tasks.rows import Examples

BLOCK_ENTRIES = 1 << 24
POOLS = ("last", "mean", "max")
Read = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""From rows [N, D] to a function from numbers of inputs [c] to their values [N, c]."""
FIRST, SLACK = 16, 1e-5
"""Inputs of a block that are fitted first, and how far rounding may take a loss below its bound."""


@dataclass
class Best:
    """The best input of a task so far."""

    train: float = float("inf")
    """Its mean loss on the training part."""
    input: int = -1
    weight: Tensor | float = 0.0
    bias: Tensor | float = 0.0
    losses: Tensor | None = None
    """On the test part, [n]."""
    right: Tensor | None = None
    """Whether each test example is answered right, [n]."""
    train_losses: Tensor | None = None


class ProbeLoss(Metric):
    """Loss of the best latent of each labelled task.

    Args:
        pool: which pre-activation stands for a whole text: that of its `last` token, or the `mean` or `max` of its
            rows.
        ridge: on the weight of the standardised pre-activation. With less than about 100 training examples, the default
            lets probes be surer of themselves than the test part bears out.
    """

    needs_tasks = True

    def __init__(self, pool: str = "last", ridge: float = RIDGE):
        self.pool, self.ridge = pool, ridge

    def begin(self, setting: Setting) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {self.pool!r}")
        if self.ridge < 0:
            raise ValueError(f"ridge must be at least 0, got {self.ridge}")
        if not isinstance(setting.sae, SAE):
            raise ValueError("an ensemble has no pre-activations: measure its members")
        self.sae = setting.sae
        self.rows, self.show = rows_of(setting), setting.show
        self.examples = [one for one in self.rows.examples if one.task.for_probes]
        if not self.examples:
            raise ValueError("needs a task to probe: all those given are pairs for SCR")
        self.cache = setting.cache

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        own = [one.task.label for one in self.examples]
        permuted = [permuted_labels(one, number) for number, one in enumerate(self.examples)]
        self.best, null = self._search(partial(pre_activations, self.sae), sae.n_latents, [own, permuted])
        key = (ProbeLoss, self.pool, self.ridge)
        if key not in self.cache:
            (self.cache[key],) = self._search(_channels, self.rows.x.shape[1], [own])
        unit = "nats"
        return {
            "probe_loss": self._mean(self.best, "losses", unit),
            "probe_loss_train": self._mean(self.best, "train_losses", unit, test=False),
            "probe_loss_null": self._mean(null, "losses", unit),
            "probe_loss_null_train": self._mean(null, "train_losses", unit, test=False),
            "probe_loss_channels": self._mean(self.cache[key], "losses", unit),
            "probe_accuracy": self._mean(self.best, "right", "share"),
        }

    def tables(self) -> dict[str, Table]:
        """Every task with its latent and its channel."""
        channels = self.cache[ProbeLoss, self.pool, self.ridge]
        return {
            "probes": {
                "task": [one.task.name for one in self.examples],
                "latent": [best.input for best in self.best],
                "loss": [_mean_of(best.losses) for best in self.best],
                "loss_train": [best.train for best in self.best],
                "accuracy": [_mean_of(best.right) for best in self.best],
                "channel": [best.input for best in channels],
                "loss_channel": [_mean_of(best.losses) for best in channels],
                "examples": [len(one.task) for one in self.examples],
            }
        }

    def _mean(self, best: Sequence[Best], what: str, unit: str, test: bool = True) -> Score:
        return mean_over_tasks(self.examples, [getattr(one, what) for one in best], unit, test)

    def _search(self, read: Read, inputs: int, labels: Sequence[Sequence[Tensor]]) -> list[list[Best]]:
        """The best of so many inputs for every task, for each way to label the tasks.

        Args:
            read: what the inputs are of rows.
            inputs: how many there are.
            labels: of each way, those of every task [n].
        """
        found = [[Best() for _ in self.examples] for _ in labels]
        rows, parts = rows_behind([self._part(one, ~one.task.test) for one in self.examples])
        own = [torch.stack([way[number][~one.task.test] for way in labels]) for number, one in enumerate(self.examples)]
        z, size = read(self.rows.x[rows]), max(1, BLOCK_ENTRIES // max(1, len(rows)))
        with progress("probes", inputs, "inputs", show=self.show) as bar:
            for block in torch.arange(inputs).split(size):
                values = z(block)
                for number, part in enumerate(parts):
                    train, label = pooled(values, part, self.pool), own[number].to(values.device)
                    for way, least in enumerate(least_loss(train, label)):
                        _improve(found[way][number], train, label[way], least, int(block[0]), self.ridge)
                bar.advance(len(block))
        for number, one in enumerate(self.examples):
            rows, (part,) = rows_behind([self._part(one)])
            values = read(self.rows.x[rows])(torch.tensor([way[number].input for way in found]))
            for way, column in enumerate(pooled(values, part, self.pool).T):
                _score(found[way][number], column, labels[way][number], one.task.test)
        return found

    def _part(self, one: Examples, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first row that stands for each example, or each chosen one [n] bool, and how many do; [n] each."""
        first, count = (one.last, torch.ones_like(one.count)) if self.pool == "last" else (one.first, one.count)
        return (first, count) if chosen is None else (first[chosen], count[chosen])


def _improve(best: Best, z: Tensor, label: Tensor, least: Tensor, start: int, ridge: float) -> None:
    """Take the best of a block's inputs if it is better than the best so far.

    Those with the lowest bounds are fitted first, then ever more of those whose bound is below the best loss.

    Args:
        best: so far.
        z: the inputs, [n, c].
        label: [n].
        least: bounds of the inputs' losses, [c].
        start: number of the first input.
        ridge: see `ProbeLoss`.
    """
    order, count = least.sort(stable=True).indices, FIRST
    while len(order := order[least[order] < best.train + SLACK]):
        now, order = order[:count].sort().values, order[count:]
        fitted = one_each(z[:, now], label, ridge)
        loss, which = fitted.loss.min(0)
        if loss.item() < best.train:
            best.train, best.input = loss.item(), start + int(now[which])
            best.weight, best.bias = fitted.weight[which], fitted.bias[which]
        count *= 2


def _score(best: Best, z: Tensor, label: Tensor, test: Tensor) -> None:
    """Fill in how a task's best input, z [n], does on both parts."""
    margin = ((best.weight * z + best.bias) * (label.to(z) * 2 - 1)).cpu()
    losses = torch.nn.functional.softplus(-margin)
    best.losses, best.train_losses, best.right = losses[test], losses[~test], (margin > 0)[test]


def rows_behind(spans: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The rows that some spans are made of, ascending, each once, and the spans among them."""
    rows = torch.cat([spread(first, count)[1] for first, count in spans]).unique()
    return rows, [(torch.searchsorted(rows, first), count) for first, count in spans]


def _channels(x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda channels: x[:, channels]


def pre_activations(sae: SAE, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Pre-activations of rows [N, D] for some latents at a time: a function from latents [c] to [N, c]."""
    device = sae.device
    pre = sae.dictionary.pre(sae.scale.apply_to(x.to(device)))
    return lambda latents: pre.for_latents(latents.to(device))


def pooled(values: Tensor, spans: tuple[Tensor, Tensor], pool: str) -> Tensor:
    """What stands for each of some spans of rows [n, c], from values of the rows [N, c].

    Args:
        values: of rows.
        spans: the number of the first row of each, and how many rows it has; [n] each.
        pool: see `ProbeLoss`.
    """
    first, count = spans
    if pool == "last" or bool((count == 1).all()):
        return values.index_select(0, (first + count - 1).to(values.device))
    owner, place = spread(first, count)
    rows = values[place.to(values.device)]
    found = values.new_zeros(len(count), values.shape[1])
    index = owner.to(values.device)[:, None].expand_as(rows)
    return found.scatter_reduce(0, index, rows, "a" + pool if pool == "max" else pool, include_self=False)


def permuted_labels(examples: Examples, number: int) -> Tensor:
    """The task's labels, permuted within each part; [n]."""
    label = examples.task.label.clone()
    for part in (examples.task.test, ~examples.task.test):
        own = label[part]
        label[part] = own[torch.randperm(len(own), generator=generator_for(number, 1))]
    return label


def _mean_of(values: Tensor | None) -> float:
    assert values is not None, "every task has a best input once a block was seen"
    return values.double().mean().item()
