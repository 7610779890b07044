"""An SAE made of SAEs: their dictionaries side by side (Gadgil et al. 2025, arXiv 2505.16077, as we read it).

    bagging     x_hat = (1/S) sum_s x_hat_s(x)                        S SAEs that differ in their seeds
    boosting    x_hat = sum_s x_hat_s(x - sum_{r<s} x_hat_r)          each reads what the ones before it left over

Either is one SAE over the latents of all members: a code is the member's own code in the units of the data, divided
by S where bagging averages, and the directions are the members' of unit length. So its scaling is the identity, and it
encodes, decodes and is measured like any other SAE. It is not trained as a whole: `saelab.train.ensemble` trains the
members. Members that scale every row by itself are averaged where they all do it in one way, which then is the
ensemble's too, in whose units codes are; boosting, where members read other rows, leaves them out. So does either
transcoders.
"""

# Shape letters: B rows, D width, L latents of all members together, S members.

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.components import near_miss
from saelab.core.files import write_json
from saelab.core.mesh import ALONE, Mesh
from saelab.core.rows import Rows, flat_rows
from saelab.kernels.decode import decode
from saelab.sae.autoencoder import CONFIG, ENSEMBLE, FORMAT, Autoencoder, Decoder
from saelab.sae.firing import Firing
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale
from saelab.sae.scales.identity import Identity

HOW = ("bagging", "boosting")
MEMBERS = "member-*"
"""What the members' folders are called, with their numbers for the star."""


class SideBySide(Decoder):
    """The dictionary of an ensemble, as others see it: the members' directions one after another, in the data's units.

    Nothing is kept here: what is asked for is worked out from the members' weights as they are then.
    """

    def __init__(self, saes: Sequence[SAE], weight: float):
        self._saes, self._weight = saes, weight

    def sizes(self, number: int) -> Tensor:
        """How much one unit of member `number`'s codes counts in the data's units: its latents' factors [L_s]."""
        return self._saes[number].data_directions().norm(dim=1)

    def directions(self) -> Tensor:
        """Directions [L, D] of unit length."""
        long = [sae.data_directions() for sae in self._saes]
        return torch.cat([part / _divisor(part.norm(dim=1))[:, None] for part in long])

    def norms(self) -> Tensor:
        """Their lengths [L]: 1, or 0 for a latent whose direction is zero."""
        return self.directions().norm(dim=1)

    def bias(self) -> Tensor:
        """What is decoded when no latent is active; [D]."""
        return torch.stack([sae.data_bias() for sae in self._saes]).sum(0) * self._weight

    def decode(self, codes: Codes, frozen: bool = False) -> Tensor:
        """Reconstruction [B, D]; `frozen` passes a gradient to the codes only."""
        directions, bias = self.directions(), self.bias()
        return decode(codes, directions.detach() if frozen else directions) + (bias.detach() if frozen else bias)


def _divisor(norms: Tensor) -> Tensor:
    return norms.where(norms > 0, 1)


class Ensemble(Autoencoder):
    """Several SAEs of the same rows as one; latents are numbered through the members in their order.

    Args:
        saes: the members; they are not copied and may differ in everything but the width of their rows.
        how: "bagging", the average of their reconstructions, or "boosting", the sum of reconstructions of what the
            members before left over.

    Raises:
        ValueError: for no members, members of different widths, transcoders, members dealt to several processes, or
            scalings that do not go together.
    """

    d_out: None = None
    mesh: Mesh = ALONE
    dictionary: SideBySide

    def __init__(self, saes: Sequence[SAE], how: str = "bagging"):
        super().__init__()
        if how not in HOW:
            raise ValueError(f"unknown kind of ensemble how='{how}'{near_miss(how, HOW)}")
        _check(saes)
        self.how, self.d_in = how, saes[0].d_in
        self.n_latents = sum(sae.n_latents for sae in saes)
        self.members = nn.ModuleList(saes)
        self.scale = _scale_of(saes, how).to(saes[0].device, saes[0].dtype)
        self.dictionary = SideBySide(saes, self.weight)
        self.firing = _counted(saes)

    @property
    def saes(self) -> list[SAE]:
        """The members."""
        return cast(list[SAE], list(self.members))  # a ModuleList forgets what it holds

    @property
    def weight(self) -> float:
        """What a member's reconstruction counts."""
        return 1 / len(self.members) if self.how == "bagging" else 1.0

    def encode(self, x: Rows) -> Codes:
        """Codes over all members' latents of rows x [..., D], in the units of the data, or of scaled rows (see top)."""
        left, leading = flat_rows(x, self.d_in, self.device)
        parts = []
        for number, sae in enumerate(self.saes):
            own = sae.encode(left)
            if self.how == "boosting" and number < len(self.members) - 1:
                left = left - sae.decode(own)
            factors = self.dictionary.sizes(number) * self.weight
            parts.append(own.with_values(own.values * factors[own.indices]))
        codes = _beside(parts).with_row_scale(parts[0].row_scale if self.scale.per_row else None)
        return codes if len(leading) == 1 else codes.unflatten(leading)

    def decode(self, codes: Codes, x: Rows | None = None) -> Tensor:
        """Reconstructed rows [..., D], in the units of the data; x is not needed."""
        flat = codes.flat()
        x_hat = self.scale.undo(self.dictionary.decode(flat), flat.row_scale)
        return x_hat.view(*codes.values.shape[:-1], self.d_in)

    def config(self) -> dict[str, Any]:
        """What an ensemble is, without its members."""
        return {"format": FORMAT, "kind": ENSEMBLE, "how": self.how, "members": len(self.members)}

    def save(self, folder: str | Path) -> None:
        """Write each member into a folder of its own, and then `config.json` beside them."""
        folder = Path(folder)
        for number, sae in enumerate(self.saes):
            sae.save(member_folder(folder, number))
        write_json(folder / CONFIG, self.config())

    def __repr__(self) -> str:
        return f"Ensemble({self.how} of {self.saes})"


def _check(saes: Sequence[SAE]) -> None:
    if not saes:
        raise ValueError("an ensemble needs at least one SAE")
    for number, sae in enumerate(saes):
        if not isinstance(sae, SAE):
            raise ValueError(
                f"the members of an ensemble must be SAEs; member {number} is of the kind {type(sae).__name__}"
            )
        if sae.d_out:
            raise ValueError(
                f"the members of an ensemble must be SAEs; member {number} is a transcoder (d_out={sae.d_out})"
            )
        if sae.d_in != saes[0].d_in:
            raise ValueError(
                f"the members must read the same rows: member {number} has d_in={sae.d_in}, not {saes[0].d_in}"
            )
        if sae.mesh.shards > 1:
            raise ValueError(
                f"an ensemble must be on one process; member {number} is split over {sae.mesh.shards} shards"
            )


def _scale_of(saes: Sequence[SAE], how: str) -> Scale:
    """The ensemble's own scaling: the members' where they scale every row by itself, and else none."""
    first = saes[0].scale
    for number, sae in enumerate(saes):
        check_scale(sae, number, how)
        if (sae.scale.per_row or first.per_row) and not sae.scale.same_as(first):
            names = f"{sae.scale.sentence()}, member 0 {first.sentence()}"
            raise ValueError(f"the members scale rows in one way if each row by itself: member {number} has {names}")
    own = Scale.unused(first) if first.per_row else Identity()
    return own.setup(saes[0].d_in, first.sites if first.per_row else 1)


def check_scale(sae: SAE, number: int, how: str) -> None:
    """ValueError for a member that does not fit the kind of ensemble."""
    if how == "boosting" and sae.scale.per_row:
        raise ValueError(
            f"boosting adds reconstructions of different rows, so no member may scale each by itself; member {number} "
            f"has {sae.scale.sentence()}"
        )


def _counted(saes: Sequence[SAE]) -> Firing:
    """The members' counters one after another; `rows` is what the member that saw the fewest has seen."""
    firing = Firing(sum(sae.n_latents for sae in saes)).to(saes[0].device)
    firing.since.copy_(torch.cat([sae.firing.since for sae in saes]))
    firing.rows.copy_(torch.stack([sae.firing.rows for sae in saes]).min())
    return firing


def _beside(parts: list[Codes]) -> Codes:
    """Codes of the same rows over the latents of one member after another."""
    values = torch.cat([part.values for part in parts], 1)
    indices, before = [], 0
    for part in parts:
        indices.append(part.indices + before)
        before += part.n_latents
    return Codes(values, torch.cat(indices, 1), before)


def member_folder(folder: Path, number: int) -> Path:
    """Where a member is saved in its ensemble's folder."""
    return folder / MEMBERS.replace("*", str(number))
