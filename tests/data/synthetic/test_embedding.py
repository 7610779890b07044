"""Bases: orthonormal within a feature, between features where asked, even over all directions otherwise."""

import pytest
import torch
from torch import Tensor

from saelab.data.source import generator_for
from saelab.data.synthetic import embedding
from saelab.data.synthetic.embedding import subspaces

DIMS = torch.tensor([1, 3, 2, 4, 1, 2, 3, 1])


def blocks(vectors: Tensor, dims: Tensor) -> list[Tensor]:
    return list(vectors.double().split(dims.tolist()))


@pytest.mark.parametrize(("d_in", "orthogonal"), [(4, False), (6, False), (17, False), (17, True), (40, True)])
def test_each_feature_has_an_orthonormal_basis(d_in, orthogonal):
    vectors = subspaces(DIMS, d_in, orthogonal, generator_for(0))
    assert vectors.shape == (17, d_in)
    assert vectors.dtype == torch.float32
    for basis in blocks(vectors, DIMS):
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double(), rtol=0, atol=1e-6)


def test_bases_of_nearly_parallel_draws_are_orthonormal_too():
    bases = subspaces(torch.full((20_000,), 2), 2, False, generator_for(0)).double().view(-1, 2, 2)
    torch.testing.assert_close(bases @ bases.mT, torch.eye(2).double().expand_as(bases), rtol=0, atol=1e-6)


def test_subspaces_are_orthogonal_only_where_asked():
    apart = subspaces(DIMS, 20, True, generator_for(0)).double()
    torch.testing.assert_close(apart @ apart.T, torch.eye(17).double(), rtol=0, atol=1e-6)
    random = subspaces(DIMS, 20, False, generator_for(0)).double()
    assert (random @ random.T - torch.eye(17)).abs().max() > 0.3


@pytest.mark.parametrize("m", [1, 3])
def test_random_subspaces_favour_no_direction(m):
    d_in, features = 8, 4000
    vectors = subspaces(torch.full((features,), m), d_in, False, generator_for(0)).double()
    # Two random unit vectors have inner products of mean square 1 / D; every direction gets the same share.
    share = vectors.T @ vectors / len(vectors)
    error = (2 / d_in**2 / features) ** 0.5
    assert (share - torch.eye(d_in) / d_in).abs().max() < 5 * error
    assert vectors.mean(0).abs().max() < 5 * (1 / d_in / features) ** 0.5
    pairs = (vectors[: m * 2000].view(2000, m, d_in) @ vectors[m * 2000 :].view(2000, m, d_in).mT).square()
    assert pairs.mean().item() == pytest.approx(1 / d_in, abs=5 * pairs.std().item() / 2000**0.5)


def test_pieces_change_nothing(monkeypatch):
    whole = subspaces(DIMS, 9, False, generator_for(0))
    monkeypatch.setattr(embedding, "CHUNK", 10)
    assert torch.equal(subspaces(DIMS, 9, False, generator_for(0)), whole)
