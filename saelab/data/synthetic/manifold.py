"""ManifoldWorld: features that are circles, spheres and other curved sets, alone or mixed with plain directions.

Each feature has a subspace of its own and fires independently of the others; the row then holds a random point of its
shape. On hollow shapes SAEs spend ever more latents on one feature; where the radius varies they tend to learn a basis
of its subspace (arXiv 2509.02565, as we read it).
"""

from dataclasses import dataclass, field

from saelab.data.synthetic.forest import Forest
from saelab.data.synthetic.shapes import LINE, Shape, shape_named
from saelab.data.synthetic.world import World


@dataclass(eq=False)
class ManifoldWorld(World):
    """Independent features of chosen shapes, in subspaces that are orthogonal where they all fit into d_in.

    Args:
        d_in: width of a row.
        n_features: how many features there are.
        l0: mean number of active features of a row.
        alpha: features fire with probability proportional to rank^-(1 + alpha); 0 is Zipf's law, -1 makes all equal.
        spread: intensities of plain directions are uniform between 1 - spread and 1 + spread; from 0 to 1.
        noise: standard deviation of the Gaussian noise added to each entry.
        seed: of the subspaces and the rows.
        shapes: shapes of the features in turn, so that repeated names set shares: circle, interval, sphere (S^2),
            sphere3 (S^3) and so on, torus, helix, swiss_roll, or line for a plain direction.
        radial: radii of manifolds are uniform between 1 - radial and 1 + radial; 0 leaves them hollow; at most 1.
    """

    shapes: list[str] = field(default_factory=lambda: ["circle"])
    radial: float = 0.0

    def _forest(self) -> Forest:
        return Forest(self.n_features, self.l0, self.alpha)

    def _kinds(self) -> list[Shape]:
        if not 0 <= self.radial <= 1:
            raise ValueError(f"radial must be from 0 to 1, got {self.radial}")
        if not isinstance(self.shapes, list) or not self.shapes:
            raise ValueError(f"shapes must be a list of names, got {self.shapes!r}")
        return [shape_named(name) for name in self.shapes]

    def _spread_of(self, shape: Shape) -> float:
        return self.spread if shape is LINE else self.radial
