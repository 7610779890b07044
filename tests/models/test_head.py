"""What directions promote, against the final norm and head of each family called by name."""

import threading

import pytest
import torch
import transformers
from torch import nn

from saelab.models.head import Head
from saelab.models.language_model import LanguageModel

SIZES = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
OPT = SIZES | {"ffn_dim": 48, "eos_token_id": 1}
FAMILIES = {
    "opt": (transformers.OPTConfig, OPT | {"word_embed_proj_dim": 32},
            lambda m, r: m.lm_head(m.model.decoder.final_layer_norm(r))),
    "opt, projected": (transformers.OPTConfig, OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
                       lambda m, r: m.lm_head(m.model.decoder.project_out(r))),
    "gemma 2": (transformers.Gemma2Config, GATED | {"head_dim": 8, "final_logit_softcapping": 2.0},
                lambda m, r: 2 * torch.tanh(m.lm_head(m.model.norm(r)) / 2)),
    "cohere": (transformers.CohereConfig, GATED | {"logit_scale": 0.25},
               lambda m, r: m.lm_head(m.model.norm(r)) / 4),
    "granite": (transformers.GraniteConfig, GATED | {"logits_scaling": 8.0},
                lambda m, r: m.lm_head(m.model.norm(r)) / 8),
    "bloom": (transformers.BloomConfig, {"vocab_size": 90, "hidden_size": 32, "n_layer": 2, "n_head": 4,
                                         "bos_token_id": 0, "eos_token_id": 1},
              lambda m, r: m.lm_head(m.transformer.ln_f(r))),
    "gpt-neox": (transformers.GPTNeoXConfig, SIZES | {"intermediate_size": 48, "eos_token_id": 1},
                 lambda m, r: m.lm_head(m.gpt_neox.final_layer_norm(r))),
    "mamba": (transformers.MambaConfig, {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
              lambda m, r: m.lm_head(m.backbone.norm_f(r))),
    "gpt": (transformers.OpenAIGPTConfig, {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4},
            lambda m, r: m.lm_head(r)),
}  # fmt: skip


def made(family: str) -> nn.Module:
    config, options, _ = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config(**options)).eval().requires_grad_(False)
        for part in model.modules():
            if "norm" in type(part).__name__.lower():
                for value in part.parameters(recurse=False):
                    value.add_(0.5 * torch.randn_like(value))
            elif isinstance(part, nn.Linear):
                part.weight.mul_(5)
    return model


def rows(count: int = 64, size: float = 3.0) -> torch.Tensor:
    return size * torch.randn(count, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_norm_and_head(family):
    model, by_name = made(family), FAMILIES[family][2]
    head = Head(model, family, threading.Lock())
    assert (head.width, head.vocabulary) == (32, 90)
    r = rows()
    torch.testing.assert_close(head(r), by_name(model, r), rtol=1e-4, atol=1e-5)
    expected = (by_name(model, r) - by_name(model, -r)) / 2
    torch.testing.assert_close(head.promoted(r), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(head.promoted(r).argmax(1), expected.argmax(1))
    unit = 32**0.5 * r / r.norm(dim=1, keepdim=True)
    expected = (by_name(model, unit) - by_name(model, -unit)) / 2
    found = head.promoted_by(0.01 * r)
    torch.testing.assert_close(found, expected - expected.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_the_blocks_are_not_run_and_come_back():
    model = made("opt")
    head = Head(model, "opt", threading.Lock())
    ids = torch.tensor([[3, 4, 5]])
    before, run = model(ids).logits, []
    for block in model.model.decoder.layers:
        block.fc1.register_forward_hook(lambda *_: run.append(1))
    head(rows(4))
    assert not run
    assert torch.equal(model(ids).logits, before)
    assert len(run) == 2


def test_the_stream_is_what_the_last_block_gives():
    model = LanguageModel("pycode-7m", "model.layers.3")
    ids = torch.tensor([[5, 9, 200, 31], [7, 7, 12, 300]])
    stream = model.head.stream(ids)
    assert torch.equal(stream, LanguageModel("pycode-7m", "model.layers.5").activations(ids))
    logits = model.head(stream.flatten(0, 1))
    torch.testing.assert_close(logits.view(2, 4, -1), model.run(ids)[0], rtol=1e-4, atol=1e-4)


def test_logits_can_be_differentiated():
    model, by_name = made("gemma 2"), FAMILIES["gemma 2"][2]
    found, expected = rows(5).requires_grad_(), rows(5).requires_grad_()
    Head(model, "gemma", threading.Lock())(found)[:, 7].sum().backward()
    by_name(model, expected)[:, 7].sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_logits_that_depend_on_more_than_the_last_block_are_refused():
    model = made("opt")
    decoder = model.model.decoder
    kept = {}
    decoder.embed_tokens.register_forward_hook(lambda _, args, out: kept.update(embedding=out))
    decoder.final_layer_norm.register_forward_pre_hook(lambda _, args: (args[0] + kept["embedding"],))
    message = r"cannot be told of x: its logits depend on more than the output of model\.decoder\.layers\.1"
    with pytest.raises(ValueError, match=message):
        Head(model, "x", threading.Lock())


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\[n, 32\], got \[3, 8\]"):
        Head(made("opt"), "opt", threading.Lock())(torch.zeros(3, 8))
