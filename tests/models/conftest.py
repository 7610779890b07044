"""Tiny random language models, saved with a tokenizer as transformers saves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SAMPLE = ["def area(width, height):\n    return width * height\n", "the quick brown fox jumps over the lazy dog. " * 3]


def tokenizer_with(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens; special tokens as given, e.g. bos_token="<s>"."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = sorted(set(special.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    inner.train_from_iterator(SAMPLE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **special)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return tokenizer_with


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_with(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a random Llama: 3 layers, width 16, context 16."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return saved(LlamaForCausalLM(config), bos_tokenizer, tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a random GPT-2: 3 layers, width 12, context 16."""
    config = GPT2Config(vocab_size=320, n_embd=12, n_layer=3, n_head=2, n_positions=16, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return saved(GPT2LMHeadModel(config), bos_tokenizer, tmp_path_factory.mktemp("tiny_gpt2"))


def saved(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
