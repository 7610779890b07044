"""circuit-tracer's cross-layer transcoders: `W_enc_N.safetensors` and `W_dec_N.safetensors` for layers N = 0 ... S - 1.

f_l = relu(pre_l), or pre_l 1[pre_l > threshold_l]      pre_l = x_l W_enc_l.T + b_enc_l        W_enc_l [L, D]
x_hat_m = sum over l <= m of f_l W_dec_l[:, m - l] + b_dec_m                                   W_dec_l [L, S - l, D]
"""

# Shape letters: L latents of a layer, D width of a layer, S layers.

from pathlib import Path
from typing import Any

import torch

from saelab.core.files import write_tensors
from saelab.interchange.families.circuit_tracer import config_of, named, source_of, write_config
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Tensors
from saelab.interchange.matrix import Matrix
from saelab.interchange.plain import Plain

ENCODER, DECODER, END = "W_enc_", "W_dec_", ".safetensors"


class CrossLayerTranscoder(Family):
    """Files of circuit-tracer's cross-layer transcoders."""

    title = "circuit_tracer_clt"
    weights = (f"{ENCODER}*{END}", f"{DECODER}*{END}")
    dictionaries = ("CrossLayer",)

    def claims(self, files: Files) -> bool:
        return files.path.is_dir() and bool(files.numbered(ENCODER, END)) and bool(files.numbered(DECODER, END))

    def read(self, files: Files) -> tuple[Plain, Description]:
        encoders, sites = [], len(files.numbered(ENCODER, END))
        for layer in range(sites):
            encoders.append(files.tensors(f"{ENCODER}{layer}{END}"))
            encoders[layer].sizes = encoders[0].sizes
        is_jump = "threshold_0" in encoders[0]
        read = [one.matrix(f"{ENCODER}{layer}", "LD") for layer, one in enumerate(encoders)]
        written = []
        for layer in range(sites):
            tensors = files.tensors(f"{DECODER}{layer}{END}")
            tensors.sizes = encoders[0].sizes | {"S": sites - layer}
            written.append(tensors.stacked(f"{DECODER}{layer}", "LSD", "LSD"))
        plain = cross_layer(read, written, "jumprelu" if is_jump else "relu")
        for name, axes in ({"b_enc": "L", "b_dec": "D"} | ({"threshold": "L"} if is_jump else {})).items():
            plain.vectors[name] = _joined(encoders, name, axes)
        config = config_of(files)
        if is_jump and (plain.vectors["threshold"] < 0).any():
            raise config.refuse("a threshold below zero", "it would pass negative codes")
        found, said = source_of(config, list(range(sites)))
        return plain, Description(self.title, f"cross-layer transcoder of {sites} layers", found, said)

    def write(self, plain: Plain, folder: Path, source: dict[str, Any]) -> list[str]:
        sites, (n_latents, _, width) = plain.sites, plain.sizes
        layers, about = named(self, plain, source, sites)
        if layers != list(range(sites)):
            raise self.no_form(f"layers {layers}: they have to be all from 0 on")
        own, wide = n_latents // sites, width // sites
        for layer in range(sites):
            span = slice(layer * own, (layer + 1) * own)
            encoder = {f"{ENCODER}{layer}": plain.matrices["W_enc"].rows(span.start, span.stop)}
            for name in {"b_enc", "threshold"} & plain.vectors.keys():
                encoder[f"{name}_{layer}"] = plain.vectors[name][span]
            encoder[f"b_dec_{layer}"] = plain.vectors["b_dec"][layer * wide : (layer + 1) * wide]
            write_tensors(folder / f"{ENCODER}{layer}{END}", encoder)
            decoder = plain.matrices["W_dec"].rows(span.start, span.stop)[:, layer * wide :]
            write_tensors(folder / f"{DECODER}{layer}{END}", {f"{DECODER}{layer}": decoder.unflatten(1, (-1, wide))})
        write_config(folder, "cross_layer_transcoder", about)
        return []


def cross_layer(read: list[Matrix], written: list[Matrix], kind: str) -> Plain:
    """Encoders and decoders of layers, the first writing to all, without their vectors."""
    matrices = {}
    for name, parts in (("W_enc", read), ("W_dec", written)):

        def forget(parts: list[Matrix] = parts) -> None:
            for part in parts:
                part.forget()

        matrices[name] = Matrix([piece for part in parts for piece in part.pieces], forget=forget)
    return Plain(matrices, {}, kind, is_transcoder=True, dictionary="CrossLayer", sites=len(read))


def _joined(encoders: list[Tensors], name: str, axes: str) -> torch.Tensor:
    return torch.cat([one.take(f"{name}_{layer}", axes) for layer, one in enumerate(encoders)])
