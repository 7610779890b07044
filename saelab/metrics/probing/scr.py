"""Spurious correlation removal: can a probe that learnt the wrong thing be mended by taking latents out?
(Karvonen et al. 2024, arXiv 2411.18895, after Marks et al. 2024's SHIFT)

A pair of tasks on the same places, a family of two called "bias ...", e.g. "attribute" and "in a function":

    biased    a probe of all channels, trained where both labels agree: it cannot tell the tasks apart
    oracle    one trained where all four pairs of labels are as frequent
    effect_j  |(mean code where the bias is yes - where it is no) (bias's own probe . direction_j)|
    scr_n   = (accuracy of biased with the n latents of largest effect taken out - accuracy of biased)
              / (accuracy of oracle - accuracy of biased)

accuracies on the test part with all four pairs of labels as frequent; 0 where the oracle is no better by .001. Of a
pair, each task is the wanted one once, and the one with the worse biased accuracy counts. Mean over pairs.

Taking out shifts: where the bias has a latent for yes and none for no, what is left looks like no to the biased probe,
and scr_n may be negative though the right latents were taken. That is so in the published form too.
"""

# Shape letters: n examples, L latents, D width.

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from saelab.data.source import generator_for
from saelab.metrics.base import Metric, Score, Setting, Table, interval
from saelab.metrics.chunks import GROUPS
from saelab.metrics.probing.codes import TaskCodes, codes_of, mean_rows, output_directions, rows_of
from saelab.metrics.probing.logistic import together
from saelab.metrics.probing.removal import REMOVED, SCORED, along, ranks, right_without
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.rows import Examples
from saelab.tasks.task import ENOUGH

SMALLEST_GAP = 1e-3


@dataclass(frozen=True)
class TaskPair:
    """Examples with the labels of two tasks."""

    name: str
    examples: Examples
    """Of the first task."""
    labels: tuple[Tensor, Tensor]
    """Of both, [n] bool each."""
    even: Tensor
    """Examples in which all four pairs of labels are as frequent, in each part; [n] bool."""


@dataclass(frozen=True)
class Mended:
    """Test examples [n] answered right, and their documents."""

    group: Tensor
    biased: Tensor
    oracle: Tensor
    ablated: dict[int, Tensor]
    """By how many latents were taken out."""


class SCR(Metric):
    """Spurious correlation removal."""

    needs_tasks = True

    def begin(self, setting: Setting) -> None:
        self.setting, self.rows = setting, rows_of(setting)
        self.directions = output_directions(setting.sae)
        biases = sorted((one for one in self.rows.examples if not one.task.for_probes), key=lambda one: one.task.name)
        pairs = [joined(one, other) for one, other in pairwise(biases) if one.task.family == other.task.family]
        self.pairs = [pair for pair in pairs if pair]
        if not self.pairs:
            raise ValueError("needs two tasks of a family 'bias ...' on the same places, with all four pairs of labels")

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        codes = codes_of(self.setting)
        mended = [min((self._mend(codes, pair, way) for way in (0, 1)), key=_biased) for pair in self.pairs]
        self.all = {removed: _score(mended, removed) for removed in REMOVED}
        return {f"scr_{removed}": self.all[removed] for removed in SCORED}

    def tables(self) -> dict[str, Table]:
        return {"scr": {"removed": list(self.all), "scr": [score.value for score in self.all.values()]}}

    def _mend(self, codes: TaskCodes, pair: TaskPair, way: int) -> Mended:
        """One task of a pair wanted, the other the bias."""
        wanted, bias = pair.labels[way], pair.labels[1 - way]
        x, train = mean_rows(self.rows, pair.examples), ~pair.examples.task.test
        agree, even = train & (wanted == bias), train & pair.even
        fitted, key = self.setting.cache, (SCR, pair.examples.task.name, way)
        if key not in fitted:
            fitted[key] = [
                together(x[part], label[part]) for part, label in ((agree, wanted), (even, wanted), (even, bias))
            ]
        biased, oracle, of_bias = fitted[key]
        entries = codes.entries(pair.examples, added=True)
        effects = entries.difference(bias, even, codes.n_latents) * along(self.directions, of_bias)
        place, adds, logits = ranks(effects.abs()), along(self.directions, biased), biased.logits(x).float()
        test = ~train & pair.even
        return Mended(
            pair.examples.task.group[test],
            ((logits > 0) == wanted)[test].float(),
            oracle.accuracy(x[test], wanted[test]).float(),
            {n: right_without(logits, wanted, entries, adds, place, n)[test] for n in REMOVED},
        )


def joined(one: Examples, other: Examples) -> TaskPair | None:
    """The examples that two tasks share; None if a pair of labels is too rare."""
    keys = [list(zip(task.text.tolist(), task.at.tolist(), strict=True)) for task in (one.task, other.task)]
    place = {key: number for number, key in enumerate(keys[1])}
    mine = torch.tensor([number for number, key in enumerate(keys[0]) if key in place], dtype=torch.int64)
    its = torch.tensor([place[keys[0][number]] for number in mine.tolist()], dtype=torch.int64)
    task = one.task
    cell = task.label[mine].long() * 2 + other.task.label[its].long()
    even = torch.zeros(len(mine), dtype=torch.bool)
    for part in (task.test[mine], ~task.test[mine]):
        cells = [(part & (cell == number)).nonzero().flatten() for number in range(4)]
        fewest = min(map(len, cells))
        if fewest < ENOUGH:
            return None
        for members in cells:
            even[members[torch.randperm(len(members), generator=generator_for(0))[:fewest]]] = True
    shared = Examples(task.only(mine), one.first[mine], one.count[mine])
    return TaskPair(task.family, shared, (task.label[mine], other.task.label[its]), even)


def _biased(mended: Mended) -> float:
    return mended.biased.mean().item()


def _score(mended: list[Mended], removed: int) -> Score:
    """Mean over pairs of the share of the gap that is closed, bootstrapped over documents."""
    sums = torch.zeros(GROUPS, 4 * len(mended), dtype=torch.float64)
    for number, one in enumerate(mended):
        parts = (one.ablated[removed], one.biased, one.oracle, torch.ones_like(one.biased))
        sums[:, 4 * number : 4 * number + 4].index_add_(0, one.group % GROUPS, torch.stack(parts, 1).double())

    def formula(*totals: Tensor) -> Tensor:
        found = []
        for ablated, biased, oracle, count in zip(*(totals[part::4] for part in range(4)), strict=True):
            gap = oracle - biased
            found.append(((ablated - biased) / gap).where(gap >= SMALLEST_GAP * count, 0))
        return torch.stack(found).mean(0)

    sums = sums[sums.sum(1) > 0]
    low, high = interval(formula, sums)
    count = sum(len(one.group) for one in mended)
    return Score(formula(*sums.sum(0)).item(), low, high, count, f"share of the gap, mean of {len(mended)} pairs")
