"""An SAE as the object that SAEBench evaluates: the same codes and reconstructions, by its names."""

import json

import pytest
import torch
from interchange.foreign import D, L, rows
from interchange.test_interchange import KINDS, SOURCE, ours

from saelab import SAE
from saelab.interchange import saebench
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.sae.scales.layer_norm import LayerNorm


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_computes_the_same(kind):
    sae = ours(KINDS[kind](), scaled=True)
    sae.dictionary.W_dec /= sae.dictionary.W_dec.norm(dim=1, keepdim=True)
    bench, x = saebench(sae, SOURCE), rows().view(4, 10, D)
    assert bench.W_enc.shape == (D, L)
    torch.testing.assert_close(bench.W_dec.norm(dim=1), torch.ones(L))
    codes = bench.encode(x)
    assert codes.shape == (4, 10, L)
    assert codes.count_nonzero() > 20
    torch.testing.assert_close(codes.flatten(0, 1), sae.encode(x.flatten(0, 1)).dense() * 2.5, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bench(x), sae(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bench.decode(codes), bench(x))
    half = bench.to(dtype=torch.bfloat16)
    assert half.encode(x).dtype == half.dtype == torch.bfloat16


@torch.no_grad()
def test_directions_are_brought_to_unit_norm_where_codes_stay_the_same_latents():
    sae = ours(ReLU())
    bench, norms = saebench(sae), sae.dictionary.directions().norm(dim=1)
    torch.testing.assert_close(bench.W_dec.norm(dim=1), torch.ones(L))
    torch.testing.assert_close(bench.encode(rows()), sae.encode(rows()).dense() * norms, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bench(rows()), sae(rows()), rtol=1e-5, atol=1e-5)


def test_its_config_says_where_it_is_from():
    about = saebench(ours(ReLU()), SOURCE).cfg.to_dict()
    assert json.loads(json.dumps(about))["hook_name"] == "blocks.8.hook_resid_post"
    assert (about["model_name"], about["hook_layer"], about["d_in"], about["d_sae"]) == ("gpt2", 8, D, L)
    assert saebench(ours(ReLU())).cfg.hook_layer == -1


@pytest.mark.parametrize(
    ("sae", "words"),
    [
        (lambda: ours(ReLU(), d_out=D), "no form for transcoders"),
        (lambda: SAE(D, L, TopK(3), dictionary=Crosscoder()), "no form for transcoders, several sites"),
        (lambda: SAE(D, L, TopK(3), scale=LayerNorm()), "rows that each have their own scale"),
        (lambda: ours(TopK(3)), "TopK may keep other latents of directions of unit norm"),
    ],
)
def test_what_it_has_no_form_for(sae, words):
    with pytest.raises(ValueError, match=words):
        saebench(sae())
