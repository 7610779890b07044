"""Matching latents to features. Also the hand-made world that the other tests of ground-truth metrics use."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.data.synthetic import Truth
from saelab.metrics.truth import matching
from saelab.metrics.truth.matching import assign, cosines, match


@dataclass
class Planted:
    """A world whose features and rows are given: bases [m, D] of each feature, points [n, F, M] of each row."""

    bases_of: list[Tensor]
    points: Tensor
    parents: list[int] | None = None
    window_rows: int = 64
    HELD_OUT = 1 << 40

    def __post_init__(self) -> None:
        self.n_features, self.d_in = len(self.bases_of), self.bases_of[0].shape[1]
        self.dims = torch.tensor([len(basis) for basis in self.bases_of])
        self.parent = torch.tensor(self.parents or [-1] * self.n_features)

    def bases(self, features: Tensor) -> Tensor:
        out = torch.zeros(len(features), int(self.dims.max()), self.d_in)
        for place, feature in enumerate(features.tolist()):
            out[place, : self.dims[feature]] = self.bases_of[feature]
        return out

    @property
    def rows(self) -> Tensor:
        return torch.einsum("nfm,fmd->nd", self.points, self.bases(torch.arange(self.n_features)))

    def draw(self, number: int) -> tuple[Tensor, Truth]:
        start = (number - self.HELD_OUT) * self.window_rows
        points, rows = (part[start : start + self.window_rows] for part in (self.points, self.rows))
        norms = points.norm(dim=2)
        return rows, Truth(Codes.full(norms), points)


def lines(directions: Tensor, intensities: Tensor, **other: object) -> Planted:
    """A world of one-dimensional features with unit directions [F, D] and intensities [n, F]."""
    return Planted(list(directions[:, None]), intensities[:, :, None], **other)


def orthonormal(n: int, width: int, seed: int = 0) -> Tensor:
    """n orthonormal rows."""
    return torch.linalg.qr(torch.randn(width, n, generator=torch.Generator().manual_seed(seed))).Q.T.contiguous()


def random_lines(n: int = 7, width: int = 12, seed: int = 0) -> Planted:
    """Directions that are not orthogonal, no rows."""
    directions = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return lines(directions / directions.norm(dim=1, keepdim=True), torch.zeros(1, n))


def manifolds(seed: int = 0) -> Planted:
    """Features of dimension 2, 1, 3, 1 in 12 dimensions, not orthogonal to each other."""
    bases = [orthonormal(m, 12, seed + i) for i, m in enumerate((2, 1, 3, 1))]
    return Planted(bases, torch.zeros(1, 4, 3))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_true_directions_in_another_order_and_size_match_perfectly():
    world = random_lines()
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    found = match(2.5 * world.bases(order)[:, 0], world)
    torch.testing.assert_close(found.cosine, torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(order[found.latent], torch.arange(7))
    assert torch.equal(found.nearest, order)
    assert torch.equal(found.owner, order)
    torch.testing.assert_close(found.purity, torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.one_to_one


def test_turned_directions_have_the_cosine_of_the_angle():
    axes = torch.eye(10)
    angles = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.2])
    turned = angles.cos()[:, None] * axes[:5] + angles.sin()[:, None] * axes[5:]
    found = match(turned, lines(axes[:5], torch.zeros(1, 5)))
    torch.testing.assert_close(found.cosine, angles.double().cos())
    assert found.owner.tolist() == [0, 1, -1, -1, 4]  # cos 0.5 is 0.88


def test_a_latent_is_a_features_own_from_a_cosine_of_nine_tenths():
    axes, size = torch.eye(6), torch.tensor([0.89, 0.91, 1.0])
    turned = size[:, None] * axes[:3] + (1 - size.square()).sqrt()[:, None] * axes[3:]
    found = match(turned, lines(axes[:3], torch.zeros(1, 3)))
    torch.testing.assert_close(found.cosine, size.double())
    assert found.nearest.tolist() == [0, 1, 2]
    assert found.owner.tolist() == [-1, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_one_to_one_matching_has_a_larger_sum(seed):
    world, directions = random_lines(4, 6, seed), noise(5, 6, seed=seed + 10)
    unit = directions / directions.norm(dim=1, keepdim=True)
    table = world.bases(torch.arange(4))[:, 0] @ unit.T
    best = max(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(5), 4))
    found = match(directions, world)
    assert found.cosine.sum().item() == pytest.approx(best.item(), abs=1e-6)
    assert len(set(found.latent.tolist())) == 4
    for i, j in enumerate(found.latent.tolist()):
        assert found.cosine[i].item() == pytest.approx(table[i, j].item(), abs=1e-6)


def test_the_best_pair_is_given_up_where_the_sum_gains():
    latent, value = assign(torch.tensor([[0.9, 0.8], [0.8, 0.1]]))
    assert latent.tolist() == [1, 0]
    torch.testing.assert_close(value, torch.tensor([0.8, 0.8], dtype=torch.float64), rtol=0, atol=1e-6)


def test_features_left_over_have_no_latent_and_no_cosine():
    found = match(torch.eye(6)[[4, 1]], lines(torch.eye(6), torch.zeros(1, 6)))
    assert found.latent.tolist() == [-1, 1, -1, -1, 0, -1]
    assert found.cosine.isnan().tolist() == [True, False, True, True, False, True]


def test_of_doubled_latents_one_is_matched_and_both_are_own():
    found = match(torch.eye(4)[[0, 0, 1, 2, 3]], lines(torch.eye(4), torch.zeros(1, 4)))
    assert found.latent[0].item() in (0, 1)
    assert found.latent[1:].tolist() == [2, 3, 4]
    assert found.owner.tolist() == [0, 0, 1, 2, 3]


def test_the_opposite_direction_counts_only_where_codes_are_signed():
    world = lines(torch.eye(3), torch.zeros(1, 3))
    found = match(-torch.eye(3)[:1], world)
    assert found.purity.item() == pytest.approx(0)
    found = match(-torch.eye(3), world, signed=True)
    torch.testing.assert_close(found.cosine, torch.ones(3, dtype=torch.float64))
    assert found.latent.tolist() == [0, 1, 2]


@pytest.mark.parametrize("signed", [False, True])
def test_cosines_with_subspaces_are_norms_of_projections(signed):
    world, directions = manifolds(), noise(9, 12)
    unit = directions / directions.norm(dim=1, keepdim=True)
    found = cosines(unit, world.bases(torch.arange(4)), world.dims, signed)
    for i, basis in enumerate(world.bases_of):
        for j, direction in enumerate(unit):
            if len(basis) == 1:
                expected = torch.dot(basis[0], direction)
                expected = expected.abs() if signed else expected
            else:
                fit = torch.linalg.lstsq(basis.T, direction[:, None]).solution
                expected = (basis.T @ fit).norm()
            assert found[i, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_any_direction_within_a_subspace_is_its_own():
    world, weights = manifolds(), noise(5, 2)
    found = match(weights @ world.bases_of[0], world)
    torch.testing.assert_close(found.purity, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.owner.tolist() == [0] * 5


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_blocks_do_not_change_anything(limit, monkeypatch):
    world, directions = manifolds(), noise(9, 12)
    whole = match(directions, world, limit=limit)
    monkeypatch.setattr(matching, "BLOCK_ENTRIES", 1)
    in_blocks = match(directions, world, limit=limit)
    for name in ("latent", "cosine", "nearest", "purity"):
        torch.testing.assert_close(getattr(in_blocks, name), getattr(whole, name), equal_nan=True)


def test_above_the_limit_every_feature_gets_its_best_latent():
    directions = torch.tensor([[1.0, 1.0, 0.0], [0.1, 0.0, 1.0]])
    found = match(directions, lines(torch.eye(3), torch.zeros(1, 3)), limit=5)
    assert not found.one_to_one
    assert found.latent.tolist() == [0, 0, 1]
    torch.testing.assert_close(found.cosine, torch.tensor([0.5**0.5, 0.5**0.5, 1 / 1.01**0.5]).double())
    assert match(directions, lines(torch.eye(3), torch.zeros(1, 3)), limit=6).one_to_one


def test_a_direction_of_zeros_is_near_to_nothing():
    found = match(torch.zeros(2, 3), lines(torch.eye(3), torch.zeros(1, 3)))
    assert found.purity.tolist() == [0, 0]
    assert found.owner.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("directions", "message"), [(torch.zeros(2, 4), "4 wide"), (torch.full((2, 3), torch.nan), "NaN")]
)
def test_directions_that_do_not_fit_are_refused(directions, message):
    with pytest.raises(ValueError, match=message):
        match(directions, lines(torch.eye(3), torch.zeros(1, 3)))
