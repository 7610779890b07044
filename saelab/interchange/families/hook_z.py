"""Kissane, Krzyzanowski et al. (2024), attention outputs of GPT-2: NAME.pt with NAME_cfg.json beside it.

    f = relu((x - b_dec) W_enc + b_enc)        x_hat = f W_dec + b_dec        W_enc [D, L], W_dec [L, D]

Rows are `hook_z`, all heads side by side.
"""

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files
from saelab.interchange.plain import Plain, plain_from
from saelab.interchange.sites import site_of, source

LAYOUT = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


class HookZ(Family):
    """Files of Kissane, Krzyzanowski et al."""

    title = "hook_z"

    def claims(self, files: Files) -> bool:
        if files.lone is None or not (files.folder / _config(files)).is_file():
            return False
        return "act_name" in files.settings(_config(files)).table and files.lone_has("W_enc", suffixes=(".pt",))

    def read(self, files: Files) -> tuple[Plain, Description]:
        assert files.lone is not None
        config, tensors = files.settings(_config(files)), files.tensors(files.lone.name)
        tensors.sizes = {"D": config.need("act_size", int), "L": config.need("dict_size", int)}
        hook = config.need("act_name", str)
        plain = plain_from(tensors, LAYOUT, "relu")
        return plain, Description(self.title, "ReLU SAE", source("gpt2", site_of("gpt2", hook)), {"act_name": hook})


def _config(files: Files) -> str:
    return f"{files.lone.stem}_cfg.json" if files.lone else ""
