"""Prisma's SAEs and transcoders of vision models: `weights.pt` with `config.json`, or one .pt with both.

    pre = (x - b_dec) W_enc + b_enc        f = relu(pre), or its k largest        x_hat = f W_dec + b_dec
    gated     1[x W_enc + b_gate > 0] relu(x W_enc e^r_mag + b_mag)
    transcoder     x_hat = f W_dec + b_dec_out (+ x W_skip.T)                      W_enc [D, L], W_dec [L, D]

With `layer_norm` and `constant_norm_rescale` rows are normalised one by one. The settings may be pickled as an object
of its own class: its name stands for an empty one here, which is never run, and its attributes are the settings. A
transcoder of normalised rows, whose reconstruction is in their units, is refused.
"""

from typing import Any

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain, plain_from
from saelab.sae.scale import Scale
from saelab.sae.scales.constant_norm import ConstantNorm
from saelab.sae.scales.layer_norm import LayerNorm

CONFIG, WEIGHTS = "config.json", "weights.pt"
LAYOUT = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
GATED = LAYOUT | {"b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
BY_ROW: dict[str, type[Scale]] = {"layer_norm": LayerNorm, "constant_norm_rescale": ConstantNorm}
NORMALISATION = "normalize_activations"


class Prisma(Family):
    """Files of Prisma."""

    title = "prisma"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        if files.lone_has("cfg", "state_dict", suffixes=(".pt",)):
            return True
        return files.has(CONFIG, WEIGHTS) and "expansion_factor" in files.settings(CONFIG).table

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        tensors, beside = files.tensors(files.lone.name), files.folder / CONFIG
        config = Settings(files.lone, getattr(tensors.entries.get("cfg"), "__dict__", {}))
        if not config.table and beside.is_file():
            config = Settings.of(beside)
        if isinstance(inside := tensors.entries.get("state_dict"), dict):
            tensors = Tensors(tensors.path, inside)
        name, how = config.get("architecture", str, "standard"), config.get("activation_fn_str", str, "relu")
        if name not in ("standard", "gated") or how not in ("relu", "topk"):
            raise config.refuse(
                f"the architecture {name} with {how}", "standard and gated, with relu or topk, are read"
            )
        tensors.sizes = {"D": config.get("d_in", int)} if config.get("d_in", int) else {}
        normalised = config.get(NORMALISATION, str, "none")
        if normalised not in ("none", *BY_ROW):
            raise config.refuse(f"{NORMALISATION} '{normalised}'", f"those that are read: none, {', '.join(BY_ROW)}")
        if config.get("is_transcoder", bool, False):
            if normalised != "none":
                raise config.refuse(f"a transcoder with {NORMALISATION} '{normalised}'", "those without are read")
            plain, name = _transcoder(tensors), "transcoder"
        else:
            plain = plain_from(tensors, GATED if name == "gated" else LAYOUT, "gated" if name == "gated" else how)
        if how == "topk" and name != "gated":
            plain.kind, plain.k = "topk", config.part("activation_fn_kwargs").need("k", int)
        elif how == "topk":
            raise config.refuse("a gated SAE with topk", "gated ones with relu are read")
        if normalised != "none":
            plain.row_scale = BY_ROW[normalised]()
        said: dict[str, Any] = config.said("model_name", "hook_point_layer", "layer_subtype")
        return plain, Description(self.title, f"{name} {how}", {}, said)


def _transcoder(tensors: Tensors) -> Plain:
    layout = LAYOUT | {"b_dec": "b_dec_out"} | ({"W_skip": "W_skip"} if "W_skip" in tensors else {})
    plain = plain_from(tensors, layout, "relu", True)
    moved = plain.matrices["W_enc"].product(tensors.take("b_dec", "D"))
    plain.vectors["b_enc"] = (plain.vectors["b_enc"].double() - moved).to(plain.vectors["b_enc"])
    plain.notes.append("folded b_dec, which is subtracted before encoding, into the encoder's bias")
    return plain
