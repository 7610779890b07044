"""HierarchicalWorld: trees of features; a child fires only where its parent does.

A root fires with probability p; a feature at depth t fires with probability p q^t, q = chance. Sparsity then rewards
an SAE for leaving a parent silent and adding its direction to the children's: "absorption" (arXiv 2409.14507).
"""

from dataclasses import dataclass, field

from saelab.data.synthetic.forest import Forest
from saelab.data.synthetic.world import World


@dataclass(eq=False)
class HierarchicalWorld(World):
    """A forest of directions, parents before children; orthonormal where they fit into d_in.

    Args:
        d_in: width of a row; n_features / d_in directions share a dimension.
        n_features: how many features there are, a multiple of the features of one tree.
        l0: mean number of active features of a row, on all levels together.
        alpha: roots fire with probability proportional to rank^-(1 + alpha); 0 is Zipf's law, -1 makes all equal.
        spread: intensities are uniform between 1 - spread and 1 + spread; from 0 to 1.
        noise: standard deviation of the Gaussian noise added to each entry.
        seed: of the directions and the rows.
        branching: children of a root, of each of these, and so on; [3, 2] makes trees of 1 + 3 + 6 features.
        chance: probability that a child fires where its parent does.
        exclusive: whether at most one child of a parent fires; takes chance * children <= 1.
    """

    branching: list[int] = field(default_factory=lambda: [3])
    chance: float = 0.25
    exclusive: bool = False

    def _forest(self) -> Forest:
        if not isinstance(self.branching, list) or not self.branching:
            raise ValueError(f"branching must be a list with the children on each level, got {self.branching!r}")
        return Forest(self.n_features, self.l0, self.alpha, self.branching, self.chance, self.exclusive)
