"""Where features live: for each an orthonormal basis of its own subspace of the rows' space.

Subspaces are orthogonal to each other where that is asked, which takes d_in >= all their dimensions together;
otherwise each lies at random. Random ones overlap by about sqrt(m / d_in) in m dimensions: features in superposition.
"""

# Shape letters: F features, S all their dimensions together, D width of a row, n features of the same dimension m.

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Entries worked on at a time, so that the largest tables are held once."""


def subspaces(dims: Tensor, d_in: int, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """The bases of all features, one after another; [S, D] float32 for dims [F]."""
    vectors = torch.randn(int(dims.sum()), d_in, generator=generator)
    if orthogonal:
        assert len(vectors) <= d_in, (vectors.shape, d_in)
        return torch.linalg.qr(vectors.double().T)[0].T.float().contiguous()
    for piece in vectors.split(max(1, CHUNK // d_in)):
        piece /= piece.norm(dim=1, keepdim=True)
    starts = dims.cumsum(0) - dims
    for m in dims[dims > 1].unique().tolist():
        for first in starts[dims == m].split(max(1, CHUNK // (m * d_in))):
            places = first[:, None] + torch.arange(m)
            vectors[places] = _orthonormal(vectors[places])
    return vectors


def _orthonormal(vectors: Tensor) -> Tensor:
    """Gram-Schmidt over the m unit vectors of each feature; [n, m, D] in place."""
    for i in range(1, vectors.shape[1]):
        vector, others = vectors[:, i], vectors[:, :i]
        for _ in range(2):  # the second pass removes what rounding left
            overlap = torch.einsum("nmd,nd->nm", others, vector)
            vector -= torch.einsum("nm,nmd->nd", overlap, others)
            vector /= vector.norm(dim=1, keepdim=True)
    return vectors
