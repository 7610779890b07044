"""Other libraries' names of places: in every family the rows are what the name means, computed with hooks by hand."""

import json
import random
import re
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

from campaigns.architectures import FAMILIES, made
from campaigns.site_names import entry
from saelab.core.site_names import DOUBTFUL, FILE, HOOKED, PLACES, as_nnsight, as_site, families
from saelab.models.language_model import LanguageModel
from saelab.models.sites import sites_of
from saelab.models.structure import block_at, blocks_of, names_of

IDS = torch.tensor([[3, 9, 21, 5, 40], [8, 30, 2, 17, 11]])
LLAMA = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
NORMED = LLAMA | {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
NEOX = {"attention": "attention.dense", "mlp": "mlp.dense_4h_to_h"}
OPT = {"attention": "self_attn.out_proj", "mlp": "fc2"}
FALCON = {"attention": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"}
BESIDE = {"beside": "1"}
WRITERS: dict[str, dict[str, str]] = {
    "GPT-2": {"attention": "attn.c_proj", "mlp": "mlp.c_proj"},
    "GPT-NeoX": NEOX | BESIDE,
    "GPT-NeoX, sequential": NEOX,
    **dict.fromkeys(["Llama", "Mistral", "Gemma", "Qwen 2", "Qwen 3", "Phi-3"], LLAMA),
    **dict.fromkeys(["Gemma 2", "Gemma 3", "OLMo 2"], NORMED),
    "Phi": {"attention": "self_attn.dense", "mlp": "mlp.fc2"} | BESIDE,
    "OPT": OPT,
    "OPT, projected": OPT | {"after": "self_attn_layer_norm", "end": "final_layer_norm"},
    "BLOOM": FALCON,
    "Falcon": FALCON | BESIDE,
    "Falcon, new": FALCON | BESIDE,
    "Falcon, sequential": FALCON,
    "BERT, decoder": {"attention": "attention.output.dense", "mlp": "output.dense",
                      "after": "attention.output.LayerNorm", "end": "output.LayerNorm"},
    "Cohere": LLAMA | BESIDE,
    "GPT-J": {"attention": "attn.out_proj", "mlp": "mlp.fc_out"} | BESIDE,
    "MPT": {"attention": "attn.out_proj", "mlp": "ffn.down_proj"},
}  # fmt: skip
"""Which projections write what a block adds, the norms behind them, and (after, end) norms of the stream itself."""


def by_hand(model, path: str, writers: dict[str, str]) -> dict[str, Tensor]:
    """The values of a block's places by their definitions, from what its two projections give."""
    block, seen, hooks = model.get_submodule(path), {}, []
    for part in ("attention", "mlp"):

        def note(module, args, output, part=part):
            seen[part, "in"], seen[part, "out"] = (value.reshape(*IDS.shape, -1).clone() for value in (args[0], output))

        hooks.append(block.get_submodule(writers[part]).register_forward_hook(note))
    with torch.no_grad():
        stream = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()

        def normed(value: Tensor, norm: str) -> Tensor:
            return block.get_submodule(writers[norm])(value) if norm in writers else value

        pre = stream[int(path.rpartition(".")[2])]
        attention, mlp = (normed(seen[part, "out"], f"{part}_norm") for part in ("attention", "mlp"))
        mid = pre + attention
        post = normed(mid, "after") + mlp
        found = {
            "hook_resid_pre": pre, "hook_resid_mid": mid, "hook_resid_post": post, "hook_attn_out": attention,
            "hook_mlp_out": mlp, "attn.hook_z": seen["attention", "in"], "mlp.hook_post": seen["mlp", "in"],
        }  # fmt: skip
        if "end" in writers:
            found["hook_normalized_resid_post"] = normed(post, "end")
    if "beside" in writers:
        del found["hook_resid_mid"]
    following = found.get("hook_normalized_resid_post", post)
    if int(path.rpartition(".")[2]) + 2 < len(stream):  # the last is behind the final norm
        assert torch.allclose(stream[int(path.rpartition(".")[2]) + 1], following, rtol=1e-4, atol=1e-4)
    return found


@pytest.mark.parametrize("family", WRITERS)
def test_the_rows_at_a_name_are_what_the_name_means(family):
    model, blocks = made(family, random.Random(family))
    for number, path in enumerate(blocks_of(model)):
        assert path == f"{blocks}.{number}"
        expected = by_hand(model, path, WRITERS[family])
        seen: dict[str, Tensor] = {}
        sites = {place: sites_of(model, family, f"blocks.{number}.{place}")[0] for place in expected}
        hooks = [
            site.hook(IDS.shape, lambda value, seen=seen, place=place: seen.__setitem__(place, value.clone()))
            for place, site in sites.items()
        ]
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
        for hook in hooks:
            hook.remove()
        for place, value in expected.items():
            off = (seen[place] - value).abs().max() / value.abs().max()
            assert off < 1e-5, f"{family}, block {number}, {place}: off by {off:.1e} of the largest"
        absent = set(HOOKED) - set(expected)
        for place in absent:
            with pytest.raises(ValueError, match=f"{family} .*{re.escape(place)} in {re.escape(path)}"):
                sites_of(model, family, f"blocks.{number}.{place}")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_of_names_says_what_the_models_tell(family):
    assert families()[family] == json.loads(json.dumps(entry(family))), "stale: python -m campaigns.site_names"


def test_the_file_of_names_says_what_it_was_made_with():
    assert json.loads(FILE.read_text())["transformers"] == version("transformers"), "python -m campaigns.site_names"
    assert set(families()) == set(FAMILIES)
    assert all(set(one["sites"]) | set(one["absent"]) == set(PLACES) for one in families().values())


# ---- other spellings ----


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("model.transformer.h[1].output[0]", "transformer.h.1"),
        ("transformer.h[1].mlp.input", "transformer.h.1.mlp:in"),
        ("transformer.h[1].inputs[0][0]", "transformer.h.1:in"),
        ("h.1", "transformer.h.1"),
        ("layers[1].output", "transformer.h.1"),
        ("model.layers[1].self_attn.output", "transformer.h.1.attn"),
        ("layers_input[1]", "transformer.h.1:in"),
        ("model.mlps_output[1]", "transformer.h.1.mlp"),
        ("attentions_output[1]", "transformer.h.1.attn"),
        ("blocks.1.mlp.hook_in", "transformer.h.1.mlp:in"),
        ("blocks.1.hook_out", "transformer.h.1"),
    ],
)
def test_other_spellings_of_a_place(tiny_gpt2, name, site):
    """With their columns where they belong, in all that takes a site."""
    model = LanguageModel(str(tiny_gpt2), f"{name}, transformer.h.0", target="blocks.2.hook_mlp_out")
    assert (model.site, model.target) == (f"{site},transformer.h.0", "transformer.h.2.mlp")
    own = LanguageModel(str(tiny_gpt2), f"{site}, transformer.h.0", target="transformer.h.2.mlp")
    assert own.site == f"{site}, transformer.h.0"
    assert torch.equal(model.activations(IDS), own.activations(IDS))


def test_names_of_a_site_mean_that_site():
    for family in ("GPT-2", "OLMo 2", "BLOOM", "OPT", "Phi"):
        model, blocks = made(family, random.Random(0))
        block = block_at(model, f"{blocks}.1")
        for inner in {*block.sites.values()}:
            site = f"{blocks}.1{inner}"
            names = names_of(model, site)
            assert {"TransformerLens", "nnsight"} <= names.keys()
            for name in names.values():
                assert [one.name for one in sites_of(model, family, name)] == [site], (family, names)
    assert names_of(model, "model.layers.1.mlp") == {
        "TransformerLens": "blocks.1.hook_mlp_out", "nnsight": "model.model.layers[1].mlp.output",
        "nnterp": "mlps_output[1]",
    }  # fmt: skip
    assert names_of(model, "lm_head:in") == {"nnsight": "model.lm_head.input"}
    assert as_site(as_nnsight("a.0.b.12:in")) == "model.a.0.b.12:in"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.3.hook_resid_post", r"has 3 blocks, numbered from 0, and no block 3"),
        ("blocks.1.hook_q", r"no site is known for the hook 'hook_q'; known are hook_resid_pre, "),
        *((f"blocks.1.{name}", rf"'{re.escape(name)}' is not one place: ") for name in DOUBTFUL),
        ("layers[1].nothing", r"has no module 'layers\[1\].nothing'; closest: "),
    ],
)
def test_names_without_a_place_are_refused(tiny_gpt2, name, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(str(tiny_gpt2), name)


def test_a_stream_with_a_few_huge_values_in_half_precision(pycode_dir):
    """As large models have: nothing else may pass for a sum there."""
    model = LanguageModel(str(pycode_dir), "model.layers.0", dtype="bfloat16").model
    expected = families()["Llama"]["sites"]
    assert block_at(model, "model.layers.3").sites == expected
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 7] += 3000.0
    assert block_at(model, "model.layers.3").sites == expected


def test_mlps_of_flat_rows_can_be_read_and_replaced():
    """OPT hands its MLP the tokens of all rows one after the other."""
    model, blocks = made("OPT", random.Random(2))
    values: list[Tensor] = []
    (site,) = sites_of(model, "OPT", "blocks.1.hook_mlp_out")
    with site.hook(IDS.shape, lambda value: values.append(value) or torch.zeros_like(value)), torch.no_grad():
        found = model(input_ids=IDS, use_cache=False).logits
    assert values[0].shape == (*IDS.shape, model.config.hidden_size)
    with torch.no_grad():
        for parameter in model.get_submodule(f"{blocks}.1.fc2").parameters():
            parameter.zero_()
        assert torch.equal(found, model(input_ids=IDS, use_cache=False).logits)
