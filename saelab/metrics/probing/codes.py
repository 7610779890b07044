"""Codes of the rows behind labelled tasks: which latents are active where, and by how much, without a dense matrix.

An example's code is the mean over its rows; most have one.
"""

# Shape letters: N rows of all tasks, E active entries of all rows, n examples, e entries of some, L latents, m chosen.

from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.metrics.base import Setting
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.rows import Examples, TaskRows, collect

ROWS_AT_ONCE, BLOCK_ENTRIES = 2048, 1 << 24


@dataclass(frozen=True, eq=False)
class ExampleEntries:
    """Active entries of examples."""

    example: Tensor
    """[e] int64."""
    latent: Tensor
    """[e] int64."""
    value: Tensor
    """Parts of the examples' mean codes, [e]; several of a latent and an example add up."""
    n: int
    """How many examples there are."""

    def columns(self, latents: Tensor, n_latents: int) -> Tensor:
        """Codes of some latents [m] as [n, m]."""
        place = torch.full((n_latents,), -1)
        place[latents] = torch.arange(len(latents))
        column = place[self.latent]
        found, has = torch.zeros(self.n, len(latents)), column >= 0
        index = (self.example[has], column[has])
        return found.index_put(index, self.value[has], accumulate=True)

    def difference(self, label: Tensor, chosen: Tensor, n_latents: int) -> Tensor:
        """Mean code where the label is yes less the mean where it is no, over chosen examples [n]; [L]."""
        weight = (label & chosen).float() / (label & chosen).sum().clamp_min(1)
        weight = weight - (~label & chosen).float() / (~label & chosen).sum().clamp_min(1)
        return torch.zeros(n_latents).index_add_(0, self.latent, self.value * weight[self.example])

    def total(self, weight: Tensor) -> Tensor:
        """Sum over an example's entries of value times a weight [e] of each; [n]."""
        return torch.zeros(self.n).index_add_(0, self.example, self.value * weight)


class TaskCodes:
    """Codes of all rows of a measurement's tasks.

    Args:
        sae: the SAE.
        rows: the rows.
    """

    @torch.no_grad()
    def __init__(self, sae: Autoencoder, rows: TaskRows):
        self.n_latents = sae.n_latents
        device, values, added, latents, counts = sae.device, [], [], [], []
        for x in rows.x.split(max(1, min(ROWS_AT_ONCE, BLOCK_ENTRIES // sae.n_latents))):
            codes = sae.encode(x.to(device))
            active = codes.active
            values.append(codes.values[active].float().cpu())
            if sae.target_scale.per_row:
                added.append(sae.data_values(codes)[active].float().cpu())
            latents.append(codes.indices[active].to(torch.int32).cpu())
            counts.append(active.sum(1).cpu())
        self.value, self.latent, self.count = torch.cat(values), torch.cat(latents), torch.cat(counts)
        self.added = torch.cat(added) if added else self.value
        self.first = self.count.cumsum(0) - self.count

    def entries(self, examples: Examples, chosen: Tensor | None = None, added: bool = False) -> ExampleEntries:
        """The active entries of a task's examples, or of some of them, by number.

        `added`: with values in the unit of `output_directions`, where they are not the codes themselves.
        """
        first, count = examples.first, examples.count
        if chosen is not None:
            first, count = first[chosen], count[chosen]
        owner, rows = spread(first, count)
        which, place = spread(self.first[rows], self.count[rows])
        example = owner[which]
        value = self.added if added else self.value
        return ExampleEntries(example, self.latent[place].long(), value[place] / count[example], len(count))


def spread(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Of spans that begin at `first` and are `count` long: each member's span, and the member; both [sum count]."""
    owner = torch.arange(len(count)).repeat_interleave(count)
    place = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
    return owner, first[owner] + place


def rows_of(setting: Setting) -> TaskRows:
    """The rows of a measurement's tasks, worked out once for all metrics and SAEs.

    Raises:
        ValueError: where there are no tasks or no model, or no task has enough rows.
    """
    if not setting.tasks:
        raise ValueError("needs labelled tasks: give --tasks")
    model = setting.evaluation.model
    if model is None or setting.evaluation.why_no_model:
        raise ValueError(setting.evaluation.why_no_model or "needs a model")
    if TaskRows not in setting.cache:
        try:
            setting.cache[TaskRows] = collect(setting.tasks, model, setting.show)
        except ValueError as error:
            setting.cache[TaskRows] = error
    found = setting.cache[TaskRows]
    if isinstance(found, ValueError):
        raise found
    return found


def codes_of(setting: Setting) -> TaskCodes:
    """The codes of a measurement's tasks, worked out once for all metrics of an SAE; the last SAE's are held."""
    name, codes = setting.cache.get(TaskCodes, (None, None))
    if name != setting.name:
        codes = TaskCodes(setting.sae, rows_of(setting))
        setting.cache[TaskCodes] = setting.name, codes
    return codes


def mean_rows(rows: TaskRows, examples: Examples) -> Tensor:
    """The mean row of each example, [n, D]."""
    return _means(rows.x, examples)


def _means(x: Tensor, examples: Examples) -> Tensor:
    owner, place = spread(examples.first, examples.count)
    total = torch.zeros(len(examples.count), x.shape[1]).index_add_(0, owner, x[place])
    return total / examples.count[:, None]


@torch.no_grad()
def mean_bias(sae: Autoencoder, rows: TaskRows, examples: Examples) -> Tensor:
    """What is decoded of each example's rows on average when no latent is active; [n, D], or [D] for all."""
    numbers = sae.scale.numbers(rows.x.to(sae.device))
    return sae.data_bias(None if numbers is None else _means(numbers.float().cpu(), examples).to(sae.device)).cpu()


def output_directions(sae: Autoencoder) -> Tensor:
    """What a code of 1 adds to a reconstruction, in the units of the data; [L, D], on the CPU.

    Raises:
        ValueError: for an SAE that reconstructs other rows than it reads.
    """
    if sae.d_out is not None:
        raise ValueError("needs an SAE that reconstructs what it reads, and this is a transcoder")
    with torch.no_grad():
        return sae.data_directions().float().cpu()
