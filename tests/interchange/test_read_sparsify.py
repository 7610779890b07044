"""Files of sparsify: its formula in float64, written out here, against ours."""

import json

import pytest
import torch
from interchange.foreign import D, K, L, check, exact, random, rows, save, topk, weights

from saelab.interchange import read

W = weights()
TENSORS = {"encoder.weight": W["W_enc"], "encoder.bias": W["b_enc"], "W_dec": W["W_dec"], "b_dec": W["b_dec"]}
SKIP = {"W_skip": random(D, D, seed=9)}
CFG = {"activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "num_latents": L, "k": K,
       "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}  # fmt: skip


def folder(tmp_path, tensors=TENSORS, name="h.2", **config):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "openai-community/gpt2", "ctx_len": 64}))
    return save(tmp_path / "run" / name, "sae.safetensors", tensors, cfg=CFG | config)


def formula(transcode: bool, skip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    w, x = exact(TENSORS | SKIP), rows().double()
    seen = x if transcode else x - w["b_dec"]
    codes = topk((seen @ w["encoder.weight"].T + w["encoder.bias"]).relu(), K)
    return codes, codes @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
def test_reading(tmp_path, transcode, skip):
    tensors = TENSORS | (SKIP if skip else {})
    path = folder(tmp_path, tensors, transcode=transcode, skip_connection=skip)
    sae, description = check(path, "sparsify", *formula(transcode, skip))
    assert (sae.d_out is not None) == (transcode or skip)
    place = {"model": "openai-community/gpt2", "site": "transformer.h.2", "target": None, "seq_len": 64}
    if transcode:
        place |= {"site": "transformer.h.2:in", "target": "transformer.h.2"}
    assert description.source == ({} if skip and not transcode else place)


def test_one_of_several_seeds(tmp_path):
    description = check(folder(tmp_path, name="h.2/seed1"), "sparsify", *formula(False, False))[1]
    assert description.source["site"] == "transformer.h.2"
    assert description.said["hookpoint"] == "h.2"


def test_the_number_of_latents_may_be_left_to_the_expansion_factor(tmp_path):
    with pytest.raises(ValueError, match=rf"encoder.weight should be \[{3 * D}, {D}\], the file holds"):
        read(folder(tmp_path, num_latents=0))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"activation": "groupmax"}, "the activation groupmax is not something that saelab's SAE can hold exactly"),
        ({"signed": True}, "signed is not something"),
        ({"d_in": None}, "does not say 'd_in'"),
        ({"k": None}, "does not say 'k'"),
        ({"k": 0}, "k must be from 1"),
        ({"skip_connection": True}, "sae.safetensors has no tensor 'W_skip'"),
        ({"transcode": 1}, "transcode: expected true or false, got 1"),
        ({"d_in": D + 1}, "should be"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, config, words):
    path = folder(tmp_path, **config)
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)
