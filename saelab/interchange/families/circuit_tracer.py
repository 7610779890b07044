"""circuit-tracer's transcoders of MLPs: `layer_N.safetensors` for each layer, with the set's `config.yaml` beside them.

    f = relu(pre), or pre 1[pre > threshold] where there is `activation_function.threshold`     pre = x W_enc.T + b_enc
    x_hat = f W_dec + b_dec (+ x W_skip.T)        W_enc [L, D], W_dec [L, D]

Its TopK passes negative values, unlike ours, and is refused. Transcoders of a set are read one by one (`--only`) and
written one by one into one folder. Where one writes to several layers see `circuit_tracer_clt.py`.
"""

import re
from pathlib import Path
from typing import Any

from saelab.core.files import write_tensors, write_text
from saelab.core.read import read_yaml
from saelab.interchange.family import Description, Family
from saelab.interchange.files import AGAIN, Files, Settings
from saelab.interchange.plain import Plain, laid_out, plain_from
from saelab.interchange.sites import hook_of, site_of, source

CONFIG = "config.yaml"
LAYOUT = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
SKIP, THRESHOLD = {"W_skip": "W_skip"}, {"threshold": "activation_function.threshold"}
MLP_IN = "mlp.hook_in"
"""What they call the rows that the MLP's module reads."""


class CircuitTracer(Family):
    """Files of circuit-tracer."""

    title = "circuit_tracer"
    is_set = True

    def claims(self, files: Files) -> bool:
        lone = files.lone
        if lone is None or not re.fullmatch(r"layer_\d+\.safetensors", lone.name):
            return False
        return files.lone_has("W_enc", "b_enc", "W_dec", "b_dec")

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        tensors, config = files.tensors(files.lone.name), config_of(files)
        kind = config.get("model_kind", str, "transcoder_set")
        if kind != "transcoder_set":
            raise config.refuse(f"model_kind {kind}", "transcoder_set is read")
        how = config.get("activation", str) or ("topk" if "k" in tensors else None)
        if how not in (None, "relu"):
            raise config.refuse(f"the activation {how}", "ReLU and JumpReLU are read")
        is_jump = how is None and THRESHOLD["threshold"] in tensors
        layout = LAYOUT | (SKIP if "W_skip" in tensors else {}) | (THRESHOLD if is_jump else {})
        plain = plain_from(tensors, layout, "jumprelu" if is_jump else "relu", True)
        if is_jump and (plain.vectors["threshold"] < 0).any():
            raise config.refuse("a threshold below zero", "it would pass negative codes")
        found, said = source_of(config, [int(files.lone.stem.removeprefix("layer_"))])
        name = f"{'JumpReLU' if is_jump else 'ReLU'} {'skip ' * ('W_skip' in layout)}transcoder"
        return plain, Description(self.title, name, found, said)

    def write(self, plain: Plain, folder: Path, source: dict[str, Any]) -> list[str]:
        (layer,), about = named(self, plain, source, 1)
        layout = LAYOUT | (SKIP if "W_skip" in plain.matrices else {})
        layout |= THRESHOLD if "threshold" in plain.vectors else {}
        write_tensors(folder / f"layer_{layer}.safetensors", laid_out(plain, layout))
        write_config(folder, "transcoder_set", about)
        return ["circuit-tracer loads a folder once it has all layers from 0 on"]


def config_of(files: Files) -> Settings:
    """Their config beside the weights; empty where there is none."""
    path = files.folder / CONFIG
    return Settings(path, read_yaml(path, remedy=AGAIN) if path.is_file() else {})


def source_of(config: Settings, layers: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source where it is certain, sites of several layers side by side, and what was said."""
    keys = ("model_name", "feature_input_hook", "feature_output_hook")
    said: dict[str, Any] = config.said(*keys)
    model = config.get("model_name", str)
    if not model:
        return {}, said
    hooks = [config.get(key, str, "") for key in keys[1:]]
    read, written = ([site_of(model, f"blocks.{layer}.{hook}") for layer in layers] for hook in hooks)
    if None in read or None in written:
        return {}, said
    return source(model, ",".join(map(str, read)), ",".join(map(str, written))), said


def named(family: Family, plain: Plain, about: dict[str, Any], sites: int) -> tuple[list[int], dict[str, str]]:
    """The layers of an SAE of ours, and what their config says of it; ValueError where they have no form for it."""
    if plain.kind not in ("relu", "jumprelu", "batchtopk") or not plain.is_transcoder:
        what = f"a transcoder that reads with {plain.kind}" if plain.is_transcoder else "SAEs: it has transcoders"
        raise family.no_form(what)
    _, d_in, d_out = plain.sizes
    if d_in != d_out:
        raise family.no_form(f"a transcoder from rows {d_in} wide to {d_out} wide: widths have to be the same")
    model, places = about.get("model"), (about.get("site"), about.get("target"))
    if not model or not all(places):
        raise family.no_form("a transcoder of no known model, site and target: measure it there first")
    found = [[_hook(str(model), one) for one in str(place).split(",")] for place in places]
    if any(None in ends or len(ends) != sites for ends in found):
        raise family.no_form(f"{places[0]} and {places[1]}: they are not hooks of {sites} of the model's layers")
    read, written = (dict(one for one in ends if one) for ends in found)
    inside, out = set(read.values()), set(written.values())
    if len(inside) > 1 or len(out) > 1 or list(read) != list(written):
        raise family.no_form("sites of different kinds")
    hooks = {"feature_input_hook": inside.pop(), "feature_output_hook": out.pop()}
    return list(read), {"model_name": str(model)} | hooks


def _hook(model: str, site: str) -> tuple[int, str] | None:
    """Layer and name of a site, if it has them."""
    if hook := hook_of(model, site):
        layer, _, name = hook.removeprefix("blocks.").partition(".")
        return int(layer), name
    found = re.search(r"\.(\d+)\.", site)
    return (int(found[1]), MLP_IN) if found and site == site_of(model, f"blocks.{found[1]}.{MLP_IN}") else None


def write_config(folder: Path, kind: str, about: dict[str, str]) -> None:
    """Write their config."""
    lines = {"model_kind": kind} | about
    write_text(folder / CONFIG, "".join(f'{key}: "{value}"\n' for key, value in lines.items()))
