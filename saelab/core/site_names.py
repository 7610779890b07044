"""Other libraries' names of places in a model, as words: TransformerLens' hooks, nnsight's and nnterp's paths.

    blocks.8.hook_resid_post              TransformerLens: one of PLACES in block 8
    model.transformer.h[8].mlp.output     nnsight: a module's path and a side
    layers_output[8], layers[8].mlp       nnterp: blocks and their attention and MLP by one name in every model

Which module holds a place a model itself tells (`saelab.models.structure`). For when there is a name only,
`assets/site_names.json` holds what families of models told, and by which version of transformers; `python -m
campaigns.site_names` writes it, and a test keeps it true. A name with two meanings is in DOUBTFUL.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from saelab.core.read import read_json

FILE = Path(__file__).parents[1] / "assets" / "site_names.json"
HOOKED = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "attn.hook_z", "hook_mlp_out",
    "mlp.hook_post", "hook_normalized_resid_post",
)  # fmt: skip
"""Places by their hooks in HookedTransformer, all of which can be written."""
PLACES = (*HOOKED, "mlp.hook_in", "mlp.hook_out", "attn.hook_out", "hook_in", "hook_out")
"""With the names that TransformerBridge and circuit-tracer have beside them, which are read only."""
STREAM_OR_INPUT = "TransformerLens' older versions mean the residual stream by it, newer ones what is given to {}"
NORMALISED = "some versions of TransformerLens take it before the norm's weights, where no module ends, others after"
DOUBTFUL = {
    "hook_mlp_in": f"{STREAM_OR_INPUT.format('the MLP')}: name hook_resid_mid or mlp.hook_in",
    "hook_attn_in": f"{STREAM_OR_INPUT.format('attention')}: name hook_resid_pre, or the module",
    "ln1.hook_normalized": f"{NORMALISED}: name the module",
    "ln2.hook_normalized": f"{NORMALISED}: name the module",
}
"""Names that do not say for sure which place is meant, and why."""
RENAMED = {
    "self_attn": ("self_attn", "attn", "self_attention", "attention"),
    "mlp": ("mlp", "block_sparse_moe", "ffn"),
}
"""By nnterp's name of a part of a block, what models themselves call it."""
NNTERP = {"layers": "", "attentions": ".self_attn", "mlps": ".mlp"}
SIDES = {"output": "", "input": ":in", "inputs": ":in"}


def hook_parts(name: str) -> tuple[int, str] | None:
    """Block and place of a hook such as `blocks.8.hook_resid_pre`; None for what is none."""
    found = re.fullmatch(r"blocks\.(\d{1,6})\.((?:\w+\.)?hook_\w+)", name)
    return (int(found[1]), found[2]) if found else None


def as_site(name: str) -> str:
    """A site for a path as nnsight and nnterp write it: `h[8].mlp.input` becomes `h.8.mlp:in`."""
    if found := re.fullmatch(rf"(?:model\.)?({'|'.join(NNTERP)})_(input|output)\[(\d+)\]", name):
        return f"layers.{found[3]}{NNTERP[found[1]]}{SIDES[found[2]]}"
    found = re.fullmatch(r"(.+?)(?:\.(output|inputs?)(?:\[0\]){0,2})?", name)
    assert found is not None
    path = re.sub(r"\[(\d+)\]", r".\1", found[1])
    return path + SIDES[found[2] or "output"]


def as_nnsight(site: str) -> str:
    """A site as nnsight writes it, behind its variable `model`: `h.8.mlp:in` becomes `model.h[8].mlp.input`."""
    path, _, side = site.partition(":")
    bracketed = re.sub(r"\.(\d+)", r"[\1]", path)
    return f"model.{bracketed}.{side or 'out'}put"


def as_nnterp(block: str, site: str) -> str | None:
    """A site in the block at a path as nnterp writes it; None for one that it has no name for."""
    path, _, side = site.partition(":")
    inner, number = path.removeprefix(block).removeprefix("."), block.rpartition(".")[2]
    names = {"": "layers"} | {own: f"{kind}s" for kind, key in (("attention", "self_attn"), ("mlp", "mlp"))
                              for own in RENAMED[key]}  # fmt: skip
    return f"{names[inner]}_{side or 'out'}put[{number}]" if inner in names else None


@cache
def families() -> dict[str, dict[str, Any]]:
    """By name of a family of models: its model_type, the path of its blocks, sites and places that are absent."""
    return dict(read_json(FILE, {"transformers": str, "families": dict})["families"])


def family_of(config: dict[str, Any]) -> str | None:
    """The family of a model's config, of those of its model_type the one whose settings it has; None if unknown."""
    kind = config.get("model_type")
    own = {name: family["settings"] for name, family in families().items() if family["model_type"] == kind}
    first: dict[str, Any] = next(iter(own.values()), {})
    for name, settings in own.items():
        if all(config.get(key, first[key]) == value for key, value in settings.items()):
            return name
    return None
