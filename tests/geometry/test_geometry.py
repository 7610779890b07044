"""Neighbours, co-activation, clusters and dimensions against loops in float64 and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from saelab.core.codes import Codes
from saelab.geometry import (
    Coactivation,
    components,
    members,
    nearest,
    neighbour_graph,
    neighbours,
    pairs_above,
    participation_ratio,
    two_nearest,
)
from saelab.kernels import native


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() @ b.double() / (a.double().norm() * b.double().norm())).item()


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_nearest_directions_are_those_a_loop_finds(monkeypatch, block):
    monkeypatch.setattr(neighbours.blocks, "__defaults__", (False, block))
    probes, directions = 3 * drawn(7, 5), drawn(13, 5, seed=1) * torch.arange(1, 14)[:, None]
    values, indices = nearest(probes, directions, 4)
    for i in range(7):
        wanted = sorted(((cosine(probes[i], directions[j]), j) for j in range(13)), reverse=True)[:4]
        assert indices[i].tolist() == [j for _, j in wanted]
        assert values[i].tolist() == pytest.approx([c for c, _ in wanted], abs=1e-6)


@pytest.mark.parametrize("block", [1, 30, 1 << 20])
def test_a_direction_is_no_neighbour_of_itself_wherever_blocks_begin(monkeypatch, block):
    monkeypatch.setattr(neighbours.blocks, "__defaults__", (False, block))
    directions = torch.cat([drawn(6, 4), drawn(6, 4)])  # everything twice
    values, indices = nearest(directions, directions, skip_self=True)
    assert indices.flatten().tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
    assert values.flatten().tolist() == pytest.approx([1.0] * 12, abs=1e-6)


def test_few_directions_give_few_neighbours_and_a_zero_direction_is_near_to_nothing():
    assert nearest(drawn(3, 4), drawn(2, 4), 5)[0].shape == (3, 2)
    assert nearest(drawn(1, 4), drawn(1, 4), 5, skip_self=True)[1].shape == (1, 0)
    assert nearest(torch.zeros(1, 4), drawn(5, 4))[0].item() == 0


def test_pairs_above_a_threshold_are_those_a_loop_finds():
    left, right = drawn(9, 3), drawn(8, 3, seed=1)
    i, j, values = pairs_above(left, right, 0.4)
    wanted = {(a, b): cosine(left[a], right[b]) for a in range(9) for b in range(8)}
    wanted = {pair: value for pair, value in wanted.items() if value >= 0.4}
    assert dict(zip(zip(i.tolist(), j.tolist(), strict=True), values.tolist(), strict=True)) == pytest.approx(
        wanted, abs=1e-6
    )
    i, j, _ = pairs_above(left, None, 0.4)
    within = {(a, b) for a in range(9) for b in range(a + 1, 9) if cosine(left[a], left[b]) >= 0.4}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == within
    assert len(i) == len(within)


@pytest.mark.skipif(native.library() is None, reason="needs a compiler")
@pytest.mark.parametrize("rows", [160, 1 << 20])
def test_what_is_screened_first_is_the_same(monkeypatch, rows):
    monkeypatch.setattr(neighbours, "SCREENED_ROWS", rows)
    monkeypatch.setattr(neighbours, "SCREENED_ENTRIES", rows * 1100)
    directions = drawn(1100, 40, seed=1)
    probes = directions[:300] * torch.arange(1, 301)[:, None] + 0.5 * drawn(300, 40)
    probes[7] = 0
    directions[20:40] = directions[60]  # more equals than are asked for
    assert neighbours.is_screened(probes, directions, 5)
    table = F.normalize(probes.double(), dim=1) @ F.normalize(directions.double(), dim=1).T
    values, indices = nearest(probes, directions, 4)
    assert torch.allclose(values.double(), table.topk(4, dim=1).values, atol=1e-6)
    assert torch.allclose(table.gather(1, indices), values.double(), atol=1e-6)
    i, j, cosines = pairs_above(probes, directions, 0.3)
    wanted = (table >= 0.3).nonzero()
    assert torch.equal(torch.stack([i, j], 1), wanted)
    assert torch.allclose(cosines.double(), table[i, j], atol=1e-6)
    table = F.normalize(directions.double(), dim=1) @ F.normalize(directions.double(), dim=1).T
    i, j, _ = pairs_above(directions, None, 0.3)
    assert torch.equal(torch.stack([i, j], 1), (table.triu(1) >= 0.3).nonzero())
    table.fill_diagonal_(-2)
    values, indices = nearest(directions, directions, 3, skip_self=True)
    assert torch.allclose(values.double(), table.topk(3, dim=1).values, atol=1e-6)
    assert (indices != torch.arange(1100)[:, None]).all()
    assert all(len(set(line)) == 3 for line in indices.tolist())


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 10)
    with pytest.raises(ValueError, match="more than 10 pairs have a cosine of -0.9"):
        pairs_above(drawn(5, 3), drawn(5, 3), -0.9)


def test_a_neighbour_graph_holds_each_close_pair_once():
    directions = drawn(12, 3)
    i, j, values = neighbour_graph(directions, 0.5, count=2)
    wanted = set()
    for a in range(12):
        ranked = sorted((b for b in range(12) if b != a), key=lambda b: -cosine(directions[a], directions[b]))
        wanted |= {(min(a, b), max(a, b)) for b in ranked[:2] if cosine(directions[a], directions[b]) >= 0.5}
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == sorted(wanted)
    for a, b, value in zip(i, j, values, strict=True):
        assert value.item() == pytest.approx(cosine(directions[a], directions[b]), abs=1e-6)


@pytest.mark.parametrize(
    ("probes", "directions", "message"),
    [
        (drawn(2, 3), drawn(2, 4), "as wide as probes, got .2, 4. and .2, 3."),
        (drawn(2, 3) / 0, drawn(2, 3), "probes hold NaN or infinity"),
        (drawn(2, 3), drawn(2, 3) * math.nan, "directions hold NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_refused(probes, directions, message):
    with pytest.raises(ValueError, match=message):
        nearest(probes, directions)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        nearest(drawn(2, 3), drawn(2, 3), 0)


def test_components_are_numbered_by_their_first_nodes():
    labels = components(8, torch.tensor([6, 1, 5]), torch.tensor([2, 4, 6]))
    assert labels.tolist() == [0, 1, 2, 3, 1, 2, 2, 4]
    assert [part.tolist() for part in members(labels)] == [[2, 5, 6], [1, 4]]
    assert [part.tolist() for part in members(labels, least=1)][2:] == [[0], [3], [7]]
    nothing = torch.empty(0, dtype=torch.int64)
    assert components(3, nothing, nothing).tolist() == [0, 1, 2]
    assert components(0, nothing, nothing).tolist() == []
    assert members(nothing) == []


@pytest.mark.parametrize("two", [False, True])
def test_coactivation_is_that_of_the_dense_firing_patterns(two):
    generator = torch.Generator().manual_seed(0)
    left = (torch.rand(60, 5, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.0, 1.0])).double()
    right = (torch.rand(60, 5, generator=generator) < 0.4).double() if two else left
    seen = Coactivation(5, 5 if two else None)
    for a, b in zip(left.split(25), right.split(25), strict=True):
        signed = Codes.full(-a.float()).compact()  # active is non-zero, whatever the sign
        seen.update(signed, *([Codes.full(b.float())] if two else []))
    i, j = torch.cartesian_prod(torch.arange(5), torch.arange(5)).unbind(1)
    for k in range(25):
        a, b = left[:, i[k]], right[:, j[k]]
        both, either = (a * b).sum(), ((a + b) > 0).sum()
        rarer, product = min(a.sum(), b.sum()), a.sum() * b.sum()
        defined = 0 < a.sum() < 60 and 0 < b.sum() < 60
        phi = torch.corrcoef(torch.stack([a, b]))[0, 1] if defined else 0.0
        found = [method(i[k : k + 1], j[k : k + 1]).item() for method in (seen.jaccard, seen.overlap, seen.lift)]
        wanted = [both / either if either else 0.0, both / rarer if rarer else 0.0, 60 * both / product if rarer else 0]
        assert found == pytest.approx([float(value) for value in wanted])
        assert seen.phi(i[k : k + 1], j[k : k + 1]).item() == pytest.approx(float(phi), abs=1e-12)
    with pytest.raises(ValueError, match="take its codes alone"):
        seen.update(Codes.full(left), *([] if two else [Codes.full(right)]))


def test_dimensions_of_known_clouds():
    angle = 2 * math.pi * torch.rand(800, generator=torch.Generator().manual_seed(0))
    plane = torch.linalg.qr(drawn(9, 2))[0].T
    circle = torch.stack([angle.cos(), angle.sin()], 1) @ plane
    assert participation_ratio(circle) == pytest.approx(2, abs=0.02)
    assert two_nearest(circle) == pytest.approx(1, abs=0.15)
    assert two_nearest(torch.cat([circle, circle])) == pytest.approx(1, abs=0.15)  # each point twice
    cube = torch.rand(800, 3, generator=torch.Generator().manual_seed(0)) @ torch.linalg.qr(drawn(9, 3))[0].T
    assert two_nearest(cube) == pytest.approx(3, abs=0.4)
    assert participation_ratio(cube) == pytest.approx(3, abs=0.1)
    assert participation_ratio(drawn(4, 50)) <= 3.001  # four points span three dimensions
    assert math.isnan(participation_ratio(torch.ones(5, 3)))
    assert math.isnan(two_nearest(torch.ones(5, 3)))
    assert math.isnan(two_nearest(drawn(2, 3)))
