"""Gradients of a weight as sums over sparse entries, added up where they are used.

The gradient of a dictionary's weight [L, D] is a sum over a batch's entries,

    grad[l] = sum over terms, and over latent l's entries in each, of  value * row of the entry

An optimizer that visits one latent at a time can form it there and never hold it as a whole. It owns a
`LatentGradients`, which the dictionary hands to the kernels; they add terms to it and return no dense
gradient. `settle` adds them up for whoever needs `.grad` after all.
"""

# Shape letters: B rows, D width, L latents, K entries per row.

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from saelab.core.codes import Entries
from saelab.kernels.sums import sum_by_latent


@dataclass(frozen=True)
class Term:
    """One batch's part of a gradient."""

    entries: Entries
    values: Tensor
    """[B, K]."""
    rows: Tensor
    """[B, D]."""

    def dense(self) -> Tensor:
        """The sum as a whole; [L, D]."""
        return sum_by_latent(self.entries, self.values, self.rows)


class LatentGradients:
    """Terms of the gradients of some weights, from the start of a step until the optimizer has used them.

    Outside of a step nothing is collected, and gradients go into `.grad` as always.
    """

    def __init__(self) -> None:
        self._terms: dict[Tensor, list[Term]] = {}
        self._unit: dict[Tensor, int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()  # a copied SAE's weights are no optimizer's yet

    def collect(self, weights: Iterable[Tensor]) -> None:
        """Begin a step: forget earlier terms, and collect those of these weights."""
        self._terms = {weight: [] for weight in weights}

    def stop(self) -> None:
        """End a step."""
        self._terms = {}

    def terms(self, weight: Tensor) -> list[Term] | None:
        """The list that a weight's terms go to; None where its gradient is wanted as a whole."""
        return self._terms.get(weight)

    def settle(self, weight: Tensor) -> None:
        """Add the terms of a weight's gradient into its `.grad`."""
        terms = self._terms.get(weight, [])
        for term in terms:
            dense = term.dense()
            weight.grad = dense if weight.grad is None else weight.grad + dense
        terms.clear()

    def mark_unit(self, weight: Tensor) -> None:
        """Remember that the rows of a weight have unit norm as it is now."""
        self._unit[weight] = weight._version

    def is_unit(self, weight: Tensor) -> bool:
        """Whether the rows were marked and not changed since; answered once, as kernels change them without a trace."""
        return self._unit.pop(weight, None) == weight._version


def hand_over(terms: list[Term] | None, entries: Entries, values: Tensor, rows: Tensor) -> Tensor | None:
    """A weight's gradient: None if it could be added to the terms, which are wanted, or else all of it, [L, D]."""
    term = Term(entries, values.detach(), rows.detach())
    if terms is None:
        return term.dense()
    terms.append(term)
    return None


def take(weight: Tensor, latents: Tensor, terms: list[Term] | None) -> Tensor:
    """The rows of some latents [n] of a weight [L, D], as `weight[latents]`; their gradient goes to the terms."""
    return weight[latents] if terms is None else _Take.apply(weight, latents, terms)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, latents: Tensor, terms: list[Term]) -> Tensor:
        ctx.save_for_backward(latents)
        ctx.n_latents, ctx.terms = len(weight), terms
        return weight[latents]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (latents,) = ctx.saved_tensors
        # As if each latent were active once, with a value of 1, on a row that is its gradient.
        entries = Entries(latents[:, None], ctx.n_latents)
        return hand_over(ctx.terms, entries, torch.ones_like(grad[:, :1]), grad), None, None
