"""A file of no known library, read by a map of its tensors."""

import numpy as np
import pytest
import torch
from interchange.foreign import D, K, L, O, both_precisions, exact, kept, random, rows, save, topk, weights

from saelab import load
from saelab.interchange import read
from saelab.interchange.family import opened_by_map
from saelab.interchange.plain import built

pytest_plugins = ["recipes.small_world"]
THEIRS = {"W_enc": "encoder_weights", "b_enc": "latent_shift", "W_dec": "decoder_weights", "b_dec": "pre_bias"}


def theirs(dtype=torch.float32, width=D) -> dict[str, torch.Tensor]:
    named = {THEIRS[name]: part for name, part in kept(weights(width), dtype).items()}
    return named | {"encoder_weights": named["encoder_weights"].T}


MAP = ["encoder=encoder_weights.T", "decoder=decoder_weights", "encoder_bias=latent_shift"]


def check(path, words, activation, k, codes, x_hat):
    plain, description = opened_by_map(path, words, activation, k)
    sae = built(plain, path)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(rows()).dense().double(), codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(rows()).double(), x_hat, rtol=1e-5, atol=1e-5)
    assert description.family == "a map"


@both_precisions
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npz"])
def test_topk(tmp_path, dtype, suffix):
    tensors = theirs(dtype)
    w = exact(tensors)
    if suffix == "npz":
        np.savez(tmp_path / "mine.npz", **{name: part.float().numpy() for name, part in tensors.items()})
    else:
        save(tmp_path, f"mine.{suffix}", tensors if suffix == "safetensors" else {"model": {"sae": tensors}})
    before = "model.sae." if suffix == "pt" else ""
    words = [word.replace("=", f"={before}") for word in [*MAP, "bias=pre_bias"]]
    codes = topk((rows().double() - w["pre_bias"]) @ w["encoder_weights"] + w["latent_shift"], K).relu()
    x_hat = codes @ w["decoder_weights"] + w["pre_bias"]
    check(tmp_path / f"mine.{suffix}", words, "TopK", K, codes, x_hat)


def test_what_is_not_named_is_zero_and_thresholds(tmp_path):
    tensors = theirs() | {"cut": torch.tensor(0.3), "cuts": random(L, seed=5).abs()}
    path, w, x = save(tmp_path, "mine.pt", tensors) / "mine.pt", exact(tensors), rows().double()
    codes = (x @ w["encoder_weights"]).relu()
    check(path, MAP[:2], "ReLU", None, codes, codes @ w["decoder_weights"])
    pre = x @ w["encoder_weights"] + w["latent_shift"]
    for name, activation, k in (("cut", "BatchTopK", 3.5), ("cuts", "JumpReLU", None)):
        codes = pre * (pre > w[name])
        x_hat = codes @ w["decoder_weights"] + w["pre_bias"]
        check(path, [*MAP, "output_bias=pre_bias", f"threshold={name}"], activation, k, codes, x_hat)


@pytest.mark.parametrize("skip", [False, True])
def test_transcoders(tmp_path, skip):
    tensors = theirs(width=O) | {"past": random(D, O, seed=9)}
    path, w, x = save(tmp_path, "mine.pt", tensors) / "mine.pt", exact(tensors), rows().double()
    codes = (x @ w["encoder_weights"] + w["latent_shift"]).relu()
    x_hat = codes @ w["decoder_weights"] + w["pre_bias"] + (x @ w["past"] if skip else 0)
    check(path, [*MAP, "output_bias=pre_bias", *["skip=past.T"][: int(skip)]], "ReLU", None, codes, x_hat)


GUESS = "--map encoder=encoder_weights.T decoder=decoder_weights encoder_bias=latent_shift bias=pre_bias"


def test_the_refusal_lists_the_tensors_and_a_map_that_works(saelab, tmp_path):
    path = save(tmp_path / "theirs", "mine.pt", theirs() | {"step": torch.tensor(3)}) / "mine.pt"
    said = saelab("convert", path, tmp_path / "ours").complaint
    assert (
        f"it holds encoder_weights [{D}, {L}], latent_shift [{L}], decoder_weights [{L}, {D}], pre_bias [{D}]" in said
    )
    assert f"{GUESS} --activation TopK --k 32" in said
    ended = saelab("convert", path, tmp_path / "ours", *GUESS.split(), "--activation", "TopK", "--k", "3")
    assert ended.status == 0, ended.err
    assert f"a map TopK, {D} -> {L} latents -> {D}, read as TopK" in ended.out
    assert load(tmp_path / "ours").activation.k == 3
    save(tmp_path / "odd", "mine.pt", {"a": torch.zeros(3, 4), "b": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"it holds a \[3, 4\], b \[5\]; .*--map encoder=NAME decoder=NAME.T"):
        read(tmp_path / "odd")


@pytest.mark.parametrize(
    ("words", "activation", "k", "says"),
    [
        (["encoder"], "ReLU", None, r"--map encoder=: expected WORD=NAME with one of encoder, decoder"),
        (["encodr=x"], "ReLU", None, "did you mean 'encoder'"),
        (MAP[:1], "ReLU", None, "--map needs encoder=NAME and decoder=NAME"),
        ([*MAP[:2], "decoder=x"], "ReLU", None, "each word once"),
        ([*MAP, "bias=pre_bias", "output_bias=pre_bias"], "ReLU", None, "one of bias and output_bias"),
        (MAP, "Gated", None, "a map is read with one of ReLU, TopK, AbsTopK, JumpReLU, BatchTopK, not 'Gated'"),
        (MAP, "TopK", None, "TopK needs --k"),
        (MAP, "ReLU", 3, "ReLU has no k"),
        (MAP, "JumpReLU", None, "JumpReLU needs threshold=NAME"),
        ([*MAP, "threshold=latent_shift"], "ReLU", None, "ReLU has no threshold"),
        (["encoder=encoder_weights", MAP[1]], "ReLU", None, rf"decoder_weights should be \[{D}, \?\]"),
        ([MAP[0], "decoder=decoder_weigths"], "ReLU", None, "has no tensor 'decoder_weigths'; did you mean"),
        ([*MAP, "bias=pre_bias", "skip=decoder_weights"], "ReLU", None, "decoder_weights should be"),
    ],
)
def test_maps_that_are_none(tmp_path, words, activation, k, says):
    path = save(tmp_path, "mine.pt", theirs()) / "mine.pt"
    with pytest.raises(ValueError, match=says) as error:
        opened_by_map(path, words, activation, k)
    assert "\n" not in str(error.value)
