"""Gradients of a weight as sums over sparse entries, added up where they are used.

The gradient of a dictionary's weight [L, D] is a sum over a batch's entries,

    grad[l] = sum over terms, and over latent l's entries in each, of  value * row of the entry

An optimizer that visits one latent at a time can form it there and never hold it as a whole. It says so by `defer`;
the kernels then hand over terms instead of a dense gradient. `settle` adds them up for whoever needs `.grad` after all.
"""

# Shape letters: B rows, D width, L latents, K entries per row.

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelab.core.codes import Entries


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
        from saelab.kernels.select import sum_by_latent  # which hands out terms itself

        return sum_by_latent(self.entries, self.values, self.rows)


def defer(weight: Tensor) -> None:
    """Ask for a weight's gradient in terms, and forget those that came already."""
    terms = deferred(weight)
    if terms is None:
        weight.deferred = []  # type: ignore[attr-defined]
    else:
        terms.clear()  # the same list, which passes under way hand over to


def deferred(weight: Tensor) -> list[Term] | None:
    """The list that a weight's terms go to; None where its gradient is wanted as a whole."""
    return getattr(weight, "deferred", None)


def hand_over(terms: list[Term] | None, entries: Entries, values: Tensor, rows: Tensor) -> Tensor | None:
    """A weight's gradient: None if it could be added to the terms, which are wanted, or else all of it, [L, D]."""
    term = Term(entries, values.detach(), rows.detach())
    if terms is None:
        return term.dense()
    terms.append(term)
    return None


def take(weight: Tensor, latents: Tensor) -> Tensor:
    """The rows of some latents [n] of a weight [L, D], as `weight[latents]`; their gradient is handed over."""
    terms = deferred(weight)
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


def settle(weight: Tensor) -> None:
    """Add the terms of a weight's gradient into its `.grad`."""
    for term in deferred(weight) or ():
        dense = term.dense()
        weight.grad = dense if weight.grad is None else weight.grad + dense
    if deferred(weight):
        defer(weight)
