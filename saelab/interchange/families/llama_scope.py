"""Llama Scope (2024): `hyperparams.json` and `checkpoints/final.safetensors`.

    y = s x,  s = sqrt(D) / mean norm of a row        f = pre 1[pre > s t]      pre = y W_enc.T + b_enc
    x_hat = (f W_dec + b_dec) / s                     t: jump_relu_threshold, one number

The weights are for rows scaled by s, the threshold for pre-activations that are not: both SAELens and the authors' own
reading, which divides b_enc by s and leaves t alone, come to this, as we read them. Here rows keep that scale, so codes
are s times those of the authors' reading. Transcoders scale what they write by a norm of its own.
"""

import math
from typing import Any

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
LAYOUT = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}
MODEL = "meta-llama/Llama-3.1-8B"
REPOSITORY = "Llama3_1-8B-Base-L"


class LlamaScope(Family):
    """Files of Llama Scope."""

    title = "llama_scope"

    def claims(self, files: Files) -> bool:
        return files.has(CONFIG, WEIGHTS)

    def read(self, files: Files) -> tuple[Plain, Description]:
        config, tensors = files.settings(CONFIG), files.tensors(WEIGHTS)
        how = config.get("act_fn", str, "jumprelu").lower()
        if how != "jumprelu":
            raise config.refuse(f"act_fn {how}", "jumprelu is read")
        for key in ("use_glu_encoder", "apply_decoder_bias_to_pre_encoder"):
            if config.get(key, bool, False):
                raise config.refuse(key, "it is read where that is off")
        read, written = config.get("hook_point_in", str), config.get("hook_point_out", str)
        if written and written != read:
            raise config.refuse("hook_point_out other than hook_point_in", "SAEs are read")
        tensors.sizes = {"D": config.need("d_model", int)}
        factor = _factor(config)
        plain = plain_from(tensors, LAYOUT, "jumprelu")
        plain.scale = 1 / factor
        plain.set_threshold(config.need("jump_relu_threshold", float) * factor)
        plain.shift()
        plain.notes = [f"rows are scaled by {factor:.6g}, their mean norm's share of sqrt(D)"]
        said: dict[str, Any] = {"hook_point_in": read} if read else {}
        is_known = REPOSITORY in files.folder.resolve().name
        found = source(MODEL, site_of(MODEL, read)) if read and is_known else {}
        return plain, Description(self.title, "JumpReLU SAE", found, said)


def _factor(config: Settings) -> float:
    """What rows are multiplied by."""
    how = config.get("norm_activation", str, "dataset-wise")
    if how == "inference":  # the weights are for rows as they are
        return 1.0
    if how != "dataset-wise":
        raise config.refuse(f"norm_activation '{how}'", "dataset-wise and inference are read")
    norms = config.part("dataset_average_activation_norm")
    norm = norms.need("in", float)
    if not 0 < norm < math.inf or norms.get("out", float, norm) != norm:
        raise ValueError(f"{config.path}: dataset_average_activation_norm should be one positive number, in and out")
    return math.sqrt(config.need("d_model", int)) / norm
