"""The way from a small SAE to a large one: which latents are put in and which are exchanged, in which order.

Latents of the two are joined by an edge where their directions have a cosine of at least a threshold. A connected
component with latents of both is a swap: its small latents go as its large ones come (splitting makes one parent and
several children). A large latent without an edge is an insertion. Small latents without an edge go at the end, and
with the last of the steps the bias changes from the small SAE's to the large one's, so that the way ends at the large
SAE itself. Latents that never fired come in with that last step, because no row can tell where they belong.

    phase "insert"     one large latent a step
    phase "swap"       one component a step
    phase "remove"     one small latent a step that has no counterpart
    phase "finish"     the bias, and large latents that never fired

(Paper D, Leask et al. 2025, arXiv 2502.04878, for insertions before swaps; components and the order within a phase as
we read it.) Orders:

    cosine   insertions by ascending largest cosine, swaps by descending mean cosine of their edges
    delta    at every step the one that lowers the error the most as things stand then (`greedy`)
    random
"""

# Shape letters: L0 and L1 latents of the small and the large SAE, M steps, n rows of a block, K entries, D width.

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.analysis.assembled import contributed
from saelab.analysis.greedy import greedy_order
from saelab.analysis.rows import GROUPS, Rows
from saelab.core.components import near_miss
from saelab.data.source import generator_for
from saelab.geometry import components, pairs_above
from saelab.sae.sae import SAE

ORDERS = ("cosine", "delta", "random")
PHASES = ("insert", "swap", "remove", "finish")
BLOCK_ROWS = 256


@dataclass(frozen=True)
class PathSteps:
    """The way from the small to the large SAE; all on the CPU. Step 0 is the small SAE, step M the large one."""

    phase: Tensor
    """[M] int64, number in PHASES of step m + 1."""
    comes: Tensor
    """[L1] int64, the step from which on each large latent is there, 1 to M."""
    goes: Tensor
    """[L0] int64, the step from which on each small latent is gone, 1 to M."""
    group_small: Tensor
    """[L0] int64, connected component of each small latent."""
    group_large: Tensor
    """[L1] int64, of each large latent, numbered together with the small ones'."""

    def __len__(self) -> int:
        return len(self.phase)

    def latents(self, step: int) -> tuple[Tensor, Tensor]:
        """The small SAE's latents and the large SAE's that are there after a step."""
        return (self.goes > step).nonzero().squeeze(1), (self.comes <= step).nonzero().squeeze(1)

    def last(self, phase: str) -> int:
        """The last step of a phase, or of those before it where it is empty."""
        return int((self.phase <= PHASES.index(phase)).sum())


def check_plan(order: str, threshold: float) -> None:
    """ValueError for settings that `plan` does not take."""
    if order not in ORDERS:
        raise ValueError(f"unknown order '{order}'{near_miss(order, ORDERS)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")


@torch.no_grad()
def plan(
    small: SAE,
    large: SAE,
    firings: Tensor,
    threshold: float = 0.7,
    order: str = "cosine",
    rows: Rows | None = None,
    seed: int = 0,
) -> PathSteps:
    """Find the steps from one SAE to the other.

    Args:
        small: as `independent` gives it.
        large: likewise.
        firings: in how many rows each large latent was active, [L1].
        threshold: smallest cosine of an edge, above 0 and at most 1.
        order: "cosine", "delta" or "random".
        rows: that "delta" is worked out on.
        seed: of the order "random".
    """
    check_plan(order, threshold)
    ours, theirs = small.data_directions(), large.data_directions()
    i, j, cosine = (part.cpu() for part in pairs_above(ours, theirs, threshold))
    labels = components(len(ours) + len(theirs), i, j + len(ours))
    group_small, group_large = labels[: len(ours)], labels[len(ours) :]
    count = int(labels.max()) + 1
    has_small = torch.bincount(group_small, minlength=count) > 0
    has_large = torch.bincount(group_large, minlength=count) > 0
    phase = torch.where(has_small & has_large, 1, torch.where(has_large, 0, 2))
    dead = torch.zeros(count, dtype=torch.bool)
    dead[group_large] = (firings == 0) & ~has_small[group_large]
    phase[dead] = PHASES.index("finish")
    if order == "random":
        rank = torch.rand(count, generator=generator_for(seed, 5), dtype=torch.float64)
    elif order == "delta":
        if rows is None:
            raise ValueError("the order 'delta' is computed on rows: give rows")
        rank = torch.empty(count, dtype=torch.float64)
        rank[greedy_order(small, large, labels, phase, rows.x)] = torch.arange(count, dtype=torch.float64)
    else:
        rank = _by_cosine(ours, theirs, (i, group_large[j], cosine), group_large, has_small)
    return _in_order(phase, rank, group_small, group_large)


def _by_cosine(
    ours: Tensor, theirs: Tensor, edges: tuple[Tensor, Tensor, Tensor], group_large: Tensor, has_small: Tensor
) -> Tensor:
    """What components are sorted by, ascending; [components] float64."""
    from saelab.geometry import nearest

    _, group, cosine = edges
    total = torch.zeros(len(has_small), dtype=torch.float64).index_add_(0, group, cosine.double())
    mean = total / torch.bincount(group, minlength=len(has_small)).clamp_min(1)
    rank = -mean
    best = nearest(theirs, ours)[0].squeeze(1).cpu().double()
    alone = ~has_small[group_large]
    rank[group_large[alone]] = best[alone]
    return rank


def _in_order(phase: Tensor, rank: Tensor, group_small: Tensor, group_large: Tensor) -> PathSteps:
    order = rank.argsort(stable=True)
    order = order[phase[order].argsort(stable=True)]
    steps = int((phase < 3).sum()) + 1
    at = torch.empty_like(phase)
    at[order] = torch.arange(1, len(order) + 1).clamp_max(steps)  # what finishes does so together
    phases = torch.full((steps,), PHASES.index("finish"))
    phases[: steps - 1] = phase[order][: steps - 1]
    return PathSteps(phases, at[group_large], at[group_small], group_small, group_large)


def entries(small: SAE, large: SAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Active entries of both SAEs on rows x: row, latent (the large one's numbered on) and signed value; [N] each.

    Values of the small SAE's latents are negative, as they are taken away.
    """
    found = []
    for codes, offset, sign in ((contributed(small, x), 0, -1), (contributed(large, x), small.n_latents, 1)):
        row, slot = codes.active.nonzero().unbind(1)
        found.append((row, codes.indices[row, slot] + offset, sign * codes.values[row, slot]))
    row, latent, value = (torch.cat(part) for part in zip(*found, strict=True))
    return row, latent, value


def bags(place: Tensor, latent: Tensor, value: Tensor, weight: Tensor, count: int) -> Tensor:
    """Row p is the sum of value * weight[latent] over the entries [N] whose place is p; [count, D]."""
    order = place.argsort(stable=True)
    sizes = torch.bincount(place, minlength=count)
    return F.embedding_bag(latent[order], weight, sizes.cumsum(0) - sizes, per_sample_weights=value[order], mode="sum")


@dataclass(frozen=True)
class Point:
    """The SAE after some step of the way."""

    step: int
    phase: str
    n_latents: int
    mse: float
    mse_low: float
    mse_high: float
    l0: float


@torch.no_grad()
def along(small: SAE, large: SAE, steps: PathSteps, at: list[int], rows: Rows) -> list[Point]:
    """Error and L0 after some of the steps, all in one pass over the rows.

    Every row's reconstructions after all of these steps are the running sum of what changes between one and the next.

    Args:
        small: as `independent` gives it.
        large: likewise.
        steps: the way.
        at: numbers of steps, ascending, from 0 to the last.
        rows: to measure on.
    """
    from saelab.analysis.insertion import resampled

    errors = torch.zeros(GROUPS, len(at), dtype=torch.float64)
    active = torch.zeros(len(at), dtype=torch.float64)
    for x, group in rows.blocks(BLOCK_ROWS):
        x_hat, l0 = reconstructions(small, large, steps, at, x)
        error = (x.to(x_hat)[:, None] - x_hat).double().square().sum(2).cpu()
        errors.index_add_(0, group, error)
        active += l0.sum(0).double().cpu()
    sizes = torch.bincount(rows.group, minlength=GROUPS).double() * rows.x.shape[1]
    mse, low, high = (part.tolist() for part in resampled(errors, sizes))
    phases = ["small", *(PHASES[number] for number in steps.phase.tolist())]
    return [
        Point(
            step, phases[step], sum(map(len, steps.latents(step))), mse[place], low[place], high[place],
            active[place].item() / len(rows),
        )
        for place, step in enumerate(at)
    ]  # fmt: skip


@torch.no_grad()
def reconstructions(small: SAE, large: SAE, steps: PathSteps, at: list[int], x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstructions [n, P, D] of rows x [n, D] after P of the steps, and how many latents are active, [n, P]."""
    weight = torch.cat([small.data_directions(), large.data_directions()])
    x = x.to(weight)
    marks = torch.tensor(at, device=weight.device)
    # The first of the marks by which a latent has come or gone; past the last, never.
    when = torch.searchsorted(marks, torch.cat([steps.goes, steps.comes]).to(weight.device))
    row, latent, value = entries(small, large, x)
    place = row * (len(at) + 1) + when[latent]
    change = bags(place, latent, value, weight, len(x) * (len(at) + 1)).view(len(x), len(at) + 1, -1)[:, :-1]
    count = torch.zeros(len(x) * (len(at) + 1), device=x.device).index_add_(0, place, value.sign())
    start = small.decode(small.encode(x))
    own = small.encode(x).l0()
    x_hat = start[:, None] + change.cumsum(1)
    ends = marks == len(steps)
    numbers = small.scale.numbers(x)
    bias = large.data_bias(numbers) - small.data_bias(numbers)
    x_hat[:, ends] += bias[:, None] if bias.ndim == 2 else bias
    return x_hat, own[:, None] + count.view(len(x), -1)[:, :-1].cumsum(1)
