"""Means over tasks with intervals over documents."""

# Shape letters: n examples of a task, Q tasks.

from collections.abc import Sequence

import torch
from torch import Tensor

from saelab.metrics.base import Score, interval
from saelab.metrics.chunks import GROUPS
from saelab.tasks.rows import Examples


def mean_over_tasks(examples: Sequence[Examples], values: Sequence[Tensor], unit: str, test: bool = True) -> Score:
    """Mean over tasks of the mean over a part's examples, bootstrapped over documents; the tasks stay the same.

    Args:
        examples: of each task.
        values: a number for each example of the part, [n] each.
        unit: of the numbers.
        test: whether the part is that for testing.
    """
    return mean_of_means([one.task.group[one.task.test == test] for one in examples], values, unit)


def mean_of_means(groups: Sequence[Tensor], values: Sequence[Tensor], unit: str) -> Score:
    """Mean over tasks of the mean over their numbers [n], each with the number of its document [n]."""
    sums = torch.zeros(GROUPS, 2 * len(values), dtype=torch.float64)
    for number, (group, value) in enumerate(zip(groups, values, strict=True)):
        sums[:, number].index_add_(0, group % GROUPS, value.double().cpu())
        sums[:, len(values) + number].index_add_(0, group % GROUPS, torch.ones(len(value), dtype=torch.float64))

    def mean(*totals: Tensor) -> Tensor:
        total, count = torch.stack(totals[: len(values)]), torch.stack(totals[len(values) :])
        return (total / count).nanmean(0)

    sums = sums[sums[:, len(values) :].sum(1) > 0]
    low, high = interval(mean, sums)
    return Score(mean(*sums.sum(0)).item(), low, high, sum(map(len, values)), f"{unit}, mean of {len(values)} tasks")
