"""Targeted probe perturbation: are the latents of one concept its own? (Karvonen et al. 2024, arXiv 2411.18895)

For the tasks of a family, each with a probe of all channels: latents are ordered by

    effect_j = max(0, mean code where yes - mean code where no) * (probe weight . direction_j)

on the training part, and the first n are taken out of all rows (the error of the reconstruction stays in them). Then

    tpp_n = mean over tasks i of (drop of accuracy of i's own probe - mean drop of the other tasks' probes)

on the test parts, mean over families. 0: nothing, or everything alike, is lost; .5 is the most there is on balanced
labels. Of a family the first tasks with a probe accuracy of at least 0.7 are taken; probes are our own (`logistic.py`).
"""

# Shape letters: n examples, e active entries, L latents, m tasks of a family.

from itertools import groupby

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, Setting, Table
from saelab.metrics.probing.codes import codes_of, mean_rows, output_directions, rows_of
from saelab.metrics.probing.removal import REMOVED, SCORED, along, ranks, right_without
from saelab.metrics.probing.score import mean_of_means
from saelab.metrics.probing.sparse_probing import full_probe
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.rows import Examples

FAMILY_TASKS, GOOD_PROBE = 6, 0.7


class TPP(Metric):
    """Targeted probe perturbation."""

    needs_tasks = True

    def begin(self, setting: Setting) -> None:
        self.setting, self.rows = setting, rows_of(setting)
        self.directions = output_directions(setting.sae)
        examples = [one for one in self.rows.examples if one.task.for_probes]
        families = groupby(sorted(examples, key=lambda one: one.task.family), key=lambda one: one.task.family)
        chosen = [self._good(list(family)) for _, family in families]
        self.families = [family for family in chosen if len(family) > 1]
        if not self.families:
            raise ValueError(f"needs a family of two tasks with a probe accuracy of at least {GOOD_PROBE}")

    def _good(self, family: list[Examples]) -> list[Examples]:
        found: list[Examples] = []
        for one in family:
            x, task = mean_rows(self.rows, one), one.task
            accuracy = full_probe(self.setting, one, x).accuracy(x[task.test], task.label[task.test])
            found += [one] if accuracy.mean() >= GOOD_PROBE and len(found) < FAMILY_TASKS else []
        return found

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        groups: list[Tensor] = []
        losses: dict[int, list[Tensor]] = {removed: [] for removed in REMOVED}
        for family in self.families:
            for one, by_count in zip(family, self._of_family(family), strict=True):
                groups.append(one.task.group[one.task.test])
                for removed, value in by_count.items():
                    losses[removed].append(value)
        self.all = {removed: mean_of_means(groups, values, "drop of accuracy") for removed, values in losses.items()}
        return {f"tpp_{removed}": self.all[removed] for removed in SCORED}

    def tables(self) -> dict[str, Table]:
        return {"tpp": {"removed": list(self.all), "tpp": [score.value for score in self.all.values()]}}

    def _of_family(self, family: list[Examples]) -> list[dict[int, Tensor]]:
        """Of each task's test examples [n], the drop by its own latents less the mean drop by the others', by count."""
        codes = codes_of(self.setting)
        entries = [codes.entries(one, added=True) for one in family]
        probes = [full_probe(self.setting, one) for one in family]
        adds = [along(self.directions, probe) for probe in probes]
        places = [
            ranks(some.difference(one.task.label, ~one.task.test, codes.n_latents).clamp_min(0) * add)
            for one, some, add in zip(family, entries, adds, strict=True)
        ]
        found = []
        for own, (one, some) in enumerate(zip(family, entries, strict=True)):
            task, logits = one.task, probes[own].logits(mean_rows(self.rows, one)).float()
            before = ((logits > 0) == task.label).float()
            drops = {
                removed: torch.stack(
                    [before - right_without(logits, task.label, some, adds[own], place, removed) for place in places]
                )
                for removed in REMOVED
            }
            others = torch.arange(len(family)) != own
            found.append({removed: (drop[own] - drop[others].mean(0))[task.test] for removed, drop in drops.items()})
        return found
