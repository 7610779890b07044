"""Crosscoders over several layers or models, in the two public layouts.

    f = relu(sum over sites s of x_s W_enc[s] + b_enc)        x_hat_s = f W_dec[s] + b_dec[s]

ckkissane's (two models): `cc_weights.pt` with W_enc [S, D, L], W_dec [L, S, D]. science-of-finetuning's
dictionary_learning: `model.safetensors` with `config.json`, or one .pt, with encoder.weight [S, D, L], decoder.weight
[S, L, D]. There, rows may be normalised by a mean and a scale a site, and BatchTopK compares latents by

    f_j n_j > threshold        n_j: the sum over sites of ||d_js|| (CROSSCODER), ||d_j|| (SAE), a mix of both, or 1

which is a threshold a latent here. Codes are f, before they are multiplied by n. Without a threshold each row keeps
those k whose f n are largest, and codes are f n. Codes of their own for each layer (DECOUPLED) are refused, and so are
encoders of some of the layers. Which models and layers they are for is not in the files.
"""

# Shape letters: L latents, D width of a site, S sites.

import torch
from torch import Tensor

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NORMALISATIONS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
COMPILED = "_orig_mod."


class CrosscoderFiles(Family):
    """Files of crosscoders."""

    title = "crosscoder"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        return any(_is_stacked(files, *form) for form in (("W_enc", "W_dec"), *_SECOND))

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        tensors = files.tensors(files.lone.name)
        if "W_enc" in tensors:
            plain = _stacked(tensors, ("W_enc", "SDL"), "b_enc", ("W_dec", "LSD"), "b_dec")
            name = "ReLU crosscoder"
        else:
            path = files.folder / CONFIG
            config = Settings.of(path) if path.is_file() else Settings(path, {})
            plain, name = _second(tensors.under(COMPILED), config)
        plain.shift()
        return plain, Description(self.title, f"{name} of {plain.sites} sites")


_SECOND = tuple((f"{prefix}encoder.weight", f"{prefix}decoder.weight") for prefix in ("", COMPILED))


def _is_stacked(files: Files, *names: str) -> bool:
    """Whether there is one file of weights, in which these have three axes."""
    if files.lone is None or not files.lone_has(*names, suffixes=(".pt", ".safetensors")):
        return False
    return all(getattr(files.entries(files.lone)[name], "ndim", 0) == 3 for name in names)


def _stacked(tensors: Tensors, encoder: tuple[str, str], b_enc: str, decoder: tuple[str, str], b_dec: str) -> Plain:
    matrices = {
        name: tensors.stacked(theirs, axes, "LSD") for name, (theirs, axes) in (("W_enc", encoder), ("W_dec", decoder))
    }
    vectors = {"b_enc": tensors.take(b_enc, "L"), "b_dec": tensors.take(b_dec, "SD").flatten()}
    return Plain(matrices, vectors, "relu", dictionary="Crosscoder", sites=tensors.sizes["S"])


def _second(tensors: Tensors, config: Settings) -> tuple[Plain, str]:
    """The layout of science-of-finetuning, before its bias is folded."""
    if (layers := config.get("encoder_layers", list)) is not None:
        raise config.refuse(f"encoder_layers {layers}", "crosscoders that read all layers are read")
    plain = _stacked(tensors, ("encoder.weight", "SDL"), "encoder.bias", ("decoder.weight", "SLD"), "decoder.bias")
    how = int(tensors.take("code_normalization_id", "").item()) if "code_normalization_id" in tensors else 1
    if how not in NORMALISATIONS or how == 5:
        raise config.refuse(f"code_normalization {NORMALISATIONS.get(how, how)}", "codes that all sites share are read")
    _normalised(plain, tensors)
    if "k" not in tensors:
        return plain, "ReLU crosscoder"
    plain.k = tensors.take("k", "").item()
    norms = _code_norms(plain, NORMALISATIONS[how], config)
    threshold = tensors.take("threshold", "")
    if threshold < 0:
        plain.kind = "topk"
        plain.unit_directions(norms)
        plain.notes.append(f"its threshold was never set: read by the {plain.k:g} largest of each row")
    else:
        plain.kind = "batchtopk"
        highest = torch.finfo(plain.dtype).max  # of latents without a direction, which are never active there
        plain.vectors["threshold"] = (threshold / norms).clamp(max=highest).to(plain.vectors["b_enc"])
    return plain, "BatchTopK crosscoder"


def _code_norms(plain: Plain, how: str, config: Settings) -> Tensor:
    """What codes are multiplied by before they are compared; [L] float64."""
    if how == "NONE":
        return torch.ones(plain.sizes[0], dtype=torch.float64)
    parts = [
        block.double().unflatten(1, (plain.sites, -1)).norm(dim=2) for _, block in plain.matrices["W_dec"].blocks()
    ]
    by_site = torch.cat(parts)
    whole, each = by_site.norm(dim=1), by_site.sum(1)
    if how == "MIXED":
        alone, cross = (config.get(f"code_normalization_alpha_{key}", float, value) for key, value in _ALPHAS)
        return whole * alone + each * cross
    return whole if how == "SAE" else each


_ALPHAS = (("sae", 1.0), ("cc", 0.1))


def _normalised(plain: Plain, tensors: Tensors) -> None:
    """A mean and a scale a site, where the file has them: NaN stands for none."""
    mean = tensors.entries.get("activation_mean")
    if not isinstance(mean, Tensor) or mean.isnan().any():
        return
    plain.mean = tensors.take("activation_mean", "SD").flatten()
    plain.scale = 1 / tensors.take("activation_global_scale", "S")
