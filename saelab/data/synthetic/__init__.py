"""Synthetic worlds: sources of rows with the truth attached. One kind of world a file."""

from saelab.data.synthetic.correlated import CorrelatedWorld
from saelab.data.synthetic.exclusive import ExclusiveWorld
from saelab.data.synthetic.hierarchical import HierarchicalWorld
from saelab.data.synthetic.manifold import ManifoldWorld
from saelab.data.synthetic.sparse import SparseWorld
from saelab.data.synthetic.world import Truth, World

__all__ = [
    "CorrelatedWorld",
    "ExclusiveWorld",
    "HierarchicalWorld",
    "ManifoldWorld",
    "SparseWorld",
    "Truth",
    "World",
]
