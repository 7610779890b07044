"""The authors' own files of BatchTopK and Matryoshka SAEs (Bussmann et al.): `sae.pt` and `config.json`.

    vanilla                relu((x - b_dec) W_enc + b_enc)
    topk, batchtopk        relu((x - b_dec) W_enc), the k largest: b_enc is there but not used
    jumprelu               relu(x W_enc + b_enc) 1[> e^log_threshold], nothing subtracted
    batch-topk, global-matryoshka-topk       those of the later code: relu((x - b_dec) W_enc) 1[> threshold]

W_enc [D, L], W_dec [L, D]. With `input_unit_norm` each row is normalised by itself (`LayerNorm`). The first code has no
threshold for reading BatchTopK: each row keeps its k largest. So it does where the threshold is 0, which was never set;
their code then keeps every positive latent.
"""

from typing import Any

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings, Tensors
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import model_called, site_of, source
from saelab.sae.scales.layer_norm import LayerNorm

CONFIG, WEIGHTS = "config.json", "sae.pt"
LAYOUT = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
TOPK = ("topk", "batchtopk", "batch-topk", "global-matryoshka-topk")
LOGARITHMS = "jumprelu.log_threshold"


class BatchTopKAuthors(Family):
    """Files of the authors of BatchTopK."""

    title = "batch_topk"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        return files.has(CONFIG, WEIGHTS) and {"sae_type", "act_size"} <= files.settings(CONFIG).table.keys()

    def read(self, files: Files) -> tuple[Plain, Description]:
        config, tensors = files.settings(CONFIG), files.tensors(WEIGHTS)
        name = config.need("sae_type", str)
        tensors.sizes = {"D": config.need("act_size", int)}
        if name == "vanilla":
            plain = plain_from(tensors, LAYOUT, "relu")
        elif name == "jumprelu":
            plain = plain_from(tensors, LAYOUT | {"threshold": LOGARITHMS}, "jumprelu")
            plain.vectors["threshold"] = plain.vectors["threshold"].exp()
            plain.shift()
        elif name in TOPK:
            plain = _topk(tensors, config)
        else:
            raise config.refuse(f"the sae_type {name}", f"those that are read: vanilla, jumprelu, {', '.join(TOPK)}")
        if config.get("input_unit_norm", bool, False):
            plain.row_scale = LayerNorm()
        found, said = _source_of(config)
        return plain, Description(self.title, name, found, said)


def _topk(tensors: Tensors, config: Settings) -> Plain:
    plain = plain_from(tensors, LAYOUT, "topk")
    plain.k = config.need("top_k", int)
    plain.vectors["b_enc"].zero_()
    threshold = tensors.take("threshold", "") if "threshold" in tensors else None
    if threshold is not None and threshold > 0:
        plain.kind = "batchtopk"
        plain.set_threshold(threshold)
    elif config.table["sae_type"] != "topk":
        plain.notes.append(f"it has no threshold: read by the {plain.k} largest of each row")
    return plain


def _source_of(config: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source where it is certain, and what was said.

    Their models are loaded as TransformerLens does by default in the first code, which changes the residual stream, and
    as they are in the later, where `model_dtype` is said too.
    """
    said = config.said("model_name", "hook_point", "seq_len")
    model, hook = config.get("model_name", str), config.get("hook_point", str)
    if not model or not hook or "model_dtype" not in config.table:
        return {}, said
    model = model_called(model)
    return source(model, site_of(model, hook), None, config.get("seq_len", int)), said
