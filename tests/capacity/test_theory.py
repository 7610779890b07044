"""Closed forms against numbers computed before, and against brute force."""

import math

import numpy as np
import pytest
from scipy.optimize import nnls

from saelab.capacity.theory import Regime, circle_error, circle_lasso, circle_pair_l1, lasso_floor, sphere_beta


@pytest.mark.parametrize(("n", "error"), [(4, 0.18169), (8, 0.04984), (24, 0.00569)])
def test_error_of_one_active_direction(n, error):
    assert circle_error(n) == pytest.approx(error, abs=5e-6)


def test_error_falls_with_the_square():
    assert circle_error(400) / circle_error(800) == pytest.approx(4, rel=1e-3)
    assert circle_error(1000) == pytest.approx(math.pi**2 / 3e6, rel=1e-4)
    assert circle_error(1) == pytest.approx(0.75, abs=1e-3)  # half is lost, a quarter of the rest too


@pytest.mark.parametrize(("n", "size"), [(8, 1.05479), (24, 1.00575)])
def test_codes_of_an_adjacent_pair(n, size):
    assert circle_pair_l1(n) == pytest.approx(size, abs=5e-6)


@pytest.mark.parametrize(
    ("n", "l1", "loss"),
    [
        (3, 0.1, 0.15546), (4, 0.1, 0.12232), (6, 0.1, 0.10692), (8, 0.1, 0.10255), (12, 0.1, 0.09967),
        (24, 0.1, 0.09803), (4, 0.05, 0.06239), (8, 0.05, 0.05200), (24, 0.05, 0.04965),
        (4, 0.3, 0.33825), (8, 0.3, 0.29025), (24, 0.3, 0.27885),
    ],
)  # fmt: skip
def test_lasso_bound_on_the_hollow_circle(n, l1, loss):
    # These numbers are means over 401 angles from 0 to 2 pi, both ends of which are the same point: where a direction
    # lies. The exact mean is a little higher.
    exact, on_a_direction = circle_lasso(n, l1), lasso_floor(l1)
    assert exact == pytest.approx(loss, rel=1e-3)
    assert (400 * exact + on_a_direction) / 401 == pytest.approx(loss, abs=6e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_lasso_against_non_negative_least_squares(n):
    l1, directions = 0.2, np.stack([(math.cos(a), math.sin(a)) for a in 2 * math.pi * np.arange(n) / n])
    # ||x - f D||^2 + l1 sum f is least squares with one more row, sqrt(c) (f . 1 - s), for c towards 0.
    total, count = 0.0, 400
    for angle in 2 * math.pi * (np.arange(count) + 0.5) / count:
        x = np.array([math.cos(angle), math.sin(angle)])
        tiny = 1e-7
        matrix = np.vstack([directions.T, np.full((1, n), tiny)])
        codes, _ = nnls(matrix, np.append(x, -l1 / (2 * tiny)))
        total += ((x - codes @ directions) ** 2).sum() + l1 * codes.sum()
    assert circle_lasso(n, l1) == pytest.approx(total / count, abs=2e-4)


def test_floors():
    assert lasso_floor(0.1) == pytest.approx(0.0975)
    assert circle_lasso(2000, 0.1) == pytest.approx(0.0975, abs=1e-6)
    assert lasso_floor(0.1, np.array([0.01, 2.0])) == pytest.approx((0.0001 + 0.2 - 0.0025) / 2)
    excess = [circle_lasso(n, 0.1) - 0.0975 for n in (8, 24)]
    assert math.log(excess[0] / excess[1]) / math.log(3) == pytest.approx(2.05, abs=0.02)


def test_regimes():
    assert (Regime(0.5, 1.5).name, Regime(0.5, 1.5).features, Regime(0.5, 1.5).loss) == ("benign", 1, -0.5)
    bad = Regime(1.0, 0.5)
    assert (bad.name, bad.features, bad.loss, bad.allocation) == ("pathological", 0.75, -0.5, -2 / 1.5)
    assert Regime(0.5, 0.5).name == "boundary"
    assert [sphere_beta(m) for m in (1, 2, 4)] == [2, 1, 0.5]
    with pytest.raises(ValueError, match="at least 1"):
        sphere_beta(0)
    with pytest.raises(ValueError, match="n must be at least 3"):
        circle_pair_l1(2)
