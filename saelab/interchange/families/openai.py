"""OpenAI's SAEs of GPT-2 (2024): one `.pt` an SAE.

    f = activation((x - pre_bias) W.T + latent_bias)        x_hat = f W_dec.T + pre_bias

v1 and v4 have a ReLU; v5 has TopK, and with it every row is normalised by itself (`LayerNorm`): the activation's name
decides both. Weights may be tied, the decoder being the encoder under another name.
"""

import re
from typing import Any

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source
from saelab.sae.scales.layer_norm import LayerNorm

LAYOUT = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight.T", "b_dec": "pre_bias"}
HOOKS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}


class OpenAI(Family):
    """Files of OpenAI's sparse_autoencoder."""

    title = "openai"

    def claims(self, files: Files) -> bool:
        return files.lone_has("pre_bias", "latent_bias", "encoder.weight", suffixes=(".pt", ".pth"))

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        tensors = files.tensors(files.lone.name)
        config = Settings(files.lone, dict(tensors.entries))
        how = config.get("activation", str, "ReLU")
        if how not in ("ReLU", "TopK"):
            raise config.refuse(f"the activation {how}", "ReLU and TopK are read")
        layout = LAYOUT if "decoder.weight" in tensors else LAYOUT | {"W_dec": "encoder.weight"}
        plain = plain_from(tensors, layout, how.lower())
        if how == "TopK":
            state = config.part("activation_state_dict")
            if (after := state.get("postact_fn", str, "ReLU")) != "ReLU":
                raise config.refuse(f"TopK with {after}", "TopK with ReLU is read")
            plain.k, plain.row_scale = state.need("k", int), LayerNorm()
        place = _source_of((files.folder.resolve() / files.lone.name).as_posix())
        return plain, Description(self.title, f"{how} SAE", place)


def _source_of(path: str) -> dict[str, Any]:
    """The source where the folders have the names that the files were published under."""
    found = re.search(r"gpt2-small/([a-z_]+?)(?:_v\d+)?(?:_\d+k)?/autoencoders/(\d+)\.pt$", path)
    hook = HOOKS.get(found[1]) if found else None
    return source("gpt2", site_of("gpt2", f"blocks.{found[2]}.{hook}")) if found and hook else {}
