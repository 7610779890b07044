"""What a law is: a sum of power laws with interactions, and the names of its parameters.

    y(x) = sum over terms t of  exp( sum over j of  theta_tj F_tj(ln x) )

where each feature F is a product of logarithms of the variables: 1, ln n, ln k, ln n ln k. Everything that a fit needs
(values, the derivative of ln y, starting points) follows from the list of terms, so a law is a few lines of data. The
second term, where there is one, is the irreducible part, and every law can be fitted without it.

Laws are functions of numpy arrays: fits belong to scipy.
"""

# Shape letters: C cells, V variables, P parameters, J parameters of one term, S starting points.

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from saelab.core.components import Component

Array = np.ndarray
FLOOR = -50.0
"""Exponents are held above this, so that a term which vanishes does not run away."""


@dataclass(frozen=True)
class Parameter:
    """One number of a law."""

    name: str
    factors: tuple[str, ...]
    """The variables whose logarithms it multiplies; none for the logarithm of an amplitude."""
    shown: str = ""
    """If given, the name under which exp(value) is reported."""


@dataclass(frozen=True)
class Grid:
    """What a law needs of the cells it is fitted to."""

    levels: dict[str, int]
    """Least number of different values of each variable."""


class Law(Component, ABC):
    """A law: which variables it relates to what, and its terms.

    Args:
        irreducible: whether what is left at infinite size is fitted too, or taken to be zero.
    """

    home = "saelab.scaling.laws"
    variables: ClassVar[tuple[str, ...]]
    """Columns of the cells it reads."""
    target: ClassVar[str]
    """The column it predicts."""
    reducible: ClassVar[tuple[Parameter, ...]]
    floor: ClassVar[tuple[Parameter, ...]] = ()
    """Parameters of the irreducible term; none, where the law has no such term."""
    grid: ClassVar[Grid]

    def __init__(self, irreducible: bool = True):
        self.irreducible = irreducible

    @property
    def terms(self) -> list[tuple[Parameter, ...]]:
        """The parameters of each term."""
        return [self.reducible, self.floor] if self.irreducible and self.floor else [self.reducible]

    @property
    def parameters(self) -> list[Parameter]:
        """All of them, in the order of theta."""
        return [parameter for term in self.terms for parameter in term]

    def features(self, x: Array) -> list[Array]:
        """The features [C, J] of each term, for positive variables x [C, V]."""
        logs = dict(zip(self.variables, np.log(x).T, strict=True))
        one = np.ones(len(x))
        return [
            np.stack([np.prod([one, *(logs[f] for f in parameter.factors)], axis=0) for parameter in term], 1)
            for term in self.terms
        ]

    def log_value(self, theta: Array, features: Sequence[Array]) -> Array:
        """ln y of theta [P]; [C]."""
        return _log_sum(self._exponents(theta, features))

    def jacobian(self, theta: Array, features: Sequence[Array]) -> Array:
        """The derivative of ln y with respect to theta [P]; [C, P]."""
        exponents = self._exponents(theta, features)
        total = _log_sum(exponents)
        shares = [np.exp(exponent - total)[:, None] for exponent in exponents]
        return np.concatenate([share * f for share, f in zip(shares, features, strict=True)], axis=1)

    def _exponents(self, theta: Array, features: Sequence[Array]) -> list[Array]:
        split, parts = len(self.reducible), list(features)
        pairs = zip(parts, (theta[:split], theta[split:]), strict=False)
        return [(f @ part).clip(FLOOR, -FLOOR) for f, part in pairs]

    def value(self, theta: Array | Sequence[float], x: Array) -> Array:
        """y at variables x [C, V]; [C]."""
        return np.exp(self.log_value(np.asarray(theta, float), self.features(np.asarray(x, float))))

    def starts(self, features: Sequence[Array], y: Array) -> list[Array]:
        """Points [P] to start a fit from: shares of the smallest value taken for the irreducible part."""
        if len(features) == 1:
            return [_regress(features[0], np.log(y))]
        found = []
        levels, where = np.unique(features[1], axis=0, return_inverse=True)
        lowest = np.array([y[where.ravel() == number].min() for number in range(len(levels))])
        for share in (0.05, 0.3, 0.6, 0.8, 0.9, 0.97, 0.995):
            floor = _regress(levels, np.log(share * lowest))
            left = y - np.minimum(np.exp(features[1] @ floor), 0.999 * y)
            found.append(np.concatenate([_regress(features[0], np.log(left)), floor]))
        return found


def _log_sum(exponents: list[Array]) -> Array:
    return exponents[0] if len(exponents) == 1 else np.logaddexp(*exponents)


def _regress(features: Array, target: Array) -> Array:
    return np.linalg.lstsq(features, target, rcond=None)[0]
