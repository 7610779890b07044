"""Files of other libraries, one library a file. A new file is found without its line here, which type checkers read."""

from typing import TYPE_CHECKING

from saelab.core.components import import_variants
from saelab.interchange.families.batch_topk import BatchTopKAuthors
from saelab.interchange.families.circuit_tracer import CircuitTracer
from saelab.interchange.families.circuit_tracer_clt import CrossLayerTranscoder
from saelab.interchange.families.crosscoder import CrosscoderFiles
from saelab.interchange.families.dictionary_learning import DictionaryLearning
from saelab.interchange.families.gemma_scope import GemmaScope
from saelab.interchange.families.gemma_scope_clt import GemmaScopeCLT
from saelab.interchange.families.goodfire import Goodfire
from saelab.interchange.families.hook_z import HookZ
from saelab.interchange.families.llama_scope import LlamaScope
from saelab.interchange.families.llamascopium import Llamascopium
from saelab.interchange.families.openai import OpenAI
from saelab.interchange.families.prisma import Prisma
from saelab.interchange.families.qwen_scope import QwenScope
from saelab.interchange.families.sae_lens import SAELens
from saelab.interchange.families.sparsify import Sparsify
from saelab.interchange.families.temporal import Temporal

if not TYPE_CHECKING:  # so that a type checker still says of a misspelt name that there is none
    __getattr__ = import_variants("saelab.interchange.family", "Family")

__all__ = [
    "BatchTopKAuthors",
    "CircuitTracer",
    "CrossLayerTranscoder",
    "CrosscoderFiles",
    "DictionaryLearning",
    "GemmaScope",
    "GemmaScopeCLT",
    "Goodfire",
    "HookZ",
    "LlamaScope",
    "Llamascopium",
    "OpenAI",
    "Prisma",
    "QwenScope",
    "SAELens",
    "Sparsify",
    "Temporal",
]
