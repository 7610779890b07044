"""Meta-SAEs on planted directions, their controls against closed forms, and edits on a toy model."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from planted import drawn, sae_with

from saelab import load
from saelab.analysis import controls
from saelab.analysis.assignment import assign
from saelab.analysis.controls import bits, explained, kmeans, pca, residual_kmeans, shuffled
from saelab.analysis.editing import exchanged, subsets
from saelab.analysis.meta import Meta, MetaSettings, add_controls, decompose, read_meta, similar_to, train_meta
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.expander import Expander
from saelab.sae.sae import SAE

QUICK = MetaSettings(ratio=20, k=2, steps=300, batch=128, lr=1e-2)


def sums_of(atoms, n, count, seed=0):
    """Unit rows [n, D], each the sum of `count` different rows of atoms, and which."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, len(atoms), generator=generator).topk(count, dim=1).indices
    return F.normalize(atoms[chosen].sum(1), dim=1), chosen


@pytest.fixture(scope="module")
def planted():
    """A meta-SAE of 400 directions that are pairs of 20 atoms."""
    atoms = F.normalize(drawn(20, 64), dim=1)
    rows, chosen = sums_of(atoms, 400, 2)
    return decompose(rows, torch.arange(400), QUICK, show=False), atoms, chosen


def test_planted_atoms_are_found_and_explain_what_was_held_out(planted):
    meta, atoms, chosen = planted
    assert meta.sae.n_latents == 20
    assert int(meta.held_out.sum()) == 40
    assert meta.share(meta.held_out) > 0.9
    found = assign(meta.sae.dictionary.directions().detach(), atoms)
    assert int((found.similarity > 0.8).sum()) >= 17  # of 20; which are left over depends on the seed
    right = [
        {int(found.partner[m]) for m, _ in meta.decomposition(latent)[:2]} == set(chosen[latent].tolist())
        for latent in range(400)
    ]
    assert sum(right) > 0.75 * 400


@pytest.mark.slow
def test_two_hundred_planted_atoms_are_found():
    atoms = F.normalize(drawn(200, 256), dim=1)
    rows, _ = sums_of(atoms, 4000, 4)
    meta = decompose(rows, torch.arange(4000), MetaSettings(ratio=20, steps=400, batch=256, lr=4e-3), show=False)
    only_noise = MetaSettings(ratio=20, steps=130, batch=256)
    noise = decompose(drawn(4000, 256, seed=1), torch.arange(4000), only_noise, show=False)
    assert meta.share(meta.held_out) > 0.8
    assert assign(meta.sae.dictionary.directions().detach(), atoms).similarity.mean() > 0.9
    assert noise.share(noise.held_out) < 0.2


def test_random_directions_are_not_explained(planted):
    meta, _, _ = planted
    noise = decompose(drawn(400, 64, seed=1), torch.arange(400), QUICK, show=False)
    assert noise.share(noise.held_out) < 0.5 * meta.share(meta.held_out)
    assert noise.share(~noise.held_out) > noise.share(noise.held_out) + 0.1  # in-sample flatters


def test_a_direction_is_the_sum_that_its_decomposition_says(planted):
    meta, _, _ = planted
    write, bias = meta.sae.dictionary.directions().detach(), meta.sae.dictionary.bias().detach()
    assert torch.allclose(write.norm(dim=1), torch.ones(20), atol=1e-5)
    for latent in (0, 7, 399):
        parts = meta.decomposition(latent)
        assert [value for _, value in parts] == sorted((value for _, value in parts), reverse=True)
        total = bias + sum(value * write[m] for m, value in parts)
        assert torch.allclose(total, meta.sae(meta.directions[latent : latent + 1])[0], atol=1e-5)
    said = meta.sentence(7)
    (first, value), *_ = meta.decomposition(7)
    assert said.startswith(f"latent 7 = {value:.2f} · meta {first}")
    with pytest.raises(ValueError, match="latent 400 has no decomposition"):
        meta.decomposition(400)


def test_explained_variance_and_bits():
    rows = drawn(50, 6) + 3
    assert explained(rows, rows) == 1
    assert explained(rows, rows.mean(0).expand_as(rows)) == pytest.approx(0, abs=1e-6)
    wanted = 1 - ((0.1 * rows) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
    assert explained(rows, 0.9 * rows) == pytest.approx(wanted.item(), rel=1e-5)
    assert math.isnan(explained(torch.ones(3, 2), torch.ones(3, 2)))
    assert bits(4, 1024) == 4 * 18


def test_pca_explains_what_its_eigenvalues_say():
    rows = drawn(400, 8) * torch.tensor([4.0, 3, 2, 1, 1, 1, 1, 1])
    values = torch.linalg.eigvalsh(torch.cov(rows.double().T))
    for count in (0, 1, 3, 8, 20):
        wanted = values[8 - min(count, 8) :].sum() / values.sum()
        assert explained(rows, pca(rows, rows, count)) == pytest.approx(wanted.item(), abs=1e-5)


def test_kmeans_finds_planted_clusters_and_never_leaves_one_empty(monkeypatch):
    centres = 10 * drawn(6, 5)
    rows = centres.repeat(40, 1) + 0.1 * drawn(240, 5, seed=1)
    found = kmeans(rows, 6, seed=3)
    assert torch.cdist(centres, found).min(1).values.max() < 0.2
    assert kmeans(rows[:4], 9).shape == (4, 5)
    monkeypatch.setattr(controls, "BLOCK_ENTRIES", 50)
    assert torch.equal(kmeans(rows, 6, seed=3), found)
    twice = residual_kmeans(rows, rows, 6, 2, 3)
    assert explained(rows, twice) >= explained(rows, residual_kmeans(rows, rows, 6, 1, 3)) - 1e-6
    lines = torch.cat([3 * F.normalize(drawn(1, 5), dim=1), -F.normalize(drawn(1, 5), dim=1)]).repeat(5, 1)
    assert explained(lines, residual_kmeans(lines, lines, 2, 1, 0)) == pytest.approx(1)  # of any size, either way


def test_shuffled_directions_keep_each_coordinate_up_to_the_norm():
    rows = F.normalize(drawn(300, 4) * torch.tensor([5.0, 1, 1, 0.01]), dim=1)
    mixed = shuffled(rows, 0)
    assert torch.allclose(mixed.norm(dim=1), torch.ones(300), atol=1e-6)
    assert mixed[:, 3].abs().max() < 0.2
    assert not torch.allclose(mixed, rows)
    signs = rows.sign()
    assert torch.equal(shuffled(rows, 0).sign().sum(0), signs.sum(0))  # a coordinate's signs are only dealt out anew
    both = (rows[:, 0] * rows[:, 1]).sign().sum()
    assert (mixed[:, 0] * mixed[:, 1]).sign().sum() != both


def test_controls_stand_beside_the_meta_sae(planted):
    meta, _, _ = planted
    add_controls(meta, show=False)
    assert set(meta.controls) == {"random", "shuffled", "pca", "kmeans", "residual_kmeans"}
    own, pays = meta.share(meta.held_out), bits(meta.l0(meta.held_out), 20)
    for name, control in meta.controls.items():
        assert control["explained"] < own - 0.2, name
    assert pays - 8 < meta.controls["pca"]["bits"] <= pays
    assert meta.controls["residual_kmeans"]["bits"] <= pays * 1.3


def test_meta_latents_are_compared_with_latents_of_other_saes(planted):
    meta, atoms, _ = planted
    (same, other) = similar_to(meta, {"atoms": sae_with(atoms), "noise": sae_with(drawn(20, 64, seed=5))})
    assert same["mean"] > 0.85 > 0.6 > other["mean"]
    assert other["mean"] == pytest.approx(other["random"], abs=0.1)
    assert (same["name"], same["n_latents"]) == ("atoms", 20)
    with pytest.raises(ValueError, match="directions 9 wide.*64"):
        similar_to(meta, {"wide": sae_with(drawn(4, 9))})


def test_what_is_written_can_be_read(planted, tmp_path):
    meta, _, _ = planted
    meta.write(tmp_path / "meta", "some/run", 500)
    json.loads((tmp_path / "meta" / "meta.json").read_text())
    read = read_meta(tmp_path / "meta")
    assert (read["sae"], read["n_latents"], read["n_alive"], read["n_meta"]) == ("some/run", 500, 400, 20)
    assert read["explained"]["held_out"] == pytest.approx(meta.share(meta.held_out))
    codes = read["codes"]
    own = (codes["latent"] == 7).nonzero().squeeze(1)
    mine = dict(zip(codes["meta"][own].tolist(), codes["value"][own].tolist(), strict=True))
    assert mine == pytest.approx(dict(meta.decomposition(7)), abs=1e-5)
    assert read["latents"]["held_out"] == meta.held_out.tolist()
    assert read["metas"]["count"].sum() == len(codes["latent"])
    again = load(tmp_path / "meta" / "sae")
    assert torch.allclose(again(meta.directions), meta.sae(meta.directions))


def test_dead_latents_are_left_out():
    sae = sae_with(drawn(60, 8), TopK(k=2))
    sae.firing.rows.fill_(40)
    sae.firing.since[:25] = 10
    meta = train_meta(sae, MetaSettings(ratio=5, k=1, steps=2), show=False)
    assert meta.latents.tolist() == list(range(25, 60))
    assert meta.sae.n_latents == 7
    with pytest.raises(ValueError, match="latent 3 .*dead"):
        meta.sentence(3)
    sae.firing.since.fill_(10)
    with pytest.raises(ValueError, match="there are 0, it needs at least 20"):
        train_meta(sae, show=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.5}, "ratio must be at least 1 direction"),
        ({"hold_out": 1.0}, "hold_out must be above 0 and below 1, got 1.0"),
        ({"steps": 0}, "steps and batch must be at least 1, got 0"),
        ({"k": 0}, "k must be above 0, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"k": 4, "ratio": 20}, "k must be at most .* 2 for 40 directions at a ratio of 20; got 4"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        decompose(drawn(40, 8), torch.arange(40), MetaSettings(**settings), show=False)


# ---- the cities' mechanism: four attributes of three values each, read off a row by linear probes ----

VALUES = torch.linalg.qr(drawn(16, 16))[0][:12]  # value v of attribute a is row 3 a + v
CITIES = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 2)]


def city_sae(scale=1.0):
    """Latent c writes the sum of city c's values and fires on an entry of its own."""
    directions = torch.stack([sum(VALUES[3 * a + v] for a, v in enumerate(city)) for city in CITIES])
    sae = sae_with(directions, bias=torch.zeros(16))
    sae.scale.set(torch.zeros(16), scale)
    return sae


def city_meta(sae):
    """The meta-SAE whose meta-latents are the values."""
    made = SAE(16, 12, ReLU(l1=0.0))
    with torch.no_grad():
        made.dictionary.W_dec.copy_(VALUES)
        made.dictionary.W_enc.copy_(VALUES)
        made.dictionary.b_enc.fill_(-1e-3)
        made.dictionary.b_dec.zero_()
    rows = F.normalize(sae.dictionary.directions().detach(), dim=1)
    return Meta(made, torch.arange(3), rows, torch.zeros(3, dtype=torch.bool), MetaSettings())


def attributes(row):
    """What linear probes read off a row: the value of each attribute."""
    return tuple((row @ VALUES[3 * a : 3 * a + 3].T).argmax().item() for a in range(4))


@pytest.mark.parametrize("attribute", range(4))
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_an_edit_flips_exactly_the_edited_attribute(attribute, scale):
    sae = city_sae(scale)
    meta = city_meta(sae)
    x = scale * sae.dictionary.W_enc[0:1].detach() * 4  # a row that city 0 is in
    assert attributes(sae(x)[0]) == CITIES[0]
    edited = exchanged(sae, meta, 0, 1, chosen=[3 * attribute, 3 * attribute + 1])
    wanted = list(CITIES[0])
    wanted[attribute] = 1
    assert attributes(edited(x)[0]) == tuple(wanted)
    assert torch.equal(edited.encode(x).dense(), sae.encode(x).dense())  # only what is written changed
    assert torch.equal(edited.dictionary.W_dec[1:], sae.dictionary.W_dec[1:])
    assert attributes(sae(x)[0]) == CITIES[0]


def test_exchanging_all_makes_one_city_the_other_and_subsets_lists_the_choices():
    sae = city_sae()
    meta = city_meta(sae)
    edited = exchanged(sae, meta, 0, 2)
    assert F.cosine_similarity(edited.dictionary.W_dec[0], sae.dictionary.W_dec[2], dim=0) > 0.999
    choices = list(subsets(meta, 0, 2, most=3))
    assert len(choices) == len(set(choices)) == 7
    louder = exchanged(sae, meta, 0, 1, chosen=[0, 1], size=100)
    assert F.cosine_similarity(louder.dictionary.W_dec[0], VALUES[1], dim=0) > 0.999
    with pytest.raises(ValueError, match="latent 0 nor latent 1 .*meta-latent 2"):
        exchanged(sae, meta, 0, 1, chosen=[2])
    with pytest.raises(ValueError, match="directions that can be set freely"):
        exchanged(SAE(16, 3, TopK(k=1), dictionary=Expander(degree=4)), meta, 0, 1)
    with pytest.raises(ValueError, match="the direction of latent 0 becomes zero"):
        exchanged(sae, meta, 0, 0, size=0)
