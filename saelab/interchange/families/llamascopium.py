"""Llamascopium and Llama Scope R1: `config.json` and `sae_weights.safetensors`, or `.pt` with the weights under "sae".

    y = s x,  s = sqrt(D) / norm        pre = y W_E + b_E        f = act(pre)        x_hat = (f W_D + b_D) / s'

W_E [D, L] and W_D [L, D] today, encoder.weight [L, D] and decoder.weight [D, L] before. norm: of the data set
(`dataset-wise`, in the weights' file, s' by that of what is written), of each row (`token-wise`), or s = 1
(`inference`). With `sparsity_include_decoder_norm` pre-activations are compared by pre ||d||: for a threshold that is
one a latent here; TopK's codes here are those times ||d||. BatchTopK has no threshold in the files: each row keeps its
k largest. A gated linear encoder (`use_glu_encoder`) and other kinds (`sae_type`) are refused.
"""

import math
from typing import Any

import torch

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source
from saelab.sae.scales.constant_norm import ConstantNorm

CONFIG, WEIGHTS = "config.json", ("sae_weights.safetensors", "sae_weights.pt")
TODAY = {"W_enc": "W_E.T", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
BEFORE = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}
LOGARITHMS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
R1, R1_MODEL = "Llama-Scope-R1-Distill", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
KINDS = ("relu", "topk", "batchtopk", "jumprelu")


class Llamascopium(Family):
    """Files of Llamascopium."""

    title = "llamascopium"
    weights = WEIGHTS

    def claims(self, files: Files) -> bool:
        return any(files.has(CONFIG, name) for name in WEIGHTS) and "hook_point_in" in files.settings(CONFIG).table

    def read(self, files: Files) -> tuple[Plain, Description]:
        config = files.settings(CONFIG)
        name = next(name for name in WEIGHTS if files.has(CONFIG, name))
        tensors = files.tensors(name)
        if isinstance(inside := tensors.entries.get("sae"), dict):
            tensors = Tensors(tensors.path, inside)
        if (kind := config.get("sae_type", str, "sae")) != "sae":
            raise config.refuse(f"sae_type {kind}", "SAEs and transcoders are read")
        return read_weights(self.title, config, tensors, R1_MODEL if R1 in files.folder.resolve().as_posix() else None)


def read_weights(
    title: str, config: Settings, tensors: Tensors, model: str | None, how: str = "relu"
) -> tuple[Plain, Description]:
    """What a file of weights holds, by the settings that all versions share.

    Args:
        title: of the family.
        config: the settings.
        tensors: the weights.
        model: what they are for, where that is known.
        how: the activation where the settings do not say.
    """
    how = config.get("act_fn", str, how).lower()
    if how not in KINDS:
        raise config.refuse(f"act_fn {how}", f"those that are read: {', '.join(KINDS)}")
    if config.get("use_glu_encoder", bool, False):
        raise config.refuse("use_glu_encoder", "it is read where that is off")
    read, written = config.get("hook_point_in", str), config.get("hook_point_out", str)
    is_transcoder = bool(written and written != read)
    tensors.sizes = {"D": config.need("d_model", int)}
    layout = TODAY if "W_E" in tensors else BEFORE
    has_bias = layout["b_dec"] in tensors or config.get("use_decoder_bias", bool, True)
    without = {name: theirs for name, theirs in layout.items() if name != "b_dec"}
    plain = plain_from(tensors, layout if has_bias else without, how, is_transcoder)
    if not has_bias:
        plain.vectors["b_dec"] = plain.vectors["b_enc"].new_zeros(tensors.sizes["O" if is_transcoder else "D"])
    _scaled(plain, config, tensors)
    _selection(plain, config, tensors)
    if not is_transcoder and not config.get("apply_decoder_bias_to_pre_encoder", bool, False):
        plain.shift()
    said: dict[str, Any] = config.said("hook_point_in", "hook_point_out")
    places = (
        (site_of(model, read), site_of(model, written) if is_transcoder and written else None) if model and read else ()
    )
    found = source(model, *places) if places and (places[1] or not is_transcoder) else {}
    return plain, Description(title, f"{how} {'transcoder' if is_transcoder else 'SAE'}", found, said)


def _selection(plain: Plain, config: Settings, tensors: Tensors) -> None:
    """How many are kept, or above what."""
    by_norm = config.get("sparsity_include_decoder_norm", bool, False)
    if plain.kind in ("topk", "batchtopk"):
        plain.k = config.need("top_k", int)
        if plain.kind == "batchtopk":
            plain.kind = "topk"
            plain.notes.append(f"it has no threshold: read by the {plain.k} largest of each row")
        if by_norm:
            plain.unit_directions()
            plain.notes.append("codes are theirs times the norms of directions, by which latents are compared there")
    elif plain.kind == "jumprelu":
        names = [name for name in LOGARITHMS if name in tensors]
        if names:
            threshold = tensors.take(names[0], "L").exp()
        else:  # of the first version, for pre-activations of rows that are not scaled
            scale = torch.as_tensor(plain.scale)
            threshold = plain.vectors["b_enc"].new_full((), config.need("jump_relu_threshold", float)) / scale
        plain.set_threshold(threshold)
        if by_norm and names:
            norms = plain.matrices["W_dec"].norms()
            highest = torch.finfo(plain.dtype).max  # of latents without a direction, which are never active there
            plain.vectors["threshold"] = (plain.vectors["threshold"] / norms).clamp(max=highest).to(plain.dtype)


def _scaled(plain: Plain, config: Settings, tensors: Tensors) -> None:
    """How rows are normalised."""
    how = config.get("norm_activation", str, "dataset-wise")
    if how == "token-wise" and not plain.is_transcoder:
        plain.row_scale = ConstantNorm()
    elif how == "dataset-wise":
        read = config.get("hook_point_in", str, "in")
        factor = _factor(config, tensors, "in", read)
        plain.scale = 1 / factor
        written = _factor(config, tensors, "out", config.get("hook_point_out", str, read))
        if plain.is_transcoder:
            plain.written_scale = 1 / written
        elif written != factor:
            raise ValueError(f"{config.path}: dataset_average_activation_norm should be one number, in and out")
        plain.notes.append(f"rows are scaled by {factor:.6g}, their mean norm's share of sqrt(D)")
    elif how != "inference":  # there the weights are for rows as they are
        raise config.refuse(f"norm_activation '{how}'", "dataset-wise and inference are read, and token-wise for SAEs")


def _factor(config: Settings, tensors: Tensors, side: str, hook: str) -> float:
    """What rows are multiplied by."""
    name = f"dataset_average_activation_norm.{hook}"
    norms = config.part("dataset_average_activation_norm")
    norm = float(tensors.take(name, "").item()) if name in tensors else norms.get(side, float)
    if norm is None and side == "out":
        return _factor(config, tensors, "in", config.get("hook_point_in", str, "in"))
    if norm is None:
        raise config.refuse("norm_activation 'dataset-wise' without the norm", "it is read where a file says that")
    if not 0 < norm < math.inf:
        raise ValueError(f"{config.path}: dataset_average_activation_norm should be one positive number, in and out")
    return math.sqrt(config.need("d_model", int)) / norm
