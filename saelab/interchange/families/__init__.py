"""Files of other libraries, one library a file. A new file is found without its line here, which type checkers read."""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.interchange.families.circuit_tracer import CircuitTracer
from saelab.interchange.families.dictionary_learning import DictionaryLearning
from saelab.interchange.families.gemma_scope import GemmaScope
from saelab.interchange.families.goodfire import Goodfire
from saelab.interchange.families.llama_scope import LlamaScope
from saelab.interchange.families.openai import OpenAI
from saelab.interchange.families.qwen_scope import QwenScope
from saelab.interchange.families.sae_lens import SAELens
from saelab.interchange.families.sparsify import Sparsify

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.interchange.family", "Family")

__all__ = [
    "CircuitTracer",
    "DictionaryLearning",
    "GemmaScope",
    "Goodfire",
    "LlamaScope",
    "OpenAI",
    "QwenScope",
    "SAELens",
    "Sparsify",
]
