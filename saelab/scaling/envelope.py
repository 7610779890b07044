"""What is read off several cells before a law is fitted: the envelope of loss curves, and the best learning rates.

    envelope      at each amount of compute the lowest loss that any cell had reached by then; only where that cell's
                  width is neither the smallest nor the largest, or the largest's curve has crossed the next one's
    best rates    the bottom of a parabola through ln loss against ln lr at each width

Curves are those at the full learning rate: the fall of the rate at the end of a run lowers the loss at once and would
favour cells that happen to end.
"""

# Shape letters: P points of the envelope.

from collections.abc import Sequence

import numpy as np

from saelab.scaling.cells import Cell
from saelab.scaling.fit import Points

POINTS = 48
LEAST_WIDTHS = 3


def envelope(cells: Sequence[Cell], count: int = POINTS) -> Points:
    """The lowest loss that each amount of compute buys; x is compute [P, 1], names are those of the cells.

    Raises:
        ValueError: for cells of more than one k, fewer than three widths, or curves that never cross.
    """
    if len({cell.k for cell in cells}) > 1:
        raise ValueError("the envelope is over widths at one k: choose one with --k")
    if len({cell.n for cell in cells}) < LEAST_WIDTHS:
        raise ValueError(
            f"the envelope needs at least {LEAST_WIDTHS} widths, the cells have {len({c.n for c in cells})}"
        )
    smooth = [_smoothed(cell) for cell in cells]
    first = max(min(compute) for compute, _ in smooth)
    last = max(max(compute) for compute, _ in smooth)
    grid = np.geomspace(first, last, count)
    table = np.array([_at(compute, loss, grid) for compute, loss in smooth])
    reached = ~np.isnan(table).all(0)
    grid, table = grid[reached], table[:, reached]
    best = np.nanargmin(table, axis=0)
    order = sorted({cell.n for cell in cells})
    # The best of the widths that were trained is the best of all only where a wider and a narrower one do worse.
    inside = np.array([cells[b].n not in (order[0], order[-1]) for b in best])
    if inside.sum() < 6:
        raise ValueError(
            f"only {int(inside.sum())} points of the envelope lie between the narrowest and the widest SAE: the curves "
            "of these widths hardly cross; train more widths, or record more often early on (--log_every)"
        )
    kept = np.nonzero(inside)[0]
    return Points(grid[kept, None], table[best[kept], kept], [cells[best[i]].name for i in kept])


def _smoothed(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Compute and loss of a curve at the full rate, as means over pieces of equal length on the log scale."""
    compute, loss, lr = (np.array(cell.curve[key]) for key in ("compute", "loss", "lr"))
    full = (lr >= lr.max() * (1 - 1e-9)) & np.isfinite(loss)
    compute, loss = compute[full], loss[full]
    edges = np.geomspace(compute[0], compute[-1] * (1 + 1e-9), 33)
    piece = np.digitize(compute, edges)
    centres = [(np.exp(np.log(compute[piece == i]).mean()), loss[piece == i].mean()) for i in np.unique(piece)]
    found = np.array(centres)
    return found[:, 0], found[:, 1]


def _at(compute: np.ndarray, loss: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The loss at points of a grid; NaN where the curve does not reach."""
    values = np.interp(np.log(grid), np.log(compute), loss)
    return np.where((grid >= compute[0]) & (grid <= compute[-1]), values, np.nan)


def best_rates(cells: Sequence[Cell]) -> tuple[Points, list[str]]:
    """lr* at each width, from cells that differ in their rates; x is n [P, 1].

    Returns:
        The points, and a line for each width whose best rate could not be told.

    Raises:
        ValueError: where no width has one.
    """
    widths: dict[tuple[int, float], list[Cell]] = {}
    for cell in cells:
        widths.setdefault((cell.n, cell.k), []).append(cell)
    x, y, names, left = [], [], [], []
    for (n, k), own in sorted(widths.items()):
        rates, losses = np.array([c.lr for c in own]), np.array([c.loss for c in own])
        place = int(np.argmin(losses))
        if len(np.unique(rates)) < 3:
            left.append(f"n={n}, k={k:g}: fewer than 3 rates")
        elif rates[place] in (rates.min(), rates.max()):
            left.append(f"n={n}, k={k:g}: the best of the rates tried, {rates[place]:g}, is the last one on its side")
        else:
            near = np.argsort(np.abs(np.log(rates / rates[place])))[:5]
            a, b, _ = np.polyfit(np.log(rates[near]), np.log(losses[near]), 2)
            best = float(np.exp(np.clip(-b / (2 * a), np.log(rates.min()), np.log(rates.max()))))
            x.append([n])
            y.append(best)
            names.append(f"n={n}, k={k:g}")
    if not x:
        raise ValueError(f"no width has a best learning rate between others that were tried: {'; '.join(left)}")
    return Points(np.array(x, float), np.array(y), names), left
