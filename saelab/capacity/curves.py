"""How the loss on one feature falls with the number of latents that serve it: L(n), per occurrence of the feature.

    ShiftCurve      (1 + n)^-beta                                   a manifold, with L(0) = 1
    TwoCurve        2 at n = 0, then n^-beta                        the same far out, another convention at 0
    DiscreteCurve   cost at n = 0, then 0                           an ordinary direction
    MeasuredCurve   a table, and L_inf + c n^-beta beyond it        of SAEs trained on one manifold

The allocator needs gains that do not rise with n. Tables that are not convex (a circle needs three latents before
anything improves) are replaced by their lower convex hull, whose stretches over measured sizes are steps of several
latents at once; between neighbouring sizes of the table the loss is taken to be linear.

The conventions at n = 0 are ours; exponents agree between them, prefactors do not.
"""

# Shape letters: N largest number of latents asked for, G steps.

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class CurveSteps:
    """A curve as steps in the order in which they pay."""

    gain: Array
    """[G] float64, what each latent of the step lowers the loss by; does not rise."""
    width: Array
    """[G] int64, latents of the step."""


class LossCurve(ABC):
    """L(n) of one kind of feature."""

    @abstractmethod
    def loss(self, n: Array) -> Array:
        """L at whole numbers n >= 0; same shape."""

    def steps(self, most: int) -> CurveSteps:
        """Steps up to `most` latents; one latent each where the curve is convex."""
        gain = -np.diff(self.loss(np.arange(most + 1)))
        return CurveSteps(gain, np.ones(most, dtype=np.int64))


@dataclass(frozen=True)
class ShiftCurve(LossCurve):
    """(1 + n)^-beta."""

    beta: float

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def loss(self, n: Array) -> Array:
        return (1.0 + np.asarray(n)) ** -self.beta


@dataclass(frozen=True)
class TwoCurve(LossCurve):
    """2 at n = 0, then n^-beta."""

    beta: float

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def loss(self, n: Array) -> Array:
        n = np.asarray(n)
        return np.where(n == 0, 2.0, np.maximum(n, 1).astype(float) ** -self.beta)


@dataclass(frozen=True)
class DiscreteCurve(LossCurve):
    """`cost` without a latent, nothing with one."""

    cost: float = 1.0

    def loss(self, n: Array) -> Array:
        return np.where(np.asarray(n) == 0, self.cost, 0.0)

    def steps(self, most: int) -> CurveSteps:
        return CurveSteps(np.array([self.cost]), np.array([1]))


class MeasuredCurve(LossCurve):
    """A table of losses and, beyond it, L_inf + c n^-beta.

    Args:
        sizes: numbers of latents, ascending, the first 0.
        losses: at these; larger ones than before are taken as no worse, since latents may stay unused.
        beta: exponent beyond the table; None for a loss that stays as it is.
        floor: L_inf, below the last loss.

    Raises:
        ValueError: for sizes that do not ascend from 0, or a floor above the last loss.
    """

    def __init__(self, sizes: Sequence[int], losses: Sequence[float], beta: float | None = None, floor: float = 0.0):
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.losses = np.minimum.accumulate(np.asarray(losses, dtype=float))
        self.beta, self.floor = beta, floor
        if (
            len(self.sizes) != len(self.losses)
            or len(self.sizes) < 2
            or self.sizes[0]
            or (np.diff(self.sizes) < 1).any()
        ):
            raise ValueError(f"sizes must ascend from 0 and have a loss each, got {list(sizes)}")
        if beta is not None:
            _check_beta(beta)
            if not floor < self.losses[-1]:
                raise ValueError(f"the floor {floor} must lie below the last loss {self.losses[-1]}")
        self._corners = _hull(self.sizes, self.losses)

    def loss(self, n: Array) -> Array:
        n = np.asarray(n)
        table = np.interp(n, self.sizes[self._corners], self.losses[self._corners])
        if self.beta is None:
            return table
        last, low = self.sizes[-1], self.losses[-1]
        far = self.floor + (low - self.floor) * (np.maximum(n, last) / last) ** -self.beta
        return np.where(n <= last, table, far)

    def steps(self, most: int) -> CurveSteps:
        n, width = [0], list[int]()
        for left, right in zip(self._corners[:-1], self._corners[1:], strict=True):
            a, b = int(self.sizes[left]), int(self.sizes[right])
            if right == left + 1 and a > 0:  # neighbours: what lies between was not measured
                n += range(a + 1, b + 1)
                width += [1] * (b - a)
            else:
                n.append(b)
                width.append(b - a)
        if self.beta is not None and most > n[-1]:
            width += [1] * (most - n[-1])
            n += range(n[-1] + 1, most + 1)
        gain = -np.diff(self.loss(np.array(n))) / np.array(width)
        kept = np.minimum.accumulate(np.maximum(gain, 0))  # where table and law meet, a gain may rise: it is cut
        return CurveSteps(kept, np.array(width, dtype=np.int64))


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be positive, got {beta}")


def _hull(sizes: Array, losses: Array) -> list[int]:
    """Places of the corners of the lower convex hull."""
    corners: list[int] = []
    for place in range(len(sizes)):
        while len(corners) >= 2:
            a, b = corners[-2], corners[-1]
            slope_ab = (losses[b] - losses[a]) / (sizes[b] - sizes[a])
            slope_ac = (losses[place] - losses[a]) / (sizes[place] - sizes[a])
            if slope_ab < slope_ac - 1e-15:
                break
            corners.pop()
        corners.append(place)
    return corners
