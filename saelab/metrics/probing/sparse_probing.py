"""Sparse probing: how well do a few latents answer a labelled task? (Gurnee et al. 2023, as SAEBench does it)

For each task the k latents with the largest |mean code where yes - mean code where no| on the training part are given
to a logistic regression, whose accuracy on the test part is scored:

    sparse_probing_1, _2, _5         accuracy with k latents, mean over tasks
    sparse_probing_channels_1, ...   the same with k channels of the rows themselves
    sparse_probing_full              with all channels: what there is to be known

A whole text has the mean of its rows' codes (rows). Chance is 0.5. Left out: a choice of the regressions' ridge.
"""

# Shape letters: n examples of a task, L latents, D channels, k chosen.

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, Setting
from saelab.metrics.probing.codes import codes_of, mean_rows, rows_of
from saelab.metrics.probing.logistic import Together, together
from saelab.metrics.probing.score import mean_over_tasks
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.rows import Examples

CHOSEN = (1, 2, 5)


class SparseProbing(Metric):
    """Accuracy of a few latents on labelled tasks."""

    needs_tasks = True

    def begin(self, setting: Setting) -> None:
        self.setting, self.rows = setting, rows_of(setting)
        self.examples = [one for one in self.rows.examples if one.task.for_probes]
        if not self.examples:
            raise ValueError("needs a task to probe: all those given are pairs for SCR")

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        codes, shared = codes_of(self.setting), self.setting.cache
        right: dict[str, list[Tensor]] = {}
        for one in self.examples:
            entries = codes.entries(one)
            difference = entries.difference(one.task.label, ~one.task.test, codes.n_latents)
            for name, value in few(one, difference, partial(entries.columns, n_latents=codes.n_latents)).items():
                right.setdefault(name, []).append(value)
        if SparseProbing not in shared:
            shared[SparseProbing] = self._of_channels()
        unit = "share"
        found = {name: mean_over_tasks(self.examples, values, unit) for name, values in right.items()}
        return found | shared[SparseProbing]

    def _of_channels(self) -> dict[str, Score]:
        """The same with channels, and with all of them."""
        right: dict[str, list[Tensor]] = {}
        for one in self.examples:
            x, train = mean_rows(self.rows, one), ~one.task.test
            yes, no = (x[train & wanted].mean(0) for wanted in (one.task.label, ~one.task.label))
            for name, value in few(one, yes - no, partial(torch.index_select, x, 1), "channels_").items():
                right.setdefault(name, []).append(value)
            probe = full_probe(self.setting, one, x)
            value = probe.accuracy(x[one.task.test], one.task.label[one.task.test])
            right.setdefault("sparse_probing_full", []).append(value)
        return {name: mean_over_tasks(self.examples, values, "share") for name, values in right.items()}


def few(
    examples: Examples, difference: Tensor, columns: Callable[[Tensor], Tensor], kind: str = ""
) -> dict[str, Tensor]:
    """Whether each test example is answered right with the k inputs of the largest difference [L], by k."""
    task, found = examples.task, {}
    order = difference.abs().topk(min(max(CHOSEN), len(difference))).indices
    inputs = columns(order)
    for k in CHOSEN:
        own = inputs[:, :k]
        probe = together(own[~task.test], task.label[~task.test])
        found[f"sparse_probing_{kind}{k}"] = probe.accuracy(own[task.test], task.label[task.test])
    return found


def full_probe(setting: Setting, examples: Examples, x: Tensor | None = None) -> Together:
    """The probe of all channels of a task, fitted once for all metrics and SAEs."""
    key = ("full probe", examples.task.name)
    if key not in setting.cache:
        x = mean_rows(rows_of(setting), examples) if x is None else x
        setting.cache[key] = together(x[~examples.task.test], examples.task.label[~examples.task.test])
    return setting.cache[key]


def f1(answer: Tensor, label: Tensor) -> float:
    """F1 of answers [n] bool for labels [n] bool; 0 where nothing is found."""
    both = (answer & label).sum().item()
    return 2 * both / max(1, int(answer.sum() + label.sum()))


def probe_answers(probe: Together, x: Tensor) -> Tensor:
    """What a probe answers, [n] bool, for rows [n, d]."""
    return torch.as_tensor(probe.logits(x) > 0)
