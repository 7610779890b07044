"""Temporal SAEs (2025): `conf.yaml` and `latest_ckpt.safetensors`. They are refused, and here is why.

A row's reconstruction has two parts: what attention over the rows before predicts of it, and sparse codes of the rest.
So codes belong to a row in its document, while an SAE here reads each row for itself.
"""

from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings
from saelab.interchange.plain import Plain

CONFIG, WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"


class Temporal(Family):
    """Files of temporal SAEs."""

    title = "temporal"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        return files.has(CONFIG, WEIGHTS)

    def read(self, files: Files) -> tuple[Plain, Description]:
        config = Settings(files.folder / WEIGHTS, {})
        raise config.refuse(
            "a temporal SAE", "its codes depend on the tokens before, and saelab's on their own row alone"
        )
