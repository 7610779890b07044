"""A plan: which SAE to train with a budget, what loss to expect, and what it costs.

From the joint law L(n, k), the law of tokens to convergence, the law of the best learning rate and a measured speed:

    budget      tokens, seconds, memory, disk: the widest n (over a grid of powers of 2^(1/2)) that fits all, for each k
    target      the narrowest n, for each k, whose expected FVU is at most the target

Whatever lies outside the cells that the laws were fitted to is said, with the factor; intervals are for one more
trained SAE and widen with the distance. Where the best learning rate has no fitted law, that of the widest cell is
taken along the rule lr ~ 1 / sqrt(n), and said to be one. The loss is that of an SAE trained to convergence, with the
tokens that this takes.
"""

# Shape letters: n latents, k active, Q candidates.

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from saelab.scaling.compute import disk_bytes, flops_a_row, training_bytes
from saelab.scaling.fit import Fit
from saelab.scaling.throughput import Throughput

WIDEST, NARROWEST = 2**26, 16
FAR = 4.0
"""Beyond this factor outside the cells a plan is a guess, and says so."""


@dataclass(frozen=True)
class Budget:
    """What there is; None is no limit.

    Args:
        tokens: rows to train on.
        seconds: time of training.
        memory: bytes.
        disk: bytes.
        target_fvu: what is to be reached.
    """

    tokens: float | None = None
    seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    target_fvu: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.target_fvu is not None and self.target_fvu >= 1:
            raise ValueError(f"target_fvu must be below 1, which the mean of all rows reaches; got {self.target_fvu:g}")
        if all(value is None for value in asdict(self).values()):
            raise ValueError("give a budget (--tokens, --hours, --memory, --disk) or a --target_fvu")


@dataclass
class PlannedSAE:
    """One SAE that could be trained. Bytes, seconds and rows; low and high are ends of 95 % intervals."""

    n: int
    k: float
    tokens: float
    tokens_low: float
    tokens_high: float
    fvu: float
    fvu_low: float
    fvu_high: float
    lr: float
    batch: int
    seconds: float
    memory: float
    disk: float
    flops: float
    limit: str
    """What keeps it from being wider, or the target."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Knowledge:
    """What a plan is made from."""

    joint: Fit
    tokens: Fit | None
    """Tokens to convergence against n; without it the largest number of rows of any cell is taken."""
    rate: Fit | None
    speed: Throughput
    d_in: int
    batch: int
    most_rows: float
    """Rows of the longest cell."""
    tried: tuple[int, float] = (2**14, 2e-4)
    """Width and learning rate of a cell that the rule 1 / sqrt(n) starts from."""


class Planner:
    """Makes plans.

    Args:
        knowledge: what was fitted and measured.
    """

    def __init__(self, knowledge: Knowledge):
        self.known = knowledge

    def plan(self, budget: Budget, ks: Sequence[float] | None = None) -> list[PlannedSAE]:
        """One row for each k, the lowest expected FVU first (with a target: the cheapest first).

        Raises:
            ValueError: where nothing fits the budget, or no width reaches the target.
        """
        wanted = sorted(ks or {float(k) for k in self.known.joint.points.x[:, 1]})
        if min(wanted) < 1:
            raise ValueError(f"k must be at least 1, got {min(wanted):g}")
        found, reasons = [], []
        for k in wanted:
            row, why = self._best(budget, k)
            if row:
                found.append(row)
            else:
                reasons.append(f"k={k:g}: {why}")
        if not found:
            raise ValueError("nothing fits. " + "; ".join(reasons))
        by_cost = budget.target_fvu is not None
        return sorted(found, key=lambda row: row.seconds if by_cost else row.fvu)

    def _best(self, budget: Budget, k: float) -> tuple[PlannedSAE | None, str]:
        chosen, broken = None, ""
        for n in _widths(k):
            row = self.row(n, k)
            broken = _broken(row, budget)
            if broken:
                break
            chosen = row
            if budget.target_fvu is not None and row.fvu <= budget.target_fvu:
                row.limit = f"reaches FVU {budget.target_fvu:g}"
                return self._noted(row, budget), ""
        if budget.target_fvu is not None:
            reached = f"FVU {chosen.fvu:.3f} at n={chosen.n:,}" if chosen else "nothing"
            return None, f"{broken or 'no width'} before FVU {budget.target_fvu:g}; reached: {reached}"
        if chosen is None:
            return None, f"even n={_widths(k)[0]} needs more: {broken}"
        chosen.limit = broken or "the widest that is looked at"
        return self._noted(chosen, budget), ""

    def row(self, n: int, k: float) -> PlannedSAE:
        """What an SAE of this size would need and give."""
        known, x = self.known, np.array([[n, k]], float)
        fvu, fvu_low, fvu_high = (float(part[0]) for part in known.joint.predict(x, cell=True))
        tokens, tokens_low, tokens_high = self._tokens(n)
        return PlannedSAE(
            n, k, tokens, tokens_low, tokens_high, fvu, fvu_low, fvu_high, self._rate(n), known.batch,
            seconds=known.speed.seconds(known.d_in, n, k, tokens),
            memory=training_bytes(known.d_in, n, k, known.batch),
            disk=disk_bytes(known.d_in, n),
            flops=flops_a_row(known.d_in, n, k) * tokens,
            limit="",
        )  # fmt: skip

    def _tokens(self, n: int) -> tuple[float, float, float]:
        if self.known.tokens is None:
            return (self.known.most_rows,) * 3
        value, low, high = self.known.tokens.predict(np.array([[n]], float))
        return float(value[0]), float(low[0]), float(high[0])

    def _rate(self, n: int) -> float:
        if self.known.rate is None:
            width, rate = self.known.tried
            return rate * math.sqrt(width / n)
        return float(self.known.rate.predict(np.array([[n]], float))[0][0])

    def _noted(self, row: PlannedSAE, budget: Budget) -> PlannedSAE:
        known = self.known
        for name, factor in known.joint.beyond((row.n, row.k)).items():
            word = "a guess" if factor > FAR else "an extrapolation"
            ends = known.joint.range()[name]
            row.notes.append(f"{word}: {name} is {factor:.2g} times outside the ladder ({ends[0]:g} to {ends[1]:g})")
        if known.joint.rival_holds:
            row.notes.append("the law with and without an irreducible part fit alike: the interval allows for both")
        if known.tokens is None:
            row.notes.append("tokens to convergence are not fitted: those of the longest cell are taken")
        elif (ratio := row.tokens / known.most_rows) > FAR:
            row.notes.append(
                f"no cell was trained on more than {known.most_rows:.3g} rows, this needs {ratio:.2g} times"
            )
        if known.rate is None:
            width, rate = known.tried
            row.notes.append(f"the best learning rate is not fitted: lr is {rate:.2g} / sqrt(n / {width:,}), by rule")
        if (factor := known.speed.extrapolates(known.d_in, row.n, row.k)) > 2:
            row.notes.append(f"speed was measured up to a cost {factor:.2g} times away ({known.speed.where})")
        if budget.target_fvu is not None and row.fvu_high > budget.target_fvu:
            row.notes.append(f"the interval reaches above the target: up to {row.fvu_high:.3f}")
        return row


def _widths(k: float) -> list[int]:
    """Candidate numbers of latents: powers of 2^(1/2) from the first that holds k."""
    count = int(2 * math.log2(WIDEST / NARROWEST)) + 1
    return [n for n in (round(NARROWEST * 2 ** (i / 2)) for i in range(count)) if n >= 2 * k]


def _broken(row: PlannedSAE, budget: Budget) -> str:
    """Which part of a budget a row breaks, in words."""
    for name, need, have in (
        ("tokens", row.tokens, budget.tokens),
        ("time", row.seconds, budget.seconds),
        ("memory", row.memory, budget.memory),
        ("disk", row.disk, budget.disk),
    ):
        if have is not None and need > have:
            return f"the {name}"
    return ""


def as_json(rows: Sequence[PlannedSAE], budget: Budget) -> dict[str, Any]:
    """A plan's file: {"format": 1, "kind": "plan", "budget": {...}, "rows": [one Row each]}."""
    return {"format": 1, "kind": "plan", "budget": asdict(budget), "rows": [asdict(row) for row in rows]}
