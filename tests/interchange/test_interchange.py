"""Ours to every family and back, what cannot be written, and files that are damaged or hostile."""

import gc
import json
import pickle

import pytest
import torch
from interchange.foreign import D, L, O, check, random, rows, save, weights

from saelab import SAE
from saelab.core.codes import Codes
from saelab.core.read import read_yaml
from saelab.interchange import Description, Family, read, write
from saelab.interchange.family import families, members
from saelab.interchange.plain import apart, check_computes
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.block_topk import BlockTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.cross_layer import CrossLayer
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander
from saelab.sae.scales.constant_norm import ConstantNorm
from saelab.sae.scales.layer_norm import LayerNorm

QWEN = "Qwen/Qwen3-4B"
SOURCE = {"model": "gpt2", "site": "transformer.h.8", "target": None, "seq_len": 128}


def batch_topk(thresholds: torch.Tensor | float | None) -> BatchTopK:
    activation = BatchTopK(4.5)
    real = activation.setup

    def setup(sizes):
        real(sizes)
        if thresholds is not None:
            activation.threshold.copy_(torch.as_tensor(thresholds))
            activation.updates.fill_(7)

    activation.setup = setup
    return activation


KINDS = {
    "relu": ReLU,
    "topk": lambda: TopK(3),
    "abstopk": lambda: AbsTopK(3),
    "jumprelu": JumpReLU,
    "batchtopk": lambda: batch_topk(0.6),
    "batchtopk, a threshold a latent": lambda: batch_topk(random(L, seed=5).abs()),
    "batchtopk, no threshold": lambda: batch_topk(None),
    "gated": Gated,
}
FORMS = {
    "sae_lens": set(KINDS),
    "dictionary_learning": set(KINDS) - {"abstopk"},
    "sparsify": {"topk", "batchtopk, no threshold"},
}
ALL = [(family, kind) for family, forms in FORMS.items() for kind in forms]


@torch.no_grad()
def ours(activation, dictionary=None, d_out=None, scaled=False) -> SAE:
    """An SAE with weights that are nowhere special."""
    sae = SAE(D, L, activation, dictionary=dictionary, d_out=d_out)
    for number, parameter in enumerate(sae.parameters()):
        # Tied directions keep their norm and their zeros: an Expander's graph is fixed.
        if parameter.ndim == 1 or type(sae.dictionary) is Dense:
            parameter.copy_(random(*parameter.shape, seed=20 + number) * 0.4)
    if scaled:
        sae.scale.set(random(D, seed=40), 2.5)
        if d_out:
            sae.target_scale.set(random(d_out, seed=41), 0.5)
    return sae


@torch.no_grad()
def same(one: SAE, other: SAE, factor: float = 1.0) -> None:
    """Both read rows alike; the codes of the other are larger by a factor."""
    x = rows()
    a, b = one.encode(x).dense() * factor, other.encode(x).dense()
    assert a.count_nonzero() > 20
    torch.testing.assert_close(b, a, rtol=2e-6, atol=2e-6 * a.abs().max().item())
    torch.testing.assert_close(other(x), one(x), rtol=2e-6, atol=5e-6)
    assert torch.equal(a != 0, b != 0)


@pytest.mark.parametrize(("family", "kind"), sorted(ALL))
@pytest.mark.parametrize("scaled", [False, True])
def test_ours_to_a_family_and_back(tmp_path, family, kind, scaled):
    sae = ours(KINDS[kind](), scaled=scaled)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    notes = write(sae, tmp_path / "out", family, SOURCE)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())
    assert any("folded the scaling" in note for note in notes) == scaled
    again, description = read(tmp_path / "out")
    assert description.family == family
    assert description.source == ({} if family == "sparsify" else SOURCE)
    same(sae, again, 2.5 if scaled else 1.0)
    is_exact = family != "dictionary_learning" or ("jumprelu" not in kind and "latent" not in kind)
    if not scaled and is_exact:  # no weight was added up
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(again.dictionary, name), getattr(sae.dictionary, name))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("family", "kind", "width"),
    [("sae_lens", "relu", O), ("sae_lens", "jumprelu", O), ("sae_lens", "batchtopk", O), ("sparsify", "topk", D)],
)
def test_transcoders_and_back(tmp_path, family, kind, width, skip):
    sae = ours(KINDS[kind](), Dense(skip_connection=skip), width, scaled=True)
    place = SOURCE | {"site": "transformer.h.8.mlp:in", "target": "transformer.h.8.mlp"}
    write(sae, tmp_path / "out", family, place)
    again, _ = read(tmp_path / "out")
    assert again.d_out == width
    same(sae, again, 0.5)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "batchtopk"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_set_of_transcoders_for_circuit_tracer_and_back(tmp_path, kind, skip):
    for layer in (0, 1):
        sae = ours(KINDS[kind](), Dense(skip_connection=skip), D, scaled=True)
        place = {"model": QWEN, "site": f"model.layers.{layer}.mlp:in", "target": f"model.layers.{layer}.mlp"}
        notes = write(sae, tmp_path / f"one{layer}", "circuit_tracer", place)
        assert notes[-1] == "circuit-tracer loads a folder once it has all layers from 0 on"
        again, description = read(tmp_path / f"one{layer}")
        assert description.source == place
        same(sae, again, 0.5)
    config = read_yaml(tmp_path / "one0" / "config.yaml")
    assert config == {
        "model_kind": "transcoder_set", "model_name": QWEN, "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "one1").iterdir()) == ["config.yaml", "layer_1.safetensors"]


def across_layers(activation) -> SAE:
    sae = SAE(3 * D, 30, activation, dictionary=CrossLayer(sites=3), d_out=3 * D)
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter.copy_(random(*parameter.shape, seed=20 + number) * 0.4)
        sae.dictionary.after_step()
        sae.scale.set(random(3 * D, seed=40), torch.tensor([2.5, 1.0, 0.5]))
        sae.target_scale.set(random(3 * D, seed=41), torch.tensor([0.5, 2.0, 1.0]))
    return sae


@torch.no_grad()
@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_a_cross_layer_transcoder_for_circuit_tracer_and_back(tmp_path, kind):
    sae, places = across_layers(KINDS[kind]()), [f"model.layers.{layer}.mlp" for layer in range(3)]
    place = {"model": QWEN, "site": ",".join(f"{one}:in" for one in places), "target": ",".join(places)}
    write(sae, tmp_path / "out", "circuit_tracer_clt", place)
    again, description = read(tmp_path / "out")
    assert description.source == place
    x = random(40, 3 * D, seed=5)
    codes = again.encode(x).dense()
    assert codes.count_nonzero() > 20
    torch.testing.assert_close(again(x), sae(x), rtol=1e-5, atol=1e-5)
    size = sae.target_scale.scale.square().mean().sqrt()  # folding multiplies all codes by it
    torch.testing.assert_close(codes, sae.encode(x).dense() * size, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [LayerNorm(), ConstantNorm()])
def test_rows_normalised_one_by_one_for_sae_lens_and_back(tmp_path, scale):
    sae = SAE(D, L, TopK(3), scale=scale)
    for number, parameter in enumerate(sae.parameters()):
        parameter.copy_(random(*parameter.shape, seed=20 + number) * 0.4)
    write(sae, tmp_path / "out", "sae_lens")
    again, _ = read(tmp_path / "out")
    assert again.scale.config() == scale.config()
    same(sae, again)
    with pytest.raises(ValueError, match="sparsify has no form for rows that are each scaled by themselves"):
        write(sae, tmp_path / "other", "sparsify")


@torch.no_grad()
def test_a_transcoder_of_normalised_rows_for_sae_lens_and_back(tmp_path):
    sae = SAE(D, L, ReLU(), d_out=O, scale=LayerNorm())
    for number, parameter in enumerate(sae.parameters()):
        parameter.copy_(random(*parameter.shape, seed=20 + number) * 0.4)
    sae.target_scale.set(random(O, seed=41), 0.5)
    write(sae, tmp_path / "out", "sae_lens")
    again, _ = read(tmp_path / "out")
    assert (again.scale.config(), again.d_out) == (LayerNorm().config(), O)
    same(sae, again, 0.5)
    # Their skip connection adds the row as it is.
    with_skip = SAE(D, L, ReLU(), dictionary=Dense(skip_connection=True), d_out=O, scale=LayerNorm())
    with pytest.raises(ValueError, match="sae_lens has no form for a skip connection from rows"):
        write(with_skip, tmp_path / "skip", "sae_lens")
    assert not (tmp_path / "skip").exists()
    write(ours(ReLU(), Dense(skip_connection=True), O), tmp_path / "skip", "sae_lens")
    config = json.loads((tmp_path / "skip" / "cfg.json").read_text()) | {"normalize_activations": "layer_norm"}
    (tmp_path / "skip" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cfg\.json.*layer_norm' beside a W_skip"):
        read(tmp_path / "skip")


@pytest.mark.parametrize("dictionary", [Dense(tied=True), Expander(degree=3), Dense(False, False)])
def test_dictionaries_that_become_dense(tmp_path, dictionary):
    sae = ours(TopK(3), dictionary, scaled=True)
    write(sae, tmp_path / "out", "sae_lens")
    same(sae, read(tmp_path / "out")[0], 2.5)


def test_float64_stays(tmp_path):
    sae = ours(ReLU()).double()
    write(sae, tmp_path / "out", "dictionary_learning")
    assert read(tmp_path / "out")[0].dictionary.W_enc.dtype == torch.float64


@pytest.mark.parametrize(
    ("sae", "family", "words"),
    [
        (lambda: ours(TopK(3)), "saelens", "unknown family 'saelens'; did you mean 'sae_lens'?"),
        (
            lambda: SAE(D, L, TopK(3), dictionary=Crosscoder()),
            "sae_lens",
            "sae_lens has no form for the dictionary Crosscoder",
        ),
        (lambda: SAE(D, L, BlockTopK(k=2)), "sae_lens", "BlockTopK cannot be exported"),
        (lambda: ours(TopK(3), d_out=D), "sae_lens", "sae_lens has no form for a transcoder that reads with topk"),
        (lambda: ours(ReLU(), d_out=D), "dictionary_learning", "dictionary_learning has no form for transcoders"),
        (lambda: ours(AbsTopK(3)), "dictionary_learning", "dictionary_learning has no form for AbsTopK"),
        (lambda: ours(ReLU()), "sparsify", "sparsify has no form for an SAE that reads with relu"),
        (lambda: ours(TopK(3), d_out=O), "sparsify", f"from rows {D} wide to rows {O} wide"),
        (lambda: ours(TopK(3), d_out=D), "circuit_tracer", "no form for a transcoder that reads with topk"),
        (lambda: ours(ReLU()), "circuit_tracer", "circuit_tracer has no form for SAEs: it has transcoders"),
        (
            lambda: ours(ReLU(), d_out=O),
            "circuit_tracer",
            f"from rows {D} wide to {O} wide: widths have to be the same",
        ),
        (lambda: ours(ReLU(), d_out=D), "circuit_tracer", "a transcoder of no known model, site and target"),
        (lambda: across_layers(ReLU()), "circuit_tracer", "circuit_tracer has no form for the dictionary CrossLayer"),
        (lambda: across_layers(TopK(3)), "circuit_tracer_clt", "no form for a transcoder that reads with topk"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path, sae, family, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")) as error:
        write(sae(), tmp_path / "out", family)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder; choose another"):
        write(ours(TopK(3)), tmp_path, "sae_lens")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_every_family_has_a_title_of_its_own():
    assert set(families()) >= {"sae_lens", "dictionary_learning", "sparsify"}


@pytest.mark.parametrize("name", ["nothing", "empty", "notes.txt", "model.safetensors"])
def test_what_is_of_no_family_is_said(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    save(tmp_path, "model.safetensors", {"lm_head.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=name) as error:
        read(tmp_path / name)
    assert ("there is no file" if name == "nothing" else "no family that saelab reads") in str(error.value)


SAE_LENS = ("sae_weights.safetensors", {"d_in": D, "d_sae": L, "architecture": "standard"})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("family", ["sae_lens", "dictionary_learning", "sparsify"])
def test_a_truncated_file_is_one_clear_line(tmp_path, family, share):
    write(ours(TopK(3)), tmp_path / "out", family)
    (weights_file,) = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".json"]
    data = weights_file.read_bytes()
    weights_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=weights_file.name) as error:
        read(tmp_path / "out")
    assert "is damaged" in str(error.value)
    assert "\n" not in str(error.value)


def several(folder):
    """Two SAEs of SAELens, one of dictionary_learning, one of saelab, in folders of a folder."""
    for layer in (10, 9):
        write(ours(TopK(3)), folder / f"blocks.{layer}", "sae_lens")
    write(ours(ReLU()), folder / "more" / "trainer_0", "dictionary_learning")
    ours(TopK(4)).save(folder / "own")
    (folder / "notes.txt").write_text("notes")
    return folder


def test_a_folder_of_several_says_what_it_holds(tmp_path):
    folder = several(tmp_path / "all")
    names = ["blocks.9", "blocks.10", "more/trainer_0", "own"]
    assert list(members(folder)) == names
    assert members(folder / "blocks.9") == {"sae_weights.safetensors": folder / "blocks.9" / "sae_weights.safetensors"}
    with pytest.raises(ValueError, match=f"all holds 4 SAEs: {', '.join(names)}; take one of them, or several by"):
        read(folder)
    for number in range(12):
        ours(TopK(4)).save(folder / f"z{number}")
    with pytest.raises(ValueError, match=r"holds 16 SAEs: blocks.9, .*, z2, \.\.\., z11; take"):
        read(folder)


def test_what_links_lead_to_is_not_searched(tmp_path):
    several(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "here" / "round").symlink_to(tmp_path / "here", target_is_directory=True)
    assert members(tmp_path / "here") == {}


class Hostile:
    def __reduce__(self):
        return (print, ("this was run",))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_something_is_not_run(tmp_path, capsys, how):
    path = tmp_path / "ae.pt"
    if how == "torch":
        torch.save({"bias": Hostile()}, path)
    else:
        path.write_bytes(pickle.dumps({"bias": Hostile()}))
    with pytest.raises(ValueError, match=r"ae.pt is damaged or holds more than tensors") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [3, [torch.zeros(2)], {"bias": 1}, {3: torch.zeros(2)}])
def test_a_pickle_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae.pt") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    tensors = weights()
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    tensors["b_enc"][3] = value
    save(tmp_path, SAE_LENS[0], tensors, cfg=SAE_LENS[1])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors: b_enc holds NaN or infinity"):
        read(tmp_path)


def test_reading_does_not_depend_on_what_else_is_read(tmp_path):
    write(ours(batch_topk(0.6)), tmp_path / "out", "dictionary_learning")
    sae, _ = read(tmp_path / "out")
    x = rows()
    whole = sae.encode(x).dense()
    assert isinstance(sae.encode(x[:1]), Codes)
    torch.testing.assert_close(torch.cat([sae.encode(row[None]).dense() for row in x]), whole)


def test_reading_one_file_of_a_folder(tmp_path):
    tensors = weights()
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    save(tmp_path, SAE_LENS[0], tensors, cfg=SAE_LENS[1])
    x, w = rows().double(), {name: value.double() for name, value in weights().items()}
    codes = ((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    check(tmp_path / SAE_LENS[0], "sae_lens", codes, codes @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("place", "named", "notes"),
    [
        ({"site": "transformer.h.3.attn.c_proj:in"}, {"hook_name": "blocks.3.attn.hook_z"}, []),
        ({"site": "transformer.wte"}, {"hook_name": "transformer.wte"}, []),
        ({"site": "transformer.ln_f:in"}, {}, ["no hook of TransformerLens is transformer.ln_f:in for sure: left out"]),
        ({"site": None}, {}, ["it is not known which model and site the SAE is for"]),
    ],
)
def test_places_that_are_hooks_modules_or_neither(tmp_path, place, named, notes):
    assert write(ours(TopK(3)), tmp_path / "out", "sae_lens", SOURCE | place) == notes
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert config["metadata"].get("hook_name") == named.get("hook_name")
    assert config["reshape_activations"] == ("hook_z" if "hook_z" in str(named) else "none")
    assert read(tmp_path / "out")[1].source == (SOURCE | place if named else {})


def test_a_family_of_a_package_of_ones_own_is_found(tmp_path):
    class Mine(Family):
        title = "mine"

        def claims(self, files):
            return files.has("mine.txt")

        def read(self, files):
            return apart(ours(TopK(3))), Description("mine", "TopK")

    (tmp_path / "mine.txt").write_text("mine")
    sae, description = read(tmp_path)
    assert (description.family, sae.activation.k) == ("mine", 3)
    with pytest.raises(
        ValueError,
        match="reads SAEs of mine but does not write them; it writes circuit_tracer, circuit",
    ):
        families()["mine"].write(apart(sae), tmp_path, {})
    del Mine
    gc.collect()
    assert "mine" not in families()


def test_what_is_no_pickle_at_all_is_said_to_be_none(tmp_path):
    (tmp_path / "ae.pt").write_text("junk\n")
    with pytest.raises(ValueError, match="ae.pt is damaged .it is no whole pickle"):
        read(tmp_path / "ae.pt")


def test_what_is_not_finite_once_put_together_is_refused(tmp_path):
    plain = apart(ours(TopK(3)))
    check_computes(plain, tmp_path)
    plain.matrices["W_dec"].pieces[0][3, 1] = 1e30
    wide = plain.matrices["W_dec"]
    plain.matrices["W_dec"] = wide.times(torch.full((L, 1), 1e20))
    with pytest.raises(ValueError, match=rf"{tmp_path}: dictionary.W_dec holds NaN or infinity in 1 places"):
        check_computes(plain, tmp_path)
    wide.pieces[0][3, 1] = 0
    plain.matrices["W_enc"].pieces[0].fill_(3e38)[::2] *= -1
    with pytest.raises(ValueError, match="a row of random numbers is reconstructed as NaN or infinity"):
        check_computes(plain, tmp_path)
