"""Llama Scope (2024): `hyperparams.json` and `checkpoints/final.safetensors`.

    y = s x,  s = sqrt(D) / mean norm of a row        f = pre 1[pre > s t]      pre = y W_enc.T + b_enc
    x_hat = (f W_dec + b_dec) / s'                    t: jump_relu_threshold, one number

The weights are for rows scaled by s, the threshold for pre-activations that are not: both SAELens and the authors' own
reading, which divides b_enc by s and leaves t alone, come to this, as we read them. Here rows keep that scale, so codes
are s times those of the authors' reading. Transcoders scale what they write by a norm of its own, s'. What its settings
mean is as in `llamascopium.py`, which the library became.
"""

from saelab.interchange.families.llamascopium import read_weights
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files
from saelab.interchange.plain import Plain

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
MODEL, REPOSITORY = "meta-llama/Llama-3.1-8B", "Llama3_1-8B-Base-L"


class LlamaScope(Family):
    """Files of Llama Scope."""

    title = "llama_scope"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        return files.has(CONFIG, WEIGHTS)

    def read(self, files: Files) -> tuple[Plain, Description]:
        model = MODEL if REPOSITORY in files.folder.resolve().name else None
        return read_weights(self.title, files.settings(CONFIG), files.tensors(WEIGHTS), model, "jumprelu")
