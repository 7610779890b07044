"""A world: a source of rows of which we know what they are made of.

    x = sum over active features i of  point_i @ basis_i  +  noise

Each feature has a subspace of its own (`embedding`), is active in some rows (`forest`, `frequencies`), and is then a
point within its subspace (`shapes`) at a positive radius, uniform between 1 - spread and 1 + spread. A feature's
contribution has mean square norm 1 + spread^2 / 3. The model is the one of arXiv 2509.02565, as we read it; the same
rows serve to test recovery, absorption and hedging.

Window `number` depends on the settings and the number alone, so any window can be drawn again, with its truth. Windows
from HELD_OUT on are never reached by training. A window costs as much as its active features, whatever their number.

Worlds work on the CPU, in float32. Left out: order within a text, features whose intensities depend on each other.
"""

# Shape letters: W rows of a window, F features, N active (row, feature) pairs of a window, K most of one row,
# M dimension of the largest subspace, S all dimensions of subspaces, D width of a row.

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.components import Component
from saelab.data.source import WindowSource, generator_for
from saelab.data.synthetic.embedding import subspaces
from saelab.data.synthetic.forest import Forest
from saelab.data.synthetic.shapes import LINE, Shape


@dataclass(frozen=True)
class Truth:
    """What rows are made of."""

    codes: Codes
    """[W, K] over F features, ascending in a row, unused entries last: value = the norm of the feature's contribution
    to the row before noise."""
    points: Tensor
    """[W, K, M] the feature's vector in its own basis; zero beyond its dimension, and in unused entries."""


@dataclass(frozen=True)
class ActivePairs:
    """The active (row, feature) pairs of a window, by row and then by feature."""

    row: Tensor
    """[N] int64."""
    feature: Tensor
    """[N] int64."""
    points: Tensor
    """[N, M]."""


@dataclass(eq=False)
class World(Component, WindowSource, ABC):
    """Rows made of known features.

    Args:
        d_in: width of a row; n_features / d_in directions share a dimension.
        n_features: how many features there are.
        l0: mean number of active features of a row.
        alpha: features fire with probability proportional to rank^-(1 + alpha); 0 is Zipf's law, -1 makes all equal.
        spread: intensities are uniform between 1 - spread and 1 + spread; from 0 to 1.
        noise: standard deviation of the Gaussian noise added to each entry.
        seed: of the directions and the rows.

    Raises:
        ValueError: for a setting out of its range, by name.
    """

    home = "saelab.data.synthetic"
    HELD_OUT: ClassVar[int] = 1 << 40
    """First of the windows that are left for evaluation."""
    window_rows: ClassVar[int] = 16_384

    d_in: int
    n_features: int
    l0: float
    alpha: float = 0.0
    spread: float = 0.5
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        WindowSource.__init__(self, self.d_in, self.seed)
        for key in ("d_in", "n_features", "seed"):
            if not isinstance(getattr(self, key), int):
                raise ValueError(f"{key} must be a whole number, got {getattr(self, key)!r}")
        if not 0 <= self.spread <= 1:
            raise ValueError(f"spread must be from 0 to 1, got {self.spread}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be a number of at least 0, got {self.noise}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        self.forest = self._forest()
        self.kinds = self._kinds()
        if self.d_in < (widest := max(shape.dims for shape in self.kinds)):
            raise ValueError(f"d_in must be at least {widest}, the dimension of a feature; got {self.d_in}")

    @abstractmethod
    def _forest(self) -> Forest:
        """Which features fire."""

    def _kinds(self) -> list[Shape]:
        """Shapes of the features; feature i has number i modulo their number."""
        return [LINE]

    def _spread_of(self, shape: Shape) -> float:
        return self.spread

    def _orthogonal(self) -> bool:
        """Whether the subspaces are orthogonal to each other."""
        return int(self.dims.sum()) <= self.d_in

    @cached_property
    def dims(self) -> Tensor:
        """Dimension of each feature's subspace; [F] int64."""
        return torch.tensor([shape.dims for shape in self.kinds])[torch.arange(self.n_features) % len(self.kinds)]

    @property
    def parent(self) -> Tensor:
        """The feature whose firing each feature needs, -1 for none; [F] int64."""
        return self.forest.parent

    @property
    def probability(self) -> Tensor:
        """Marginal probability of each feature to be active; [F] float64. Their sum is l0."""
        return self.forest.probability

    @cached_property
    def _starts(self) -> Tensor:
        """Where each feature's basis begins in `_vectors`; [F]."""
        return self.dims.cumsum(0) - self.dims

    @cached_property
    def _vectors(self) -> Tensor:
        """All bases, one after another; [S, D]."""
        return subspaces(self.dims, self.d_in, self._orthogonal(), generator_for(self.seed, 3))

    def bases(self, features: Tensor) -> Tensor:
        """Orthonormal rows [n, M, D] that span the subspaces of features [n]; zero rows beyond their dimensions."""
        within = torch.arange(int(self.dims.max()))
        own = within < self.dims[features][:, None]
        places = (self._starts[features][:, None] + within).where(own, 0)
        return self._vectors[places] * own[:, :, None]

    def directions(self) -> Tensor:
        """Each feature's unit direction; [F, D]. ValueError in a world with manifolds."""
        if (self.dims > 1).any():
            raise ValueError("this world has features of more than one dimension, which have no direction; see bases()")
        return self._vectors

    def draw(self, number: int) -> tuple[Tensor, Truth]:
        """Rows [W, D] of window `number`, and what they are made of."""
        generator = generator_for(self.seed, 2, number)
        drawn = self._drawn(generator)
        return self._rows(drawn, generator), self._truth(drawn)

    def window(self, number: int) -> Tensor:
        generator = generator_for(self.seed, 2, number)
        return self._rows(self._drawn(generator), generator)

    def _shuffled(self, number: int) -> Tensor:
        return self.window(number)  # rows are independent of each other: any order is as good

    def identity(self) -> dict[str, Any]:
        return self.config() | {"window_rows": self.window_rows}

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean [D] and scale of all rows, exact, where features are independent of each other; otherwise None."""
        if self.forest.branching:
            return None
        kind = torch.arange(self.n_features) % len(self.kinds)
        shape_means = torch.zeros(len(self.kinds), int(self.dims.max()))
        for i, shape in enumerate(self.kinds):
            shape_means[i, : shape.dims] = torch.tensor(shape.mean)
        squares = torch.tensor([1 + self._spread_of(shape) ** 2 / 3 for shape in self.kinds]).double()[kind]
        square_means = shape_means.double().square().sum(1)[kind]
        means = self.probability.float()[:, None] * shape_means[kind]
        own = torch.arange(means.shape[1]) < self.dims[:, None]
        p = self.probability
        variance = (p * squares - p.square() * square_means).sum() / self.d_in + self.noise**2
        return means[own] @ self._vectors, variance.sqrt().float()

    def _drawn(self, generator: torch.Generator) -> ActivePairs:
        row, feature = self.forest.draw(self.window_rows, generator)
        points = torch.zeros(len(feature), max(shape.dims for shape in self.kinds))
        numbers = {shape.name: number for number, shape in enumerate(self.kinds)}  # one for each different shape
        shape_of = torch.tensor([numbers[shape.name] for shape in self.kinds])[feature % len(self.kinds)]
        for number in numbers.values():
            shape = self.kinds[number]
            events = (shape_of == number).nonzero().squeeze(1) if len(numbers) > 1 else slice(None)
            n = len(feature[events])
            points[events, : shape.dims] = self._points(shape, n, generator)
        return ActivePairs(row, feature, points)

    def _points(self, shape: Shape, n: int, generator: torch.Generator) -> Tensor:
        points, spread = shape.draw(n, generator), self._spread_of(shape)
        if spread:
            # 1 - 2 u is above -1, so that the radius is positive even at spread 1.
            points *= 1 + spread * (1 - 2 * torch.rand(n, 1, generator=generator))
        return points

    def _rows(self, drawn: ActivePairs, generator: torch.Generator) -> Tensor:
        row, place, weight = drawn.row, drawn.feature, drawn.points.squeeze(1)
        if drawn.points.shape[1] > 1:
            dims, within = self.dims[drawn.feature], torch.arange(drawn.points.shape[1])
            own = within < dims[:, None]
            row = drawn.row.repeat_interleave(dims)
            place = (self._starts[drawn.feature][:, None] + within)[own]
            weight = drawn.points[own]
        rows = F.embedding_bag(place, self._vectors, self._begins(row), per_sample_weights=weight, mode="sum")
        if self.noise:
            rows += self.noise * torch.randn(rows.shape, generator=generator)
        return rows

    def _begins(self, row: Tensor) -> Tensor:
        """Where each row begins in an ascending list of rows; [W]."""
        counts = torch.bincount(row, minlength=self.window_rows)
        return counts.cumsum(0) - counts

    def _truth(self, drawn: ActivePairs) -> Truth:
        slot = torch.arange(len(drawn.row)) - self._begins(drawn.row)[drawn.row]
        width = int(slot.max()) + 1 if len(slot) else 1
        values = torch.zeros(self.window_rows, width)
        indices = torch.zeros(self.window_rows, width, dtype=torch.int64)
        points = torch.zeros(self.window_rows, width, drawn.points.shape[1])
        values[drawn.row, slot] = drawn.points.norm(dim=1)
        indices[drawn.row, slot] = drawn.feature
        points[drawn.row, slot] = drawn.points
        return Truth(Codes(values, indices, self.n_features), points)
