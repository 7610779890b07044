"""Plans from laws whose parameters are known."""

import itertools
import math

import numpy as np
import pytest

from saelab.scaling.files import read_fit, write_fit
from saelab.scaling.fit import Points, fit
from saelab.scaling.laws.joint import JointLaw
from saelab.scaling.laws.rate import RateLaw
from saelab.scaling.laws.tokens import TokensLaw
from saelab.scaling.plan import Budget, Knowledge, Planner
from saelab.scaling.throughput import Throughput, from_speeds, measure

THETA = np.array([-0.50, 0.26, -0.017, -0.042, -1.32, -0.085])
WIDTHS, KS = (1024, 2048, 4096, 8192, 16384), (16, 32, 64, 128)


def noisy(y, seed=0):
    return y * np.exp(0.005 * np.random.default_rng(seed).standard_normal(len(y)))


@pytest.fixture(scope="module")
def known():
    x = np.array(list(itertools.product(WIDTHS, KS)), float)
    n = np.array(WIDTHS, float)[:, None]
    names = [str(row) for row in x]
    joint = fit(JointLaw(), Points(x, noisy(JointLaw().value(THETA, x)), names))
    tokens = fit(TokensLaw(), Points(n, noisy(1e4 * n[:, 0] ** 0.6), names[:5]))
    rate = fit(RateLaw(), Points(n, noisy(0.05 * n[:, 0] ** -0.5), names[:5]))
    speed = Throughput(1e-6, 1e-11, 1e5, 1e8, "here")
    return Knowledge(joint, tokens, rate, speed, 256, 1024, 4e6)


def test_the_widest_that_a_budget_of_tokens_allows(known):
    (row,) = Planner(known).plan(Budget(tokens=2e6), ks=[32])
    assert 1e4 * row.n**0.6 <= 2.02e6 < 1e4 * (row.n * math.sqrt(2)) ** 0.6 * 1.01
    assert row.limit == "the tokens"
    exact = JointLaw().value(THETA, np.array([[row.n, 32.0]]))[0]
    assert row.fvu == pytest.approx(exact, rel=0.01)
    assert row.fvu_low < exact < row.fvu_high
    assert row.tokens == pytest.approx(1e4 * row.n**0.6, rel=0.02)
    assert row.lr == pytest.approx(0.05 * row.n**-0.5, rel=0.02)
    assert row.seconds == pytest.approx(row.tokens * (1e-6 + 1e-11 * (2 * row.n * 256 + 10 * 32 * 256)))
    assert row.notes == []


def test_the_narrowest_that_reaches_a_target(known):
    rows = Planner(known).plan(Budget(target_fvu=0.42))
    assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)
    for row in rows:
        assert JointLaw().value(THETA, np.array([[row.n / math.sqrt(2), row.k]]))[0] > 0.415
        assert row.fvu <= 0.42
    with pytest.raises(ValueError, match="nothing fits.*k=16: .*FVU 0.1"):
        Planner(known).plan(Budget(target_fvu=0.1), ks=[16])


def test_every_part_of_a_budget_binds(known):
    free = Planner(known).plan(Budget(tokens=1e7), ks=[32])[0]
    for limit, changes in (("time", {"seconds": 60}), ("memory", {"memory": 5e7}), ("disk", {"disk": 5e7})):
        (row,) = Planner(known).plan(Budget(tokens=1e7, **changes), ks=[32])
        assert row.limit == f"the {limit}"
        assert row.n < free.n
        assert getattr(row, next(iter(changes))) <= next(iter(changes.values()))
    with pytest.raises(ValueError, match="even n=64 needs more: the memory"):
        Planner(known).plan(Budget(memory=1000), ks=[32])


def test_plans_beyond_the_ladder_say_so_and_widen(known):
    near = Planner(known).row(8192, 32)
    (far,) = Planner(known).plan(Budget(tokens=2e8), ks=[32])
    assert any("a guess: n is" in note for note in far.notes)
    assert any("no cell was trained on more than 4e+06 rows" in note for note in far.notes)
    assert far.fvu_high - far.fvu_low > 1.5 * (near.fvu_high - near.fvu_low)
    (bare,) = Planner(Knowledge(known.joint, None, None, known.speed, 256, 1024, 4e6)).plan(Budget(tokens=4e6), ks=[32])
    assert any("the best learning rate is not fitted: lr is 0.0002 / sqrt(n / 16,384)" in note for note in bare.notes)
    assert any("tokens to convergence are not fitted" in note for note in bare.notes)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="give a budget"):
        Budget()
    with pytest.raises(ValueError, match="seconds must be positive, got -1"):
        Budget(seconds=-1)


def test_fewer_than_one_active_latent_is_no_plan(known):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Planner(known).plan(Budget(tokens=1e6), ks=[0.0, 16.0])


def test_speeds_give_the_model_back():
    flops = np.array([1e6, 3e6, 1e7, 1e8])
    found = from_speeds(flops, 1 / (2e-6 + 3e-12 * flops), "test")
    assert found.fixed == pytest.approx(2e-6)
    assert found.per_flop == pytest.approx(3e-12)
    with pytest.raises(ValueError, match="no speed was measured"):
        from_speeds([], [], "nowhere")


def test_speed_is_measured_on_a_device():
    found = measure(8, [16, 32], 2, 32, steps=2)
    assert found.seconds(8, 16, 2, 1000) > 0
    assert "widths [16, 32]" in found.where


def test_a_law_survives_its_file(known, tmp_path):
    again = read_fit(write_fit(tmp_path / "law.json", known.joint))
    x = np.array([[5e4, 50.0]])
    for one, other in zip(known.joint.predict(x, cell=True), again.predict(x, cell=True), strict=True):
        assert one == pytest.approx(other)
    assert again.estimates == known.joint.estimates
    assert again.rival_holds == known.joint.rival_holds
    (tmp_path / "law.json").write_text('{"format": 1, "kind": "plan"}')
    with pytest.raises(ValueError, match="is not a fitted law"):
        read_fit(tmp_path / "law.json")
