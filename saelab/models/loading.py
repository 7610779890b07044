"""From a name to a causal language model and its tokenizer, or one line that says why not and what to do.

Whether a model is causal is written down nowhere that can be relied on, so it is tried: see `check_causal`. Code that
comes with a model is never executed. Left out: quantised weights, models spread over several devices.
"""

# Shape letters: V vocabulary.

import hashlib
import importlib.metadata
import importlib.resources
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BUNDLED = "pycode-7m"
NEEDED = 5
"""The oldest major version of transformers that will do."""
# Of a config: what changes with the library, the place or the way of loading, but not with the model.
VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
SAMPLED = 64  # values of each parameter in the fingerprint


def bundled_folder() -> Path:
    """The folder of the model that comes with saelab; ValueError if this installation lacks it."""
    folder = Path(str(importlib.resources.files("saelab"))) / "assets" / BUNDLED
    if not (folder / "config.json").exists():
        raise ValueError(f"the bundled model {BUNDLED} is missing from {folder}: install saelab again")
    return folder


def loaded_model(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The transformers model and its tokenizer; ValueError for a model that cannot be loaded or is not causal by kind.

    Args:
        name: a folder, a name on the hub, or `pycode-7m`.
        dtype: of the weights.
    """
    transformers = _library()
    place = str(bundled_folder()) if name == BUNDLED else str(Path(name).expanduser())
    is_folder = Path(place).is_dir()
    if not is_folder and (Path(place).is_absolute() or name.startswith(".") or place.count("/") > 1):
        raise ValueError(f"there is no folder '{name}' with a model in it")

    def read(part: str, load: Callable[..., Any], **options: Any) -> Any:
        try:
            with _quiet():
                return load(place, trust_remote_code=False, **options)
        except Exception as error:  # a damaged folder or a missing network surfaces as almost anything
            raise ValueError(f"cannot load the model '{name}': {_reason(error, part, is_folder)}") from error

    config = read("config", transformers.AutoConfig.from_pretrained)
    if config.is_encoder_decoder:
        raise ValueError(
            f"'{name}' is an encoder-decoder ({config.model_type}), which predicts from another text as well; saelab "
            "reads causal language models, so choose one of those"
        )
    options = {"dtype": dtype, "output_loading_info": True}
    model, report = read("model", transformers.AutoModelForCausalLM.from_pretrained, **options)
    # transformers fills gaps with random numbers and only logs it.
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"the model '{name}' lacks {len(missing)} of its weights: {shown}; get a complete copy")
    return model, read("tokenizer", transformers.AutoTokenizer.from_pretrained)


def _library() -> Any:
    """transformers; ValueError unless it is new enough."""
    found = importlib.metadata.version("transformers")
    if int(found.partition(".")[0]) < NEEDED:
        raise ValueError(
            f"transformers {found} is installed, saelab needs {NEEDED} or newer: pip install 'transformers>={NEEDED}'"
        )
    import transformers

    return transformers


# ---- why it could not be loaded ----


def _reason(error: Exception, part: str, is_folder: bool) -> str:
    """Why the model's config, weights or tokenizer could not be read, and what to do."""
    text, first = str(error), _first_line(error)
    version = importlib.metadata.version("transformers")
    if "trust_remote_code" in text:
        return (
            f"its {part} needs code that comes with it, which saelab never executes; choose a copy for the classes of "
            "transformers itself, or load it yourself and give LanguageModel(model, site, tokenizer=tokenizer)"
        )
    if found := re.search(r"model type `([^`]*)`", text):
        return (
            f"transformers {version} has no model type '{found[1]}': install a newer one, or correct model_type in "
            "the model's config.json"
        )
    if found := re.search(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'>", text):
        return f"transformers has no causal language model for a {found[1]}; choose a causal language model"
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return f"there is not enough memory for it ({first}); choose a smaller model or precision"
    if isinstance(error, ImportError):
        return f"a package that it needs is not installed ({first})"
    if not is_folder:
        return _hub_reason(error, first)
    if part == "tokenizer":
        return (
            f"its tokenizer's files are incomplete, damaged or of another version of transformers than {version} "
            f"({first}); get all of them, or save the tokenizer again with this version"
        )
    return f"its folder is damaged or incomplete ({first})"


def _hub_reason(error: Exception, first: str) -> str:
    bundled = f"(the bundled model is '{BUNDLED}')"
    if "couldn't connect" in first.lower() or isinstance(error, ConnectionError):
        return f"there is no folder of that name and the hub cannot be reached {bundled}"
    if "not a valid model identifier" in first:
        return f"there is no folder of that name and the hub has no such model {bundled}"
    return f"there is no folder of that name, and the hub's copy gives: {first}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and logging warnings; its settings come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# ---- what has to hold of a model ----


def named(model: Any) -> str:
    """What a model that is given, and not loaded by name, is called; ValueError for something else than a model."""
    if not hasattr(model, "get_input_embeddings") or not hasattr(model, "config"):
        raise ValueError(f"expected a name or a causal language model of transformers, got a {type(model).__name__}")
    return model.config.name_or_path or type(model).__name__


def check_tokenizer(model: Any, tokenizer: Any, name: str) -> None:
    """ValueError for a tokenizer that is missing or can hardly be the model's own."""
    if tokenizer is None:
        raise ValueError(f"the tokenizer of {name} is missing: give it as tokenizer=")
    known = model.get_input_embeddings().num_embeddings  # more than tokens, where they are rounded up
    if 2 * len(tokenizer) < known:
        raise ValueError(
            f"the tokenizer does not match {name}: it has {len(tokenizer):,} tokens, the model {known:,}; "
            "put the model's own into the folder"
        )


def trial_ids(model: Any) -> Tensor:
    """Token ids [2, 2] that differ in their last token only, on the model's device."""
    known = model.get_input_embeddings().num_embeddings
    return torch.tensor([[0, 1], [0, 2]], device=model.device) % known


def check_causal(logits: Tensor, name: str) -> None:
    """ValueError unless a later token leaves earlier logits alone.

    Args:
        logits: the model's own for `trial_ids`, [2, 2, V].
        name: what the error calls the model.
    """
    change = (logits[0, 0] - logits[1, 0]).abs().max()
    if change > rounding(logits.dtype) * logits.abs().max():
        raise ValueError(
            f"{name} is not causal: its logits at a token change with the token after it (a bidirectional model, such "
            "as BERT without is_decoder); saelab reads causal language models, so choose one of those"
        )


def rounding(dtype: torch.dtype) -> float:
    """How far two ways to one number may lie apart, as a share of the largest of them; 9e-5 in float32."""
    return float(torch.finfo(dtype).eps) ** 0.5 / 4


def fingerprint_of(model: Any) -> str:
    """Hex digest of a model's config and of a sample of every parameter."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        stride = -(-parameter.numel() // SAMPLED) or 1
        sample = parameter.detach().flatten()[::stride].float().cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
