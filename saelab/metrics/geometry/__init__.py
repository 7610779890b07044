"""Which directions are close, which latents fire together, what clusters they form, how many dimensions those fill."""

from saelab.metrics.geometry.clusters import components, members
from saelab.metrics.geometry.coactivation import Coactivation
from saelab.metrics.geometry.dimension import participation_ratio, two_nearest
from saelab.metrics.geometry.neighbours import nearest, neighbour_graph, pairs_above

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
