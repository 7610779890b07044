"""An SAE as plain tensors: what all libraries' forms have in common, and the way from it to ours and back.

    pre = (x - b_dec) W_enc.T + b_enc        x_hat = f W_dec + b_dec        (a transcoder: x W_enc.T + b_enc,
                                                                             x_hat = f W_dec + b_dec + x W_skip.T)

Forms that do not subtract the decoder's bias before encoding become this one with b_enc + W_enc b_dec for b_enc, added
up in float64. Directions keep the norm they have: codes are those that the other library gives.
"""

# Shape letters, also those of AXES: L latents, D width read, O width written.

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from saelab.core.files import fit
from saelab.interchange.files import Tensors
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale
from saelab.sae.scales.data_scale import DataScale
from saelab.sae.scales.identity import Identity

AXES = {
    "W_enc": "LD", "b_enc": "L", "W_dec": "LO", "b_dec": "O", "W_skip": "OD", "threshold": "L", "r_mag": "L",
    "b_mag": "L",
}  # fmt: skip
BLOCK = 8192

Layout = Mapping[str, str]
"""Our name of a part to a library's name of the tensor, with ".T" behind it where it is kept transposed."""


@dataclass
class Plain:
    """Weights and how codes come from them.

    Attributes:
        parts: tensors by our names, shaped as AXES says; those of WEIGHTS always, the others where they apply.
        kind: relu, topk, abstopk, gated (with r_mag and b_mag), jumprelu or batchtopk (with a threshold).
        k: latents kept a row, or a row on average where there is a threshold.
        is_transcoder: whether other rows are written than are read.
        scale: what rows are divided by before they are encoded and multiplied with after they are decoded.
        row_scale: how each row is scaled by itself, in the place of `scale`; None where it is not.
        notes: what was done to the weights.
    """

    parts: dict[str, Tensor]
    kind: str
    k: float | None = None
    is_transcoder: bool = False
    scale: float = 1.0
    row_scale: Scale | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, D and O."""
        return *self.parts["W_enc"].shape, self.parts["W_dec"].shape[1]

    @torch.no_grad()
    def shift(self, sign: int) -> None:
        """From a form that encodes x as it is to ours, which subtracts b_dec (sign 1), or back (-1)."""
        parts = self.parts
        moved = sign * _product(parts["W_enc"], parts["b_dec"])
        parts["b_enc"] = (parts["b_enc"].double() + moved).to(parts["b_enc"])
        if "b_mag" in parts:
            parts["b_mag"] = (parts["b_mag"].double() + parts["r_mag"].double().exp() * moved).to(parts["b_mag"])

    @torch.no_grad()
    def unit_directions(self) -> None:
        """From a form that multiplies pre-activations by the directions' norms, and divides codes by them, to ours."""
        norms = self.parts["W_dec"].double().norm(dim=1)
        silent = norms == 0
        if silent.any():
            self.notes.append(f"latents without a direction stay at zero: {int(silent.sum()):,}")
        shorter = 1 / norms.where(~silent, torch.inf)  # their codes would be 0 / 0
        for name, factor in (("W_enc", norms[:, None]), ("b_enc", norms), ("W_dec", shorter[:, None])):
            self.parts[name] = (self.parts[name] * factor).to(self.parts[name])


def _product(weight: Tensor, vector: Tensor) -> Tensor:
    return torch.cat([rows.double() @ vector.double() for rows in weight.split(BLOCK)])


def parts_from(tensors: Tensors, layout: Layout, is_transcoder: bool = False) -> dict[str, Tensor]:
    """The parts that a layout names, from a file; ValueError unless all are there and fit each other."""
    parts = {}
    for name, theirs in layout.items():
        axes = AXES[name] if is_transcoder else AXES[name].replace("O", "D")
        flipped = theirs.endswith(".T")
        tensor = tensors.take(theirs.removesuffix(".T"), axes[::-1] if flipped else axes)
        parts[name] = tensor.T.contiguous() if flipped else tensor
    return parts


def laid_out(plain: Plain, layout: Layout) -> dict[str, Tensor]:
    """Tensors as a library names them."""
    found = {}
    for name, theirs in layout.items():
        part = plain.parts[name]
        found[theirs.removesuffix(".T")] = (part.T if theirs.endswith(".T") else part).contiguous()
    return found


def built(plain: Plain, path: Path) -> SAE:
    """Our SAE; ValueError that names the file for settings that do not fit its sizes."""
    n_latents, d_in, d_out = plain.sizes
    activation, state = _activation(plain)
    dictionary = Dense(skip_connection="W_skip" in plain.parts)
    try:
        d_out_or_none = d_out if plain.is_transcoder else None
        sae = SAE(d_in, n_latents, activation, dictionary=dictionary, d_out=d_out_or_none, scale=plain.row_scale)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sae.to(plain.parts["W_enc"].dtype)
    tensors = {f"activation.{name}": value for name, value in state.items()}
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
        if name in plain.parts:
            tensors[f"dictionary.{name}"] = plain.parts[name]
    fit(sae, sae.state_dict() | tensors, path)
    if isinstance(sae.scale, DataScale):
        sae.scale.set(torch.zeros(d_in), plain.scale)
    return sae


@torch.no_grad()
def check_computes(sae: Autoencoder, path: Path) -> None:
    """ValueError that names the file if a weight, or what becomes of a row, is not finite."""
    for name, part in sae.state_dict().items():
        # A threshold of 0 is kept as its logarithm.
        finite = torch.isfinite(part) | (part == -torch.inf if name == "activation.log_threshold" else False)
        if not finite.all():
            raise ValueError(f"{path}: {name} holds NaN or infinity in {int((~finite).sum()):,} places")
    row = torch.randn(1, sae.d_in, generator=torch.Generator().manual_seed(0))
    row = row.to(sae.device, sae.dtype)
    row = sae.scale.undo(row, sae.scale.numbers(row))
    codes = sae.encode(row)
    if not (torch.isfinite(codes.values).all() and torch.isfinite(sae.decode(codes, row)).all()):
        raise ValueError(f"{path}: a row of random numbers is reconstructed as NaN or infinity")


def _activation(plain: Plain) -> tuple[Activation, dict[str, Tensor]]:
    """The activation and its tensors."""
    parts, k = plain.parts, plain.k
    if plain.kind == "jumprelu":
        return JumpReLU(), {"log_threshold": parts["threshold"].relu().log()}
    if plain.kind == "batchtopk" and k is not None:
        return BatchTopK(k), {"threshold": parts["threshold"].relu(), "updates": torch.ones((), dtype=torch.int64)}
    if plain.kind == "gated":
        return Gated(), {"r_mag": parts["r_mag"], "b_mag": parts["b_mag"]}
    if plain.kind == "relu":
        return ReLU(), {}
    assert k is not None
    return {"topk": TopK, "abstopk": AbsTopK}[plain.kind](int(k)), {}


@torch.no_grad()
def apart(sae: Autoencoder) -> Plain:
    """An SAE of ours as plain tensors, scalings that one mean and size make folded into them.

    Raises:
        ValueError: for one that has other parts.
    """
    if not isinstance(sae, SAE) or type(sae.dictionary) not in (Dense, Expander):
        found = type(sae.dictionary).__name__ if isinstance(sae, SAE) else type(sae).__name__
        raise ValueError(
            f"{found} has no form elsewhere that saelab writes; SAEs with the dictionary Dense or Expander have"
        )
    if sae.mesh.shards > 1:
        raise ValueError("this process holds a part of the SAE's latents: load the saved SAE in one process")
    notes, dtype = [], sae.dtype
    row_scale = type(sae.scale)() if sae.scale.per_row else None
    folded = [one for one in {sae.scale, sae.target_scale} if not (one.per_row or one.is_identity)]
    if folded:
        notes.append("folded the scaling of rows: codes are in the units of the data")
    sae = copy.deepcopy(sae).double()
    if row_scale is None:
        sae.fold()
    elif sae.d_out:
        nothing = Identity().setup(sae.d_in).double().fixed()
        sae.activation.rescale(sae.dictionary.fold(nothing, sae.target_scale.fixed()))
    dictionary = sae.dictionary
    assert isinstance(dictionary, Dense)
    written = dictionary.directions().detach()
    is_tied = isinstance(dictionary, Expander) or dictionary.tied
    parts = {
        "W_enc": written.clone() if is_tied else dictionary.W_enc.detach(),
        "b_enc": dictionary.b_enc.detach(),
        "W_dec": written,
        "b_dec": dictionary.b_dec.detach(),
    }
    if dictionary.skip_connection:
        parts["W_skip"] = dictionary.W_skip.detach()
    reading = sae.activation.plain()
    parts = {name: part.to(dtype) for name, part in (parts | reading.parts).items()}
    return Plain(parts, reading.kind, reading.k, sae.d_out is not None, row_scale=row_scale, notes=notes)
