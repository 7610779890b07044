"""Laws against numbers worked out by hand, and fits against planted parameters."""

import itertools
import math
import time

import numpy as np
import pytest

from saelab.scaling.fit import Points, check, fit
from saelab.scaling.law import Law
from saelab.scaling.laws.compute import ComputeLaw
from saelab.scaling.laws.joint import JointLaw
from saelab.scaling.laws.rate import RateLaw
from saelab.scaling.laws.subject import SubjectLaw
from saelab.scaling.laws.tokens import TokensLaw
from saelab.scaling.laws.width import WidthLaw

PUBLISHED = np.array([-0.50, 0.26, -0.017, -0.042, -1.32, -0.085])
WIDTHS, KS = (2048, 8192, 32768, 131072, 524288), (8, 32, 64, 128, 512)
# Values of the published joint fit; rows k, columns n = 2048, 32768, 131072, 1048576, 16777216.
TABLE = {
    8: (0.6939, 0.5758, 0.5284, 0.4690, 0.4074),
    32: (0.6314, 0.4745, 0.4189, 0.3558, 0.2989),
    128: (0.5746, 0.3925, 0.3357, 0.2772, 0.2313),
    256: (0.5482, 0.3575, 0.3017, 0.2470, 0.2069),
    512: (0.5231, 0.3260, 0.2719, 0.2214, 0.1868),
}


def points(x, y):
    return Points(np.array(x, float), np.array(y, float), [f"cell{number}" for number in range(len(y))])


def grid(law=None, theta=PUBLISHED, noise=0.0, seed=0, ks=KS, widths=WIDTHS):
    x = np.array(list(itertools.product(widths, ks)), float)
    y = (law or JointLaw()).value(theta, x)
    return points(x, y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(y))))


def test_all_laws_are_found_by_name():
    assert set(Law.variants()) == {"WidthLaw", "ComputeLaw", "JointLaw", "TokensLaw", "RateLaw", "SubjectLaw"}


@pytest.mark.parametrize("k", TABLE)
def test_joint_law_gives_the_table_to_four_digits(k):
    widths = (2048, 32768, 131072, 1048576, 16777216)
    found = JointLaw().value(PUBLISHED, np.array([(n, k) for n in widths], float))
    assert [round(float(value), 4) for value in found] == list(TABLE[k])
    bare = JointLaw(irreducible=False).value(PUBLISHED[:4], np.array([(2048.0, k), (4096.0, k)]))
    assert math.log2(bare[1] / bare[0]) == pytest.approx(-0.017 - 0.042 * math.log(k))


def test_joint_law_against_the_formula_written_out():
    a, bk, bn, g, z, e = theta = np.array([0.3, -0.2, -0.1, 0.02, -1.0, 0.15])
    n, k = 700.0, 13.0
    wanted = math.exp(a + bk * math.log(k) + bn * math.log(n) + g * math.log(k) * math.log(n))
    wanted += math.exp(z + e * math.log(k))
    assert JointLaw().value(theta, np.array([[n, k]]))[0] == pytest.approx(wanted, rel=1e-14)
    assert SubjectLaw().value(theta, np.array([[n, k]]))[0] == pytest.approx(wanted, rel=1e-14)
    assert WidthLaw().value([a, bn, z], np.array([[n]]))[0] == pytest.approx(math.exp(a) * n**bn + math.exp(z))


@pytest.mark.parametrize("law", [WidthLaw(), JointLaw(), JointLaw(irreducible=False), TokensLaw(), SubjectLaw()])
def test_jacobian_is_the_derivative_of_the_logarithm(law):
    generator = np.random.default_rng(1)
    x = np.exp(generator.uniform(1, 4, (7, len(law.variables))))
    theta, features = generator.uniform(-0.5, 0.5, len(law.parameters)), law.features(x)
    found, step = law.jacobian(theta, features), 1e-6
    for number in range(len(theta)):
        shift = step * np.eye(len(theta))[number]
        slope = (law.log_value(theta + shift, features) - law.log_value(theta - shift, features)) / (2 * step)
        np.testing.assert_allclose(found[:, number], slope, rtol=1e-7, atol=1e-9)


def test_six_parameters_come_back_from_noiseless_values():
    found = fit(JointLaw(), grid(), draws=20)
    assert np.abs(found.theta - PUBLISHED).max() < 1e-3
    assert all(estimate.identified for estimate in found.estimates.values())


def test_six_parameters_come_back_from_noisy_values_within_their_intervals():
    inside = []
    for seed in range(8):
        found = fit(JointLaw(), grid(noise=0.01, seed=seed), draws=100, rival=False)
        pairs = zip(PUBLISHED, found.estimates.values(), strict=True)
        inside += [estimate.low <= truth <= estimate.high for truth, estimate in pairs]
        assert 0.004 < found.sigma < 0.016
        widths = [estimate.high - estimate.low for estimate in found.estimates.values()]
        assert max(widths) < 1.5  # an interval that says nothing would hold the truth too
    assert sum(inside) >= 0.85 * len(inside)


def test_intervals_of_a_straight_line_are_those_of_regression():
    from scipy.stats import t

    n, generator = np.logspace(2, 6, 12), np.random.default_rng(3)
    y = 3 * n**-0.5 * np.exp(0.02 * generator.uniform(-1, 1, 12))
    found = fit(TokensLaw(), points(n[:, None], y), draws=1500)
    assert found.weights.min() == 1  # no outliers, so that plain regression is the same
    features = np.stack([np.ones(12), np.log(n)], 1)
    residuals = np.log(y) - features @ found.theta
    error = math.sqrt((residuals**2).sum() / 10 * np.linalg.inv(features.T @ features)[1, 1])
    assert found.draws[:, 1].std() == pytest.approx(t.ppf(0.975, 10) / 1.96 * error, rel=0.05)
    reach = found.estimates["c"].high - found.estimates["c"].value
    assert reach == pytest.approx(t.ppf(0.975, 10) * error, rel=0.1)


@pytest.mark.parametrize(("law", "theta"), [(WidthLaw(), (0.5, -0.4, -1.5)), (ComputeLaw(), (1.0, -0.1, -2.0))])
def test_other_laws_come_back(law, theta):
    x = np.logspace(2, 6, 9)[:, None]
    found = fit(law, points(x, law.value(theta, x)), draws=20)
    np.testing.assert_allclose(found.theta, theta, atol=1e-6)
    shown = list(found.estimates.values())
    assert shown[0].value == pytest.approx(math.exp(theta[0]), rel=1e-5)
    assert shown[1].value == pytest.approx(theta[1], rel=1e-5)
    assert shown[2].value == pytest.approx(math.exp(theta[2]), rel=1e-5)


@pytest.mark.parametrize("law", [TokensLaw(), RateLaw()])
def test_plain_power_laws_are_ordinary_regression(law):
    n, generator = np.array([1e2, 1e3, 1e4, 1e5, 1e6]), np.random.default_rng(0)
    y = 3 * n**-0.5 * np.exp(0.05 * generator.standard_normal(5))
    found = fit(law, points(n[:, None], y))
    slope, constant = np.polyfit(np.log(n), np.log(y), 1)
    assert found.rival is None
    assert found.estimates["c"].value == pytest.approx(slope, abs=0.01)  # but for Huber's weights
    assert found.estimates["c"].low < -0.5 < found.estimates["c"].high
    assert found.theta[0] == pytest.approx(constant, abs=0.1)


def test_one_spoilt_cell_does_not_move_the_fit():
    cells = grid(noise=0.005, seed=3)
    clean = fit(JointLaw(), cells, draws=50)
    cells.y[7] *= 1.5
    spoilt = fit(JointLaw(), cells, draws=50)
    assert spoilt.weights[7] < 0.1 < np.delete(spoilt.weights, 7).min()
    beyond = np.array([[2**22, 64.0]])
    assert abs(np.log(spoilt.predict(beyond)[0] / clean.predict(beyond)[0]))[0] < 0.02


def test_the_irreducible_term_is_kept_where_it_is_needed_only():
    n = np.logspace(2, 5, 10)[:, None]
    noise = np.exp(0.003 * np.random.default_rng(5).standard_normal(10))
    with_floor = fit(WidthLaw(), points(n, WidthLaw().value((0.5, -0.6, -2), n) * noise))
    assert with_floor.aicc < with_floor.rival.aicc - 6
    assert not with_floor.rival_holds
    assert with_floor.estimates["e"].low < math.exp(-2) < with_floor.estimates["e"].high
    without = fit(WidthLaw(), points(n, 2 * n[:, 0] ** -0.3 * noise))
    floor = without.estimates["e"]
    assert not floor.identified
    assert floor.value is floor.low is floor.high is None
    assert "no irreducible part" in floor.why
    assert without.estimates["b"].low < -0.3 < without.estimates["b"].high
    assert without.rival_holds


def test_parameters_that_the_cells_cannot_tell_apart_are_not_printed():
    law = JointLaw(irreducible=False)
    x = np.array([(n, k) for n, k in zip(WIDTHS * 2, [8, 32, 64, 128, 512] * 2, strict=True)], float)
    x[5:] *= 1.0001  # n and k grow together: alpha, beta_k, beta_n and gamma share three directions
    x = np.exp(np.log(x)[:, :1] * [1.0, 0.7])
    found = fit(law, points(x, law.value(PUBLISHED[:4], x)), draws=20, rival=False)
    assert not found.estimates["beta_n"].identified
    assert not found.estimates["beta_k"].identified
    assert "tell it from other parameters" in found.estimates["beta_n"].why


def test_held_out_cells_are_predicted_by_a_fit_that_has_not_seen_them():
    inside = []
    for seed in range(3):
        cells = grid(noise=0.01, seed=seed)
        wide = cells.x[:, 0] == max(WIDTHS)
        found = fit(JointLaw(), cells, held_out=wide, draws=100).held_out
        assert len(found["cells"]) == wide.sum() == 5
        assert found["mean_abs_log_error"] < 0.03
        inside.append(found["inside"])
    assert sum(inside) >= 12
    cells.y[wide] *= 2  # what was held out does not reach the prediction
    again = fit(JointLaw(), cells, held_out=wide, draws=100).held_out
    assert [c["predicted"] for c in again["cells"]] == [c["predicted"] for c in found["cells"]]
    assert again["inside"] == 0
    assert again["mean_log_error"] == pytest.approx(found["mean_log_error"] + math.log(2))


def test_predictions_widen_with_distance_and_with_the_scatter_of_a_cell():
    found = fit(JointLaw(), grid(noise=0.01))
    near, far = np.array([[1e4, 32.0]]), np.array([[1e9, 32.0]])
    widths = [np.log(high / low)[0] for _, low, high in (found.predict(near), found.predict(far))]
    assert widths[1] > 3 * widths[0]
    value, low, high = found.predict(near, cell=True)
    assert np.log(high / low)[0] > widths[0]
    assert low < value < high
    assert found.beyond((1e4, 32)) == {}
    assert found.beyond((2 * 524288, 4)) == {"n": pytest.approx(2), "k": pytest.approx(2)}


@pytest.mark.parametrize(
    ("law", "cells", "message"),
    [
        (JointLaw(), grid(widths=WIDTHS[:2], ks=KS[:3]), "JointLaw has 6 parameters and needs 8 cells, got 6"),
        (JointLaw(), grid(ks=KS[:2]), "needs 3 different values of k, the cells have 2"),
        (JointLaw(), grid(widths=WIDTHS[:3]), "needs 4 different values of n, the cells have 3"),
        (WidthLaw(), points([[1], [2], [3], [4], [5]], [1, 1, 0, 1, 1]), "needs positive numbers; look at cell2"),
        (WidthLaw(), points([[1], [2], [3], [4], [5]], [1, math.nan, 1, 1, 1]), "look at cell1"),
    ],
)
def test_cells_that_are_not_enough_are_refused(law, cells, message):
    with pytest.raises(ValueError, match=message):
        check(law, cells)


def test_a_fit_is_interactive():
    cells = grid(noise=0.01)
    fit(JointLaw(), cells, draws=2)  # scipy is imported
    start = time.perf_counter()
    fit(JointLaw(), cells)
    assert time.perf_counter() - start < 4  # 2 s where nothing else runs
