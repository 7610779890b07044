"""One visit to every latent: gradient, Adam and unit norm in one pass (update.cpp)."""

# Shape letters: B rows, D width, L latents, K entries per row, T terms.

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from saelab.kernels.adam import MOMENTS, AdamSettings
from saelab.kernels.gradient import Term
from saelab.kernels.native import library, ptr
from saelab.kernels.native.sparse import by_latent

WIDEST = 16_384
"""Rows longer than this do not fit the buffers that 8-bit moments go through."""


def update(
    weight: Tensor,
    moments: Sequence[Tensor | None],
    terms: Sequence[Term],
    dense: Tensor | None,
    adam: AdamSettings,
    step: int,
    visits: tuple[Tensor | None, Tensor | None],
) -> None:
    """Change a weight [L, D] and its moments in place; see kernels/update.py for the formula.

    Args:
        weight: is changed.
        moments: exp_avg, exp_avg_sq and, of 8-bit floats, their rows' scales; are changed.
        terms: of the gradient.
        dense: what else belongs to the gradient, [L, D].
        adam: settings.
        step: number of this step, from 1.
        visits: with touched rows only, the step that last visited each latent [L] and the rate of every step.
    """
    for term in terms:
        by_latent(term.entries)
    values = [term.values.to(weight.dtype).contiguous() for term in terms]
    rows = [term.rows.to(weight.dtype).contiguous() for term in terms]
    entries = [term.entries for term in terms]

    def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * max(1, len(tensors)))(*(ptr(tensor) for tensor in tensors))

    def numbers(found: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
        return (ctypes.c_int64 * max(1, len(found)))(*found)

    dense = None if dense is None else dense.to(weight.dtype).contiguous()
    c_float = ctypes.c_float
    library().saelab_update(  # type: ignore[union-attr]
        *(ptr(weight.detach()), *(ptr(part) for part in moments), len(weight), weight.shape[1], len(terms)),
        *(addresses([one.order for one in entries]), addresses([one.offsets for one in entries])),
        *(addresses(values), addresses(rows), numbers([max(1, one.indices.shape[1]) for one in entries])),
        *(numbers([one.order.numel() for one in entries]), ptr(dense)),
        *(MOMENTS.index(adam.moments), int(adam.unit), int(adam.touched)),
        *(c_float(adam.rate(step)), c_float(adam.correction(step))),
        *(c_float(adam.beta1), c_float(adam.beta2), c_float(adam.epsilon), step),
        *(ctypes.c_uint32((adam.seed * 0x9E3779B1 + step) & 0xFFFFFFFF), *(ptr(part) for part in visits)),
    )
    torch.autograd.graph.increment_version(weight)
