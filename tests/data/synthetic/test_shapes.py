"""Shapes: points satisfy the equations of their manifold, lie evenly on it, and have the stated mean and energy."""

import math

import pytest
import torch
from torch import Tensor

from saelab.data.source import generator_for
from saelab.data.synthetic.shapes import HALF_WIDTH, INSIDE, OUTSIDE, SHAPES, shape_named

N = 40_000
NAMES = [*SHAPES, "sphere1", "sphere3", "sphere7"]
HOLLOW = ["line", "circle", "interval", "sphere", "torus", "sphere1", "sphere3", "sphere7"]


def points(name: str, n: int = N) -> Tensor:
    return shape_named(name).draw(n, generator_for(0)).double()


def assert_even(values: Tensor, low: float, high: float) -> None:
    """Uniform between low and high: first two moments, within 5 standard errors."""
    u = (values - low) / (high - low)
    assert ((u > -1e-6) & (u < 1 + 1e-6)).all()
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / len(u))
    assert abs(u.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / len(u))


@pytest.mark.parametrize("name", NAMES)
def test_mean_and_energy_are_as_stated(name):
    shape, drawn = shape_named(name), points(name)
    assert drawn.shape == (N, shape.dims)
    assert len(shape.mean) == shape.dims
    error = drawn.std(0) / N**0.5
    assert ((drawn.mean(0) - torch.tensor(shape.mean)).abs() <= 5 * error + 1e-6).all()
    energy = drawn.square().sum(1)
    assert abs(energy.mean() - 1) <= 5 * energy.std() / N**0.5 + 1e-6


@pytest.mark.parametrize("name", HOLLOW)
def test_hollow_shapes_have_norm_one(name):
    torch.testing.assert_close(points(name).norm(dim=1), torch.ones(N).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("line", "sphere7")])
def test_the_intrinsic_dimension_is_as_stated(name):
    shape = shape_named(name)
    drawn = points(name, 200_000)
    near = drawn[(drawn - drawn[0]).norm(dim=1).argsort()[:200]]
    spread = torch.linalg.svdvals(near - near.mean(0))
    assert (spread[: shape.intrinsic] > 0.3 * spread[0]).all()
    assert (spread[shape.intrinsic :] < 0.15 * spread[0]).all()


def test_a_line_is_one_direction():
    assert (points("line") == 1).all()


def test_the_circle_is_even():
    assert_even(torch.atan2(*points("circle").T.flip(0)), -math.pi, math.pi)


def test_the_interval_is_half_of_the_circle():
    assert_even(torch.atan2(*points("interval").T.flip(0)), -math.pi / 2, math.pi / 2)


def test_the_torus_has_two_independent_circles_of_the_same_radius():
    drawn = points("torus")
    for pair in (drawn[:, :2], drawn[:, 2:]):
        torch.testing.assert_close(pair.norm(dim=1), torch.full((N,), 0.5**0.5).double(), rtol=1e-6, atol=0)
        assert_even(torch.atan2(pair[:, 1], pair[:, 0]), -math.pi, math.pi)
    # For angles that move together one of these products would not vanish on average.
    products = 2 * drawn[:, :2, None] * drawn[:, None, 2:]
    assert (products.mean(0).abs() < 5 * 0.5 / N**0.5).all()


@pytest.mark.parametrize(("name", "m"), [("sphere", 2), ("sphere1", 1), ("sphere3", 3), ("sphere7", 7)])
def test_spheres_are_even(name, m):
    drawn = points(name)
    assert drawn.shape[1] == m + 1
    moments = drawn.T @ drawn / N
    assert (moments - torch.eye(m + 1) / (m + 1)).abs().max() < 5 * 0.6 / N**0.5
    # A coordinate of a point on S^m has fourth moment 3 / ((m + 1) (m + 3)).
    fourth = drawn[:, 0].pow(4)
    assert abs(fourth.mean() - 3 / ((m + 1) * (m + 3))) < 5 * fourth.std() / N**0.5


def test_the_helix_turns_twice_at_a_constant_radius():
    drawn = points("helix") / (3 / 4) ** 0.5
    torch.testing.assert_close(drawn[:, :2].norm(dim=1), torch.ones(N).double(), rtol=1e-5, atol=0)
    angle = 2 * math.pi * drawn[:, 2]
    torch.testing.assert_close(drawn[:, 0], angle.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn[:, 1], angle.sin(), rtol=0, atol=1e-5)
    assert_even(drawn[:, 2], -1, 1)


def test_the_swiss_roll_is_an_even_sheet_along_a_spiral():
    drawn = points("swiss_roll")
    drawn = drawn * ((INSIDE**2 + OUTSIDE**2) / 2 + HALF_WIDTH**2 / 3) ** 0.5
    t = drawn[:, :2].norm(dim=1)
    assert t.min() >= INSIDE - 1e-4
    assert t.max() <= OUTSIDE + 1e-4
    torch.testing.assert_close(drawn[:, 0], t * t.cos(), rtol=0, atol=2e-4)
    torch.testing.assert_close(drawn[:, 1], t * t.sin(), rtol=0, atol=2e-4)
    assert_even(t.square(), INSIDE**2, OUTSIDE**2)
    assert_even(drawn[:, 2], -HALF_WIDTH, HALF_WIDTH)
    assert ((t - t.mean()) * drawn[:, 2]).mean().abs() < 5 * t.std() * drawn[:, 2].std() / N**0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cirle", "unknown shape 'cirle' in shapes; did you mean 'circle'?"),
        ("sphere0", "unknown shape 'sphere0' in shapes; did you mean 'sphere'?"),
        ("", "unknown shape '' in shapes; there are: circle, helix, interval, line, sphere, swiss_roll, torus"),
    ],
)
def test_an_unknown_shape_is_named(name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        shape_named(name)
