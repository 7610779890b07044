"""SparseWorld: directions that fire independently of each other."""

from dataclasses import dataclass

from saelab.data.synthetic.forest import Forest
from saelab.data.synthetic.world import World


@dataclass(eq=False)
class SparseWorld(World):
    """Independent features, one direction each, more of them than dimensions if wished.

    Args:
        d_in: width of a row; n_features / d_in directions share a dimension.
        n_features: how many features there are.
        l0: mean number of active features of a row.
        alpha: features fire with probability proportional to rank^-(1 + alpha); 0 is Zipf's law, -1 makes all equal.
        spread: intensities are uniform between 1 - spread and 1 + spread; from 0 to 1.
        noise: standard deviation of the Gaussian noise added to each entry.
        seed: of the directions and the rows.
        orthogonal: whether the directions are orthonormal, which needs n_features <= d_in; random by default.
    """

    orthogonal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orthogonal and self.n_features > self.d_in:
            raise ValueError(f"orthogonal needs n_features <= d_in, got {self.n_features} and {self.d_in}")

    def _forest(self) -> Forest:
        return Forest(self.n_features, self.l0, self.alpha)

    def _orthogonal(self) -> bool:
        return self.orthogonal
