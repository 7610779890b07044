"""When a run has converged: its error hardly falls any more while rows double.

    fall(t) = 1 - mean FVU over the rows (t/2, t] / mean FVU over the rows (t/4, t/2]     converged: fall(t) < tolerance

Only records at the full learning rate count: warm-up and the final fall of the rate change the error for other reasons.
An error L + c t^-q that falls by a share f over a doubling has about f / (2^q - 1) of itself still to lose, which is
f to 2 f for the usual q of 0.6 to 1. The criterion is a pure function of a run's log, so it can be asked again later.

What is left out: a plateau before a second descent looks like convergence; `least_rows` is there for that.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_RECORDS = 8
"""Records that each of the two halves must have before anything is said."""


@dataclass(frozen=True)
class Convergence:
    """The criterion.

    Args:
        tolerance: largest share by which the mean FVU may fall over a doubling of rows.
        least_rows: rows before which nothing counts as converged.

    Raises:
        ValueError: for a tolerance that is not between 0 and 1.
    """

    tolerance: float = 0.02
    least_rows: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"converge must be between 0 and 1, a share of the FVU; got {self.tolerance}")

    def reached(self, rows: Sequence[int], fvu: Sequence[float]) -> bool:
        """Whether a curve, by its last record, has converged."""
        found = fall(rows, fvu)
        return found is not None and found < self.tolerance and rows[-1] >= self.least_rows

    def first(self, rows: Sequence[int], fvu: Sequence[float]) -> int | None:
        """The rows at which a curve first had converged; None if it never did."""
        for count in range(2 * LEAST_RECORDS, len(rows) + 1):
            if self.reached(rows[:count], fvu[:count]):
                return rows[count - 1]
        return None


def fall(rows: Sequence[int], fvu: Sequence[float]) -> float | None:
    """Share by which the mean FVU fell over the last doubling of rows; None where there are too few records.

    Args:
        rows: rows seen at each record, ascending.
        fvu: of each record.
    """
    if not rows:
        return None
    middle, early = bisect_right(rows, rows[-1] / 2), bisect_right(rows, rows[-1] / 4)
    late, before = fvu[middle:], fvu[early:middle]
    if min(len(late), len(before)) < LEAST_RECORDS or not sum(before):
        return None
    return 1 - (sum(late) / len(late)) / (sum(before) / len(before))


def at_full_rate(records: Sequence[dict[str, float]]) -> tuple[list[int], list[float]]:
    """Rows and FVU of the records of a log that were written at its largest learning rate; other lines are left out."""
    records = [record for record in records if "lr" in record]  # a measurement leaves its own
    largest = max((record["lr"] for record in records), default=0.0)
    kept = [record for record in records if record["lr"] >= largest * (1 - 1e-9) and record["fvu"] is not None]
    return [int(record["rows"]) for record in kept], [record["fvu"] for record in kept]
