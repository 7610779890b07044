"""Matches of planted copies, splits and strangers; unions, differences and swaps by their own arithmetic."""

import json
import math

import pytest
import torch
from planted import codes_by_hand, drawn, sae_with

from saelab.analysis.assembled import independent
from saelab.analysis.match import CURVE, KINDS, folded, match, read_match, stability
from saelab.analysis.unions import averaged, difference, swapped, union
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.expander import Expander
from saelab.sae.sae import SAE


def permuted(sae, seed=3):
    """The same SAE with its latents in another order, and that order."""
    order = torch.randperm(sae.n_latents, generator=torch.Generator().manual_seed(seed))
    copy = sae_with(drawn(sae.n_latents, sae.d_in), JumpReLU(threshold=0.3))
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc"):
            getattr(copy.dictionary, name).copy_(getattr(sae.dictionary, name)[order])
        copy.dictionary.b_dec.copy_(sae.dictionary.b_dec)
        copy.activation.log_threshold.copy_(sae.activation.log_threshold[order])
    return copy, order


def uneven(n=40, d_in=12, seed=0):
    sae = sae_with(drawn(n, d_in, seed=seed), JumpReLU(threshold=0.3), seed=seed)
    with torch.no_grad():
        sae.activation.log_threshold += 0.3 * drawn(n, seed=seed + 9)
    return sae


@pytest.mark.parametrize("by", ["directions", "weights"])
@pytest.mark.parametrize("entries", [1 << 20, 0])
def test_a_hidden_permutation_is_recovered(by, entries):
    a = uneven()
    b, order = permuted(a)
    a.scale.set(drawn(12, seed=5), 3.0)
    b.scale.set(drawn(12, seed=5), 3.0)
    found = match(a, b, by=by, threshold=0.99, exact_entries=entries)
    assert torch.equal(order[found.a.partner], torch.arange(40))
    assert torch.equal(found.b.partner, order)
    assert found.a.cosine.tolist() == pytest.approx([1.0] * 40, abs=1e-6)
    assert found.a.counts() == found.b.counts() == dict.fromkeys(KINDS, 0) | {"shared": 40}
    assert found.bound == 0 if entries else found.bound < 0.01
    assert found.curve()[:101] == [1.0] * 101


def test_folded_latents_fire_from_one_on():
    a = uneven()
    a.scale.set(drawn(12, seed=5), 3.0)
    vectors, x = folded(a).double(), 4 * drawn(100, 12, seed=6)
    pre = x.double() @ vectors[:, :12].T + vectors[:, 12]
    codes = a.encode(x).dense()
    assert torch.equal(pre > 1, codes != 0)
    one = independent(a)
    x_hat = (pre * (pre > 1)) @ vectors[:, 13:] + one.dictionary.b_dec
    assert torch.allclose(x_hat.float(), a(x), atol=1e-4)


def test_weights_tell_apart_what_directions_cannot():
    a = uneven(6)
    with torch.no_grad():
        a.dictionary.W_dec[1] = a.dictionary.W_dec[0]  # the same direction, read by other encoders
    b, order = permuted(a)
    found = match(a, b, by="weights")
    assert torch.equal(order[found.a.partner], torch.arange(6))


def test_shared_split_merged_tangled_unique_and_dead_as_planted():
    e = torch.eye(10)
    ours = torch.stack([e[0], e[1], e[2], e[2] + 0.1 * e[3], e[4], e[5], e[6], e[7]])
    theirs = torch.stack([e[8], e[0], e[1] + 0.1 * e[9], e[1] - 0.1 * e[9], e[2], e[4], e[4] + e[5], e[5], e[6]])
    a, b = sae_with(ours), sae_with(theirs)
    a.firing.rows.fill_(400)
    a.firing.since.copy_(torch.tensor([0, 0, 99, 0, 0, 0, 100, 0]))  # dead from a quarter of the run on
    found = match(a, b, threshold=0.7)
    said = [KINDS[kind] for kind in found.a.kind.tolist()]
    assert said == ["shared", "split", "merged", "merged", "tangled", "tangled", "dead", "unique"]
    said = [KINDS[kind] for kind in found.b.kind.tolist()]
    assert said == ["unique", "shared", "merged", "merged", "split", "tangled", "tangled", "tangled", "unique"]
    assert found.a.partner[6] == found.a.nearest[6] == found.a.group[6] == -1
    assert found.a.partner[0] == 1
    assert found.b.partner[1] == 0
    assert found.a.nearest[[1, 2, 3]].tolist() in ([2, 4, 4], [3, 4, 4])
    assert found.a.group[2] == found.a.group[3] == found.b.group[4]
    pairs = dict(zip(*(part.tolist() for part in found.pairs), strict=True))
    assert {left: found.b.partner[right].item() for left, right in pairs.items()} == {left: left for left in pairs}


def test_the_stability_curve_counts_partners_at_each_cosine():
    cosine = torch.tensor([0.2, 0.9, 0.9, 1.0])
    share = dict(zip(CURVE, stability(cosine), strict=True))
    assert [share[at] for at in (0.0, 0.2, 0.21, 0.9, 0.91, 1.0)] == [1, 1, 0.75, 0.75, 0.25, 0.25]
    assert all(x >= y for x, y in zip(stability(cosine), stability(cosine)[1:], strict=False))


def test_what_is_written_can_be_read(tmp_path):
    a, b = uneven(10), uneven(14, seed=2)
    found = match(a, b, names=("one", "two"), threshold=0.5)
    found.write(tmp_path / "out")
    json.loads((tmp_path / "out" / "match.json").read_text())
    read = read_match(tmp_path / "out")
    assert (read["a"], read["b"], read["n_a"], read["n_b"]) == ("one", "two", 10, 14)
    assert read["mean_cosine"] == pytest.approx(found.a.cosine.mean().item())
    assert read["latents_b"]["partner"].tolist() == found.b.partner.tolist()
    assert read["latents_a"]["kind"] == [KINDS[kind] for kind in found.a.kind.tolist()]
    assert math.isnan(read["latents_b"]["cosine"][found.b.partner < 0][0])


def test_directions_of_any_dictionary_are_compared_in_the_units_of_the_data():
    sparse = SAE(12, 24, TopK(k=3), dictionary=Expander(degree=4))
    found = match(sparse, sparse)
    assert torch.equal(found.a.partner, torch.arange(24))


@pytest.mark.parametrize(
    ("other", "settings", "message"),
    [
        (lambda: sae_with(drawn(5, 9)), {}, "A has directions 12 wide, B 9: they cannot be matched"),
        (uneven, {"by": "direction"}, "unknown matching method 'direction'; did you mean 'directions'?"),
        (uneven, {"threshold": 1.5}, "threshold must be above 0 and at most 1, got 1.5"),
        (
            lambda: sae_with(drawn(5, 12)),
            {"by": "weights"},
            "thresholds are folded in, and B has thresholds of 0",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(other, settings, message):
    with pytest.raises(ValueError, match=message.replace("?", ".")):
        match(uneven(), other(), **settings)


def test_an_sae_without_a_living_latent_is_refused():
    a = uneven()
    a.firing.rows.fill_(400)
    a.firing.since.fill_(400)
    with pytest.raises(ValueError, match="A has no alive latents"):
        match(a, uneven())


@pytest.fixture
def overlapping():
    """Two SAEs that share four latents and have three and two of their own, and their match."""
    features = torch.linalg.qr(drawn(12, 12))[0]
    a = sae_with(features[:7], JumpReLU(threshold=0.2))
    b = sae_with(features[[9, 3, 4, 5, 6, 8]] + 0.05 * drawn(6, 12, seed=4), JumpReLU(threshold=0.4), seed=7)
    return a, b, match(a, b, threshold=0.8)


def test_unions_and_differences_hold_the_latents_they_should(overlapping):
    a, b, found = overlapping
    x = 3 * drawn(80, 12, seed=9)
    both, rest = union(a, b, found), difference(a, found)
    wanted = torch.cat([codes_by_hand(a, x), codes_by_hand(b, x)[:, [0, 5]]], 1)
    assert torch.allclose(both.encode(x).dense().double(), wanted, atol=1e-5)
    assert torch.allclose(rest.encode(x).dense().double(), codes_by_hand(a, x)[:, :3], atol=1e-5)
    weight = torch.cat([a.dictionary.W_dec, b.dictionary.W_dec[[0, 5]]]).double()
    assert torch.allclose(both(x).double(), wanted @ weight + a.dictionary.b_dec.double(), atol=1e-5)
    with pytest.raises(ValueError, match="at least one latent"):
        difference(a, match(a, a))


def test_shared_latents_are_averaged(overlapping):
    a, b, found = overlapping
    one = averaged(a, b, found)
    assert one.n_latents == 4
    for place, (i, j) in enumerate([(3, 1), (4, 2), (5, 3), (6, 4)]):
        direction = (a.dictionary.W_dec[i] + b.dictionary.W_dec[j]) / 2
        assert torch.allclose(one.dictionary.W_dec[place], direction / direction.norm(), atol=1e-6)
        assert torch.allclose(
            one.dictionary.W_enc[place], (a.dictionary.W_enc[i] + b.dictionary.W_enc[j]) / 2, atol=1e-6
        )
        assert one.activation.theta[place].item() == pytest.approx((0.2 * 0.4) ** 0.5, rel=1e-5)
    assert torch.allclose(averaged(a, a, match(a, a))(drawn(20, 12)), a(drawn(20, 12)), atol=1e-5)


def test_swapped_latents_write_along_their_partners_directions(overlapping):
    a, b, found = overlapping
    x = 3 * drawn(80, 12, seed=9)
    one, codes = swapped(a, b, found, least=0.8), codes_by_hand(a, x)
    weight = a.dictionary.W_dec.detach().clone()
    for i, j in [(3, 1), (4, 2), (5, 3), (6, 4)]:
        weight[i] = b.dictionary.W_dec[j]
    assert torch.allclose(one(x).double(), (codes @ weight.double()) + a.dictionary.b_dec.double(), atol=1e-5)
    assert torch.allclose(swapped(a, b, found, least=1.1)(x), a(x), atol=1e-5)
    copy, _ = permuted(a)
    assert torch.allclose(swapped(a, copy, match(a, copy))(x), a(x), atol=1e-5)
