"""The whole comparison: SAEs whose scores follow from how they were made."""

import json
import math

import pytest
import torch
from test_truth_matching import Planted, lines, noise, orthonormal
from torch import Tensor

from saelab.data.source import generator_for
from saelab.data.synthetic import HierarchicalWorld
from saelab.metrics.truth import compare, score
from saelab.metrics.truth.score import GroundTruth
from saelab.sae import SAE
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense

ROWS, D = 200, 16


def made(decoder: Tensor, encoder: Tensor | None = None, activation: Activation | None = None) -> SAE:
    """An SAE with these weights and no biases; the encoder is the decoder unless given."""
    sae = SAE(decoder.shape[1], len(decoder), activation or ReLU(l1=0.0), dictionary=Dense(decoder_bias=False))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(decoder)
        sae.dictionary.W_enc.copy_(decoder if encoder is None else encoder)
    return sae


def intensities(n: int = 6, seed: int = 0) -> Tensor:
    on = torch.rand(ROWS, n, generator=generator_for(seed)) < 0.3
    return (on * (0.5 + torch.rand(ROWS, n, generator=generator_for(seed, 1)))).float()


def plain(n: int = 6) -> Planted:
    """Features along axes, so that rounding makes no latent fire: an SAE of the truth is perfect."""
    return lines(torch.eye(D)[[3, 9, 0, 7, 5, 15]][:n], intensities(n))


def values(found: GroundTruth) -> dict[str, float]:
    return {name: one.value for name, one in found.scores.items()}


def test_an_sae_of_the_truth_is_perfect():
    world = plain()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    found = compare(made(world.bases(order)[:, 0]), world, ROWS)
    expected = dict.fromkeys(["mcc", "recovery_90", "precision", "recall", "f1", "f1_best", "purity"], 1.0)
    expected |= {"discovered": 6, "discovered_single": 6, "shrinkage": 0, "fvu": 0, "dead": 0}
    expected["l0"] = (world.points > 0).sum().item() / ROWS
    assert values(found) == pytest.approx(expected, abs=1e-5)
    assert set(found.skipped) == {"absorption", "absorption_full", "hedging"}
    assert torch.equal(order[found.features["matched_latent"]], torch.arange(6))
    assert torch.equal(found.features["occurrences"], (world.points > 0).sum((0, 2)))
    assert torch.equal(found.latents["occurrences"], found.features["occurrences"][order])
    assert torch.equal(found.latents["nearest_feature"], order)
    assert found.features["latents_per_feature"].tolist() == [1] * 6
    assert (found.rows, found.signed) == (ROWS, False)


def test_scores_lie_in_their_intervals_and_are_json():
    world = plain()
    found = compare(made(world.bases(torch.arange(6))[:, 0] + 0.1 * noise(6, D)), world, ROWS)
    for name, one in found.scores.items():
        assert math.isfinite(one.value), name
        assert one.low <= one.value <= one.high, name
        assert one.n > 0, name
        json.dumps(one.as_json(), allow_nan=False)
    for name, per_feature in found.features.items():
        assert per_feature.shape == (6,), name
        assert per_feature.dtype in (torch.float64, torch.int64), name


def test_turned_latents():
    """Each latent's direction is turned by arccos .8 towards one that no feature has."""
    axes = torch.eye(D)
    world = lines(axes[:6], intensities())
    found = compare(made(0.8 * axes[:6] + 0.6 * axes[6:12]), world, ROWS)
    scores = values(found)
    assert scores["mcc"] == pytest.approx(0.8)
    assert scores["purity"] == pytest.approx(0.8)
    assert scores["recovery_90"] == scores["discovered"] == 0
    assert scores["f1"] == 1
    # Each latent fires with .8 a, of which .8 lies along the feature; x_hat = .8 a (.8, .6) leaves .36 of a^2.
    torch.testing.assert_close(found.features["slope"], torch.full((6,), 0.64).double())
    assert "shrinkage" in found.skipped
    square, mean = world.rows.square().sum(), world.rows.mean(0)
    assert scores["fvu"] == pytest.approx(0.36 * square.item() / (world.rows - mean).square().sum().item(), rel=1e-5)


def test_missing_features():
    world = plain()
    found = compare(made(world.bases(torch.arange(4))[:, 0]), world, ROWS)
    scores = values(found)
    assert scores["mcc"] == pytest.approx(1)
    for name in ("recovery_90", "precision", "recall", "f1"):
        assert scores[name] == pytest.approx(4 / 6), name
    assert scores["discovered"] == 4
    assert found.features["matched_latent"].tolist() == [0, 1, 2, 3, -1, -1]
    assert found.features["f1"].tolist() == [1, 1, 1, 1, 0, 0]


def test_doubled_latents_take_turns():
    """Two latents of feature 0 fire on large and on small intensities; two dead ones take part in nothing."""
    world = plain()
    truth = world.bases(torch.arange(6))[:, 0]
    sae = made(torch.cat([truth[:1], truth, truth[:2]]))
    with torch.no_grad():
        sae.dictionary.b_enc[0] = -1.0  # fires above 1
        sae.dictionary.b_enc[7:] = -100.0
    found = compare(sae, world, ROWS)
    assert found.features["latents_per_feature"].tolist() == [2, 1, 1, 1, 1, 1]
    assert found.features["own_latents_per_feature"].tolist() == [2, 1, 1, 1, 1, 1]
    assert values(found)["dead"] == pytest.approx(2 / 9)
    assert values(found)["f1_best"] == 1
    assert values(found)["discovered"] == 6


def test_codes_four_fifths_of_the_truth():
    world = plain()
    truth = world.bases(torch.arange(6))[:, 0]
    scores = values(compare(made(truth, 0.8 * truth), world, ROWS))
    assert scores["shrinkage"] == pytest.approx(0.2)
    assert scores["f1"] == 1
    assert scores["l0"] == pytest.approx((world.points > 0).sum().item() / ROWS)


def test_intensities_are_in_the_units_of_the_data():
    """A scaling inside the SAE changes no score; long directions with small codes neither."""
    world = plain()
    truth = world.bases(torch.arange(6))[:, 0]
    sae = made(truth, 0.8 * truth)
    sae.scale.set(torch.zeros(D), 4.0)
    assert values(compare(sae, world, ROWS))["shrinkage"] == pytest.approx(0.2)
    assert values(compare(made(5 * truth, 0.16 * truth), world, ROWS))["shrinkage"] == pytest.approx(0.2)


def test_latents_that_fire_for_everything():
    world = plain()
    truth = world.bases(torch.arange(6))[:, 0]
    sae = made(truth)
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(1e-3)
    found, share = compare(sae, world, ROWS), (world.points[:, :, 0] > 0).double().mean(0)
    torch.testing.assert_close(found.features["precision"], share)
    torch.testing.assert_close(found.features["f1"], 2 * share / (1 + share))
    assert values(found)["recall"] == 1
    assert values(found)["l0"] == 6


@pytest.mark.parametrize("sign", [1, -1])
def test_directions_may_point_either_way_where_codes_are_signed(sign):
    world = plain()
    flipped = torch.tensor([1.0, -1, 1, -1, -1, 1])[:, None] * world.bases(torch.arange(6))[:, 0] * sign
    found = compare(made(flipped, 0.8 * flipped, AbsTopK(k=6)), world, ROWS)
    assert found.signed
    for name in ("mcc", "f1", "purity"):
        assert values(found)[name] == pytest.approx(1), name
    assert values(found)["shrinkage"] == pytest.approx(0.2)


def test_a_negative_code_in_the_last_rows_counts_for_all_rows(monkeypatch):
    monkeypatch.setattr(score, "CHUNK_ROWS", 16)
    axes, points = torch.eye(D)[:2], torch.zeros(ROWS, 2)
    points[:, 0], points[-1, 1] = 1, 1
    sae = made(torch.stack([axes[0], -axes[1]]), activation=AbsTopK(k=2))
    found = compare(sae, lines(axes, points), ROWS)
    assert found.signed
    assert values(found)["mcc"] == pytest.approx(1)
    assert values(found)["l0"] == pytest.approx(1 + 1 / ROWS)
    before = compare(sae, lines(axes, points), ROWS - 1)
    assert not before.signed
    assert before.features["matched_cosine"].tolist() == pytest.approx([1, -1])


def family(absorbing: bool) -> tuple[SAE, Planted]:
    """Parent 0 fires in 400 rows, its child 1 in half of these; feature 2 by itself. The child's latent may absorb."""
    points = torch.zeros(600, 3)
    points[:400, 0], points[:200, 1], points[300:600, 2] = 1, 1, 1
    axes = torch.eye(8)[:3]
    encoder, decoder = axes.clone(), axes.clone()
    if absorbing:
        encoder[0] = axes[0] - axes[1]
        encoder[1], decoder[1] = 2**0.5 * axes[1], (axes[0] + axes[1]) / 2**0.5
    return made(decoder, encoder), lines(axes, points, parents=[-1, 0, -1])


def test_a_child_that_absorbs_its_parent_on_half_of_the_rows():
    sae, world = family(absorbing=True)
    found = compare(sae, world, 600)
    assert values(found)["absorption"] == pytest.approx(0.5)
    assert values(found)["absorption_full"] == pytest.approx(0.5)
    assert values(found)["fvu"] == pytest.approx(0, abs=1e-10)
    assert found.features["absorption"].isnan().tolist() == [False, True, True]
    assert values(found)["recall"] == pytest.approx((0.5 + 1 + 1) / 3)
    chance = 2 / 7  # the absorbing latent's direction: half of it along the parent, which the other two fire with
    assert found.features["hedging"][1].item() == pytest.approx((0.5 - chance * 0.5) / (1 - chance), rel=1e-4)


def test_without_absorption_the_rate_is_zero():
    sae, world = family(absorbing=False)
    found = compare(sae, world, 600)
    assert values(found)["absorption"] == values(found)["absorption_full"] == 0
    assert values(found)["recall"] == 1


def test_absorption_is_the_same_where_codes_are_signed():
    sae, world = family(absorbing=True)
    flip = torch.tensor([-1.0, -1, 1])[:, None]
    flipped = made(flip * sae.dictionary.W_dec, flip * sae.dictionary.W_enc, AbsTopK(k=3))
    found = compare(flipped, world, 600)
    assert found.signed
    assert values(found)["absorption"] == pytest.approx(0.5)
    assert values(found)["absorption_full"] == pytest.approx(0.5)


def test_absorption_is_told_of_one_dimensional_parents_with_a_latent_only():
    """Features 0 (a plane) and 1 (without a latent of its own) have a child each, 2 and 3; no other parent is left."""
    points, axes = torch.zeros(60, 4, 2), torch.eye(8)
    points[:30, 0], points[:15, 2, 0], points[20:60, 1, 0], points[40:, 3, 0] = 0.7, 1, 1, 1
    world = Planted([axes[:2], axes[2:3], axes[3:4], axes[4:5]], points, parents=[-1, -1, 0, 1])
    found = compare(made(axes[[0, 3, 4]]), world, 60)
    assert found.features["matched_latent"].tolist() == [0, -1, 1, 2]
    assert "no parent" in found.skipped["absorption"]
    found = compare(made(axes[[0, 2, 3, 4]]), world, 60)
    assert found.features["absorption"].isnan().tolist() == [True, False, True, True]


def test_a_tiled_circle_is_discovered_by_its_tiles_together():
    """Six evenly spaced latents of which the nearest one fires; a line feature beside it."""
    angles = 2 * math.pi * torch.rand(ROWS, generator=generator_for(4))
    points = torch.zeros(ROWS, 2, 2)
    points[:, 0] = torch.stack([angles.cos(), angles.sin()], 1)
    points[::2, 1, 0] = 1
    axes = torch.eye(8)
    world = Planted([axes[:2], axes[2:3]], points)
    tiles = torch.arange(6) * math.pi / 3
    directions = torch.cat([tiles.cos()[:, None] * axes[0] + tiles.sin()[:, None] * axes[1], axes[2:3]])
    sae = made(directions)
    with torch.no_grad():
        sae.dictionary.b_enc[:6] = -math.cos(math.pi / 6)  # a tile fires within 30 degrees
    found = compare(sae, world, ROWS)
    assert found.features["latents_per_feature"].tolist() == [6, 1]
    assert found.features["coverage"].tolist() == pytest.approx([1, 1])
    assert values(found)["discovered"] == 2
    assert values(found)["discovered_single"] == 1
    tile = ((angles[:, None] - tiles).cos().argmax(1)).bincount().max().item() / ROWS
    assert found.features["single_coverage"][0].item() == pytest.approx(tile)
    assert values(found)["purity"] == pytest.approx(1)
    assert values(found)["mcc"] == pytest.approx(1)
    assert found.features["slope"][0].isnan()


def test_where_rows_are_cut_makes_no_difference(monkeypatch):
    world = HierarchicalWorld(12, 20, l0=3.0, branching=[3])
    sae = made(world.directions() + 0.2 * noise(20, 12), activation=TopK(k=4))
    whole = compare(sae, world, 300)
    monkeypatch.setattr(score, "CHUNK_ROWS", 37)
    monkeypatch.setattr(score, "TRIPLES", 100)
    cut = compare(sae, world, 300)
    assert values(cut) == pytest.approx(values(whole), rel=1e-6, abs=1e-9)
    for name, per_feature in whole.features.items():
        torch.testing.assert_close(cut.features[name], per_feature, equal_nan=True)


def test_windows_are_drawn_until_there_are_enough_rows():
    world = plain()
    assert compare(made(orthonormal(6, D)), world, 100).features["occurrences"].tolist() == (
        (world.points[:100] > 0).sum((0, 2)).tolist()
    )
    later = compare(made(orthonormal(6, D)), world, 64, first_window=world.HELD_OUT + 1)
    assert later.features["occurrences"].tolist() == (world.points[64:128] > 0).sum((0, 2)).tolist()


def test_features_that_never_occur_count_as_not_discovered_and_not_in_f1():
    points = intensities()
    points[:, 2] = 0
    world = lines(torch.eye(D)[:6], points)
    found = compare(made(world.bases(torch.arange(6))[:, 0]), world, ROWS)
    assert found.features["f1"].isnan().tolist() == [False, False, True, False, False, False]
    assert values(found)["f1"] == 1
    assert found.scores["f1"].n == 5
    assert values(found)["discovered"] == 5
    assert values(found)["dead"] == pytest.approx(1 / 6)


def test_rows_without_any_feature_or_active_latent():
    world = lines(orthonormal(3, D), torch.zeros(50, 3))
    found = compare(made(orthonormal(3, D)), world, 50)
    assert values(found) == pytest.approx(
        {"mcc": 1, "recovery_90": 1, "discovered": 0, "discovered_single": 0, "l0": 0, "dead": 1}
    )
    assert set(found.skipped) >= {"f1", "f1_best", "precision", "recall", "purity", "shrinkage", "fvu", "hedging"}
    assert all(found.skipped.values())


def test_a_world_too_large_for_one_to_one_matching_says_so(monkeypatch):
    world = plain()
    matched = score.match
    monkeypatch.setattr(score, "match", lambda *parts: matched(*parts, limit=5))
    found = compare(made(world.bases(torch.arange(6))[:, 0]), world, ROWS)
    assert "best latent" in found.skipped["one-to-one matching"]
    assert values(found)["mcc"] == pytest.approx(1)


def test_too_many_parents_leave_absorption_out(monkeypatch):
    monkeypatch.setattr(score, "DENSE_ENTRIES", 2)
    sae, world = family(absorbing=True)
    found = compare(sae, world, 600)
    assert "absorption" not in found.scores
    assert "more than 2" in found.skipped["absorption"]


def test_a_real_world_with_its_own_directions():
    world = HierarchicalWorld(40, 20, l0=3.0, branching=[3])  # orthonormal
    sae = made(world.directions())
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1e-4)  # else latents fire at what rounding leaves
    found = compare(sae, world, 5000)
    for name in ("mcc", "recovery_90", "precision", "recall", "f1"):
        assert values(found)[name] == pytest.approx(1, abs=0.02), name
    assert values(found)["discovered"] == 20
    for name in ("shrinkage", "absorption", "absorption_full", "hedging", "fvu"):
        assert values(found)[name] == pytest.approx(0, abs=1e-3), name
    assert not found.skipped


@pytest.mark.parametrize(
    ("sae", "rows", "message"),
    [
        (lambda: made(torch.eye(5)), 10, "5 wide"),
        (lambda: SAE(D, 4, TopK(k=2), d_out=D), 10, "transcoder"),
        (lambda: made(torch.eye(D)), 0, "rows must be at least 1"),
        (lambda: made(torch.full((4, D), torch.nan)), 10, "NaN"),
        (lambda: made(torch.eye(D), torch.full((D, D), torch.inf)), 10, "NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_refused(sae, rows, message):
    with pytest.raises(ValueError, match=message):
        compare(sae(), plain(), rows)
