"""Hedging: the published rate, and what a direction mixes in from correlated features."""

import pytest
import torch
from test_truth_matching import Planted, lines, noise, orthonormal
from torch import Tensor

from saelab.core.codes import Codes
from saelab.data.source import generator_for
from saelab.geometry.pair_counts import PairCounts
from saelab.metrics.truth import hedging
from saelab.metrics.truth.hedging import correlations, hedging_rate, static_hedging
from saelab.metrics.truth.matching import match

ROWS = 2000


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def projected(delta: Tensor, rows: Tensor) -> float:
    """Mean norm of the projection on the span of rows, by least squares."""
    fit = torch.linalg.lstsq(rows.T, delta.T, driver="gelsd").solution
    return (rows.T @ fit).norm(dim=0).mean().item()


def test_the_rate_is_the_published_formula():
    control, new = noise(6, 20).double(), noise(3, 20, seed=1).double()
    extended = torch.cat([unit(control) + 0.5 * noise(6, 3, seed=2).double() @ new, 3 * new])
    delta = unit(extended)[:6] - unit(control)
    generator = generator_for(5)
    draws = [projected(delta, torch.randn(3, 20, generator=generator, dtype=torch.float64)) for _ in range(7)]
    p, b = projected(delta, new), sum(draws) / 7
    assert p > b
    assert hedging_rate(control, extended, generator_for(5), draws=7) == pytest.approx((p - b) / (1 - b), rel=1e-9)


def test_without_chance_the_rate_is_the_length_of_the_change_along_new_directions():
    """Old directions that were (d + n) / sqrt 2 and become d, in a space so wide that random ones hardly see it."""
    axes = torch.eye(4000)[:8]
    control = unit(axes[:4] + axes[4:])
    rate = hedging_rate(control, torch.cat([axes[:4], axes[4:]]), generator_for(0), draws=5)
    assert rate == pytest.approx(0.5**0.5, abs=0.03)


def test_new_directions_that_depend_on_each_other_span_no_more():
    control, new = noise(5, 12), noise(2, 12, seed=1)
    changed = control + noise(5, 2, seed=2) @ new
    delta = (unit(changed) - unit(control)).double()
    dependent = torch.cat([new[:1], new[:1], 2 * new[:1], new[1:]])
    found = hedging._projected(delta, unit(dependent).double())
    assert found.item() == pytest.approx(projected(delta, unit(new).double()), rel=1e-6)


def test_changes_along_other_directions_are_no_hedging():
    axes = torch.eye(40)
    control = unit(axes[:4] + 0.5 * axes[10:14])
    assert hedging_rate(control, torch.cat([axes[:4], axes[20:24]]), generator_for(0)) == 0
    assert hedging_rate(axes[:4], axes[:8], generator_for(0)) == 0  # no change at all


def test_only_directions_count_and_not_their_norms():
    control, new = noise(5, 12), noise(3, 12, seed=1)
    extended = torch.cat([control + new.sum(0), new])
    rate = hedging_rate(control, extended, generator_for(0))
    assert rate > 0.1
    sizes = torch.linspace(0.5, 3, 8)[:, None]
    scaled = hedging_rate(3 * control, sizes * extended, generator_for(0))
    assert scaled == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize(
    ("control", "extended", "draws", "message"),
    [
        ((4, 6), (4, 6), 50, "new ones"),
        ((4, 6), (5, 7), 50, "new ones"),
        ((0, 6), (5, 6), 50, "new ones"),
        ((4, 6), (5, 6), 0, "draws"),
    ],
)
def test_directions_that_do_not_fit_are_refused(control, extended, draws, message):
    with pytest.raises(ValueError, match=message):
        hedging_rate(torch.ones(control), torch.ones(extended), generator_for(0), draws)


def test_correlations_are_those_of_the_indicators():
    on = torch.rand(1000, 6, generator=generator_for(0)) < 0.3
    on[:, 1] |= on[:, 0]
    on[:, 3] &= ~on[:, 2]
    expected = torch.corrcoef(on.T.double())
    n = on.sum(0)
    found = correlations(on.T.long() @ on.long(), n[:, None], n, 1000)
    kept = found != 0
    torch.testing.assert_close(found[kept], expected[kept])
    assert kept[0, 1]
    assert found[2, 3] < -0.1
    assert (expected.abs()[~kept] < 5 / 1000**0.5).all()


def test_few_rows_do_not_make_a_correlation():
    four = correlations(torch.tensor([4, 5]), torch.tensor([6, 6]), torch.tensor([6, 6]), 10_000)
    assert four.tolist() == pytest.approx([0, (10_000 * 5 - 36) / (6 * 9994)])
    weak = correlations(torch.tensor([105, 130]), torch.tensor([1000] * 2), torch.tensor([1000] * 2), 100_000)
    assert weak.tolist()[0] == 0
    assert weak.tolist()[1] == pytest.approx((100_000 * 130 - 1e6) / (1000 * 99_000), rel=1e-6)
    always = correlations(torch.tensor([50]), torch.tensor([100]), torch.tensor([50]), 100)
    assert always.tolist() == [0]


def pairs_fire_together(n: int) -> Tensor:
    """Intensities [ROWS, n]: features 0 and 1 fire together half of the time, as do 2 and 3, and so on."""
    generator = generator_for(7)
    both = (torch.rand(ROWS, n // 2, generator=generator) < 0.1).repeat_interleave(2, 1)
    alone = torch.rand(ROWS, n, generator=generator) < 0.1
    return (both | alone).float()


def hedged(world: Planted, directions: Tensor) -> Tensor:
    """Static hedging of latents with these directions, over all rows of a world."""
    codes = Codes.full(world.points.norm(dim=2))
    together = PairCounts(world.n_features, world.n_features, "cpu")
    together.add(codes, codes)
    return static_hedging(directions, world, match(directions, world), together, codes.counts(), ROWS)


def test_true_directions_mix_nothing_in_even_where_they_overlap():
    directions = unit(noise(8, 10))
    found = hedged(lines(directions, pairs_fire_together(8)), directions)
    torch.testing.assert_close(found, torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_the_share_mixed_in_from_the_correlated_feature_is_found(block, monkeypatch):
    monkeypatch.setattr(hedging, "BLOCK_ENTRIES", block)
    axes = torch.eye(20)[:8]
    world, share = lines(axes, pairs_fire_together(8)), torch.linspace(0, 0.45, 8)
    partner = axes[[1, 0, 3, 2, 5, 4, 7, 6]]
    mixed = (1 - share).sqrt()[:, None] * axes + share.sqrt()[:, None] * partner
    torch.testing.assert_close(hedged(world, mixed), share.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(hedged(world, -mixed + 2 * (mixed * axes).sum(1, keepdim=True) * axes), share.double())


def test_what_is_mixed_in_from_others_is_not_hedging():
    axes = torch.eye(20)[:8]
    stranger = axes[[2, 3, 4, 5, 6, 7, 0, 1]]
    found = hedged(lines(axes, pairs_fire_together(8)), 0.8 * axes + 0.6 * stranger)
    chance = 1 / 19
    torch.testing.assert_close(found, torch.full((8,), -chance * 0.36 / (1 - chance)).double())


def test_a_random_part_is_no_hedging_on_average():
    directions = orthonormal(8, 20)
    world = lines(directions, pairs_fire_together(8))
    found = torch.stack([hedged(world, directions + 0.1 * noise(8, 20, seed=seed)) for seed in range(40)])
    assert found.mean().abs() < 0.01
    partner = directions[[1, 0, 3, 2, 5, 4, 7, 6]]
    turned = 0.8 * directions + 0.6 * partner
    with_random = torch.stack([hedged(world, turned + 0.05 * noise(8, 20, seed=seed)) for seed in range(40)])
    assert with_random.mean().item() == pytest.approx(0.36 / (1 + 20 * 0.05**2), abs=0.02)


def test_overlapping_manifolds_against_plain_projections():
    """Features 0 (2-D), 1 (1-D) and 2 (3-D), all correlated and not orthogonal; reference by least squares."""
    bases = [orthonormal(m, 14, i) for i, m in enumerate((2, 1, 3))]
    on = (torch.rand(ROWS, 1, generator=generator_for(1)) < 0.2) & (
        torch.rand(ROWS, 3, generator=generator_for(2)) < 0.8
    )
    points = on[:, :, None] * torch.ones(ROWS, 3, 3) * torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    world = Planted(bases, points)
    base = torch.stack([bases[0][0], bases[1][0], bases[2][1]])
    directions = unit(base + 0.15 * noise(3, 14, seed=9))
    found = hedged(world, directions)
    for i, d in enumerate(directions.double()):
        own = bases[i].double()
        others = torch.cat([bases[k].double() for k in range(3) if k != i])
        others = others - others @ own.T @ own
        chance = torch.linalg.matrix_rank(others).item() / (14 - len(own))
        own_share = (own @ d).square().sum().item()
        mixed = (others.T @ torch.linalg.lstsq(others.T, d[:, None]).solution).square().sum().item()
        assert found[i].item() == pytest.approx((mixed - chance * (1 - own_share)) / (1 - chance), abs=1e-6)


def test_only_the_strongest_correlations_are_taken(monkeypatch):
    monkeypatch.setattr(hedging, "STRONGEST", 1)
    axes, generator = torch.eye(20)[:3], generator_for(3)
    first = torch.rand(ROWS, generator=generator) < 0.2
    strong = first & (torch.rand(ROWS, generator=generator) < 0.9)
    weak = first & (torch.rand(ROWS, generator=generator) < 0.5)
    world = lines(axes, torch.stack([first, strong, weak], 1).float())
    mixed = axes.clone()
    mixed[0] = 0.8 * axes[0] + 0.6 * axes[1]
    assert hedged(world, mixed)[0].item() == pytest.approx(0.36)
    mixed[0] = 0.8 * axes[0] + 0.6 * axes[2]
    assert hedged(world, mixed)[0].item() < 0


def test_where_nothing_can_be_said_it_is_nan():
    axes = torch.eye(20)[:6]
    points = pairs_fire_together(6)
    points[:, 4:] = (torch.rand(ROWS, 2, generator=generator_for(0)) < 0.2).float()  # not correlated
    directions = axes.clone()
    directions[0] = 0.45 * axes[0] + (1 - 0.45**2) ** 0.5 * torch.eye(20)[10]  # matched, but hardly
    found = hedged(lines(axes, points), directions[[0, 1, 3, 4, 5]])  # feature 2 has no latent
    assert found.isnan().tolist() == [True, False, True, False, True, True]
    plane = lines(torch.eye(2), pairs_fire_together(2))
    assert hedged(plane, torch.eye(2)).isnan().all()  # the other feature is all the room there is
