"""Qwen Scope: `layerN.sae.pt`, in a folder named `SAE-Res-MODEL-W32K-L0_50`, as it is on the hub.

    f = relu(k largest of x W_enc.T + b_enc)        x_hat = f W_dec.T + b_dec        W_enc [L, D], W_dec [D, L]

k is in the folder's name alone. The ReLU is as SAELens reads these files.
"""

import re

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source

LAYOUT = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec.T", "b_dec": "b_dec"}


class QwenScope(Family):
    """Files of Qwen Scope."""

    title = "qwen_scope"

    def claims(self, files: Files) -> bool:
        lone = files.lone
        return lone is not None and re.fullmatch(r"layer\d+\.sae\.pt", lone.name) is not None

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        plain = plain_from(files.tensors(files.lone.name), LAYOUT, "topk")
        found = re.search(r"SAE-Res-(Qwen[^/]+)-W\d+K-L0_(\d+)", files.folder.resolve().as_posix())
        if not found:
            named = "put it into a folder named as on the hub, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50"
            raise ValueError(f"{files.lone} does not say how many latents a row keeps: {named}")
        plain.k = int(found[2])
        plain.shift()
        model, layer = f"Qwen/{found[1]}", files.lone.name.removeprefix("layer").partition(".")[0]
        place = source(model, site_of(model, f"blocks.{layer}.hook_resid_post"))
        return plain, Description(self.title, "TopK SAE", place, {"model": model, "layer": int(layer)})
