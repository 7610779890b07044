"""Adam on a weight whose gradient comes latent by latent.

For latent l with weight row w, gradient g, moments m and v, step t:

    g <- g - (g . w) w                          where rows have unit norm: the part that would change the norm
    m <- beta1 m + (1 - beta1) g                v <- beta2 v + (1 - beta2) g^2
    w <- w - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)
    w <- w / |w|                                where rows have unit norm

Adam: Kingma & Ba 2015 (arXiv 1412.6980). The gradient is a list of sparse terms (gradient.py) and is never held as a
whole where kernels are compiled; `reference` is the same in plain PyTorch.

Two ways to spend less on latents, neither of them the default:

- *narrow moments*: bfloat16, or 8-bit floats (e4m3, one scale a row, of v its root), rounded up or down at random. To
  the nearest would lose most steps of v, which moves by a thousandth of g^2.
- *touched rows only*: latents without an entry in the batch are left alone, and what their momentum would have moved
  them is made up when they are next touched: w -= m / sqrt(v) * sum_j rate_j (beta1 / sqrt(beta2))^j over missed steps
  j, with rate_j = lr_j sqrt(1 - beta2^j) / (1 - beta1^j). Without making it up an SAE ends clearly worse.
"""

# Shape letters: B rows, D width, L latents, K entries per row.

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as adam_of_torch

from saelab.kernels import tier
from saelab.kernels.adam import AdamSettings
from saelab.kernels.gradient import Term
from saelab.kernels.native import update as native_update
from saelab.kernels.sums import sort_once

CODES = {"float32": None, "bfloat16": torch.int16, "float8": torch.uint8}
"""Narrow moments are kept as the bits they are made of, so that nothing converts them by the way."""
TOP = 448.0
"""The largest 8-bit float, which a row's largest moment is scaled to."""
LONGEST = 400
"""Missed steps that are made up; what is further back has decayed to nothing."""


State = dict[str, Any]


def fresh(weight: Tensor, adam: AdamSettings) -> State:
    """State of a weight that has not moved yet."""
    kind = CODES[adam.moments]
    state: State = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight, dtype=kind)}
    state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
    if adam.moments == "float8":
        state |= {name: weight.new_zeros(len(weight)) for name in ("scale", "scale_sq")}
    if adam.touched:
        state["last"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        state["rates"] = torch.zeros(1)  # of every step; none is the first
    if on_gpu(weight):
        from saelab.kernels.gpu import update as gpu  # imports triton

        clock = gpu.Clock.start(weight.device)
        state |= {"clock_step": clock.step, "clock_now": clock.now, "clock_rates": clock.rates}
    return state


def on_gpu(weight: Tensor) -> bool:
    """Whether a weight is updated by the kernels for GPUs, whose state also holds a clock."""
    return tier.is_gpu(weight) and weight.is_contiguous()


@torch.no_grad()
def update(weight: Tensor, state: State, terms: list[Term], dense: Tensor | None, adam: AdamSettings) -> None:
    """One step of a weight [L, D], in place.

    Args:
        weight: is changed.
        state: is changed; see `fresh`.
        terms: of the gradient.
        dense: what else belongs to the gradient, [L, D].
        adam: the step's settings.
    """
    if on_gpu(weight):
        _gpu(weight, state, terms, dense, adam)
        return
    if not terms and dense is not None and adam == replace(adam, moments="float32", touched=False, unit=False):
        _fused(weight, state, dense, adam)
        return
    state["step"] += 1
    step = int(state["step"])
    if adam.touched:
        own = adam.rate(step) / adam.correction(step)
        state["rates"] = torch.cat([state["rates"], torch.tensor([own])])
    if tier.is_native(weight) and weight.shape[1] <= native_update.WIDEST and weight.is_contiguous():
        _native(weight, state, terms, dense, adam, step)
    else:
        reference(weight, state, total(weight, terms, dense), adam, touched_by(weight, terms, dense, adam))


def _fused(weight: Tensor, state: State, dense: Tensor, adam: AdamSettings) -> None:
    """Nothing but Adam is wanted: PyTorch's own, in one pass."""
    state["step"] = state["step"].to(weight.device)
    moments = ([state["exp_avg"]], [state["exp_avg_sq"]])
    adam_of_torch(
        [weight], [dense], *moments, [], [state["step"]], fused=True, amsgrad=False, maximize=False, weight_decay=0.0,
        lr=adam.lr, beta1=adam.beta1, beta2=adam.beta2, eps=adam.epsilon,
    )  # fmt: skip


def _native(
    weight: Tensor, state: State, terms: list[Term], dense: Tensor | None, adam: AdamSettings, step: int
) -> None:
    moments = [state.get(name) for name in ("exp_avg", "exp_avg_sq", "scale", "scale_sq")]
    native_update.update(weight, moments, terms, dense, adam, step, (state.get("last"), state.get("rates")))


def _gpu(weight: Tensor, state: State, terms: list[Term], dense: Tensor | None, adam: AdamSettings) -> None:
    from saelab.kernels.gpu import sort  # imports triton
    from saelab.kernels.gpu import update as gpu

    clock = gpu.Clock(state["clock_step"], state["clock_now"], state["clock_rates"])
    moments = gpu.Moments(state["exp_avg"], state["exp_avg_sq"], state.get("scale"), state.get("scale_sq"))
    for term in terms:
        sort_once(term.entries, sort.sort_by_latent)
    parts = [gpu.SortedTerm(term.entries, term.values.float(), term.rows.float()) for term in terms]
    gpu.tick(clock, adam.lr, adam)
    whole = None if dense is None else gpu.Whole(dense)
    gpu.update(weight, moments, parts, adam, clock, state.get("last"), whole)
    state["step"] += 1


def total(weight: Tensor, terms: list[Term], dense: Tensor | None) -> Tensor:
    """The whole gradient, [L, D]."""
    whole = torch.zeros_like(weight) if dense is None else dense.clone()
    for term in terms:
        whole += term.dense()
    return whole


def touched_by(weight: Tensor, terms: list[Term], dense: Tensor | None, adam: AdamSettings) -> Tensor:
    """Numbers of the latents that a step visits."""
    everything = torch.arange(len(weight), device=weight.device)
    if not adam.touched or dense is not None:
        return everything
    named = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    for term in terms:
        named[term.entries.indices.flatten()] = True
    return everything[named]


def reference(weight: Tensor, state: State, gradient: Tensor, adam: AdamSettings, visited: Tensor) -> None:
    """`update` in plain PyTorch, from the whole gradient [L, D], for the latents visited [n]."""
    step = int(state["step"])
    w, g = weight[visited], gradient[visited]
    m, v = (read(state, name, visited, adam.moments) for name in ("exp_avg", "exp_avg_sq"))
    if adam.unit:
        g = g - (g * w).sum(1, keepdim=True) * w
    if adam.touched:
        missed = step - 1 - state["last"][visited].long()
        behind = _behind(state, visited, adam, missed)
        w = w - m / (v.sqrt() + 1e-30) * behind[:, None]
        m, v = m * adam.beta1 ** missed[:, None], v * adam.beta2 ** missed[:, None]
        state["last"][visited] = step
    m = adam.beta1 * m + (1 - adam.beta1) * g
    v = adam.beta2 * v + (1 - adam.beta2) * g.square()
    w = w - adam.rate(step) * m / (v.sqrt() * adam.correction(step) + adam.epsilon)
    if adam.unit:
        w = w / w.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    chance = torch.Generator().manual_seed((adam.seed * 0x9E3779B1 + step) % (1 << 32))
    for name, value in (("exp_avg", m), ("exp_avg_sq", v)):
        write(state, name, visited, value, adam.moments, chance)
    weight[visited] = w


def _behind(state: State, visited: Tensor, adam: AdamSettings, missed: Tensor) -> Tensor:
    """How far, in units of m / sqrt(v), each visited latent's momentum would have moved it meanwhile; [n]."""
    rates, last = state["rates"].to(missed.device), state["last"][visited].long()
    behind, ratio = torch.zeros(len(visited), device=missed.device), adam.beta1 / math.sqrt(adam.beta2)
    for j in range(1, min(int(missed.max()) if len(missed) else 0, LONGEST) + 1):
        behind += torch.where(missed >= j, rates[(last + j).clamp(max=len(rates) - 1)] * ratio**j, 0.0)
    return behind


def catch_up(weight: Tensor, state: State, adam: AdamSettings) -> None:
    """Bring every latent to where the last step would have left it had all been visited; ends a run of touched rows."""
    if not adam.touched:
        return
    if "clock_rates" in state:
        state["rates"] = _rates_of(state)
    missed = int(state["step"]) - state["last"].long()
    every = torch.arange(len(weight), device=weight.device)
    m, v = (read(state, name, every, adam.moments) for name in ("exp_avg", "exp_avg_sq"))
    with torch.no_grad():
        weight.sub_(m / (v.sqrt() + 1e-30) * _behind(state, every, adam, missed)[:, None])
        if adam.unit:
            weight.div_(weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny))
        chance = torch.Generator().manual_seed((adam.seed * 0x9E3779B1 + int(state["step"]) + 1) % (1 << 32))
        for name, value, beta in (("exp_avg", m, adam.beta1), ("exp_avg_sq", v, adam.beta2)):
            write(state, name, every, value * beta ** missed[:, None], adam.moments, chance)
    state["last"].fill_(int(state["step"]))


def _rates_of(state: State) -> Tensor:
    """Every step's rate, from the clock's ring of the last 512; those before them do not count any more."""
    done, ring = int(state["clock_step"]), state["clock_rates"].cpu()
    return torch.cat([torch.zeros(1), ring[torch.arange(1, done + 1) % len(ring)]])


def carried(state: State, weight: Tensor) -> State:
    """A state as it is where the weight is: on a GPU with a clock, elsewhere without."""
    state = dict(state)
    if on_gpu(weight) and "clock_step" not in state:
        from saelab.kernels.gpu import update as gpu  # imports triton

        clock = gpu.Clock.start(weight.device)
        clock.step.fill_(int(state["step"]))
        if "rates" in state:
            steps = torch.arange(len(state["rates"]))[-len(clock.rates) :]
            clock.rates[(steps % len(clock.rates)).to(weight.device)] = state["rates"][steps].to(weight.device)
            state["rates"] = torch.zeros(1)
        state |= {"clock_step": clock.step, "clock_now": clock.now, "clock_rates": clock.rates}
    elif not on_gpu(weight) and "clock_step" in state:
        if "rates" in state:
            state["rates"] = _rates_of(state)
        state = {name: value for name, value in state.items() if not name.startswith("clock_")}
    return state


def read(state: State, name: str, visited: Tensor, kind: str) -> Tensor:
    """Moments of the visited latents as floats, [n, D]."""
    codes = state[name][visited]
    if kind == "bfloat16":
        return codes.view(torch.bfloat16).float()
    if kind == "float8":
        value = codes.view(torch.float8_e4m3fn).float() * state[_scale(name)][visited][:, None]
        return value.square() if name == "exp_avg_sq" else value
    return codes


def write(state: State, name: str, visited: Tensor, value: Tensor, kind: str, chance: torch.Generator) -> None:
    """Keep moments of the visited latents, narrow ones rounded up or down at random."""
    if kind == "float8":
        value = value.sqrt() if name == "exp_avg_sq" else value
        scale = value.abs().amax(1) / TOP if value.shape[1] else value.new_zeros(len(value))
        state[_scale(name)][visited] = scale
        value = value / scale.clamp_min(torch.finfo(value.dtype).tiny)[:, None]
        code = rounded(value, 3, -6, chance).clamp(-TOP, TOP).to(torch.float8_e4m3fn).view(torch.uint8)
    elif kind == "bfloat16":
        code = rounded(value, 7, -126, chance).to(torch.bfloat16).view(torch.int16)
    else:
        code = value
    state[name][visited] = code


def _scale(name: str) -> str:
    return "scale_sq" if name == "exp_avg_sq" else "scale"


def rounded(value: Tensor, mantissa: int, least_exponent: int, chance: torch.Generator) -> Tensor:
    """Values with `mantissa` bits, up or down at random, so that the mean is the value."""
    exponent = torch.frexp(value.abs())[1] - 1
    unit = torch.ldexp(torch.ones_like(value), exponent.clamp(min=least_exponent) - mantissa)
    return (value / unit + torch.rand(value.shape, generator=chance).to(value)).floor() * unit
