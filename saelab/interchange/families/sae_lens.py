"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 and older.

    pre = (x - b_dec) W_enc + b_enc      unless apply_b_dec_to_input is off        W_enc [D, L], W_dec [L, D]
    standard  relu(pre)       topk  relu(k largest)       abstopk  k largest by absolute value, signed
    jumprelu  relu(pre) 1[pre > threshold]      gated  1[x W_enc + b_gate > 0] relu(x W_enc e^r_mag + b_mag)

With rescale_acts_by_decoder_norm pre-activations are multiplied by the directions' norms and codes divided by them,
which the weights can hold. BatchTopK and Matryoshka SAEs are kept as jumprelu with one threshold; checkpoints of their
training keep it as `topk_threshold`. `activation_scaler.json`, which lies beside a checkpoint, has the factor that
`expected_average_only_in` stands for, `activation_whitening.safetensors` the matrices of `covariance_whitening`, which
the weights can hold. The temporal and the matching-pursuit SAE are refused. Written are cfg.json and the weights, in
the form of version 6.
"""

from pathlib import Path
from typing import Any

import torch

from saelab.core.files import write_json, write_tensors
from saelab.interchange.families.sae_lens_source import metadata_of, source_of
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain, laid_out, plain_from
from saelab.sae.scale import Scale
from saelab.sae.scales.constant_norm import ConstantNorm
from saelab.sae.scales.layer_norm import LayerNorm

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
DENSE = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
GATED = DENSE | {"b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
JUMPRELU = DENSE | {"threshold": "threshold"}
SKIP = {"W_skip": "W_skip"}
FORMS = {
    "standard": ("relu", DENSE),
    "topk": ("topk", DENSE),
    "abstopk": ("abstopk", DENSE),
    "jumprelu": ("jumprelu", JUMPRELU),
    "batchtopk": ("batchtopk", DENSE),
    "matryoshka_batchtopk": ("batchtopk", DENSE),
    "gated": ("gated", GATED),
    "transcoder": ("relu", DENSE),
    "skip_transcoder": ("relu", DENSE | SKIP),
    "jumprelu_transcoder": ("jumprelu", JUMPRELU),
    "jumprelu_skip_transcoder": ("jumprelu", JUMPRELU | SKIP),
}
"""Their architectures: how ours reads the same, and what the tensors are called."""
BY_ROW: dict[str, type[Scale]] = {"layer_norm": LayerNorm, "constant_norm_rescale": ConstantNorm}
WITHOUT = {
    "temporal": "its codes depend on the tokens before, and saelab's on their own row alone",
    "matching_pursuit": "it goes on until an error is reached, and saelab's MatchingPursuit for k steps",
}
"""Architectures that ours cannot be, and why."""
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


class SAELens(Family):
    """Files of SAELens."""

    title = "sae_lens"
    row_scales = (LayerNorm, ConstantNorm)
    weights = (WEIGHTS, WHITENING)

    def claims(self, files: Files) -> bool:
        return files.has(CONFIG, WEIGHTS)

    def read(self, files: Files) -> tuple[Plain, Description]:
        config = _modern(files.settings(CONFIG))
        name = config.get("architecture", str, "standard")
        if name in WITHOUT:
            raise config.refuse(f"the architecture {name}", WITHOUT[name])
        if name not in FORMS:
            raise config.refuse(f"the architecture {name}", f"those that are read: {', '.join(FORMS)}")
        if config.get("activation_fn", str, "relu") not in ("relu", "topk"):
            raise config.refuse(f"activation_fn {config.table['activation_fn']}", "relu and topk are read")
        kind, layout = FORMS[name]
        tensors, is_transcoder = files.tensors(WEIGHTS), "transcoder" in name
        _tell_sizes(tensors, config, is_transcoder)
        if kind == "jumprelu" and "threshold" not in tensors and "log_threshold" in tensors:
            layout = layout | {"threshold": "log_threshold"}  # of early versions
        plain = plain_from(tensors, layout, kind, is_transcoder)
        if "log_threshold" in layout.values():
            plain.vectors["threshold"] = plain.vectors["threshold"].exp()
        _selection(plain, config, tensors)
        _finetuned(plain, config, tensors)
        is_centred = not is_transcoder and config.get("apply_b_dec_to_input", bool, True)
        _scaling(plain, config, files, is_centred)
        if not is_transcoder and not is_centred:
            plain.shift()
        source, said, notes = source_of(config)
        return plain, Description(self.title, name, source, said, notes)

    def write(self, plain: Plain, folder: Path, source: dict[str, Any]) -> list[str]:
        name = {"relu": "standard", "batchtopk": "jumprelu"}.get(plain.kind, plain.kind)
        if plain.is_transcoder:
            if name not in ("standard", "jumprelu"):
                raise self.no_form(f"a transcoder that reads with {plain.kind}")
            if "W_skip" in plain.matrices and plain.row_scale:
                raise self.no_form("a skip connection from rows that are each scaled by themselves")
            name = ("jumprelu_" if name == "jumprelu" else "") + "skip_" * ("W_skip" in plain.matrices) + "transcoder"
        metadata, notes = metadata_of(source)
        if plain.kind == "batchtopk":
            metadata |= {"training_architecture": "batchtopk", "training_architecture_details": {"k": plain.k}}
        n_latents, d_in, d_out = plain.sizes
        config = {
            "architecture": name,
            "d_in": d_in,
            "d_sae": n_latents,
            "dtype": str(plain.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": not plain.is_transcoder,
            "normalize_activations": next((how for how, one in BY_ROW.items() if one is type(plain.row_scale)), "none"),
            "reshape_activations": "hook_z" if str(metadata.get("hook_name")).endswith("hook_z") else "none",
            "metadata": metadata,
        }
        if plain.kind in ("topk", "abstopk"):
            config |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
        if plain.is_transcoder:
            config["d_out"] = d_out
        write_tensors(folder / WEIGHTS, laid_out(plain, FORMS[name][1]))
        write_json(folder / CONFIG, config)
        return notes


def _modern(config: Settings) -> Settings:
    """Older settings by their names of today."""
    table = {OLD_NAMES.get(key, key): value for key, value in config.table.items()}
    if table.get("activation_fn") == "topk" and table.get("architecture", "standard") == "standard":
        table["architecture"] = "topk"
        table.setdefault("k", config.part("activation_fn_kwargs").table.get("k"))
    if isinstance(table.get("normalize_activations"), bool):
        table["normalize_activations"] = "expected_average_only_in" if table["normalize_activations"] else "none"
    return Settings(config.path, table)


def _tell_sizes(tensors: Tensors, config: Settings, is_transcoder: bool) -> None:
    keys = {"L": "d_sae", "D": "d_in"} | ({"O": "d_out"} if is_transcoder else {})
    found = {axis: config.get(key, int) for axis, key in keys.items()}
    tensors.sizes |= {axis: size for axis, size in found.items() if size is not None}


def _selection(plain: Plain, config: Settings, tensors: Tensors) -> None:
    """How many are kept, or above what."""
    if plain.kind in ("topk", "abstopk"):
        plain.k = config.need("k", int)
    trained = config.part("metadata")
    if plain.kind == "batchtopk":
        plain.k = config.need("k", float)
        plain.set_threshold(tensors.take("topk_threshold", ""))
    elif "batchtopk" in (trained.get("training_architecture", str) or "") and plain.kind == "jumprelu":
        plain.k = trained.part("training_architecture_details").get("k", float)
        plain.kind = "batchtopk" if plain.k else plain.kind
    if config.get("rescale_acts_by_decoder_norm", bool, False):
        plain.unit_directions()
        plain.notes.append("folded the directions' norms into the encoder, as rescale_acts_by_decoder_norm asks for")


def _finetuned(plain: Plain, config: Settings, tensors: Tensors) -> None:
    """Old files may have a factor that codes are multiplied by before they are decoded."""
    if "scaling_factor" not in tensors:
        return
    factor = tensors.take("scaling_factor", "L")
    if torch.allclose(factor, torch.ones_like(factor)):
        return
    if not config.get("finetuning_scaling_factor", bool, False):
        raise config.refuse("a scaling_factor while finetuning_scaling_factor is off", "say which of both is meant")
    plain.matrices["W_dec"] = plain.matrices["W_dec"].times(factor[:, None])
    plain.notes.append("folded scaling_factor into the decoder")


def _scaling(plain: Plain, config: Settings, files: Files, is_centred: bool) -> None:
    """How rows are normalised."""
    how = config.get("normalize_activations", str, "none")
    if how in BY_ROW:
        if "W_skip" in plain.matrices:
            why = "its skip connection adds the row as it is, and saelab's reads the normalised one"
            raise config.refuse(f"normalize_activations '{how}' beside a W_skip", why)
        plain.row_scale = BY_ROW[how]()
    elif how == "expected_average_only_in":
        _one_factor(plain, config, files)
    elif how == "covariance_whitening" and not plain.is_transcoder:
        if not (files.folder / WHITENING).is_file():
            raise config.refuse(
                f"normalize_activations '{how}'", f"its matrices are not in the file: put {WHITENING} beside it"
            )
        tensors = files.tensors(WHITENING)
        tensors.sizes = {"D": plain.sizes[1]}
        there, back = (tensors.matrix(name, "DD").whole() for name in ("matrix", "inverse_matrix"))
        plain.whiten(tensors.take("mean", "D"), there, back, is_centred)
    elif how != "none":
        raise config.refuse(f"normalize_activations '{how}'", "fold it with SAELens and save again")


def _one_factor(plain: Plain, config: Settings, files: Files) -> None:
    if not files.has_settings(SCALER):
        instead = f"its factor is not in the file: put {SCALER} beside it, or call fold_activation_norm_scaling_factor"
        raise config.refuse("normalize_activations 'expected_average_only_in'", f"{instead} in SAELens and save again")
    scaler = files.settings(SCALER)
    factor = scaler.need("scaling_factor", float)
    if not 0 < factor < float("inf"):
        raise ValueError(f"{scaler.path}: scaling_factor should be above 0, the file says {factor}")
    plain.scale = 1 / factor
    if plain.is_transcoder:
        plain.written_scale = 1.0  # what it writes is not scaled
    plain.notes.append(f"rows are scaled by the {factor:.6g} of {SCALER}")
