"""CorrelatedWorld: groups of features that like to fire together.

A group has a hidden gate that fires with probability g; where it does, each member fires with probability q = chance,
independently. So P(i) = g q, P(i and j) = g q^2 for two of one group, and their correlation is q (1 - g) / (1 - g q):
about q for rare groups. Features of different groups are independent.

Correlated features are what makes an SAE that is too narrow mix directions ("hedging", arXiv 2505.11756).
"""

from dataclasses import dataclass

from saelab.data.synthetic.forest import Forest
from saelab.data.synthetic.world import World


@dataclass(eq=False)
class CorrelatedWorld(World):
    """Groups of directions that fire together more often than by chance; orthonormal where they fit into d_in.

    Args:
        d_in: width of a row; n_features / d_in directions share a dimension.
        n_features: how many features there are, a multiple of group.
        l0: mean number of active features of a row.
        alpha: groups fire with probability proportional to rank^-(1 + alpha); 0 is Zipf's law, -1 makes all equal.
        spread: intensities are uniform between 1 - spread and 1 + spread; from 0 to 1.
        noise: standard deviation of the Gaussian noise added to each entry.
        seed: of the directions and the rows.
        group: features of a group, numbered one after another.
        chance: probability that a feature fires where its group does; about the correlation of rare features.
    """

    group: int = 4
    chance: float = 0.5

    def _forest(self) -> Forest:
        if self.group < 2:
            raise ValueError(f"group must be at least 2 features, got {self.group}")
        return Forest(self.n_features, self.l0, self.alpha, [self.group], self.chance, hidden=True)
