"""Worlds: rows and their truth agree, windows can be drawn again, and every kind holds what it says."""

import json
import time
from contextlib import closing
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saelab.data.synthetic import (
    CorrelatedWorld,
    ExclusiveWorld,
    HierarchicalWorld,
    ManifoldWorld,
    SparseWorld,
    Truth,
    World,
)

MIXED = ["line", "circle", "line", "sphere3", "torus", "helix", "interval", "swiss_roll"]
WORLDS: dict[str, World] = {
    "sparse": SparseWorld(16, 40, 3.0),
    "orthonormal": SparseWorld(16, 12, 3.0, alpha=0.5, spread=0.0, orthogonal=True),
    "correlated": CorrelatedWorld(16, 40, 3.0, chance=0.7),
    "exclusive": ExclusiveWorld(16, 40, 3.0, spread=1.0),
    "hierarchical": HierarchicalWorld(16, 40, 3.0, branching=[3, 2]),
    "taxonomy": HierarchicalWorld(16, 40, 3.0, exclusive=True),
    "circles": ManifoldWorld(64, 9, 2.0),
    "mixed": ManifoldWorld(16, 40, 3.0, shapes=MIXED, radial=0.3),
    "noisy": SparseWorld(16, 40, 3.0, noise=0.1),
}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


def again(world: World, **changes: Any) -> World:
    return World.build(world.config() | changes)


def read(world: World, rows: int, batches: int) -> Tensor:
    with closing(world.batches(rows)) as stream:  # type: ignore[type-var]
        return torch.cat([batch.x for batch in islice(stream, batches)])


def fired(world: World, truth: Truth) -> Tensor:
    """Which features are active; [W, F] float64."""
    return (truth.codes.dense() != 0).double()


def test_every_kind_of_world_is_found():
    expected = [CorrelatedWorld, ExclusiveWorld, HierarchicalWorld, ManifoldWorld, SparseWorld]
    assert list(World.variants().values()) == expected


# ---- the contract, for every world ----


def test_rows_are_the_sum_of_their_points(world):
    rows, truth = again(world, noise=0.0).draw(5)
    bases = world.bases(truth.codes.indices.flatten()).view(*truth.codes.indices.shape, -1, world.d_in)
    expected = torch.einsum("bkm,bkmd->bd", truth.points.double(), bases.double())
    assert rows.dtype == torch.float32
    assert rows.shape == (16_384, world.d_in)
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-5)


def test_the_truth_is_laid_out_as_stated(world):
    _, truth = world.draw(2)
    codes, used = truth.codes, truth.codes.active
    assert codes.n_latents == world.n_features
    assert codes.indices.dtype == torch.int64
    assert truth.points.shape == (*codes.values.shape, int(world.dims.max()))
    assert (codes.values[used] > 0).all()
    torch.testing.assert_close(truth.points.norm(dim=2), codes.values)
    assert used.any(0).all()  # no more entries than the fullest row has
    assert (used[:, 1:] <= used[:, :-1]).all()
    assert (codes.indices[:, 1:] > codes.indices[:, :-1])[used[:, 1:]].all()
    assert (codes.indices[~used] == 0).all()
    beyond = torch.arange(truth.points.shape[2]) >= world.dims[codes.indices][..., None]
    assert (truth.points[beyond] == 0).all()
    assert (truth.points[~used] == 0).all()


def test_bases_are_orthonormal_and_padded_with_zeros(world):
    features = torch.arange(world.n_features).flip(0)
    bases = world.bases(features).double()
    assert bases.shape == (world.n_features, int(world.dims.max()), world.d_in)
    own = (torch.arange(bases.shape[1]) < world.dims[features][:, None]).double()
    torch.testing.assert_close(bases @ bases.mT, torch.diag_embed(own), rtol=0, atol=1e-6)
    if world.dims.max() == 1:
        assert torch.equal(world.bases(features).squeeze(1), world.directions().flip(0))
    else:
        with pytest.raises(ValueError, match=r"more than one dimension.*bases\(\)"):
            world.directions()


def test_frequencies_are_the_stated_ones_and_their_sum_is_l0(world):
    p, windows = world.probability, 4
    assert p.shape == (world.n_features,)
    assert p.dtype == torch.float64
    assert p.sum().item() == pytest.approx(world.l0)
    counts = sum(world.draw(number)[1].codes.counts() for number in range(windows))
    n = windows * world.window_rows
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt()).all()


def test_the_same_settings_give_the_same_rows_and_others_do_not(world):
    rows, truth = world.draw(3)
    same, same_truth = again(world).draw(3)
    assert torch.equal(rows, same)
    assert torch.equal(rows, world.window(3))
    assert torch.equal(truth.codes.indices, same_truth.codes.indices)
    assert torch.equal(truth.points, same_truth.points)
    assert not torch.equal(rows, world.window(4))
    other = again(world, seed=1)
    assert not torch.allclose(world.bases(torch.tensor([0])), other.bases(torch.tensor([0])))
    assert not torch.equal(truth.codes.indices, other.draw(3)[1].codes.indices)


def test_held_out_windows_are_windows_like_others(world):
    first, second = (world.draw(World.HELD_OUT + number)[0] for number in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, world.window(0))


def test_a_restored_world_goes_on_bit_for_bit(world):
    source = again(world)
    read(source, 3000, 7)  # into the second window
    state = json.loads(json.dumps(source.state()))
    assert state["window"] == 1
    expected = read(source, 3000, 5)
    restored = again(world)
    restored.restore(state)
    assert torch.equal(read(restored, 3000, 5), expected)
    rest = 2 * 16_384 - 21_000
    assert torch.equal(expected[:rest], world.window(1)[-rest:])
    assert torch.equal(source.sample(100), world.window(0)[:100])


def test_a_world_is_rebuilt_from_its_settings(world):
    config = json.loads(json.dumps(world.config()))
    assert World.build(config).config() == world.config()
    assert config["name"] == type(world).__name__


# ---- statistics, noise, places ----


@pytest.mark.parametrize("name", ["sparse", "orthonormal", "circles", "mixed", "noisy"])
def test_mean_and_scale_are_exact_where_features_are_independent(name):
    world = WORLDS[name]
    mean, scale = world.statistics()
    assert mean.shape == (world.d_in,)
    rows = torch.cat([world.window(number) for number in range(4)]).double()
    error = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - mean).abs() < 5 * error).all()
    assert mean.abs().max() > 5 * error.max() or name == "circles"
    energy = (rows - mean).square().mean(1)
    assert abs(energy.mean() - scale.double() ** 2) < 5 * energy.std() / len(rows) ** 0.5


@pytest.mark.parametrize("name", ["correlated", "exclusive", "hierarchical"])
def test_elsewhere_they_are_left_to_the_sample(name):
    assert WORLDS[name].statistics() is None


def test_noise_is_added_to_every_entry_and_is_not_in_the_truth():
    noisy, plain = WORLDS["noisy"], again(WORLDS["noisy"], noise=0.0)
    (rows, truth), (clean, clean_truth) = noisy.draw(1), plain.draw(1)
    assert torch.equal(truth.points, clean_truth.points)
    noise = (rows - clean).double()
    n = noise.numel()
    assert noise.mean().abs() < 5 * 0.1 / n**0.5
    assert noise.std().item() == pytest.approx(0.1, abs=5 * 0.1 / (2 * n) ** 0.5)
    assert ((noise.std(0) - 0.1).abs() < 5 * 0.1 / (2 * len(noise)) ** 0.5).all()
    assert not torch.equal(noise, (noisy.window(2) - plain.window(2)).double())


def test_a_place_in_another_world_is_refused():
    source = again(WORLDS["mixed"])
    state = source.state()
    for change in ({"radial": 0.2}, {"l0": 2.0}, {"shapes": ["circle"]}, {"seed": 4}, {"d_in": 17}):
        key = next(iter(change))
        with pytest.raises(ValueError, match=f"the saved position is for {key} "):
            again(source, **change).restore(state)
    with pytest.raises(ValueError, match="ManifoldWorld, .*SparseWorld"):
        WORLDS["sparse"].restore(state)


def test_a_window_without_any_active_feature(monkeypatch):
    monkeypatch.setattr(World, "window_rows", 5)
    for world in (SparseWorld(4, 3, 1e-9), ManifoldWorld(4, 3, 1e-9, shapes=MIXED), CorrelatedWorld(4, 4, 1e-9)):
        rows, truth = world.draw(0)
        assert torch.equal(rows, torch.zeros(5, 4))
        assert truth.codes.values.shape == (5, 1)
        assert not truth.codes.active.any()


# ---- kinds ----


def test_sparse_worlds_are_orthonormal_or_in_superposition():
    overlap = WORLDS["orthonormal"].directions().double()
    torch.testing.assert_close(overlap @ overlap.T, torch.eye(12).double(), rtol=0, atol=1e-6)
    directions = SparseWorld(32, 32 * 16, 4.0).directions().double()  # 16 directions a dimension
    squares = (directions @ directions.T).square() - torch.eye(512)
    assert squares.sum().item() / (512 * 511) == pytest.approx(1 / 32, rel=0.02)


@pytest.mark.parametrize("kind", [CorrelatedWorld, ExclusiveWorld, HierarchicalWorld])
def test_other_directions_are_orthonormal_where_they_fit(kind):
    directions = kind(24, 24, 2.0).directions().double()
    torch.testing.assert_close(directions @ directions.T, torch.eye(24).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.4, 1.0])
def test_intensities_are_uniform_around_one(spread):
    _, truth = SparseWorld(8, 20, 4.0, spread=spread).draw(0)
    values = truth.codes.values[truth.codes.active].double()
    n = len(values)
    assert values.min() > 0
    assert values.min().item() == pytest.approx(1 - spread, abs=0.001)
    assert values.max().item() == pytest.approx(1 + spread, abs=0.001)
    assert values.mean().item() == pytest.approx(1, abs=1e-6 + 5 * spread * (1 / 3 / n) ** 0.5)
    assert values.square().mean().item() == pytest.approx(1 + spread**2 / 3, abs=1e-6 + 10 * spread / n**0.5)


def test_correlated_features_fire_together():
    world = CorrelatedWorld(16, 24, 2.0, alpha=-1.0, group=3, chance=0.6)
    windows = [fired(world, world.draw(number)[1]) for number in range(4)]
    on = torch.cat(windows)
    q, gate = 0.6, 2.0 / 24 / 0.6
    correlation = torch.corrcoef(on.T)
    same = torch.arange(24)[:, None] // 3 == torch.arange(24) // 3
    within = correlation[same & ~torch.eye(24).bool()]
    expected = q * (1 - gate) / (1 - gate * q)
    assert (within - expected).abs().max() < 5 * 2 / len(on) ** 0.5
    assert correlation[~same].abs().max() < 5 / len(on) ** 0.5


def test_exclusive_features_never_fire_together():
    world = ExclusiveWorld(16, 24, 3.0, group=4)
    on = fired(world, world.draw(0)[1])
    together = (on.T @ on).view(6, 4, 6, 4)
    for group in range(6):
        block = together[group, :, group]
        assert (block.diagonal() > 100).all()
        assert (block - block.diagonal().diag() == 0).all()
    assert together[0, :, 1].min() > 0
    expected = world.probability.view(6, 4)
    torch.testing.assert_close(expected, expected[:, :1].expand(6, 4))


def test_children_need_their_parents():
    world = WORLDS["hierarchical"]
    assert world.parent.tolist() == [-1] * 4 + [n // 3 for n in range(12)] + [4 + n // 2 for n in range(24)]
    on = fired(world, world.draw(0)[1])
    child = (world.parent >= 0).nonzero().squeeze(1)
    assert (on[:, child] <= on[:, world.parent[child]]).all()
    n = on[:, world.parent[child]].sum(0)
    share = on[:, child].sum(0) / n
    assert ((share - 0.25).abs() < 5 * (0.25 * 0.75 / n).sqrt()).all()


def test_exclusive_siblings():
    world = WORLDS["taxonomy"]
    on = fired(world, world.draw(0)[1])
    siblings, parents = on[:, 10:].view(-1, 10, 3).sum(2), on[:, :10]
    assert siblings.max() == 1
    n = parents.sum(0)
    assert (((siblings * parents).sum(0) / n - 0.75).abs() < 5 * (0.75 * 0.25 / n).sqrt()).all()


@pytest.mark.parametrize("name", ["sparse", "correlated", "exclusive"])
def test_elsewhere_no_feature_needs_another(name):
    assert (WORLDS[name].parent == -1).all()


def test_features_take_their_shapes_in_turn():
    world = WORLDS["mixed"]
    assert world.dims.tolist() == [1, 2, 1, 4, 4, 3, 2, 3] * 5
    _, truth = world.draw(0)
    used = truth.codes.active
    feature, points, norms = truth.codes.indices[used], truth.points[used], truth.codes.values[used]
    of = {name: feature % 8 == MIXED.index(name) for name in MIXED}
    of["line"] |= feature % 8 == 2
    assert (points[of["interval"], 0] >= 0).all()
    torch.testing.assert_close(points[of["torus"], :2].norm(dim=1), points[of["torus"], 2:].norm(dim=1))
    for name, radial in (("line", 0.5), ("circle", 0.3), ("sphere3", 0.3), ("torus", 0.3)):
        own = norms[of[name]]
        assert own.min().item() == pytest.approx(1 - radial, abs=0.01)
        assert own.max().item() == pytest.approx(1 + radial, abs=0.01)
        assert own.mean().item() == pytest.approx(1, abs=5 * radial * (1 / 3 / len(own)) ** 0.5)
    height, around = points[of["helix"], 2], points[of["helix"], :2].norm(dim=1)
    angle = torch.atan2(points[of["helix"], 1], points[of["helix"], 0])
    torch.testing.assert_close((2 * torch.pi * height / around).sin(), angle.sin(), rtol=0, atol=1e-3)


def test_circles_are_hollow_and_apart():
    world = WORLDS["circles"]
    _, truth = world.draw(0)
    torch.testing.assert_close(truth.codes.values[truth.codes.active], torch.ones(int(truth.codes.active.sum())))
    bases = world.bases(torch.arange(9)).flatten(0, 1).double()
    torch.testing.assert_close(bases @ bases.T, torch.eye(18).double(), rtol=0, atol=1e-6)
    crowded = ManifoldWorld(16, 9, 2.0).bases(torch.arange(9)).flatten(0, 1).double()
    assert (crowded @ crowded.T - torch.eye(18)).abs().max() > 0.1
    rows = ManifoldWorld(2, 1, 0.5).window(0)
    norms = rows.norm(dim=1)
    assert ((norms < 1e-9) | ((norms - 1).abs() < 1e-5)).all()


# ---- a million features ----


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


def test_a_million_features():
    world = SparseWorld(4, 1_000_000, 16.0, alpha=0.3)
    with Largest() as largest:
        world.draw(0)  # the directions too
        assert largest.entries == 4_000_000
        largest.entries = 0
        started = time.process_time()
        rows, truth = world.draw(1)
        assert time.process_time() - started < 1.5
    assert largest.entries < 1_000_000  # 16 384 rows of about 16 features, and no more
    assert rows.shape == (16_384, 4)
    assert truth.codes.l0().double().mean().item() == pytest.approx(16, abs=0.2)
    p = world.probability
    seen = truth.codes.counts()
    rare = p < 1e-4
    expected = 16_384 * p[rare].sum()
    assert abs(seen[rare].sum() - expected) < 5 * expected.sqrt()
    assert (seen[500_000:] > 0).sum() > 1000
