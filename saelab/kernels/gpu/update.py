"""Adam on a weight [L, D] on a GPU: one program a latent forms its gradient and moves it, in one visit.

For latent l with row w, gradient g (a sum over its entries, see sums.py), averages m and v, step t:

    g <- g - (g . w) w                          where rows have unit norm
    m <- beta1 m + (1 - beta1) g                v <- beta2 v + (1 - beta2) g^2
    w <- w - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)
    w <- w / |w|                                where rows have unit norm

Adam: Kingma & Ba 2015 (arXiv 1412.6980). The gradient never reaches memory. Narrow averages: moments.py.

*Touched rows only* (with `last`): latents without an entry in the batch are left alone. When one is next touched,
what its momentum would have moved it meanwhile is made up first. In the j-th step without a gradient m and v have only
decayed, so it moves the row by rate (beta1 / sqrt(beta2))^j m / sqrt(v), where rate is that step's
lr sqrt(1 - beta2^t) / (1 - beta1^t); all missed steps together are one weighted sum over the rates of the last steps,
which the clock keeps. Epsilon is left out of it, and norms are restored once instead of at every missed step.

What changes from step to step (step, learning rate, corrections) lies in a `Clock` on the GPU, advanced by `tick`, so
that a captured step can be replayed.
"""

# Shape letters: B rows, D width, L latents, K entries per row.

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelab.kernels.adam import AdamSettings
from saelab.kernels.gpu.device import on
from saelab.kernels.gpu.moments import BFLOAT16, FLOAT8, FLOAT32, Moments, chances, read, write
from saelab.kernels.gpu.sums import Part, SortedEntries, bounds, prepared, shape_for, sum_of, warps_for

LONGEST = 512
"""Missed steps that are made up, a power of two; what is further back has decayed to nothing."""


class SortedTerm(NamedTuple):
    """A part of a gradient: the sum over each latent's entries of value * rows[row of the entry]."""

    entries: SortedEntries
    values: Tensor
    """[B, K]."""
    rows: Tensor
    """[B, D]."""


class Whole(NamedTuple):
    """A part of a gradient that is there already."""

    rows: Tensor
    """[C, D]."""
    slots: Tensor | None = None
    """Which of them is a latent's, -1 for none, [L] int32; without, row l is latent l's."""


class Clock(NamedTuple):
    """What a step needs to know of time, on the GPU."""

    step: Tensor
    """[] int64, steps done."""
    now: Tensor
    """[2] fp32: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)."""
    rates: Tensor
    """[LONGEST] fp32, at t % LONGEST: lr sqrt(1 - beta2^t) / (1 - beta1^t)."""

    @classmethod
    def start(cls, device: torch.device | str) -> "Clock":
        """Before the first step."""
        step = torch.zeros((), dtype=torch.int64, device=device)
        return cls(step, torch.zeros(2, device=device), torch.zeros(LONGEST, device=device))


class _Settings(NamedTuple):
    """Numbers compiled into the kernel."""

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    epsilon: float
    unit: bool
    kind: int
    longest: int
    only_missed: bool
    """Whether only what was missed is made up, without a step."""


class _Turn(NamedTuple):
    """A step as the kernel takes it."""

    step: Tensor
    now: Tensor
    rates: Tensor
    last: Tensor | None
    seed: int


def tick(clock: Clock, lr: Tensor | float, adam: AdamSettings) -> None:
    """Begin the next step; `lr` is a number, or a tensor [] on the GPU that a captured step reads anew."""
    clock.step.add_(1)
    step = clock.step.double()
    first, second = 1 - adam.beta1**step, (1 - adam.beta2**step).sqrt()
    clock.now.copy_(torch.stack([lr / first, 1 / second]))
    rate = (lr * second / first).float()
    clock.rates.scatter_(0, (clock.step % LONGEST).view(1), rate.view(1))


@triton.jit
def _behind(rates, step, missed, A: tl.constexpr):
    """How far, in units of m / sqrt(v), a row's momentum would have moved it in the steps before this one."""
    ago = tl.arange(0, A.longest)  # steps after the last visit, less one
    ratio = tl.log(tl.full((), A.beta1, tl.float32)) - 0.5 * tl.log(tl.full((), A.beta2, tl.float32))
    when = step - missed + ago  # the last visit was at step - missed - 1
    passed = tl.load(rates + (when % A.longest), mask=ago < missed, other=0.0)
    return tl.sum(passed * tl.exp((ago + 1).to(tl.float32) * ratio), axis=0)


@triton.jit
def _gradient(terms, whole, latent, columns, inside, S: tl.constexpr):
    COLUMNS: tl.constexpr = S.columns
    g = tl.zeros((COLUMNS,), tl.float32)
    for number in tl.static_range(len(terms)):
        g += sum_of(terms[number], latent, S)
    if whole is not None:
        slot = latent
        if whole.slots is not None:
            slot = tl.load(whole.slots + latent).to(tl.int64)
        g += tl.load(whole.rows + slot * S.width + columns, mask=inside & (slot >= 0), other=0.0).to(tl.float32)
    return g


@triton.jit
def _is_touched(terms, whole, latent):
    touched = latent < 0
    for number in tl.static_range(len(terms)):
        begin, end = bounds(terms[number], latent)
        touched = touched | (end > begin)
    if whole is not None:
        touched = touched | (True if whole.slots is None else tl.load(whole.slots + latent) >= 0)
    return touched


@triton.jit
def _visit(weight, shadow, moments, terms, whole, turn, S: tl.constexpr, A: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, S.columns)
    inside = columns < S.width
    place = latent * S.width + columns
    step = tl.load(turn.step).to(tl.int32)
    w = tl.load(weight + place, mask=inside, other=0.0)
    m = read(moments.first, moments.scale, latent, columns, S.width, A.kind)
    v = read(moments.second, moments.scale_sq, latent, columns, S.width, A.kind)
    if A.kind == 2:
        v = v * v
    g = _gradient(terms, whole, latent, columns, inside, S)
    if A.unit:
        g -= tl.sum(g * w, axis=0) * w
    if turn.last is not None:
        # Making up alone includes the step that was done last.
        next_step = step + 1 if A.only_missed else step
        gap = next_step - 1 - tl.load(turn.last + latent)
        w -= m / (tl.sqrt(v) + 1e-30) * _behind(turn.rates, next_step, gap, A)
        m *= tl.exp(gap.to(tl.float32) * tl.log(tl.full((), A.beta1, tl.float32)))
        v *= tl.exp(gap.to(tl.float32) * tl.log(tl.full((), A.beta2, tl.float32)))
        tl.store(turn.last + latent, step)
    if not A.only_missed:
        m = m * A.beta1 + g * A.rest1
        v = v * A.beta2 + g * g * A.rest2
        w -= tl.load(turn.now) * m / (tl.sqrt(v) * tl.load(turn.now + 1) + A.epsilon)
    if A.unit:
        w = tl.where(inside, w, 0.0)  # without an epsilon, padding has become 0 / 0
        w = w / tl.maximum(tl.sqrt(tl.sum(w * w, axis=0)), 1.1754943508222875e-38)
    tl.store(weight + place, w, mask=inside)
    if shadow is not None:
        tl.store(shadow + place, w.to(tl.bfloat16), mask=inside)
    up, up_sq = chances(turn.seed, columns, latent, step * 2 + 1 if A.only_missed else step * 2)
    write(moments.first, moments.scale, latent, columns, m, up, S.width, A.kind)
    if A.kind == 2:
        v = tl.sqrt(v)
    write(moments.second, moments.scale_sq, latent, columns, v, up_sq, S.width, A.kind)


@triton.jit
def _update(weight, shadow, moments, terms, whole, turn, S: tl.constexpr, A: tl.constexpr):
    if turn.last is None or A.only_missed:
        _visit(weight, shadow, moments, terms, whole, turn, S, A)
    else:
        if _is_touched(terms, whole, tl.program_id(0).to(tl.int64)):
            _visit(weight, shadow, moments, terms, whole, turn, S, A)


@torch.no_grad()
def update(
    weight: Tensor,
    moments: Moments,
    terms: Sequence[SortedTerm],
    adam: AdamSettings,
    clock: Clock,
    last: Tensor | None = None,
    whole: Whole | None = None,
    shadow: Tensor | None = None,
) -> None:
    """One step of a weight, in place. Nothing waits for the GPU.

    Args:
        weight: [L, D] fp32, changed.
        moments: changed; all zero to begin with.
        terms: of the gradient, sums over entries; at least one, or `whole`.
        adam: settings.
        clock: after `tick`.
        last: [L] int32, the step that last visited each latent, zeros to begin with: only latents with an entry in a
            term or a slot in `whole` are visited. Without, all are.
        whole: what else belongs to the gradient.
        shadow: [L, D] bf16, becomes a rounded copy of the weight's visited rows.
    """
    parts = tuple(prepared(*term) for term in terms)
    _launch(weight, moments, parts, adam, clock, (last, whole, shadow), only_missed=False)


@torch.no_grad()
def catch_up(
    weight: Tensor, moments: Moments, adam: AdamSettings, clock: Clock, last: Tensor, shadow: Tensor | None = None
) -> None:
    """Bring every latent to where the last step would have left it had all been visited; before saving or measuring."""
    _launch(weight, moments, (), adam, clock, (last, None, shadow), only_missed=True)


def _launch(
    weight: Tensor,
    moments: Moments,
    parts: tuple[Part, ...],
    adam: AdamSettings,
    clock: Clock,
    others: tuple[Tensor | None, Whole | None, Tensor | None],
    only_missed: bool,
) -> None:
    assert weight.is_contiguous(), weight.stride()
    last, whole, shadow = others
    kind = {torch.float32: FLOAT32, torch.int16: BFLOAT16, torch.uint8: FLOAT8}[moments.first.dtype]
    shape = shape_for(weight.shape[1])
    settings = _Settings(
        adam.beta1, 1 - adam.beta1, adam.beta2, 1 - adam.beta2, adam.epsilon, adam.unit, kind, LONGEST, only_missed
    )
    turn = _Turn(*clock, last, adam.seed)
    with on(weight):
        _update[(len(weight),)](
            weight, shadow, moments, parts, whole, turn, shape, settings, num_warps=warps_for(shape)
        )


def fresh(weight: Tensor, kind: torch.dtype = torch.float32) -> Moments:
    """Averages of a weight that has not moved: of float32, int16 (bfloat16's bits) or uint8 (8-bit floats)."""
    first, second = (torch.zeros_like(weight, dtype=kind) for _ in range(2))
    if kind != torch.uint8:
        return Moments(first, second)
    return Moments(first, second, weight.new_zeros(len(weight)), weight.new_zeros(len(weight)))
