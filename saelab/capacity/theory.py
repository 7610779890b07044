"""What theory says about manifolds, where it says something exact.

    p_i ~ i^-(1 + alpha),  L_i(n) ~ n^-beta:   n_i ~ i^-gamma,  gamma = (1 + alpha) / (1 + beta)

    benign        alpha < beta    D ~ N                            L ~ N^-alpha    width buys features
    pathological  beta < alpha    D ~ N^((1 + beta) / (1 + alpha)) L ~ N^-beta     width tiles common manifolds

(Michaud et al. 2025, arXiv 2509.02565, as we read it.) The rest of this file is worked out here: on the sphere S^m with
n even directions and one of them active the error falls as n^-(2/m), so beta = 2 / m; on the hollow circle the best
codes of a ReLU SAE with an L1 penalty,

    lasso(x) = min over f >= 0 of  ||x - sum_j f_j d_j||^2 + l1 sum_j f_j,

are known in closed form for even directions, and no encoder does better with those directions. For every dictionary of
unit directions and every x,  lasso(x) >= l1 ||x|| - l1^2 / 4  (||x||^2 where ||x|| < l1 / 2), as the reconstruction is
no longer than the sum of codes: the floor that no number of latents gets below.
"""

# Shape letters: n latents, m intrinsic dimension of a sphere, Q points of a quadrature.

import math
from dataclasses import dataclass

import numpy as np

from saelab.capacity.curves import Array

QUADRATURE = 4096


@dataclass(frozen=True)
class Regime:
    """Exponents that theory expects.

    Args:
        alpha: of the features' frequencies, p_i ~ i^-(1 + alpha).
        beta: of their loss curves, L_i(n) ~ n^-beta.
    """

    alpha: float
    beta: float

    @property
    def name(self) -> str:
        if math.isclose(self.alpha, self.beta):
            return "boundary"
        return "benign" if self.alpha < self.beta else "pathological"

    @property
    def features(self) -> float:
        """Exponent of D in N."""
        return min(1.0, (1 + self.beta) / (1 + self.alpha))

    @property
    def loss(self) -> float:
        """Exponent of the loss in N."""
        return -min(self.alpha, self.beta)

    @property
    def allocation(self) -> float:
        """Exponent of n_i in the rank i."""
        return -(1 + self.alpha) / (1 + self.beta)


def sphere_beta(m: int) -> float:
    """beta of the hollow sphere S^m served by one latent at a time: 2 / m."""
    if m < 1:
        raise ValueError(f"a sphere has an intrinsic dimension of at least 1, got {m}")
    return 2 / m


def circle_error(n: int) -> float:
    """Mean squared error on the unit circle with n even directions, the nearest one active: (1 - sin w / w) / 2.

    w = 2 pi / n. For n = 1 that direction also serves the far half, where the best code is 0.
    """
    _check(n, 1)
    if n <= 3:  # beyond a right angle from every direction nothing is active
        angle = _angles(n)
        return float(np.where(np.abs(angle) < math.pi / 2, np.sin(angle) ** 2, 1.0).mean())
    w = 2 * math.pi / n
    return 0.5 * (1 - math.sin(w) / w)


def circle_pair_l1(n: int) -> float:
    """Mean of the sum of codes when the two neighbouring directions reconstruct the unit circle exactly."""
    _check(n, 3)
    w = 2 * math.pi / n
    return 2 * (1 - math.cos(w)) / (w * math.sin(w))


def circle_lasso(n: int, l1: float) -> float:
    """Mean of the best total loss on the hollow unit circle with n even directions."""
    _check(n, 1)
    if n < 3:
        return float(_single(_angles(n), l1).mean())
    w = 2 * math.pi / n
    t = (np.arange(QUADRATURE) + 0.5) / QUADRATURE * w  # angle from one of the two directions around x
    return float(np.minimum(_pair(t, w, l1), np.minimum(_single(t, l1), _single(w - t, l1))).mean())


def lasso_floor(l1: float, radius: Array | float = 1.0) -> float:
    """Mean of the loss below which no dictionary of unit directions gets, for points of these norms.

    Args:
        l1: weight of the L1 penalty, at least 0.
        radius: norms of the points.
    """
    r = np.asarray(radius, float)
    return float(np.where(r >= l1 / 2, l1 * r - l1**2 / 4, r**2).mean())


def _angles(n: int) -> Array:
    """Angles to the nearest of n even directions, evenly over the circle."""
    half = math.pi / n
    return ((np.arange(QUADRATURE) + 0.5) / QUADRATURE * 2 - 1) * half


def _single(angle: Array, l1: float) -> Array:
    """Best loss with one direction at this angle: code max(cos - l1 / 2, 0)."""
    code = np.maximum(np.cos(angle) - l1 / 2, 0)
    return 1 - 2 * code * np.cos(angle) + code**2 + l1 * code


def _pair(t: Array, w: float, l1: float) -> Array:
    """Best loss with two directions w apart, both active; infinite where the best has a negative code."""
    gram = np.array([[1.0, math.cos(w)], [math.cos(w), 1.0]])
    along = np.stack([np.cos(t), np.cos(w - t)]) - l1 / 2
    codes = np.linalg.solve(gram, along)
    loss = 1 - (codes * along).sum(0)
    return np.where((codes >= 0).all(0), loss, np.inf)


def _check(n: int, least: int) -> None:
    if n < least:
        raise ValueError(f"n must be at least {least}, got {n}")
