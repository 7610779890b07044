"""circuit-tracer's transcoders of an MLP: `layer_N.safetensors`, with the set's `config.yaml` beside it.

    f = relu(pre), or pre 1[pre > threshold] where there is `activation_function.threshold`     pre = x W_enc.T + b_enc
    x_hat = f W_dec + b_dec (+ x W_skip.T)        W_enc [L, D], W_dec [L, D]

Its TopK passes negative values, unlike ours, and is refused. Sets that write to several layers are refused.
"""

import re
from pathlib import Path
from typing import Any

from saelab.core.read import read_yaml
from saelab.interchange.family import Description, Family
from saelab.interchange.files import AGAIN, Files, Settings
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source

CONFIG = "config.yaml"
LAYOUT = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
SKIP, THRESHOLD = {"W_skip": "W_skip"}, {"threshold": "activation_function.threshold"}
MLP = {"mlp.hook_in": ".mlp:in", "mlp.hook_out": ".mlp"}
"""What they call the two ends of the MLP's module."""


class CircuitTracer(Family):
    """Files of circuit-tracer."""

    title = "circuit_tracer"

    def claims(self, files: Files) -> bool:
        lone = files.lone
        if lone is None or not re.fullmatch(r"layer_\d+\.safetensors", lone.name):
            return False
        return files.lone_has("W_enc", "b_enc", "W_dec", "b_dec")

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        tensors, config = files.tensors(files.lone.name), _config(files.folder / CONFIG)
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
        layer = files.lone.stem.removeprefix("layer_")
        found, said = _source_of(config, layer)
        name = f"{'JumpReLU' if is_jump else 'ReLU'} {'skip ' * ('W_skip' in layout)}transcoder"
        return plain, Description(self.title, name, found, said)


def _config(path: Path) -> Settings:
    if not path.is_file():
        return Settings(path, {})
    return Settings(path, read_yaml(path, remedy=AGAIN))


def _source_of(config: Settings, layer: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source where it is certain, and what was said."""
    keys = ("model_name", "feature_input_hook", "feature_output_hook")
    said: dict[str, Any] = config.said(*keys)
    model = config.get("model_name", str)
    block = site_of(model, f"blocks.{layer}.hook_resid_post") if model else None
    if not model or not block:
        return {}, said
    hooks = (config.get(key, str, "") for key in keys[1:])
    read, written = (block + MLP[hook] if hook in MLP else site_of(model, f"blocks.{layer}.{hook}") for hook in hooks)
    return (source(model, read, written) if written else {}), said
