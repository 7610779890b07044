"""OpenAI's SAEs of GPT-2 (2024): one `.pt` an SAE.

    f = activation((x - pre_bias) W.T + latent_bias)        x_hat = f W_dec.T + pre_bias

The activation's name decides more than the activation: with TopK every row is normalised by itself before it is encoded
(mean 0, standard deviation 1) and brought back after it is decoded. Our SAE scales all rows alike, so those are
refused; those with a ReLU are read.
"""

import re
from typing import Any

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source

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
        how = tensors.entries.get("activation", "ReLU")
        if how == "TopK":
            what = "the layer normalisation of every row, which goes with activation TopK,"
            raise Settings(files.lone, {}).refuse(what, "its SAEs with a ReLU are read")
        if how != "ReLU":
            raise Settings(files.lone, {}).refuse(f"the activation {how}", "ReLU is read")
        plain = plain_from(tensors, LAYOUT, "relu")
        return plain, Description(
            self.title, "ReLU SAE", _source_of((files.folder.resolve() / files.lone.name).as_posix())
        )


def _source_of(path: str) -> dict[str, Any]:
    """The source where the folders have the names that the files were published under."""
    found = re.search(r"gpt2-small/([a-z_]+?)(?:_v\d+)?(?:_\d+k)?/autoencoders/(\d+)\.pt$", path)
    hook = HOOKS.get(found[1]) if found else None
    return source("gpt2", site_of("gpt2", f"blocks.{found[2]}.{hook}")) if found and hook else {}
