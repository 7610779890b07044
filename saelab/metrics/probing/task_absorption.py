"""Absorption on labelled tasks: does the latent of "begins with s" stay off where a latent of one word says it too?
(Chanin et al. 2024, arXiv 2409.14507; formula and constants as in SAEBench's code.)

The tasks are those of a family, by default `letter`, about places in texts. Of each with an F1 of at least 0.6 for a
probe of all channels on the test part:

    p       the probe's direction, of unit norm
    main    latents in the order of |mean code where yes - mean code where no|, as long as each raises the F1 of a
            probe of them, on the training part, by at least .03; one at least, 10 at most
    rows    test examples with a yes that the probe finds too and whose a > 0,
            a = (x - x_0) . p,  x_0 what is decoded when no latent is active

and of each row, with f_j cos_j what latent j adds along p, the fraction absorbed and whether absorption is full, as in
`saelab.metrics.truth.absorption`, where a is the feature's own intensity. There, latents count for the fraction from a
cosine of .1 on. That is 5 standard deviations of random directions in 2,304 dimensions, but 1.6 in 256, where an
untrained SAE then has as large a fraction as a trained one: in narrow models give `least_cosine` too.

    absorption       mean fraction, mean over tasks
    absorption_full  share of rows with full absorption

SAEBench takes the activation at a word in a prompt for spelling it, and its probe from those; here a task is data.
"""

# Shape letters: n examples of a task, P rows of a task, K latents active in a row, L latents, D width.

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.metrics.base import Metric, Score, Setting, Table
from saelab.metrics.probing.codes import (
    ExampleEntries,
    TaskCodes,
    codes_of,
    mean_bias,
    mean_rows,
    output_directions,
    rows_of,
)
from saelab.metrics.probing.logistic import together
from saelab.metrics.probing.score import mean_of_means
from saelab.metrics.probing.sparse_probing import f1, full_probe, probe_answers
from saelab.metrics.truth.absorption import ABSORBING_COSINE, absorbed
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.rows import Examples

GOOD_PROBE, JUMP, MOST_MAIN = 0.6, 0.03, 10


class TaskAbsorption(Metric):
    """Absorption of the latents of a family of labelled tasks.

    Args:
        family: what stands before the colon in the tasks' names.
        least_cosine: from which other latents count for the fraction.
    """

    needs_tasks = True

    def __init__(self, family: str = "letter", least_cosine: float = ABSORBING_COSINE):
        self.family, self.least_cosine = family, least_cosine

    def begin(self, setting: Setting) -> None:
        if not 0 <= self.least_cosine <= 1:
            raise ValueError(f"TaskAbsorption: least_cosine must be between 0 and 1, got {self.least_cosine}")
        self.setting, self.rows = setting, rows_of(setting)
        self.directions = output_directions(setting.sae)
        self.examples = [one for one in self.rows.examples if one.task.family == self.family and one.task.of_tokens]
        if not self.examples:
            raise ValueError(f"needs tasks of the family '{self.family}' about places in texts")

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        codes = codes_of(self.setting)
        self.found: list[tuple[str, Tensor, Tensor, Tensor, Tensor]] = []
        for one in self.examples:
            x = mean_rows(self.rows, one)
            probe = full_probe(self.setting, one, x)
            answer, task = probe_answers(probe, x), one.task
            if f1(answer[task.test], task.label[task.test]) < GOOD_PROBE:
                continue
            direction = F.normalize(probe.weight.float(), dim=0)
            intensity = (x - mean_bias(sae, self.rows, one).float()) @ direction
            rows = (task.test & task.label & answer & (intensity > 0)).nonzero().flatten()
            main = main_latents(codes, one, codes.entries(one))
            fraction, full = self._absorbed(codes, one, rows, direction, main, intensity[rows])
            self.found.append((task.name, task.group[rows], fraction, full.float(), main))
        if not self.found:
            raise ValueError(f"no task of the family '{self.family}' has a probe with an F1 of at least {GOOD_PROBE}")
        groups = [found[1] for found in self.found]
        return {
            "absorption": mean_of_means(groups, [found[2] for found in self.found], "share"),
            "absorption_full": mean_of_means(groups, [found[3] for found in self.found], "share of rows"),
        }

    def tables(self) -> dict[str, Table]:
        """Each task with its main latents."""
        return {
            "absorption": {
                "task": [found[0] for found in self.found],
                "rows": [len(found[1]) for found in self.found],
                "absorption": [found[2].mean().item() if len(found[2]) else None for found in self.found],
                "main": [found[4].tolist() for found in self.found],
            }
        }

    def _absorbed(
        self, codes: TaskCodes, one: Examples, rows: Tensor, direction: Tensor, main: Tensor, intensity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The fraction absorbed [P] and whether absorption is full [P], of rows by their numbers [P]."""
        if not len(rows):
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        values, latents = padded(codes.entries(one, rows, added=True))
        norms = self.directions.norm(dim=1)
        cosine = (self.directions @ direction) / norms.clamp_min(1e-12)
        is_main = torch.zeros(codes.n_latents, dtype=torch.bool)
        is_main[main] = True
        is_main = is_main[latents] & (values != 0)
        return absorbed(values * norms[latents], cosine[latents], is_main, intensity, least=self.least_cosine)


def main_latents(codes: TaskCodes, one: Examples, entries: ExampleEntries) -> Tensor:
    """The latents of a task, best first; [m]."""
    task = one.task
    train = ~task.test
    difference = entries.difference(task.label, train, codes.n_latents)
    order = difference.abs().topk(min(MOST_MAIN, len(difference))).indices
    columns, label = entries.columns(order, codes.n_latents)[train], task.label[train]
    best, count = 0.0, 1
    for k in range(1, len(order) + 1):
        now = f1(probe_answers(together(columns[:, :k], label), columns[:, :k]), label)
        if k > 1 and now < best + JUMP:
            break
        best, count = now, k
    return order[:count]


def padded(entries: ExampleEntries) -> tuple[Tensor, Tensor]:
    """Entries of examples with one row each as values and latents [n, K]; unused places have the value 0."""
    order = entries.example.argsort(stable=True)
    count = torch.bincount(entries.example, minlength=entries.n)
    width = max(1, int(count.max()))
    place = torch.arange(len(order)) - (count.cumsum(0) - count)[entries.example[order]]
    values = torch.zeros(entries.n, width).index_put((entries.example[order], place), entries.value[order])
    latents = torch.zeros(entries.n, width, dtype=torch.int64)
    return values, latents.index_put((entries.example[order], place), entries.latent[order])
