"""What a metric is, what it sees, and where its error bars come from.

A metric is fed one chunk of rows after another and gives named scores at the end. Error bars are 95 % bootstrap
intervals over documents (tokens of one document are not independent): every total is kept per document, and the
formula is applied to totals of documents drawn with replacement.
"""

# Shape letters: B rows of a chunk, D input width, L latents, G groups of documents, Q quantities, S resamples.

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.components import Component
from saelab.metrics.chunks import GROUPS, Places, TextChunk
from saelab.metrics.evaluation import Evaluation
from saelab.sae.autoencoder import Autoencoder
from saelab.tasks.task import Task

RESAMPLES = 1000
LEAST_DOCUMENTS = 20
"""From fewer, an interval says next to nothing of other documents and is not given."""
Table = dict[str, list[Any]]
"""Columns of equal length by name; numbers, texts or None."""


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        value: the number.
        low, high: ends of its 95 % bootstrap interval; None where there is nothing to resample, or fewer than
            LEAST_DOCUMENTS documents.
        n: how many tokens (or latents) it stands on.
        unit: what it is counted in.
        documents: how many documents (groups of them where there are more than GROUPS) its interval is over; None where
            it is over something else, or there is none.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    documents: int | None = None

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents < LEAST_DOCUMENTS:
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        return found if self.documents is not None else {key: found[key] for key in found if key != "documents"}


@dataclass(frozen=True)
class View:
    """What a metric sees of one chunk."""

    sae: Autoencoder
    x: Tensor
    """Rows that are to be reconstructed [B, D], float32, in the data's own units: those that were read or, of a
    transcoder, their targets."""
    x_hat: Tensor
    """Their reconstructions [B, D]."""
    codes: Codes
    group: Tensor
    """Group of each row's document, from 0 to GROUPS - 1; [B]."""
    text: TextChunk | None
    """None where only activations are at hand."""
    read: Tensor | None = None
    """Rows that were read [B, D_in], where they are not those to be reconstructed."""
    places: Places | None = None
    """None where only activations are at hand, or rows are averages."""

    @property
    def rows(self) -> Tensor:
        """Rows that were read [B, D_in]."""
        return self.x if self.read is None else self.read


@dataclass(frozen=True)
class Setting:
    """What a metric may look at beside the chunks: the SAE among those measured with it, the data, labelled tasks."""

    name: str
    """The SAE's."""
    saes: Mapping[str, Autoencoder]
    """All that are measured on the same data, by name."""
    evaluation: Evaluation
    tasks: Sequence[Task] = ()
    """Labelled tasks, for probes."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """One for all metrics and SAEs of a measurement: what several of them would work out again."""
    show: bool = False
    """Whether to show progress."""

    @property
    def sae(self) -> Autoencoder:
        return self.saes[self.name]


class Metric(Component, ABC):
    """One metric of one SAE. A fresh object is made for every SAE; constructor options, if any, have defaults.

    In this order: `begin`; `update` for every chunk; `needs_another_pass`, and where it is True, `update` for every
    chunk once more, and so on; `scores`; `latents`; `tables`. A ValueError or OSError out of any of them is the reason
    that is given why there is no score; all other metrics go on.
    """

    home = "saelab.metrics"
    needs_model: ClassVar[bool] = False
    """Whether it has to run the language model."""
    needs_tasks: ClassVar[bool] = False
    """Whether it looks at labelled tasks, through the model."""
    by_default: ClassVar[bool] = True
    """Whether it runs where no metrics are named; one that takes minutes does not."""

    def begin(self, setting: Setting) -> None:
        """Before the first chunk; ValueError says why it cannot run here."""

    def update(self, view: View) -> None:
        """Take in a chunk. Where no metric has this method, the data are not gone through."""

    def needs_logits(self) -> bool:
        """Whether it looks at the model's logits in the chunks to come; without them, `view.text` may be None."""
        return self.needs_model

    def needs_another_pass(self) -> bool:
        """After the last chunk: whether to go through all chunks once more."""
        return False

    @abstractmethod
    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        """The scores, once every chunk was seen; a value that is not finite is left out and said."""

    def latents(self) -> dict[str, Tensor]:
        """Numbers per latent, [L] each, kept beside the scores."""
        return {}

    def tables(self) -> dict[str, Table]:
        """What is more than a number, by name: curves, samples of rows; kept beside the scores and drawn."""
        return {}

    @classmethod
    def needs_chunks(cls) -> bool:
        """Whether it takes in chunks."""
        return cls.update is not Metric.update


class Totals:
    """Totals of named quantities by group of documents."""

    def __init__(self) -> None:
        self.n = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, group: Tensor, **values: Tensor) -> None:
        """Add values [B] or [B, Q] of rows to their groups' totals."""
        self.n += len(group)
        for name, value in values.items():
            shape = (GROUPS, *value.shape[1:])
            total = self._sums.setdefault(name, torch.zeros(shape, dtype=torch.float64))
            total.index_add_(0, group.cpu(), value.detach().double().cpu())

    def total(self, name: str) -> Tensor:
        """Total over all documents."""
        return self._sums[name].sum(0)

    def by_group(self, name: str) -> Tensor:
        """Totals by group, [GROUPS] or [GROUPS, Q]."""
        return self._sums[name]

    def score(self, formula: Callable[..., Tensor], unit: str, **given: Tensor) -> Score:
        """Score of a formula of totals.

        Args:
            formula: its parameters name quantities; it is called with totals over all documents, and with totals
                [S] over resampled ones.
            unit: of the result.
            given: totals by group [GROUPS] that were worked out afterwards, by name.
        """
        names = formula.__code__.co_varnames[: formula.__code__.co_argcount]
        sums = torch.stack([given[name] if name in given else self._sums[name] for name in names], 1)
        sums = sums[sums.abs().sum(1) > 0]
        value = formula(*sums.sum(0)).item()
        low, high = interval(formula, sums)
        return Score(value, low, high, self.n, unit, len(sums))


def interval(formula: Callable[..., Tensor], sums: Tensor) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of formula(*totals) over groups with totals [G, Q]; None for fewer than two groups."""
    if len(sums) < 2:
        return None, None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(sums), dtype=sums.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    values = formula(*(weights @ sums).T)
    values = values[torch.isfinite(values)]
    if not len(values):
        return None, None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def score_of_latents(values: Tensor, unit: str) -> Score:
    """Mean of a number per latent [n], bootstrapped over latents."""
    binned = torch.zeros(min(GROUPS, len(values)), 2, dtype=torch.float64)
    pairs = torch.stack([values.double(), torch.ones(len(values), dtype=torch.float64)], 1)
    binned.index_add_(0, torch.arange(len(values)) % len(binned), pairs)
    low, high = interval(lambda total, count: total / count, binned)
    return Score(values.double().mean().item(), low, high, len(values), unit)
