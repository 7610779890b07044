"""ExclusiveWorld: groups of features of which never two fire together, such as the names of the months.

A group has a hidden gate that fires with probability g; where it does, exactly one member fires, each as likely as the
others. So P(i) = g / group, and P(i and j) = 0 for two of one group. Features of different groups are independent.
"""

from dataclasses import dataclass

from saelab.data.synthetic.forest import Forest
from saelab.data.synthetic.world import World


@dataclass(eq=False)
class ExclusiveWorld(World):
    """Groups of anti-correlated directions: at most one of a group fires. Orthonormal where they fit into d_in.

    Args:
        d_in: width of a row; n_features / d_in directions share a dimension.
        n_features: how many features there are, a multiple of group.
        l0: mean number of active features of a row.
        alpha: groups fire with probability proportional to rank^-(1 + alpha); 0 is Zipf's law, -1 makes all equal.
        spread: intensities are uniform between 1 - spread and 1 + spread; from 0 to 1.
        noise: standard deviation of the Gaussian noise added to each entry.
        seed: of the directions and the rows.
        group: features of a group, numbered one after another.
    """

    group: int = 4

    def _forest(self) -> Forest:
        if self.group < 2:
            raise ValueError(f"group must be at least 2 features, got {self.group}")
        return Forest(self.n_features, self.l0, self.alpha, [self.group], 1 / self.group, exclusive=True, hidden=True)
