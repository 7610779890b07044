"""An SAE as the object that SAEBench evaluates: dense codes, directions of unit norm, a config with what it looks for.

`saebench(sae, source)` gives it; SAEBench itself is not needed for that. Its runners take a list of pairs of a name and
such an object. Transcoders, SAEs over several sites, and those whose rows have a scale of their own, which is lost
between its `encode` and its `decode`, are refused.
"""

# Shape letters: D width, L latents.

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelab.interchange.families.sae_lens_source import metadata_of
from saelab.interchange.plain import Given, apart, check_computes, skeleton
from saelab.sae.autoencoder import Autoencoder

ROUNDING = 1e-5
"""How far norms may be from 1, as SAEBench checks them."""


@dataclass
class SAEBenchConfig:
    """What SAEBench reads of an SAE's config."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    dtype: str
    device: str = "cpu"
    context_size: int | None = None
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """An SAE with SAEBench's names: W_enc [D, L], b_enc [L], W_dec [L, D] of unit norm, b_dec [D]."""

    def __init__(self, sae: Autoencoder, source: dict[str, Any]):
        super().__init__()
        plain = apart(sae)
        if plain.is_transcoder or plain.dictionary != "Dense" or plain.row_scale:
            raise ValueError(
                "SAEBench has no form for transcoders, several sites, or rows that each have their own scale"
            )
        if (plain.matrices["W_dec"].norms() - 1).abs().max() > ROUNDING:
            plain.bring_to_unit_norm()
        check_computes(plain, Path("the SAE"))
        self._thin = skeleton(plain)
        self.W_enc = nn.Parameter(plain.matrices["W_enc"].T.whole())
        self.W_dec = nn.Parameter(plain.matrices["W_dec"].whole())
        self.b_enc, self.b_dec = (nn.Parameter(plain.vectors[name]) for name in ("b_enc", "b_dec"))
        about, _ = metadata_of(source)
        hook = str(about.get("hook_name", source.get("site") or ""))
        layers = [int(part) for part in hook.split(".") if part.isdigit()]
        self.cfg = SAEBenchConfig(
            model_name=str(about.get("model_name", "")).rpartition("/")[2],
            d_in=self.W_enc.shape[0],
            d_sae=self.W_enc.shape[1],
            hook_layer=layers[0] if layers else -1,
            hook_name=hook,
            architecture=plain.kind,
            dtype=str(plain.dtype).removeprefix("torch."),
            context_size=about.get("context_size"),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.W_enc.device

    def encode(self, x: Tensor) -> Tensor:
        """Codes [..., L] of rows [..., D]."""
        rows = x.reshape(-1, x.shape[-1]).to(self.W_enc)
        pre = (rows - self.b_dec) @ self.W_enc + self.b_enc
        codes: Tensor = self._thin.activation(Given(self._thin, pre, self.b_enc)).dense()
        return codes.view(*x.shape[:-1], codes.shape[1])

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Rows [..., D] from codes [..., L]."""
        return feature_acts.to(self.W_dec) @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructed rows [..., D]."""
        return self.decode(self.encode(x))


def saebench(sae: Autoencoder, source: dict[str, Any] | None = None) -> SAEBenchSAE:
    """The object that SAEBench evaluates in the place of a custom SAE.

    Args:
        sae: an SAE; its scaling is folded into the weights.
        source: what a run's source.json says of model and site, such as `open_run(path).origin`.

    Raises:
        ValueError: for what SAEBench has no form for.
    """
    return SAEBenchSAE(sae, source or {})
