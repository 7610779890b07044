"""A file of no known library, by a map of its tensors that the user gives, and the map to start from.

    encoder=NAME   decoder=NAME   encoder_bias=NAME   bias=NAME   output_bias=NAME   threshold=NAME   skip=NAME

An encoder has a row a latent, [L, D], and so has a decoder, [L, O]; ".T" behind a name says that the file has it the
other way round. `bias` is subtracted before encoding and added after decoding, `output_bias` is only added. Biases that
are not named are zero.
"""

# Shape letters: L latents, D width read, O width written.

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saelab.core.components import near_miss
from saelab.interchange.files import Files, Tensors
from saelab.interchange.plain import READ_AS, Plain, plain_from

WORDS = {
    "encoder": "W_enc", "decoder": "W_dec", "encoder_bias": "b_enc", "bias": "b_dec", "output_bias": "b_dec",
    "threshold": "threshold", "skip": "W_skip",
}  # fmt: skip
"""What the parts are called in a map, and here."""
SHOWN = 12
"""Tensors that a complaint lists."""


def plain_of(files: Files, words: Sequence[str], activation: str, k: float | None) -> Plain:
    """What a file holds by a map, `WORD=NAME` each.

    Args:
        files: one file of weights, or a folder with one.
        words: the map.
        activation: TopK, ReLU, ...: how codes come from pre-activations.
        k: latents kept a row, where the activation has a k.

    Raises:
        ValueError: for a map that is none, an activation that does not fit it, or tensors that do not fit each other.
    """
    if files.lone is None:
        raise ValueError(f"{files.path} is no file of weights: name the one that the map is of")
    kinds, named = {name: kind for kind, name in READ_AS.items()}, _parsed(words)
    kind = kinds.get(activation)
    if kind is None or kind == "gated":
        known = [name for name in kinds if name != "Gated"]
        what = f"a map is read with one of {', '.join(known)}, not '{activation}'"
        raise ValueError(f"{what}{near_miss(activation, known)}")
    if ("threshold" in named) != (kind in ("jumprelu", "batchtopk")):
        raise ValueError(f"{activation} {'has no threshold' if 'threshold' in named else 'needs threshold=NAME'}")
    if (k is None) == (kind in ("topk", "abstopk", "batchtopk")):
        raise ValueError(f"{activation} {'needs --k' if k is None else 'has no k'}")
    return _read(Tensors(files.lone, flat(files.entries(files.lone))), named, kind, k)


def _parsed(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=")[::2] for word in words]
    for word, name in pairs:
        if word not in WORDS or not name:
            what = f"--map {word}={name}: expected WORD=NAME with one of {', '.join(WORDS)}"
            raise ValueError(f"{what}{near_miss(word, WORDS)}")
    named = dict(pairs)
    if not {"encoder", "decoder"} <= named.keys() or {"bias", "output_bias"} <= named.keys() or len(named) < len(pairs):
        raise ValueError("--map needs encoder=NAME and decoder=NAME, each word once, and one of bias and output_bias")
    return named


def _read(tensors: Tensors, named: Mapping[str, str], kind: str, k: float | None) -> Plain:
    encoder, decoder = (_shape(tensors, named[word]) for word in ("encoder", "decoder"))
    is_transcoder = "skip" in named or (len(encoder) == len(decoder) == 2 and encoder[1] != decoder[1])
    shared = "threshold" in named and not _shape(tensors, named["threshold"])  # one for all latents
    layout = {WORDS[word]: name for word, name in named.items() if not (word == "threshold" and shared)}
    plain = plain_from(tensors, layout, kind, is_transcoder)
    if is_transcoder and "bias" in named:
        raise ValueError("a transcoder subtracts no bias: its bias is output_bias=NAME")
    n_latents, width = plain.matrices["W_dec"].shape
    for name, size in (("b_enc", n_latents), ("b_dec", width)):
        plain.vectors.setdefault(name, torch.zeros(size, dtype=plain.dtype))
    if shared:
        plain.set_threshold(tensors.take(named["threshold"], ""))
    plain.k = k
    if "bias" not in named and not is_transcoder:
        plain.shift()
    return plain


def _shape(tensors: Tensors, name: str) -> list[int]:
    """The shape of a tensor as the map has it; empty where there is none."""
    tensor = tensors.entries.get(name.removesuffix(".T"))
    shape = list(tensor.shape) if isinstance(tensor, Tensor) else []
    return shape[::-1] if name.endswith(".T") else shape


def flat(entries: Mapping[str, Any], before: str = "") -> dict[str, Tensor]:
    """The tensors in tables inside each other, their names joined by dots."""
    found: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if isinstance(entry, Tensor):
            found[f"{before}{name}"] = entry
        elif isinstance(entry, Mapping) and before.count(".") < 3:
            found |= flat(entry, f"{before}{name}.")
    return found


def offered(files: Files) -> str:
    """The tensors found in one file, and a map of them to start from; nothing where there are none."""
    if files.lone is None or not (tensors := flat(files.entries(files.lone))):
        return ""
    names = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    guess = " ".join(f"{word}={name}" for word, name in _guessed(tensors)) or "encoder=NAME decoder=NAME.T ..."
    return f"it holds {listed}; if that is an SAE, say what they are, such as --map {guess} --activation TopK --k 32"


def _guessed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Words and names by shapes, where two matrices are as an encoder and a decoder are."""
    matrices = sorted(
        (name for name, tensor in tensors.items() if tensor.ndim == 2), key=lambda name: "enc" not in name.lower()
    )
    for decoder in matrices[1:]:
        n_latents, width = sorted(tensors[matrices[0]].shape, reverse=True)
        if sorted(tensors[decoder].shape) == [width, n_latents]:
            for word, name in (("encoder", matrices[0]), ("decoder", decoder)):
                yield word, name if tensors[name].shape[0] == n_latents else f"{name}.T"
            for word, size in (("encoder_bias", n_latents), ("bias", width)):
                fitting = [name for name, tensor in tensors.items() if list(tensor.shape) == [size]]
                yield from ((word, name) for name in sorted(fitting, key=lambda name: "b" not in name.lower())[:1])
            return
