"""Several SAEs of equal shape on the same rows, as one computation.

The encoders of M members are one matrix [M * L, D], so one product gives all pre-activations, one selection the largest
of every row and member, and one sparse sum all reconstructions:

    pre[b, m] = W_enc[m] x[b] + (b_enc[m] - W_enc[m] b_dec[m])            [B, M, L]

Members stay ordinary SAEs whose parameters are views of common storage: each keeps its own seed, settings, losses,
hooks and optimizer, and what it does with its slice is what it would do alone. Gradients reach each member's own
parameters. The difference to training alone is rounding: x - b_dec is multiplied out.
"""

# Shape letters: B rows, D input width, L latents of a member, K kept per row, M members.

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes, Entries
from saelab.kernels.decode import DENSE_SHARE, decode
from saelab.kernels.select import topk_linear
from saelab.sae.base import Forward
from saelab.sae.dictionaries.dense import Dense, DensePre
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale

STACKED = ("W_enc", "W_dec", "b_enc", "b_dec")


class Stack:
    """SAEs that read the same rows together.

    Args:
        saes: the members, on one device and alone in their mesh. Their parameters move into common storage.

    Raises:
        ValueError: for fewer than one member, or members of different shape or kind.
    """

    def __init__(self, saes: Sequence[SAE]):
        self.saes = list(saes)
        self._check()
        self._storage = {name: torch.stack([getattr(sae.dictionary, name).data for sae in saes]) for name in STACKED}
        for name, storage in self._storage.items():
            for sae, part in zip(saes, storage, strict=True):
                getattr(sae.dictionary, name).data = part

    def _check(self) -> None:
        if not self.saes:
            raise ValueError("a stack needs at least one SAE")
        first = self.saes[0]
        for number, sae in enumerate(self.saes):
            if type(sae.dictionary) is not Dense or sae.d_out or sae.dictionary.tied:
                kind = type(sae.dictionary).__name__
                raise ValueError(f"only untied Dense dictionaries of SAEs train together; member {number} has {kind}")
            if sae.mesh.replicas * sae.mesh.shards > 1:
                raise ValueError("SAEs that train together must be on one process")
            for what in (
                lambda one: ("d_in and n_latents", (one.d_in, one.n_latents)),
                lambda one: ("dictionary", one.dictionary.config()),
                lambda one: ("kind of activation", type(one.activation).__name__),
                lambda one: ("kinds of losses", [type(loss).__name__ for loss in one.losses]),
            ):
                (name, own), (_, wanted) = what(sae), what(first)
                if own != wanted:
                    raise ValueError(f"SAEs that train together need the same {name}: {own} is not {wanted}")

    def forward_train(self, x: Tensor) -> list[Forward]:
        """Every member's training pass on rows x [B, D]; see `SAE.forward_train`."""
        scale = self._scale()
        numbers = scale.numbers(x)
        rows = scale.apply_to(x, numbers)
        pres, joined = self._pre_activations(rows)
        codes = [
            sae.activation.forward_train(pre).with_row_scale(numbers) for sae, pre in zip(self.saes, pres, strict=True)
        ]
        x_hats = self._decode(codes, pres, joined)
        members = zip(self.saes, pres, codes, x_hats, strict=True)
        return [Forward(sae, rows, rows, pre, own, x_hat) for sae, pre, own, x_hat in members]

    def _scale(self) -> Scale:
        first = self.saes[0].scale
        for sae in self.saes[1:]:
            if not sae.scale.same_as(first):
                raise ValueError("SAEs that train together need the same scaling: initialise them with the same sample")
        return first

    def _joint(self, name: str) -> Tensor:
        """A parameter of all members [M, ...] whose gradient reaches each member's own."""
        return _Joint.apply(self._storage[name], *(getattr(sae.dictionary, name) for sae in self.saes))

    def _pre_activations(self, rows: Tensor) -> tuple[list["_Member"], Entries | None]:
        """Each member's pre-activations, and the chosen entries [B * M, K] where all need only the largest."""
        encoder, n_members, n_latents = self._joint("W_enc"), len(self.saes), self.saes[0].n_latents
        shift = self._joint("b_enc") - (encoder @ self._joint("b_dec")[:, :, None]).squeeze(2)
        weight, bias = encoder.flatten(0, 1), shift.flatten()
        members = [_Member(sae, rows) for sae in self.saes]
        kept = [sae.activation.topk_k for sae in self.saes]
        if any(k is None for k in kept):
            dense = F.linear(rows, weight, bias).view(len(rows), n_members, n_latents)
            for number, member in enumerate(members):
                member.listed, member._dense = None, dense[:, number]
            return members, None
        width = max(k for k in kept if k is not None)
        values, entries = topk_linear(rows, torch.zeros_like(rows[0]), weight, bias, width, groups=n_members)
        shape = (len(rows), n_members, width)
        values, indices = values.view(shape), entries.indices.view(shape)
        for number, member in enumerate(members):
            local = Entries(indices[:, number] - number * n_latents, n_latents)
            member.listed = Codes(values[:, number], local, n_latents)
        joined = Entries(entries.indices.view(-1, width), n_members * n_latents)
        joined.order, joined.offsets = entries.order, entries.offsets  # sorted once for encoder and decoder
        return members, joined

    def _decode(self, codes: list[Codes], pres: list["_Member"], joined: Entries | None) -> list[Tensor]:
        """Each member's reconstruction [B, D]."""
        weight, bias = self._joint("W_dec"), self._joint("b_dec")
        n_members, n_latents, width = weight.shape
        as_listed = all(
            pre.listed is not None and own.entries is pre.listed.entries for own, pre in zip(codes, pres, strict=True)
        )
        if joined and as_listed and joined.indices.shape[1] * DENSE_SHARE <= n_latents:
            values = torch.stack([own.values for own in codes], 1).flatten(0, 1)
            rows = decode(Codes(values, joined, n_members * n_latents), weight.flatten(0, 1))
            return list((rows.view(-1, n_members, width) + bias).unbind(1))
        dense = torch.stack([own.dense() for own in codes])
        return list((dense @ weight + bias[:, None]).unbind(0))


class _Member(DensePre):
    """One member's pre-activations, of which the largest, or all, were computed with the others'."""

    listed: Codes | None = None
    """The largest of each row, largest first."""

    def __init__(self, sae: SAE, rows: Tensor):
        dictionary = sae.dictionary
        assert isinstance(dictionary, Dense)
        terms = dictionary.terms_for(dictionary.W_enc)
        super().__init__(dictionary, rows, dictionary.b_dec, dictionary.W_enc, dictionary.b_enc, terms=terms)

    def local_topk(self, k: int, absolute: bool) -> tuple[Tensor, Entries]:
        if self.listed is None or absolute or k > self.listed.values.shape[1]:
            return super().local_topk(k, absolute)
        values = self.listed.values
        if k < values.shape[1]:
            values = values * (torch.arange(values.shape[1], device=values.device) < k)
        return values, self.listed.entries


class _Joint(torch.autograd.Function):
    """Common storage in, itself out; the gradient goes to the parts, which are views of it."""

    @staticmethod
    def forward(ctx: Any, storage: Tensor, *parts: Tensor) -> Tensor:
        return storage.view_as(storage)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grad.unbind(0)
