"""Which directions are close, which latents fire together, what clusters they form, how many dimensions those fill."""

from saelab.geometry.clusters import components, members
from saelab.geometry.coactivation import Coactivation
from saelab.geometry.dimension import participation_ratio, two_nearest
from saelab.geometry.neighbours import nearest, neighbour_graph, pairs_above

__all__ = [
    "Coactivation",
    "components",
    "members",
    "nearest",
    "neighbour_graph",
    "pairs_above",
    "participation_ratio",
    "two_nearest",
]
