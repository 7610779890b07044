"""Gemma Scope 2's cross-layer transcoders: `params_layer_N.safetensors` for layers N = 0 ... S - 1, with `config.json`.

    f_l = relu(pre_l) 1[pre_l > threshold_l]      pre_l = x_l w_enc_l + b_enc_l                     w_enc_l [D, L]
    x_hat_m = sum over l <= m of f_l w_dec_l[:, m] + b_dec_m                                        w_dec_l [L, S, D]

What a layer would write to earlier ones has to be zero. Those with a linear connection past the latents
(`affine_skip_connection`) are refused: ours has none across layers.
"""

# Shape letters: L latents of a layer, D width of a layer, S layers.

import torch

from saelab.core.files import spans
from saelab.interchange.families.circuit_tracer_clt import cross_layer
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings
from saelab.interchange.plain import Plain

START, END, CONFIG = "params_layer_", ".safetensors", "config.json"
SKIP = "affine_skip_connection"


class GemmaScopeCLT(Family):
    """Files of Gemma Scope's cross-layer transcoders."""

    title = "gemma_scope_clt"
    weights = (f"{START}*{END}",)

    def claims(self, files: Files) -> bool:
        return files.path.is_dir() and len(files.numbered(START, END)) > 0

    def read(self, files: Files) -> tuple[Plain, Description]:
        paths = files.numbered(START, END)
        layers = [files.tensors(path.name) for path in paths]
        config = files.settings(CONFIG) if (files.folder / CONFIG).is_file() else Settings(paths[0], {})
        if any(SKIP in one for one in layers):
            raise config.refuse(f"a cross-layer transcoder with {SKIP}", "those without are read")
        sizes = {"S": len(paths)}
        read, written = [], []
        for layer, tensors in enumerate(layers):
            tensors.sizes = sizes
            read.append(tensors.matrix("w_enc", "DL", flipped=True))
            decoder = tensors.stacked("w_dec", "LSD", "LSD")
            (piece,) = decoder.pieces
            if any(piece[first:last, :layer].any() for first, last in spans(decoder)):
                raise config.refuse(f"a layer {layer} that writes to earlier ones", "layers that write on are read")
            decoder.pieces = [piece[:, layer:]]
            written.append(decoder)
        plain = cross_layer(read, written, "jumprelu")
        for name, axes in (("b_enc", "L"), ("b_dec", "D"), ("threshold", "L")):
            plain.vectors[name] = torch.cat([tensors.take(name, axes) for tensors in layers])
        said = config.said("model_name", "hf_hook_point_in", "hf_hook_point_out")
        return plain, Description(self.title, f"JumpReLU cross-layer transcoder of {len(paths)} layers", {}, said)
