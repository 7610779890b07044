"""One-to-one assignment of vectors to vectors: exact where the table fits, otherwise nearly so, with a bound.

    maximise  sum_i s(i, P(i)) over one-to-one P          s(i, j) = cos(a_i, b_j)  or  -||a_i - b_j||^2 / 2

The exact way is the Hungarian method on the whole table. The scalable way keeps the C most similar
partners of each vector, holds an auction over them (Bertsekas 1988, as we read it: whoever is without a partner bids
for its best offer what it is worth more than the second best, plus a small increment), gives those who were outbid on
all their candidates what is left, and then says how far from the best assignment of the *whole* table it can be at
most: for any prices p >= 0

    best  <=  sum_i max_j ( s(i, j) - p_j ) + sum_j p_j

by duality. The max of a row lies among its candidates, or below its weakest one, as no price is negative; only for
rows that were outbid on every candidate the whole table is looked at again. So the distance is a guarantee, not an
experience.
"""

# Shape letters: n vectors on the smaller side, m on the larger one, D their width, C candidates of each.

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.kernels.select import topk_linear

EXACT_ENTRIES = 1 << 25
"""Largest n * m that is assigned exactly: seconds to half a minute."""
CANDIDATES = 16
INCREMENT = 1e-3
"""Of a bid. The auction ends within n * INCREMENT of the best assignment over its candidates."""
BLOCK_ENTRIES = 1 << 24
BLOCK_ROWS = 8192
"""Rows whose candidates are looked for at once, without a table."""
MOST_ROUNDS = 20_000


@dataclass(frozen=True)
class Assignment:
    """Who belongs to whom; on the CPU."""

    partner: Tensor
    """[A] int64: for each vector of the first side one of the second; -1 for those left over."""
    similarity: Tensor
    """[A] float64: of the pair; NaN for those left over."""
    bound: float
    """The mean similarity of pairs is at most so far below that of the best assignment; 0 where it is exact."""

    @property
    def exact(self) -> bool:
        """Whether it is known to be the best."""
        return self.bound == 0


@torch.no_grad()
def assign(a: Tensor, b: Tensor, by: str = "cosine", exact_entries: int = EXACT_ENTRIES) -> Assignment:
    """Assign vectors a [A, D] to vectors b [B, D]; the larger side keeps some over.

    Args:
        a: of the first side.
        b: of the second.
        by: "cosine", or "distance" for minus half the squared distance.
        exact_entries: largest A * B that is assigned exactly.

    Raises:
        ValueError: for no vectors, different widths, or vectors that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"expected vectors [A, D] and [B, D] of equal width, got {list(a.shape)} and {list(b.shape)}")
    if by not in ("cosine", "distance"):
        raise ValueError(f"by must be cosine or distance, got '{by}'")
    if not (torch.isfinite(a.sum()) and torch.isfinite(b.sum())):
        raise ValueError("the vectors to assign hold NaN or infinity")
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    table = Table(small, large, by)
    exact = len(a) * len(b) <= exact_entries
    partner, bound = (_exactly(table), 0.0) if exact else _by_auction(table)
    similarity = table.similarities(torch.arange(len(small)), partner)
    if small is b:
        turned, values = torch.full((len(a),), -1), torch.full((len(a),), torch.nan, dtype=torch.float64)
        turned[partner], values[partner] = torch.arange(len(b)), similarity
        partner, similarity = turned, values
    return Assignment(partner, similarity, bound)


class Table:
    """The similarities of all pairs, worked out block by block."""

    def __init__(self, small: Tensor, large: Tensor, by: str):
        self.n, self.m = len(small), len(large)
        self.small = F.normalize(small, dim=1) if by == "cosine" else small
        self.large = F.normalize(large, dim=1) if by == "cosine" else large
        # What is taken off a product: nothing, or half the squares.
        half = 0.0 if by == "cosine" else 0.5
        self.row = half * self.small.square().sum(1)
        self.column = half * self.large.square().sum(1)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Number of the first row and similarities [rows, m], block by block; a block is overwritten by the next."""
        size = min(self.n, max(1, BLOCK_ENTRIES // self.m))
        buffer = self.small.new_empty(size, self.m)
        for start in range(0, self.n, size):
            own = self.small[start : start + size]
            block = torch.addmm(-self.column, own, self.large.T, out=buffer[: len(own)])
            yield start, block.sub_(self.row[start : start + size, None])

    def largest(self, rows: Tensor, count: int, prices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The `count` largest of some rows, less the columns' prices [m]: values and columns [n, count] on the CPU."""
        shift = -self.column if prices is None else -self.column - prices.to(self.column)
        centre = self.small.new_zeros(self.small.shape[1])
        parts = []
        for part in rows.split(BLOCK_ROWS):
            values, entries = topk_linear(self.small[part], centre, self.large, shift, count)
            parts.append(((values - self.row[part, None]).cpu(), entries.indices.cpu()))
        values, columns = (torch.cat(part) for part in zip(*parts, strict=True))
        return values, columns

    def similarities(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Similarities of pairs [N]; float64 on the CPU."""
        small, large = self.small[rows].double(), self.large[columns].double()
        found = (small * large).sum(1) - self.row[rows].double() - self.column[columns].double()
        return found.cpu()


def _exactly(table: Table) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # takes long to import, and only this needs it

    whole = torch.cat([block.clone() for _, block in table.blocks()]).cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(whole, maximize=True)[1])


def _by_auction(table: Table) -> tuple[Tensor, float]:
    """Partners [n] of the smaller side, and how far their mean similarity can be from the best."""
    count = min(CANDIDATES, table.m)
    rows = torch.arange(table.n)
    found, columns = table.largest(rows, count)
    values = found.double()
    partner, prices = auction(values, columns, table.m)
    worth = (values - prices[columns]).max(1).values
    if count < table.m:
        worth = torch.maximum(worth, values[:, -1])
        if len(outbid := (partner < 0).nonzero().squeeze(1)):
            worth[outbid] = table.largest(outbid, 1, prices)[0].squeeze(1).double()
    _leftover(table, partner)
    best = worth.sum() + prices.sum()
    reached = table.similarities(rows, partner).sum()
    return partner, max(0.0, (best - reached).item() / table.n)


def auction(values: Tensor, columns: Tensor, m: int, increment: float = INCREMENT) -> tuple[Tensor, Tensor]:
    """Auction of m columns among rows that each bid for their candidates only.

    Args:
        values: similarities [n, C] of the candidates, float64.
        columns: their numbers [n, C].
        m: how many columns there are.
        increment: of a bid.

    Returns:
        Partners [n] int64, -1 for rows that were outbid on every candidate; and prices [m] float64, at least 0.
    """
    prices = torch.zeros(m, dtype=torch.float64)
    owner = torch.full((m,), -1)
    partner = torch.full((len(values),), -1)
    # Below its weakest candidate a row would rather have something it did not list.
    floor = values[:, -1] if values.shape[1] < m else torch.full_like(values[:, 0], -torch.inf)
    bidding = torch.arange(len(values))
    for _ in range(MOST_ROUNDS):
        if not len(bidding):
            break
        net = values[bidding] - prices[columns[bidding]]
        top = net.topk(min(2, net.shape[1]), dim=1)
        best, place = top.values[:, 0], top.indices[:, 0]
        second = top.values[:, 1] if net.shape[1] > 1 else torch.full_like(best, -torch.inf)
        second = torch.maximum(second, floor[bidding])
        second = second.where(torch.isfinite(second), best)
        willing = best >= floor[bidding]  # others leave
        bidding, place, raise_by = bidding[willing], place[willing], (best - second)[willing] + increment
        wanted = columns[bidding, place]
        bid = prices[wanted] + raise_by
        order = bid.argsort()  # the highest bid is written last and stays
        prices[wanted[order]] = bid[order]
        winner = torch.full((m,), -1)
        winner[wanted[order]] = bidding[order]
        sold = winner[wanted] == bidding
        before = owner[wanted[sold]]
        partner[before[before >= 0]] = -1
        owner[wanted[sold]], partner[bidding[sold]] = bidding[sold], wanted[sold]
        bidding = torch.cat([bidding[~sold], before[before >= 0]])
    return partner, prices


def _leftover(table: Table, partner: Tensor) -> None:
    """Give each row without a partner one of the columns that nobody has, the closest pairs first; in place."""
    while (rows := (partner < 0).nonzero().squeeze(1)).numel():
        free = torch.ones(table.m, dtype=torch.bool)
        free[partner[partner >= 0]] = False
        columns = free.nonzero().squeeze(1)
        size = max(1, BLOCK_ENTRIES // len(columns))
        best, chosen = torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.int64)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            block = table.small[part] @ table.large[columns].T - table.column[columns]
            found = block.max(1)
            best[start : start + size], chosen[start : start + size] = found.values.cpu(), found.indices.cpu()
        order = (best - table.row[rows].cpu()).argsort()
        taker = torch.full((len(columns),), -1)
        taker[chosen[order]] = rows[order]  # of several that want one, the closest is written last
        taken = taker >= 0
        partner[taker[taken]] = columns[taken]
