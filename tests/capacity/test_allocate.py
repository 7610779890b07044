"""The allocator against a heap, brute force, numbers computed before, and theory."""

import heapq
import itertools
import time

import numpy as np
import pytest

from saelab.capacity.allocate import Allocator, frequencies, local_exponents
from saelab.capacity.curves import DiscreteCurve, LossCurve, MeasuredCurve, ShiftCurve, TwoCurve
from saelab.capacity.theory import Regime

MILLIONS = 10**7
# (D, n_1, L) at N = 10^3, 10^4, 10^5 with p normalised over ten million features.
TABLE = [
    (ShiftCurve(1.5), 0.5, [(413, 51, 0.06256), (3903, 199, 0.02059), (38144, 784, 0.006471)]),
    (ShiftCurve(1.0), 0.5, [(278, 95, 0.09592), (2444, 491, 0.03414), (22787, 2622, 0.01139)]),
    (ShiftCurve(0.5), 1.0, [(64, 370, 0.09929), (329, 3253, 0.03556), (1758, 30314, 0.01205)]),
    (ShiftCurve(0.25), 1.0, [(38, 492, 0.28647), (155, 4601, 0.16665), (643, 44683, 0.09507)]),
    (ShiftCurve(0.5), 0.5, [(142, 202, 0.21174), (1018, 1455, 0.09881), (7855, 11219, 0.04282)]),
    (TwoCurve(0.5), 1.0, [(110, 333, 0.10985), (583, 3071, 0.03760), (3173, 29373, 0.01242)]),
]


def loss_at(curve: LossCurve, n: int) -> float:
    return float(curve.loss(np.array([n]))[0])


def by_heap(p, curves, kinds, latents):
    """One latent at a time; for convex curves."""
    counts = [0] * len(p)

    def entry(i):
        curve = curves[kinds[i]]
        return (-p[i] * (loss_at(curve, counts[i]) - loss_at(curve, counts[i] + 1)), i)

    heap = [entry(i) for i in range(len(p))]
    heapq.heapify(heap)
    for _ in range(latents):
        gain, i = heapq.heappop(heap)
        if gain == 0:
            break
        counts[i] += 1
        heapq.heappush(heap, entry(i))
    return counts, sum(p[i] * loss_at(curves[kinds[i]], counts[i]) for i in range(len(p)))


@pytest.mark.parametrize(("curve", "alpha", "rows"), TABLE)
def test_the_table_of_ten_million_features_is_matched_exactly(curve, alpha, rows):
    allocator = Allocator(frequencies(MILLIONS, alpha), curve)
    for latents, (found, first, loss) in zip((10**3, 10**4, 10**5), rows, strict=True):
        allocation = allocator.allocate(latents)
        assert (allocation.n_found, int(allocation.count[0])) == (found, first)
        assert allocation.loss == pytest.approx(loss, rel=1e-3)
        assert allocation.count.sum() == latents
        assert allocation.bound == pytest.approx(allocation.loss)


def test_a_million_latents_for_ten_million_features_take_seconds():
    allocator = Allocator(frequencies(MILLIONS, 0.5), ShiftCurve(0.5))
    start = time.perf_counter()
    assert allocator.allocate(10**6).count.sum() == 10**6
    assert time.perf_counter() - start < 5  # less than 1 s where nothing else runs


@pytest.mark.parametrize("seed", range(6))
def test_the_same_as_a_heap(seed):
    generator = np.random.default_rng(seed)
    p = np.sort(generator.random(40) ** 3)[:: 1 if seed % 2 else -1] + 1e-3  # in any order
    curves, kinds = [ShiftCurve(0.7), TwoCurve(1.3), DiscreteCurve(0.8)], generator.integers(0, 3, 40)
    for latents in (1, 7, 60, 500):
        counts, loss = by_heap(p, curves, kinds, latents)
        found = Allocator(p, curves, kinds).allocate(latents)
        assert found.per_feature(40).tolist() == counts
        assert found.loss == pytest.approx(loss, rel=1e-12)


def test_equal_gains_go_to_the_first_features():
    found = Allocator(np.full(10, 0.1), DiscreteCurve()).allocate(4)
    assert found.feature.tolist() == [0, 1, 2, 3]
    everything = Allocator(np.full(10, 0.1), DiscreteCurve()).allocate(40)
    assert (everything.n_found, everything.spare, everything.loss) == (10, 30, pytest.approx(0))


TABLES = [
    ([0, 1, 2, 3, 4, 5, 6], [1.0, 0.98, 0.95, 0.3, 0.25, 0.1, 0.09]),
    ([0, 1, 2, 3, 4, 5, 6], [1.0, 0.4, 0.35, 0.34, 0.1, 0.05, 0.04]),
    ([0, 1, 2, 3, 4, 5, 6], [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize("latents", range(1, 13))
def test_curves_that_are_not_convex_against_every_allocation(latents):
    p, kinds = np.array([0.5, 0.3, 0.2]), np.array([0, 1, 2])
    losses = [table for _, table in TABLES]
    every = itertools.product(range(7), repeat=3)
    best = min(
        sum(p[i] * losses[kinds[i]][n] for i, n in enumerate(choice)) for choice in every if sum(choice) <= latents
    )
    found = Allocator(p, [MeasuredCurve(*table) for table in TABLES], kinds).allocate(latents)
    assert found.bound - 1e-12 <= best <= found.loss + 1e-12
    reached = sum(p[i] * losses[kinds[i]][n] for i, n in enumerate(found.per_feature(3)))
    assert reached == pytest.approx(found.loss)  # what it says is what these numbers of latents give
    assert found.count.sum() + found.spare == latents
    assert found.loss - best < 0.18  # a step of three may not fit any more


def test_a_circle_takes_three_latents_at_once_or_none():
    circle = MeasuredCurve([0, 1, 2, 3, 4], [1.0, 0.95, 0.9, 0.2, 0.15])
    found = Allocator(np.array([0.6, 0.4]), circle).allocate(5)
    assert found.per_feature(2).tolist() == [4, 0]
    assert found.spare == 1
    assert Allocator(np.array([0.6, 0.4]), circle).allocate(6).per_feature(2).tolist() == [3, 3]


def test_measured_curves_go_on_by_their_law():
    curve = MeasuredCurve([0, 1, 2, 4], [1.0, 0.5, 0.3, 0.2], beta=1.0, floor=0.1)
    n = np.array([0, 1, 3, 4, 8, 40])
    np.testing.assert_allclose(curve.loss(n), [1, 0.5, 0.25, 0.2, 0.15, 0.11])
    steps = curve.steps(1000)
    assert (np.diff(steps.gain) <= 0).all()
    assert steps.width.sum() == 1000
    flat = MeasuredCurve([0, 1, 2, 4], [1.0, 0.5, 0.3, 0.2]).steps(1000)
    assert flat.width.sum() == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeasuredCurve([1, 2], [1, 0.5]), "sizes must ascend from 0"),
        (lambda: MeasuredCurve([0, 2, 2], [1, 0.5, 0.4]), "sizes must ascend from 0"),
        (lambda: MeasuredCurve([0, 2], [1, 0.5], beta=1, floor=0.6), "floor 0.6 must lie below"),
        (lambda: ShiftCurve(0), "beta must be positive"),
        (lambda: Allocator(np.array([0.5, 0.0]), ShiftCurve(1)), "frequency above 0"),
        (lambda: Allocator(np.array([0.5, 0.1]), ShiftCurve(1), np.array([0, 1])), "one of 1 curves"),
        (lambda: Allocator(np.array([0.5]), ShiftCurve(1)).allocate(0), "at least 1 latent"),
        (lambda: frequencies(10, -2), "alpha of at least -1"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.5), (1.0, 0.25)])
def test_exponents_approach_the_theory(alpha, beta):
    allocator, theory = Allocator(frequencies(10**6, alpha), ShiftCurve(beta)), Regime(alpha, beta)
    n = [1000, 10_000]
    runs = [allocator.allocate(latents) for latents in n]
    assert local_exponents(n, [run.n_found for run in runs])[0] == pytest.approx(theory.features, abs=0.05)
    assert local_exponents(n, [run.loss for run in runs])[0] == pytest.approx(theory.loss, abs=0.05)
    counts = runs[1].count[:30]
    slope = np.polyfit(np.log(np.arange(1, 31)), np.log(counts + 1), 1)[0]
    assert slope == pytest.approx(theory.allocation, abs=0.08)


def test_discrete_features_beside_one_tiled_manifold():
    p = np.concatenate([[0.5], frequencies(5000, 0.2)])
    kinds = np.array([0] + [1] * 5000)
    allocator = Allocator(p, [ShiftCurve(0.3), DiscreteCurve()], kinds)
    small, large = allocator.allocate(200), allocator.allocate(2000)
    assert small.count[0] > 20  # the manifold takes a share of its own
    assert 0.7 < local_exponents([200, 2000], [small.n_found, large.n_found])[0] <= 1.05  # and the rest grows with N
