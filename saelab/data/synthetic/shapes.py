"""What a feature looks like within its own subspace: a direction, or a manifold.

| name                   | points                                          | in | intrinsic |
|------------------------|-------------------------------------------------|----|-----------|
| line                   | 1: an ordinary feature, one direction           | 1  | 0         |
| circle                 | (cos a, sin a)                                  | 2  | 1         |
| interval               | half of the circle, -pi/2 <= a <= pi/2          | 2  | 1         |
| sphere, sphere3, ...   | even on the sphere S^m of R^(m+1); sphere is S^2| m+1| m         |
| torus                  | (cos a, sin a, cos b, sin b) / sqrt 2           | 4  | 2         |
| helix                  | (cos t, sin t, t / 2 pi), two turns, normalised | 3  | 1         |
| swiss_roll             | (t cos t, t sin t, h), normalised               | 3  | 2         |

All have E ||point||^2 = 1; the points of line, circle, interval, sphere and torus have norm exactly 1. A world
multiplies each point by a positive radius. The interval is an arc, because an SAE sees directions: a straight piece
through the origin is one direction or two, and any other straight piece is served by its two ends. The torus is the
flat one, whose points all have the same norm. The roll is even over its sheet but for its very inside.

Left out: knotted, branching and higher-dimensional sheets, and densities that are not even.
"""

# Shape letters: n points, m intrinsic dimension of a sphere.

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.core.components import near_miss


@dataclass(frozen=True)
class Shape:
    """A distribution of points in a space of its own."""

    name: str
    dims: int
    """Of the space."""
    intrinsic: int
    """Dimension of the manifold itself."""
    mean: tuple[float, ...]
    """Mean point."""
    draw: Callable[[int, torch.Generator], Tensor]
    """n points [n, dims]."""


def shape_named(name: str) -> Shape:
    """The shape of that name; ValueError with the near miss if there is none."""
    if found := re.fullmatch(r"sphere([1-9]\d{0,2})", name):
        return _sphere(int(found[1]), name)
    if name not in SHAPES:
        raise ValueError(f"unknown shape '{name}' in shapes{near_miss(name, SHAPES)}")
    return SHAPES[name]


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _line(n: int, generator: torch.Generator) -> Tensor:
    return torch.ones(n, 1)


def _on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1)


def _circle(n: int, generator: torch.Generator) -> Tensor:
    return _on_circle(_uniform(n, -math.pi, math.pi, generator))


def _interval(n: int, generator: torch.Generator) -> Tensor:
    return _on_circle(_uniform(n, -math.pi / 2, math.pi / 2, generator))


def _torus(n: int, generator: torch.Generator) -> Tensor:
    return torch.cat([_circle(n, generator), _circle(n, generator)], 1) / math.sqrt(2)


def _sphere(m: int, name: str) -> Shape:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        points = torch.randn(n, m + 1, generator=generator)
        return points / points.norm(dim=1, keepdim=True)

    return Shape(name, m + 1, m, (0.0,) * (m + 1), draw)


def _helix(n: int, generator: torch.Generator) -> Tensor:
    height = _uniform(n, -1, 1, generator)
    turned = _on_circle(2 * math.pi * height)
    return torch.cat([turned, height[:, None]], 1) / math.sqrt(1 + 1 / 3)


INSIDE, OUTSIDE, HALF_WIDTH = 1.5 * math.pi, 4.5 * math.pi, 3 * math.pi
"""Of the roll before it is normalised: it starts and ends at these radii, and is twice this wide."""
_ROLL_NORM = math.sqrt((INSIDE**2 + OUTSIDE**2) / 2 + HALF_WIDTH**2 / 3)


def _swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    # A piece dt of the spiral is about t dt long, so an even sheet has t^2 uniform.
    t = _uniform(n, INSIDE**2, OUTSIDE**2, generator).sqrt()
    across = _uniform(n, -HALF_WIDTH, HALF_WIDTH, generator)
    return torch.cat([t[:, None] * _on_circle(t), across[:, None]], 1) / _ROLL_NORM


def _roll_mean() -> tuple[float, float, float]:
    # Integrals of t cos t and t sin t with density 2 t / (OUTSIDE^2 - INSIDE^2); the cosines of both ends are 0.
    span = OUTSIDE**2 - INSIDE**2
    along, up = 2 * (OUTSIDE**2 + INSIDE**2 - 4) / span, 4 * (OUTSIDE + INSIDE) / span
    return along / _ROLL_NORM, up / _ROLL_NORM, 0.0


LINE = Shape("line", 1, 0, (1.0,), _line)
SHAPES = {
    shape.name: shape
    for shape in (
        LINE,
        Shape("circle", 2, 1, (0.0, 0.0), _circle),
        Shape("interval", 2, 1, (2 / math.pi, 0.0), _interval),
        _sphere(2, "sphere"),
        Shape("torus", 4, 2, (0.0,) * 4, _torus),
        Shape("helix", 3, 1, (0.0,) * 3, _helix),
        Shape("swiss_roll", 3, 2, _roll_mean(), _swiss_roll),
    )
}
