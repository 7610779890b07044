"""The map's weights and places."""

import math

import pytest
import torch

from saelab.explorer.directions import principal
from saelab.explorer.layout import edges_of, layout, weights
from saelab.geometry import nearest


def clusters(each: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(12)[:3].repeat_interleave(each, 0)
    return torch.nn.functional.normalize(centres + 0.1 * torch.randn(3 * each, 12, generator=generator), dim=1)


def test_weights_of_a_points_neighbours_add_up_to_the_logarithm_of_their_number():
    cosines, _ = nearest(clusters(), clusters(), 8, skip_self=True)
    found = weights(cosines)
    assert torch.allclose(found.sum(1), torch.full((90,), math.log2(8)), atol=1e-3)
    assert torch.equal(found[:, 0], torch.ones(90))
    assert (found.diff(dim=1) <= 0).all()


def test_edges_join_both_directions_once():
    cosines, neighbours = nearest(clusters(), clusters(), 5, skip_self=True)
    left, right, weight = edges_of(cosines, neighbours)
    p = torch.zeros(90, 90).scatter_(1, neighbours, weights(cosines))
    expected = p + p.T - p * p.T
    full = torch.zeros(90, 90)
    full[left, right] = weight
    assert (left < right).all()
    assert torch.allclose(full + full.T, expected, atol=1e-6)


def test_clusters_come_apart_and_the_map_is_the_same_every_time():
    directions = clusters()
    cosines, neighbours = nearest(directions, directions, 10, skip_self=True)
    start, share = principal(directions, 2)
    places = layout(start, cosines, neighbours)
    assert torch.equal(places, layout(start, cosines, neighbours))
    centres = torch.stack([part.mean(0) for part in places.split(30)])
    inside = max((part - part.mean(0)).norm(dim=1).mean().item() for part in places.split(30))
    between = torch.pdist(centres).min().item()
    assert between > 3 * inside
    assert 0 < share[1] <= share[0] < 1


def test_principal_components_are_those_of_the_covariance():
    directions = clusters()
    found, share = principal(directions, 3)
    _, sizes, _ = torch.linalg.svd((directions - directions.mean(0)).double())
    assert torch.allclose(found.double().square().sum(0), sizes[:3].square(), rtol=1e-4)
    assert torch.allclose(share.double(), (sizes.square() / sizes.square().sum())[:3], rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_of_hardly_any_points(count):
    assert layout(torch.zeros(count, 2), torch.zeros(count, 0), torch.zeros(count, 0).long()).shape == (count, 2)
