"""An ensemble is one SAE: the average of its members is the SAE with their dictionaries side by side."""

import json

import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.mesh import Mesh
from saelab.sae import SAE, Ensemble, load_ensemble, refine
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK

B, D = 30, 6
SIZES = (20, 8, 13)


def rows(n: int = B, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1


def relus(long: bool = False) -> list[SAE]:
    """ReLU SAEs of different sizes and scalings, with directions of unit length or not."""
    made = []
    for seed, size in enumerate(SIZES):
        sae = SAE(D, size, ReLU(), seed=seed)
        sae.initialise((seed + 1) * rows(seed=seed))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            sae.dictionary.b_enc.uniform_(-0.5, 0.5, generator=generator)
            if long:
                sae.dictionary.W_dec *= 1 + torch.rand(size, 1, generator=generator)
        made.append(sae)
    return made


def topks() -> list[SAE]:
    made = [SAE(D, size, TopK(k), seed=k) for size, k in zip(SIZES, (3, 1, 2), strict=True)]
    for sae in made:
        sae.initialise(rows())
    return made


def concatenated(saes: list[SAE]) -> SAE:
    """One SAE with all members' weights, in the units of the data."""
    parts = {name: [] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    for sae in saes:
        dictionary, mean, scale = sae.dictionary, sae.scale.mean, sae.scale.scale
        norms = dictionary.W_dec.norm(dim=1, keepdim=True)
        parts["W_enc"].append(dictionary.W_enc * norms / len(saes))
        shift = dictionary.W_enc @ (mean / scale + dictionary.b_dec)
        parts["b_enc"].append((dictionary.b_enc - shift) * scale * norms[:, 0] / len(saes))
        parts["W_dec"].append(dictionary.W_dec / norms)
        parts["b_dec"].append((dictionary.b_dec * scale + mean) / len(saes))
    whole = SAE(D, sum(SIZES), ReLU()).to(saes[0].dtype)
    with torch.no_grad():
        b_dec = torch.stack(parts["b_dec"]).sum(0)
        for name in ("W_enc", "b_enc", "W_dec"):
            getattr(whole.dictionary, name).copy_(torch.cat(parts[name]))
        whole.dictionary.b_dec.copy_(b_dec)
        whole.dictionary.b_enc += whole.dictionary.W_enc @ b_dec  # Dense subtracts b_dec before it encodes
    return whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_average_is_the_sae_with_all_dictionaries(dtype, long, grad):
    saes, x = [sae.to(dtype) for sae in relus(long)], rows().to(dtype)
    ensemble, whole = Ensemble(saes), concatenated(saes)
    near = {"rtol": 1e-6, "atol": 1e-5 if dtype == torch.float32 else 1e-9}
    with torch.set_grad_enabled(grad):
        codes = ensemble.encode(x)
        torch.testing.assert_close(codes.dense(), whole.encode(x).dense(), **near)
        torch.testing.assert_close(ensemble(x), whole(x), **near)
    assert not codes.is_full
    torch.testing.assert_close(ensemble.dictionary.directions(), whole.dictionary.directions())
    torch.testing.assert_close(ensemble.dictionary.bias(), whole.dictionary.bias())
    torch.testing.assert_close(ensemble.dictionary.norms(), torch.ones(sum(SIZES), dtype=dtype))


@pytest.mark.parametrize("make", [relus, topks])
def test_bagging_is_the_mean_of_the_members(make):
    saes, x = make(), rows()
    expected = torch.stack([sae(x) for sae in saes]).mean(0)
    torch.testing.assert_close(Ensemble(saes, "bagging")(x), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("make", [relus, topks])
def test_boosting_is_the_sum_of_what_each_reads_of_the_rest(make):
    saes, x = make(), rows()
    first = saes[0](x)
    second = saes[1](x - first)
    third = saes[2](x - first - second)
    torch.testing.assert_close(Ensemble(saes, "boosting")(x), first + second + third, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("how", ["bagging", "boosting"])
def test_latents_are_numbered_through(how):
    saes, x = topks(), rows()
    codes = Ensemble(saes, how).encode(x)
    assert codes.n_latents == sum(SIZES)
    assert codes.values.shape == (B, 3 + 1 + 2)  # as sparse as its members
    share, left, before = (1 / 3 if how == "bagging" else 1.0), x, 0
    for sae, size in zip(saes, SIZES, strict=True):
        own = sae.encode(left)
        part = codes.dense()[:, before : before + size]
        torch.testing.assert_close(part, own.dense() * sae.scale.scale * share, rtol=1e-5, atol=1e-5)
        before += size
        left = left - sae.decode(own) if how == "boosting" else left


def test_members_of_both_layouts_stand_side_by_side():
    saes = [topks()[0], relus()[1]]
    codes = Ensemble(saes).encode(rows())
    assert not codes.is_full
    expected = torch.cat([sae.encode(rows()).dense() * sae.scale.scale / 2 for sae in saes], 1)
    torch.testing.assert_close(codes.dense(), expected)


def test_one_member_alone_is_that_member():
    sae = topks()[0]
    for how in ("bagging", "boosting"):
        torch.testing.assert_close(Ensemble([sae], how)(rows()), sae(rows()), rtol=1e-6, atol=1e-6)


# As others see an SAE.


def test_decoding_is_scaling_back_what_the_dictionary_decodes():
    ensemble = Ensemble(topks(), "boosting")
    codes = ensemble.encode(rows())
    dictionary, dense = ensemble.dictionary, codes.dense()
    by_hand = dense @ dictionary.directions() + dictionary.bias()
    torch.testing.assert_close(ensemble.decode(codes), by_hand)
    torch.testing.assert_close(ensemble.decode(codes.compact()), by_hand)
    torch.testing.assert_close(ensemble.scale.undo(dictionary.decode(codes)), by_hand)
    assert torch.equal(ensemble.scale.apply_to(rows()), rows())
    assert ensemble.target_scale is ensemble.scale
    assert dictionary.skip(rows()) is None


def test_a_frozen_decoder_passes_a_gradient_to_the_codes_only():
    ensemble = Ensemble(topks())
    codes = ensemble.encode(rows())
    values = codes.values.detach().requires_grad_()
    ensemble.dictionary.decode(codes.with_values(values), frozen=True).sum().backward()
    torch.testing.assert_close(values.grad, ensemble.dictionary.directions().sum(1)[codes.indices].detach())
    assert all(parameter.grad is None for parameter in ensemble.parameters())
    ensemble.dictionary.decode(codes.with_values(values.detach())).sum().backward()
    assert all(sae.dictionary.W_dec.grad.any() and sae.dictionary.b_dec.grad.any() for sae in ensemble.saes)


def test_the_members_weights_are_used_as_they_are_now():
    saes = topks()
    ensemble = Ensemble(saes)
    before = ensemble(rows())
    with torch.no_grad():
        saes[1].dictionary.b_dec += 1
    torch.testing.assert_close(ensemble(rows()), torch.stack([sae(rows()) for sae in saes]).mean(0))
    assert not torch.allclose(ensemble(rows()), before)


def test_a_direction_of_zeros_is_no_trouble():
    saes = topks()
    with torch.no_grad():
        saes[0].dictionary.W_dec[3] = 0
    ensemble = Ensemble(saes)
    assert torch.isfinite(ensemble(rows())).all()
    assert ensemble.dictionary.norms()[3] == 0
    torch.testing.assert_close(ensemble(rows()), torch.stack([sae(rows()) for sae in saes]).mean(0))


def test_firing_counts_are_the_members():
    saes = topks()
    for number, sae in enumerate(saes):
        sae.firing.since += 10 * number
        sae.firing.rows += 100 - number
    firing = Ensemble(saes).firing
    assert firing.since.tolist() == [0] * SIZES[0] + [10] * SIZES[1] + [20] * SIZES[2]
    assert firing.rows == 98
    assert firing.dead(15).sum() == SIZES[2]


def test_its_codes_can_be_refined():
    ensemble = Ensemble(relus())
    with torch.no_grad():
        codes = ensemble.encode(rows())
        error = (rows() - ensemble.decode(codes)).norm(dim=1)
        refined = (rows() - ensemble.decode(refine(ensemble, rows(), codes))).norm(dim=1)
    assert (refined < error).all()


def test_no_rows_are_no_trouble():
    for saes in (relus(), topks()):
        assert Ensemble(saes, "boosting")(rows(0)).shape == (0, D)


def test_text_says_what_it_is():
    saes = topks()[:2]
    assert repr(Ensemble(saes, "boosting")) == f"Ensemble(boosting of [{saes[0]!r}, {saes[1]!r}])"


# Files.


@pytest.mark.parametrize("how", ["bagging", "boosting"])
def test_a_saved_ensemble_comes_back_bit_for_bit(tmp_path, how):
    ensemble = Ensemble([topks()[0], relus()[1]], how)
    ensemble.save(tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["config.json", "member-0", "member-1"]
    for again in (saelab.load(tmp_path / "both"), load_ensemble(tmp_path / "both")):
        assert isinstance(again, Ensemble)
        assert again.how == how
        assert repr(again) == repr(ensemble)
        with torch.no_grad():
            assert torch.equal(again(rows()), ensemble(rows()))


def test_a_member_is_an_sae_of_its_own(tmp_path):
    saes = topks()
    Ensemble(saes).save(tmp_path)
    with torch.no_grad():
        assert torch.equal(saelab.load(tmp_path / "member-2")(rows()), saes[2](rows()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "has format 9, newer than 1"),
        ({"how": "stacking"}, "unknown kind of ensemble how='stacking'"),
        ({"how": None}, "how: expected a text, got null"),
        ({"members": 0}, "members must be a number of at least 1, got 0"),
        ({"members": "3"}, r"members: expected a whole number, got \"3\""),
        ({"members": 4}, "there is no file .*member-3"),
    ],
)
def test_a_wrong_setting_in_a_file_is_named(tmp_path, change, message):
    Ensemble(topks()).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        saelab.load(tmp_path)


def test_an_sae_is_not_taken_for_an_ensemble(tmp_path):
    topks()[0].save(tmp_path)
    with pytest.raises(ValueError, match="not .*an ensemble.*saelab.load"):
        load_ensemble(tmp_path)


# Wrong members.


def dealt() -> SAE:
    sae = topks()[0]
    sae.mesh = Mesh()
    sae.mesh.shards = 2
    return sae


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        (list, "at least one SAE"),
        (lambda: [topks()[0], SAE(D + 1, 8, TopK(2))], rf"member 1 has d_in={D + 1}, not {D}"),
        (lambda: [SAE(D, 8, TopK(2), d_out=3)], r"member 0 is a transcoder \(d_out=3\)"),
        (lambda: [topks()[0], Ensemble(topks())], "member 1 is of the kind Ensemble"),
        (lambda: [dealt()], "member 0 is split over 2 shards"),
    ],
    ids=["none", "width", "transcoder", "nested", "shards"],
)
def test_members_that_do_not_fit_are_named(saes, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(saes())


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="'bagged'; did you mean 'bagging'"):
        Ensemble(topks(), "bagged")
