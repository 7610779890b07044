"""Files of dictionary_learning: its classes' formulas in float64, written out here, against ours."""

import json

import pytest
import torch
from interchange.foreign import D, K, L, check, exact, random, rows, save, topk, weights

from saelab.interchange import read
from saelab.sae.activations.batch_topk import BatchTopK

W = weights()
LINEAR = {"encoder.weight": W["W_enc"], "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T}
MATRICES = W | {"W_enc": W["W_enc"].T}
TOPK = LINEAR | {"b_dec": W["b_dec"], "k": torch.tensor(K, dtype=torch.int)}
PLACE = {"lm_name": "EleutherAI/pythia-70m-deduped", "layer": 3, "submodule_name": "resid_post_layer_3"}


def folder(tmp_path, tensors, name, **more):
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": L, **PLACE, **more}
    config = {"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}
    return save(tmp_path / "trainer_0", "ae.pt", tensors, config=config)


def pre(centred: bool = True) -> torch.Tensor:
    w = exact(W)
    return (rows().double() - w["b_dec"] * centred) @ w["W_enc"].T + w["b_enc"]


def decoded(codes: torch.Tensor) -> torch.Tensor:
    return codes @ exact(W)["W_dec"] + exact(W)["b_dec"]


@pytest.mark.parametrize(
    ("name", "bias", "centred"), [("AutoEncoder", "bias", True), ("AutoEncoderNew", "decoder.bias", False)]
)
def test_relu(tmp_path, name, bias, centred):
    codes = pre(centred).relu()
    path = folder(tmp_path, LINEAR | {bias: W["b_dec"]}, name)
    _, description = check(path, "dictionary_learning", codes, decoded(codes))
    site = {"model": "EleutherAI/pythia-70m-deduped", "site": "gpt_neox.layers.3", "target": None, "seq_len": 128}
    assert description.source == site
    (path / "config.json").unlink()  # the tensors alone say which class they are of
    assert check(path, "dictionary_learning", codes, decoded(codes))[1].architecture == name


@pytest.mark.parametrize("threshold", [-1.0, 0.4])
def test_topk_is_read_by_k_whatever_its_threshold(tmp_path, threshold):
    codes = topk(pre(), K).relu()
    path = folder(tmp_path, TOPK | {"threshold": torch.tensor(threshold)}, "AutoEncoderTopK", k=K)
    sae, _ = check(path, "dictionary_learning", codes, decoded(codes))
    assert sae.activation.config() == {"name": "TopK", "k": K}


def test_k_that_training_lowered_is_the_one_of_the_weights(tmp_path):
    path = folder(tmp_path, TOPK | {"threshold": torch.tensor(-1.0)}, "AutoEncoderTopK", k=10)
    assert read(path)[0].activation.k == K
    without = {key: value for key, value in TOPK.items() if key != "k"}
    assert read(folder(tmp_path, without, "AutoEncoderTopK", k=10))[0].activation.k == 10


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_batchtopk_is_read_by_its_threshold(tmp_path, threshold):
    codes = pre().where(pre() > threshold, 0)
    path = folder(tmp_path, TOPK | {"threshold": torch.tensor(threshold)}, "BatchTopKSAE", k=K)
    sae, _ = check(path, "dictionary_learning", codes, decoded(codes))
    assert sae.activation.config() == BatchTopK(K).config()


def test_batchtopk_without_a_threshold_is_read_by_k_and_says_so(tmp_path):
    codes = topk(pre(), K).relu()
    path = folder(tmp_path, TOPK | {"threshold": torch.tensor(-1.0)}, "BatchTopKSAE", k=K)
    _, description = check(path, "dictionary_learning", codes, decoded(codes))
    assert description.notes == [f"its threshold was never set: read by the {K} largest of each row"]


def test_matryoshka(tmp_path):
    tensors = MATRICES | {"k": TOPK["k"], "threshold": torch.tensor(0.3), "group_sizes": torch.tensor([5, L - 5])}
    codes = pre().where(pre() > 0.3, 0)
    path = folder(tmp_path, tensors, "MatryoshkaBatchTopKSAE", k=K)
    check(path, "dictionary_learning", codes, decoded(codes))
    (path / "config.json").unlink()
    check(path, "dictionary_learning", codes, decoded(codes))


def test_jumprelu_subtracts_nothing(tmp_path):
    threshold = random(L, seed=5).abs() * 0.5
    codes = pre(False).where(pre(False) > threshold.double(), 0)
    path = folder(tmp_path, MATRICES | {"threshold": threshold}, "JumpReluAutoEncoder")
    _, description = check(path, "dictionary_learning", codes, decoded(codes))
    assert "folded b_dec" in description.notes[0]


def test_gated(tmp_path):
    own = {"gate_bias": random(L, seed=6) * 0.4, "mag_bias": random(L, seed=7) * 0.4, "r_mag": random(L, seed=8) * 0.3}
    tensors = {key: LINEAR[key] for key in ("encoder.weight", "decoder.weight")} | own | {"decoder_bias": W["b_dec"]}
    product, own = pre() - exact(W)["b_enc"], exact(own)
    size = (product * own["r_mag"].exp() + own["mag_bias"]).relu()
    codes = size.where(product + own["gate_bias"] > 0, 0)
    check(folder(tmp_path, tensors, "GatedAutoEncoder"), "dictionary_learning", codes, decoded(codes))


def test_a_checkpoint_is_named_by_its_file(tmp_path):
    path = folder(tmp_path, LINEAR | {"bias": W["b_dec"]}, "AutoEncoder")
    (path / "checkpoints").mkdir()
    checkpoint = (path / "ae.pt").rename(path / "checkpoints" / "ae_100.pt")
    _, description = check(checkpoint, "dictionary_learning", pre().relu(), decoded(pre().relu()))
    assert description.source["site"] == "gpt_neox.layers.3"


@pytest.mark.parametrize(
    "place",
    [{"submodule_name": None}, {"submodule_name": "mlp_layer_3"}, {"lm_name": "somebodys/model"}, {"layer": None}],
)
def test_a_place_that_is_not_certain_is_no_source(tmp_path, place):
    description = read(folder(tmp_path, LINEAR | {"bias": W["b_dec"]}, "AutoEncoder", **place))[1]
    assert description.source == {}
    assert description.said == PLACE | place


@pytest.mark.parametrize(
    ("tensors", "name", "words"),
    [
        (LINEAR, "AutoEncoder", "ae.pt has no tensor 'bias'"),
        (LINEAR | {"bias": torch.zeros(D + 1)}, "AutoEncoder", rf"bias should be \[{D}\], the file holds \[{D + 1}\]"),
        (LINEAR, "IdentityDict", "config.json: the class IdentityDict is not something"),
        (LINEAR, None, "holds the tensors of no class that is read"),
        (TOPK | {"threshold": torch.tensor(-1.0)}, None, "may be a TopK or a BatchTopK SAE"),
        (TOPK | {"k": torch.tensor(L + 1)}, "AutoEncoderTopK", f"k must be from 1 to the number of latents, {L}"),
        (LINEAR | {"bias": torch.full((D,), torch.nan)}, "AutoEncoder", "bias holds NaN or infinity"),
        (LINEAR | {"bias": [0.0] * D}, "AutoEncoder", "bias is a list, expected a tensor"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, tensors, name, words):
    path = folder(tmp_path, tensors, name)
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_that_is_not_json(tmp_path):
    path = folder(tmp_path, LINEAR | {"bias": W["b_dec"]}, "AutoEncoder")
    (path / "config.json").write_text(json.dumps({"trainer": 3}))
    with pytest.raises(ValueError, match=r"config.json: trainer: expected a table, got 3"):
        read(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged: not JSON"):
        read(path)


def test_its_tensors_are_enough_under_any_name(tmp_path):
    codes = pre().relu()
    path = save(tmp_path / "x", "autoencoder.pt", LINEAR | {"bias": W["b_dec"]})
    for place in (path, path / "autoencoder.pt"):
        check(place, "dictionary_learning", codes, decoded(codes))
    either = save(tmp_path / "y", "sae.pt", TOPK | {"threshold": torch.tensor(0.5)})
    with pytest.raises(ValueError, match=r"sae\.pt may be a TopK or a BatchTopK SAE: put its config\.json beside it"):
        read(either)
