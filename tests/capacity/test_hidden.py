"""Hypotheses about what a diagnosis has missed: against geometry, loops, theory, and clusters that were built."""

import math

import numpy as np
import pytest
import torch

from saelab.capacity import hidden
from saelab.capacity.diagnose import FiringPass, _clusters
from saelab.capacity.hidden import (
    DiagnosisView,
    HypotheticalWorld,
    Sight,
    Weighed,
    joined_share,
    near_share,
    neighbour_angle,
    view,
    weigh,
)
from saelab.capacity.theory import Regime
from saelab.core.codes import Codes
from saelab.geometry import Coactivation

SIGHT = Sight(20_000, 0.5, 6, (0.02, 0.5), 10)
NONE = HypotheticalWorld(0.5, 0, 0.0, 0.0, 1.0, 0.0, 0.0, 1)


def world(alpha, m, **settings):
    own = {"share": 1.0, "count": math.inf, "boost": 1.0, "common": 0.0, "start": 0.0, "together": 2}
    return HypotheticalWorld(alpha, m, **(own | settings))


def test_even_tiles_lie_as_far_apart_as_regular_bodies_have_them():
    assert neighbour_angle(np.arange(3, 40), 1) == pytest.approx(2 * np.pi / np.arange(3, 40))
    octahedron, icosahedron = np.degrees(neighbour_angle(np.array([6, 12]), 2))
    assert octahedron == pytest.approx(90, abs=3)
    assert icosahedron == pytest.approx(63.4, abs=2)
    assert np.degrees(neighbour_angle(120, 3)) == pytest.approx(36, abs=2)  # the 600-cell
    assert (np.diff(neighbour_angle(np.arange(2, 200), 5)) <= 0).all()


def test_tiles_are_near_from_that_number_on():
    assert near_share(np.array([6.0]), 1, 0.5) > 0.8  # 60 degrees apart at most
    share = near_share(np.array([3.0, 4.0, 12.0, 40.0]), 1, 0.5)
    assert (share[:2] < 0.05).all()
    assert (share[2:] > 0.99).all()
    assert near_share(np.array([10.0]), 6, 0.5) < 0.05


@pytest.mark.parametrize(("alpha", "m"), [(1.0, 4), (1.5, 5), (0.2, 1), (1.0, 8)])
def test_features_grow_as_theory_says(alpha, m):
    d = [world(alpha, m).features_found(n) for n in (1e5, 1e6)]
    assert math.log10(d[1] / d[0]) == pytest.approx(Regime(alpha, 2 / m).features, abs=0.015)


def test_latents_are_counted_as_by_a_loop():
    own = world(0.7, 3, share=0.4, boost=2.0, start=0.3)
    total = 0.0
    for number in range(1, 1000):
        rank = max(1.0, (number - 0.3) / 0.4)
        if rank <= 500:
            total += max(1.0, (2.0 * 500 / rank) ** (1.7 / (1 + 2 / 3))) - 1
    assert own.latents(500) == pytest.approx(500 + total, rel=0.02)
    assert own.features_found(own.latents(500)) == pytest.approx(500, rel=0.01)
    few = world(0.7, 3, count=2, boost=5.0)
    assert few.latents(300) == pytest.approx(298 + few.tiles(300)[:2].sum())
    assert few.tiling(300) == pytest.approx(few.tiles(300)[:2].sum() / few.latents(300))
    assert NONE.features_found(77) == NONE.latents(77) == 77


def joined_by_hand(n, dims, density, together, rows):
    """What the diagnosis joins of even tiles whose `together` nearest fire."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.nn.functional.normalize(torch.randn(n, dims, generator=generator), dim=1)
    points = torch.nn.functional.normalize(torch.randn(60 * n, dims, generator=generator), dim=1)
    for _ in range(15):
        own = (points @ tiles.T).argmax(1)
        tiles = torch.nn.functional.normalize(torch.zeros_like(tiles).index_add_(0, own, points), dim=1)
    x = torch.nn.functional.normalize(torch.randn(rows, dims, generator=generator), dim=1)
    codes = torch.zeros(rows, n).scatter(1, (x @ tiles.T).topk(together, dim=1).indices, 1.0)
    codes *= torch.rand(rows, 1, generator=generator) < density
    count = Coactivation(n)
    count.update(Codes.full(codes))
    found, _ = _clusters(tiles, FiringPass(count, torch.empty(0, dims)), torch.arange(n), 0.5)
    return sum(map(len, found)) / n


@pytest.mark.parametrize(
    ("n", "m", "density", "together", "rows", "seen"),
    [
        (16, 1, 0.3, 2, 4000, True),
        (60, 2, 0.3, 2, 8000, True),
        (120, 3, 0.5, 3, 8000, True),
        (60, 2, 0.3, 1, 8000, False),  # one at a time
        (60, 2, 0.3, 2, 300, False),  # too few rows
        (5, 1, 0.3, 2, 4000, False),  # too few tiles
        (14, 5, 0.3, 3, 8000, False),  # too far apart
    ],
)
def test_the_power_is_that_of_the_diagnosis(n, m, density, together, rows, seen):
    sight = Sight(rows, 0.5, 6, (0.02, 0.5), 10)
    said = joined_share(np.array([float(n)]), m, np.array([density]), together, sight)[0]
    done = joined_by_hand(n, m + 1, density, together, rows)
    assert (done > 0.8) == seen
    assert (done < 0.2) != seen
    assert (said > 0.8) == seen
    assert (said < 0.2) != seen


def test_clusters_of_fewer_tiles_than_the_least_are_none():
    loose = Sight(10**6, 0.1, 6, (0.02, 0.5), 10)
    found = joined_share(np.array([5.0, 6.0]), 1, np.array([0.2, 0.2]), 2, loose)
    assert found[0] == 0
    assert found[1] > 0.9


def test_tiles_that_are_joined_leave_the_spectrum():
    circle = world(0.5, 1, share=0.1, count=1, boost=3000.0, start=0.0, common=1.0)
    seen = view(circle, 600, 12.0, SIGHT)
    assert seen.largest == seen.seen > 0.25
    assert seen.alpha == pytest.approx(0.5, abs=0.1)


def test_without_manifolds_the_exponent_is_seen_as_it_is():
    seen = view(NONE, 600, 12.0, SIGHT)
    assert (seen.seen, seen.largest, seen.near, seen.dimension) == (0, 0, 0, None)
    assert seen.alpha == pytest.approx(0.5, abs=0.05)
    assert view(NONE, 600, 12.0, Sight(5, 0.5, 6, (0.02, 0.5), 10)).alpha is None


def test_tiles_that_are_not_joined_bend_the_spectrum():
    alone = world(1.2, 6, together=1)
    unseen = view(alone, 600, 12.0, SIGHT)
    assert unseen.seen < 1e-5
    assert alone.tiling(alone.features_found(600)) > 0.8
    assert unseen.alpha < 0.6


def test_chances_are_drawn_towards_a_third():
    assert Weighed([], [], np.zeros(0), 10).share(np.zeros(0, bool)) == pytest.approx(1 / 3)
    found = Weighed([NONE] * 4, [DiagnosisView(0, 0, 0, 0.5, 0, None)] * 4, np.full(4, 0.25), 10)
    assert found.effective == pytest.approx(4)
    assert found.share(np.array([True] * 3 + [False])) == pytest.approx(4 / 7)


def chance(seen, sight, monkeypatch, latents=300):
    monkeypatch.setattr(hidden, "MOST_DRAWS", 400)
    monkeypatch.setattr(hidden, "DRAWS", 400)
    weighed = weigh(seen, latents, 12.0, sight, np.random.default_rng(0))
    found, _ = weighed.later()
    return weighed, np.log10(found[:, 2] / found[:, 0])


def test_seeing_nothing_counts_for_more_where_more_would_have_been_seen(monkeypatch):
    nothing, blind = DiagnosisView(0, 0, 1.0, None, 0.0, None), Sight(40, 0.5, 6, (0.02, 0.5), 10)
    found, growth = chance(nothing, blind, monkeypatch)
    little = found.share(growth < 0.8)
    found, growth = chance(DiagnosisView(0, 0, 1.0, 0.1, 0.05, None), SIGHT, monkeypatch)
    assert found.share(growth < 0.8) < little / 2
    assert found.share(growth >= 0.9) > 0.85
    against = growth < 0.9
    shown = [hidden.would_show(found, against, 12.0, SIGHT, times, 1) for times in (1, 16)]
    assert shown[0] == 0 < shown[1] <= 1


def test_a_world_that_nothing_resembles_leaves_no_hypothesis(monkeypatch):
    found, _ = chance(DiagnosisView(0.5, 0.5, 0.0, 60.0, 0.05, 40.0), SIGHT, monkeypatch)
    assert found.effective == 0
    assert len(found.worlds) == 0
