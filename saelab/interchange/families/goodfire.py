"""Goodfire's SAEs of Llama 3 (2025): one `.pt` or `.pth` an SAE.

    f = relu(x W.T + b)        x_hat = f W_dec.T + b_dec

Model and layer are in the file's name, as it is on the hub: the residual stream after that layer.
"""

import re

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source

LAYOUT = {
    "W_enc": "encoder_linear.weight",
    "b_enc": "encoder_linear.bias",
    "W_dec": "decoder_linear.weight.T",
    "b_dec": "decoder_linear.bias",
}


class Goodfire(Family):
    """Files of Goodfire."""

    title = "goodfire"

    def claims(self, files: Files) -> bool:
        return files.lone_has("encoder_linear.weight", suffixes=(".pt", ".pth"))

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        plain = plain_from(files.tensors(files.lone.name), LAYOUT, "relu")
        plain.shift()
        found = re.fullmatch(r"(Llama-3\.\d-\d+B-Instruct)-SAE-l(\d+)", files.lone.stem)
        model = f"meta-llama/{found[1]}" if found else ""
        place = source(model, site_of(model, f"blocks.{found[2]}.hook_resid_post")) if found else {}
        return plain, Description(self.title, "ReLU SAE", place)
