"""dictionary_learning: `ae.pt`, or `checkpoints/ae_STEP.pt`, with `config.json` beside it or above.

The class is told by the names of the tensors, which are enough where a file has another name or no config:

    AutoEncoder                            relu(pre)              pre = (x - bias) W.T + b
    AutoEncoderNew                         relu(pre)              pre = x W.T + b
    AutoEncoderTopK                        relu(k largest pre)    pre = (x - b_dec) W.T + b
    BatchTopKSAE, MatryoshkaBatchTopKSAE   relu(pre) 1[pre > threshold], the same pre, one threshold for all
    JumpReluAutoEncoder                    relu(pre) 1[pre > threshold], pre = x W + b, a threshold a latent
    GatedAutoEncoder                       1[y + gate_bias > 0] relu(e^r_mag y + mag_bias), y = (x - decoder_bias) W.T

A TopK's threshold is left out, because its own class reads by k unless it is asked otherwise. A BatchTopK SAE whose
threshold was never set (-1) is read by the k largest of each row; its own class then keeps every positive latent, which
nobody trained it for. k is what the weights' file says: training may lower it step by step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.files import write_json, write_whole
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain, laid_out, plain_from
from saelab.interchange.sites import architecture, hook_of, site_of, source

WEIGHTS, CONFIG = "ae.pt", "config.json"
ENCODER = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T"}
MATRICES = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
FORMS = {
    "AutoEncoder": ("relu", ENCODER | {"b_dec": "bias"}),
    "AutoEncoderNew": ("relu", ENCODER | {"b_dec": "decoder.bias"}),
    "AutoEncoderTopK": ("topk", ENCODER | {"b_dec": "b_dec"}),
    "BatchTopKSAE": ("batchtopk", ENCODER | {"b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": ("batchtopk", MATRICES),
    "GatedAutoEncoder": ("gated", {
        "W_enc": "encoder.weight", "b_enc": "gate_bias", "r_mag": "r_mag", "b_mag": "mag_bias",
        "W_dec": "decoder.weight.T", "b_dec": "decoder_bias",
    }),
    "JumpReluAutoEncoder": ("jumprelu", MATRICES | {"threshold": "threshold"}),
}  # fmt: skip
"""Their classes: how ours reads the same, and what the tensors are called."""
NOT_CENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
SAID = ("lm_name", "layer", "submodule_name")
STACKED = ("encoder.weight", "decoder.bias")
MARKS = {"topk": {"k", "threshold"}, "batchtopk": {"k", "threshold"}}


class DictionaryLearning(Family):
    """Files of dictionary_learning."""

    title = "dictionary_learning"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        if files.lone is not None and files.lone_has(*STACKED, suffixes=(".pt",)):
            encoder = files.entries(files.lone)[STACKED[0]]
            if isinstance(encoder, Tensor) and encoder.ndim > 2:
                return False  # a crosscoder
        if files.has(WEIGHTS):
            return True
        if files.lone is None or files.lone.suffix != ".pt":
            return False
        if _forms(files.entries(files.lone)):
            return True
        if files.path.is_dir():
            return False
        config = _config_of(files)
        return config.is_file() and "trainer" in Settings.of(config).table

    def read(self, files: Files) -> tuple[Plain, Description]:
        weights = files.folder / WEIGHTS if files.has(WEIGHTS) else files.lone
        assert weights is not None
        tensors, path = files.tensors(weights.name), _config_of(files)
        config = Settings.of(path) if path.is_file() else Settings(weights, {})
        trainer = config.part("trainer")
        name = trainer.get("dict_class", str) or _guessed(tensors)
        if name not in FORMS:
            raise trainer.refuse(f"the class {name}", f"those that are read: {', '.join(FORMS)}")
        kind, layout = FORMS[name]
        plain = plain_from(tensors, layout, kind)
        if name in NOT_CENTRED:
            plain.shift()
        if kind in MARKS:
            _selection(plain, tensors, trainer)
        found, said = _source_of(trainer, config.part("buffer"))
        return plain, Description(self.title, name, found, said)

    def write(self, plain: Plain, folder: Path, source: dict[str, Any]) -> list[str]:
        name = self._class_for(plain)
        kind, layout = FORMS[name]
        if name in NOT_CENTRED:
            plain.shift(-1)
        tensors = {
            key: part if isinstance(part, Tensor) else part.whole() for key, part in laid_out(plain, layout).items()
        }
        n_latents, d_in, _ = plain.sizes
        trainer = {"dict_class": name, "activation_dim": d_in, "dict_size": n_latents}
        if kind in MARKS:
            assert plain.k is not None
            trainer["k"] = max(1, round(plain.k))
            threshold = plain.vectors["threshold"][0].item() if kind == "batchtopk" else -1.0
            tensors |= {"k": torch.tensor(trainer["k"], dtype=torch.int), "threshold": torch.tensor(threshold)}
        place, notes = _place(source)
        write_whole(folder / WEIGHTS, lambda file: torch.save(tensors, file))
        write_json(folder / CONFIG, {"trainer": trainer | place, "buffer": _buffer(source)})
        return notes

    def _class_for(self, plain: Plain) -> str:
        if plain.is_transcoder:
            raise self.no_form("transcoders")
        if plain.kind == "batchtopk":
            threshold = plain.vectors["threshold"]
            return "BatchTopKSAE" if (threshold == threshold[0]).all() else "JumpReluAutoEncoder"
        if plain.kind == "abstopk":
            raise self.no_form("AbsTopK")
        return next(name for name, (kind, _) in FORMS.items() if kind == plain.kind)


def _config_of(files: Files) -> Path:
    """The config of an ae.pt, or of a checkpoint, which lies one folder below."""
    beside = files.folder / CONFIG
    return beside if beside.is_file() or files.folder.name != "checkpoints" else files.folder.parent / CONFIG


def _guessed(tensors: Tensors) -> str:
    """The class whose tensors these are, where there is no config."""
    found = _forms(tensors.entries)
    if len(found) > 1:
        raise ValueError(f"{tensors.path} may be a TopK or a BatchTopK SAE: put its {CONFIG} beside it")
    if found:
        return found[0]
    names = sorted(map(str, tensors.entries))
    raise ValueError(f"{tensors.path} holds the tensors of no class that is read: {', '.join(names[:6])}")


def _forms(entries: Mapping[str, Any]) -> list[str]:
    """The classes that have just these tensors."""
    names, found = set(map(str, entries)) - {"group_sizes"}, []
    is_shared = getattr(entries.get("threshold"), "ndim", 0) == 0
    for name, (kind, layout) in FORMS.items():
        if "threshold" in layout and is_shared:
            continue  # it has one a latent
        if names == {theirs.removesuffix(".T") for theirs in layout.values()} | MARKS.get(kind, set()):
            found.append(name)
    return found


def _selection(plain: Plain, tensors: Tensors, trainer: Settings) -> None:
    """k and the threshold."""
    plain.k = int(tensors.take("k", "").item()) if "k" in tensors else trainer.need("k", int)
    if plain.kind == "topk":
        return
    threshold = tensors.take("threshold", "") if "threshold" in tensors else torch.tensor(-1.0)
    if threshold < 0:
        plain.kind = "topk"
        plain.notes.append(f"its threshold was never set: read by the {plain.k} largest of each row")
    else:
        plain.set_threshold(threshold)


def _source_of(trainer: Settings, buffer: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source where it is certain, and what was said; only the residual stream after a block has a usual name."""
    said: dict[str, Any] = trainer.said(*SAID)
    model, layer = trainer.get("lm_name", str), trainer.get("layer", int)
    module, side = trainer.get("submodule_name", str, ""), buffer.get("io", str, "out")
    if not model or layer is None or "resid_post" not in module or side != "out":
        return {}, said
    return source(model, site_of(model, f"blocks.{layer}.hook_resid_post"), None, buffer.get("ctx_len", int)), said


def _place(about: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Their settings for a source."""
    model, site = about.get("model"), about.get("site")
    if not model or not site:
        return {}, ["it is not known which model and site the SAE is for"]
    hook = hook_of(model, site) if architecture(model) else None
    if hook is None or not hook.endswith(".hook_resid_post"):
        return {"lm_name": model, "submodule_name": site}, []
    layer = int(hook.split(".")[1])
    return {"lm_name": model, "layer": layer, "submodule_name": f"resid_post_layer_{layer}"}, []


def _buffer(about: dict[str, Any]) -> dict[str, Any]:
    return {"io": "out"} | ({"ctx_len": about["seq_len"]} if about.get("seq_len") else {})
