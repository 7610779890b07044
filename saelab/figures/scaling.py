"""Figures of scaling: the only module of the folder that draws. Each function takes a result file's content.

    law_figure          loss (or rows, or rate) against n for each k: the law, its interval, where it extrapolates, and
                        what a fit to the narrower cells had predicted of the widest
    curves_figure       loss curves of cells against rows or compute
    allocation_figure   latents of each rank, with the line that theory expects
    growth_figure       D(N) of allocations
    manifold_figure     loss curves of manifolds, with their floors, or beside n^-2/m
    tiling_figure       circles' latents: which serves which angle (arcs), and where it points (arrows)
    feature_latents_figure  latents of each feature in trained SAEs, beside the allocator's
    diagnosis_figure    frequencies, nearest cosines and the prediction, on one panel

`write_figure` writes HTML with plotly's JavaScript beside it, and SVG; `write_panel` a diagnosis' panel, and its parts,
as both.
"""

# Shape letters: B points of a circle, n latents, S seeds, F features.

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.figures.theme import GREY, new_figure, write_figures
from saelab.figures.theme import colour as colour_of
from saelab.scaling.cells import Cell
from saelab.scaling.fit import Fit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LOG = {"type": "log", "exponentformat": "power"}
NAMES = {
    "n": "latents n", "k": "active latents k", "subject": "width of the rows", "compute": "training compute (FLOP)",
    "rows": "rows seen", "loss": "FVU", "converged_rows": "rows until convergence", "best_lr": "best learning rate",
}  # fmt: skip
"""Of variables, as axes are named."""
TITLES = {
    "joint": "L(n, k)", "width": "L(n)", "compute": "Lowest loss for the compute", "tokens": "Rows until convergence",
    "rate": "Best learning rate", "subject": "L(n, subject)",
}  # fmt: skip
MIDDLES = [(number - 19.5) / 20 for number in range(40)]
"""Of a histogram's bins."""
BEYOND = 4.0
"""How far a law is drawn beyond the cells."""
STROKES = ("solid", "dash", "dot", "dashdot")


def write_figure(path: Path, figure: "Figure") -> None:
    """Write PATH.html and PATH.svg."""
    write_figures({path.stem: figure}, path.parent)


def write_panel(path: Path, result: Mapping[str, Any]) -> None:
    """Write a diagnosis: the panel as PATH.html and PATH.svg, and its parts as figures of their own beside it."""
    made = {f"{path.stem}-{name}": _part(name, result) for name in PARTS}
    write_figures({path.stem: diagnosis_figure(result)} | made, path.parent)


def _figure(title: str, x: str, y: str, **axes: Any) -> "Figure":
    """With logarithmic axes, unless `across` and `up` say otherwise."""
    return new_figure(title, x, y, xaxis=axes.get("across", LOG), yaxis=axes.get("up", LOG))


def _trace(x: Sequence[float], y: Sequence[float], name: str, number: int | str, **more: Any) -> dict[str, Any]:
    """A line of the colour with a number, or of a colour by its name."""
    colour = number if isinstance(number, str) else colour_of(number)
    line = {"color": colour, "dash": more.pop("dash", "solid")} | more.pop("line", {})
    marker = {"color": colour, "size": more.pop("size", 7)} | more.pop("marker", {})
    kept = {"type": "scatter", "mode": "lines", "line": line, "marker": marker, "name": name} | more
    return kept | {"x": [float(v) for v in x], "y": [float(v) for v in y]}


def _add(figure: "Figure", x: Sequence[float], y: Sequence[float], name: str, number: int | str, **more: Any) -> None:
    figure.add_trace(_trace(x, y, name, number, **more))


def _band(x: Sequence[float], low: Sequence[float], high: Sequence[float], number: int, **more: Any) -> dict[str, Any]:
    """An interval as a filled shape."""
    kept = {"fill": "toself", "line": {"width": 0}, "opacity": 0.4, "hoverinfo": "skip"} | more
    return _trace([*x, *reversed(list(x))], [*high, *reversed(list(low))], "95 % interval", number, **kept)


# ---- laws and curves ----


def law_figure(fit: Fit, title: str) -> "Figure":
    """A law with its cells; lines are dashed where they extrapolate."""
    law = fit.law
    first = law.variables[0]
    figure = _figure(title, NAMES.get(first, first), NAMES.get(law.target, law.target))
    others = sorted({tuple(row[1:]) for row in fit.points.x.tolist()})
    low, high = fit.range()[first]
    cells = "envelope" if first == "compute" else "cells"
    if first == "n":
        figure.update_xaxes(**_widths(fit.points.x[:, 0]))
    for number, other in enumerate(others):
        own = np.array([row[1:] == list(other) for row in fit.points.x.tolist()])
        name = ", ".join(f"{key}={value:g}" for key, value in zip(law.variables[1:], other, strict=True)) or cells
        grid = np.geomspace(low, BEYOND * high, 60)
        value, down, up = fit.predict(np.array([[n, *other] for n in grid]))
        figure.add_trace(_band(grid.tolist(), down.tolist(), up.tolist(), number, showlegend=not number))
        for part, dash, label in ((grid <= high * 1.001, "solid", "law"), (grid >= high, "dash", "extrapolated")):
            line = {"dash": dash, "showlegend": not number}
            _add(figure, grid[part].tolist(), value[part].tolist(), label, number, **line)
        _add(figure, fit.points.x[own, 0].tolist(), fit.points.y[own].tolist(), name, number, mode="markers")
    for trace in _predicted(fit):
        figure.add_trace(trace)
    return figure


def _widths(column: np.ndarray) -> dict[str, Any]:
    """Ticks at the widths there are, and at doublings beyond them; none of ours where there are too many."""
    there = sorted(set(column.tolist()))
    beyond = [there[-1] * 2**power for power in range(1, round(math.log2(BEYOND)) + 1)]
    values = there + beyond
    return {"tickvals": values, "ticktext": [f"{value:,.0f}" for value in values]} if len(values) <= 14 else {}


def _predicted(fit: Fit) -> list[dict[str, Any]]:
    """The cells that were held out, as a fit to the others predicts them."""
    if not fit.held_out:
        return []
    places = dict(zip(fit.points.names, fit.points.x[:, 0].tolist(), strict=True))
    cells = [cell for cell in fit.held_out["cells"] if cell["name"] in places]
    y = [cell["predicted"] for cell in cells]
    up = [cell["high"] - cell["predicted"] for cell in cells]
    down = [cell["predicted"] - cell["low"] for cell in cells]
    bars = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "color": "#000000"}
    more: dict[str, Any] = {"mode": "markers", "size": 5, "error_y": bars}
    return [_trace([places[cell["name"]] for cell in cells], y, "predicted unseen", "#000000", **more)]


def curves_figure(cells: Sequence[Cell], against: str = "compute") -> "Figure":
    """Loss curves of cells against `rows` or `compute`, smoothed a little: a colour for each width, a stroke each k."""
    figure = _figure(f"Loss curves against {against}", NAMES[against], "FVU of the batches, smoothed")
    widths, ks = sorted({cell.n for cell in cells}), sorted({cell.k for cell in cells})
    for number, n in enumerate(widths):
        _add(figure, [math.nan], [math.nan], f"n={n:,}", number)
    for k, dash in zip(ks, STROKES, strict=False) if len(ks) <= len(STROKES) else []:
        _add(figure, [math.nan], [math.nan], f"k={k:g}", GREY, dash=dash)
    for cell in sorted(cells, key=lambda cell: cell.n):
        loss = np.array(cell.curve["loss"])
        width = max(1, len(loss) // 60)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        dash = STROKES[ks.index(cell.k)] if len(ks) <= len(STROKES) else "solid"
        more = {"hovertext": cell.name, "showlegend": False, "line": {"width": 1.2}, "dash": dash}
        _add(figure, cell.curve[against][width - 1 :], smooth.tolist(), cell.name, widths.index(cell.n), **more)
    return figure


def draw_laws(folder: Path, cells: Sequence[Cell], laws: Mapping[str, Fit]) -> None:
    """Every law and both kinds of loss curves, into a folder."""
    made = {f"law-{name}": law_figure(fit, title_of(name)) for name, fit in laws.items()}
    if all(cell.curve for cell in cells):
        made |= {f"curves-{against}": curves_figure(cells, against) for against in ("rows", "compute")}
    write_figures(made, folder)


def title_of(name: str) -> str:
    """A law's title from the name of its file."""
    law, _, k = name.partition("-k")
    return TITLES.get(law, law) + (f" at k = {k}" if k else "")


# ---- allocation and manifolds ----


def allocation_figure(results: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Latents against rank, for the largest N of each allocation by name."""
    most = max(result["rows"][-1]["latents"] for result in results.values())
    figure = _figure(f"{most:,} latents shared out", "rank of the feature i", "latents of the feature n_i")
    for number, (name, result) in enumerate(results.items()):
        own, theory = result["allocation"], result["theory"]
        _add(figure, own["rank"], own["count"], name, number, mode="markers", size=4)
        ends = [own["rank"][0], own["rank"][-1]]
        expected = [own["count"][0] * (rank / ends[0]) ** theory["n_i"] for rank in ends]
        _add(figure, ends, expected, f"theory, i^{theory['n_i']:.2f}", number, dash="dash")
    figure.update_yaxes(range=[-0.3, 0.3 + math.log10(max(r["allocation"]["count"][0] for r in results.values()))])
    return figure


def growth_figure(results: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """D(N) of several allocations by name, with the exponents that theory expects."""
    figure = _figure("Features found", "latents N", "features with a latent D")
    for number, (name, result) in enumerate(results.items()):
        n, found = ([row[key] for row in result["rows"]] for key in ("latents", "found"))
        _add(figure, n, found, name, number, mode="lines+markers")
        expected = [found[-1] * (n[0] / n[-1]) ** result["theory"]["found"], found[-1]]
        _add(figure, [n[0], n[-1]], expected, f"theory, N^{result['theory']['found']:.2f}", number, dash="dot")
    return figure


def manifold_figure(curves: Mapping[str, Mapping[str, Any]], title: str = "Loss on one manifold") -> "Figure":
    """Loss curves of single manifolds by name, with the floors that are known, or else n^-2/m through them."""
    figure, floors = _figure(title, "latents n", "loss (the sphere's radius is 1)"), list[float]()
    sizes = sorted({row["n"] for curve in curves.values() for row in curve["rows"]})
    figure.update_xaxes(tickvals=sizes, ticktext=[f"{n}" for n in sizes])
    for number, (name, curve) in enumerate(curves.items()):
        n, total = ([row[key] for row in curve["rows"]] for key in ("n", "total"))
        _add(figure, n, total, name, number, mode="lines+markers")
        if curve["floor"]:
            floors.append(curve["floor"])
        elif beta := curve.get("expected_beta"):
            line = _through([row for row in curve["rows"] if row["n"] > curve["dims"]], beta)
            _add(figure, *line, f"n^-{beta:.3g}", number, dash="dash")
    while floors:  # those that differ by sampling alone are one
        same = [floor for floor in floors if floor <= 1.02 * min(floors)]
        floors = [floor for floor in floors if floor not in same]
        floor = float(np.median(same))
        _add(figure, [sizes[0], sizes[-1]], [floor] * 2, f"lower bound {floor:.3g}", GREY, dash="dot")
    return figure


def _through(rows: Sequence[Mapping[str, Any]], beta: float) -> tuple[list[float], list[float]]:
    """A line of slope -beta through the middle of some rows of a curve."""
    n, total = (np.log([row[key] for row in rows]) for key in ("n", "total"))
    middle = float((total + beta * n).mean())
    return np.exp(n).tolist(), np.exp(middle - beta * n).tolist()


@dataclass(frozen=True)
class Circle:
    """What an SAE makes of points of a circle."""

    directions: Tensor
    """Of the latents [n, 2]."""
    codes: Tensor
    """Of points on the circle [B, n]."""
    angles: Tensor
    """Of these points [B]."""
    x_hat: Tensor | None = None
    """Their reconstructions [B, 2]."""


def tiling_figure(circles: Mapping[str, Circle]) -> "Figure":
    """Which latent serves which angle, a panel for each SAE by name: arcs where it fires, arrows where it points."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(circles), subplot_titles=list(circles), horizontal_spacing=0.03)
    for column, circle in enumerate(circles.values(), 1):
        for trace in _tiles(circle, named=column == 1):
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(range=[-1.9, 1.9], visible=False, row=1, col=column)
        anchor = {"scaleanchor": f"x{column if column > 1 else ''}", "range": [-1.9, 1.9]}
        figure.update_yaxes(visible=False, **anchor, row=1, col=column)
    figure.update_layout(
        title="Which latent serves which angle", template="simple_white", width=270 + 230 * len(circles), height=350
    )
    return figure


def _tiles(circle: Circle, named: bool) -> Iterator[dict[str, Any]]:
    order = circle.angles.argsort()
    angle, codes = circle.angles[order], circle.codes[order]
    yield _trace(angle.cos().tolist(), angle.sin().tolist(), "the circle", "#bbbbbb", showlegend=named)
    if circle.x_hat is not None:
        at = circle.x_hat[order]
        more = {"mode": "markers", "size": 2, "showlegend": named}
        yield _trace(at[:, 0].tolist(), at[:, 1].tolist(), "reconstructions", "#000000", **more)
    for number, direction in enumerate(circle.directions):
        fires = codes[:, number] > 0
        if not fires.any():
            continue
        radius = torch.where(fires, 1.15 + 0.55 * number / len(circle.directions), math.nan)
        name, first = f"latent {number}", named and not number
        arc = (radius * angle.cos()).tolist(), (radius * angle.sin()).tolist()
        yield _trace(*arc, "latent: arc, arrow" if first else name, number, showlegend=first, line={"width": 4})
        across, up = (direction / direction.norm()).tolist()
        barbs = [(0.9 * across + side * 0.05 * up, 0.9 * up - side * 0.05 * across) for side in (1, -1)]
        way = [(0.0, 0.0), (across, up), barbs[0], (across, up), barbs[1]]
        yield _trace([x for x, _ in way], [y for _, y in way], name, number, showlegend=False)


def feature_latents_figure(lines: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Latents of each feature: of SAEs (dots: mean and range over seeds), and of the allocator (steps).

    Args:
        lines: of SAEs of one world: `n`, `latents_per_feature` [F], `predicted_latents` [F]; a panel for each n.
        title: of the figure.
    """
    from plotly.subplots import make_subplots

    sizes = sorted({line["n"] for line in lines})
    figure = make_subplots(rows=1, cols=len(sizes), subplot_titles=[f"{n} latents" for n in sizes])
    for column, n in enumerate(sizes, 1):
        own, expected = (
            np.array([line[key] for line in lines if line["n"] == n], float)
            for key in ("latents_per_feature", "predicted_latents")
        )
        last = min(own.shape[1], np.nonzero(own.any(0) | expected.any(0))[0].max() + 2)
        mean, seeds = own.mean(0), len(own)
        steps = expected.mean(0)[:last].repeat(2)
        edges = [rank + side for rank in range(1, last + 1) for side in (-0.5, 0.5)]
        top = float(max(own.max(), expected.max()))
        bars = {"type": "data", "thickness": 1, "array": (own.max(0) - mean)[:last].tolist()}
        bars["arrayminus"] = (mean - own.min(0))[:last].tolist()
        found: dict[str, Any] = {"mode": "markers", "error_y": bars, "size": 6, "showlegend": column == 1}
        name = f"trained, {seeds} seeds" if seeds > 1 else "trained"
        allocator = _trace(edges, steps.tolist(), "allocator", 1, showlegend=column == 1)
        trained = _trace(range(1, last + 1), mean[:last].tolist(), name, 0, **found)
        figure.add_traces([allocator, trained], rows=1, cols=column)
        figure.update_xaxes(title_text="rank of the feature", row=1, col=column)
        figure.update_yaxes(range=[-0.03 * top, 1.05 * top], row=1, col=column)
    figure.update_yaxes(title_text="its latents", row=1, col=1)
    return figure.update_layout(title=title, template="simple_white", width=270 + 230 * len(sizes), height=350)


# ---- diagnosis ----


def diagnosis_figure(result: Mapping[str, Any]) -> "Figure":
    """The panel of a diagnosis: nearest cosines, frequencies and prediction beside each other."""
    from plotly.subplots import make_subplots

    titles = [PARTS[name][0] for name in PARTS]
    figure = make_subplots(rows=1, cols=len(PARTS), subplot_titles=titles, horizontal_spacing=0.1)
    for column, (name, (_, across, up)) in enumerate(PARTS.items(), 1):
        for trace in _traces(name, result):
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title_text=across, **_axis(name, result), row=1, col=column)
        figure.update_yaxes(title_text=up, type="linear" if name == "cosines" else "log", row=1, col=column)
    share = f"{result['share_in_clusters']:.1%} of the latents in {len(result['clusters'])} tiling clusters"
    figure.update_layout(title=f"{result['verdict']}: {share}", template="simple_white", width=960, height=380)
    return figure


PARTS = {
    "cosines": ("Nearest other direction", "cosine", "share of latents"),
    "frequencies": ("How often latents fire", "rank of the latent", "share of rows"),
    "growth": ("Features found, predicted", "times this width", "features"),
}
"""Title and axes of each part of a diagnosis."""


def _part(name: str, result: Mapping[str, Any]) -> "Figure":
    title, across, up = PARTS[name]
    axes = {"across": _axis(name, result), "up": {} if name == "cosines" else LOG}
    figure = _figure(title, across, up, **axes)
    for trace in _traces(name, result):
        figure.add_trace(trace)
    return figure


def _axis(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The x axis of a part."""
    if name == "cosines":
        some = [number for spread in result["nearest"].values() for number, c in enumerate(spread["histogram"]) if c]
        return {"range": [MIDDLES[min(some)] - 0.1, MIDDLES[max(some)] + 0.1]}
    if name == "growth":
        return LOG | {"tickvals": [1, 2, 5, 10], "ticktext": ["1", "2", "5", "10"]}
    return LOG


def _traces(name: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of a part."""
    if name == "cosines":
        for number, (label, spread) in enumerate(result["nearest"].items()):
            shares, (low, high) = np.array(spread["histogram"], float), _axis(name, result)["range"]
            own = "this SAE" if label == "this" else "random directions" if label == "random" else label
            kept = [place for place, at in enumerate(MIDDLES) if low <= at <= high]
            y = (shares / shares.sum())[kept].tolist()
            yield _trace([MIDDLES[place] for place in kept], y, own, GREY if label == "random" else number)
    elif name == "frequencies":
        spectrum, alpha = result["frequencies"], result["alpha"]["value"]
        yield _trace(spectrum["rank"], spectrum["density"], "this SAE", 0, showlegend=False)
        if alpha is not None:
            ends = [spectrum["from"], max(spectrum["to"], spectrum["from"] + 1)]
            middle = math.sqrt(ends[0] * ends[1])
            height = float(np.interp(middle, spectrum["rank"], spectrum["density"]))
            line = [1.3 * height * (rank / middle) ** -(1 + alpha) for rank in ends]
            yield _trace(ends, line, f"rank^-{1 + alpha:.2f}", "#000000", dash="dash")
    else:
        times, alive = [line["times"] for line in result["predicted"]], result["alive"]
        found, low, high = ([line[key] for line in result["predicted"]] for key in ("found", "found_low", "found_high"))
        yield _band(times, low, high, 0)
        yield _trace(times, found, "features", 0, mode="lines+markers")
        yield _trace([1, times[-1]], [alive, alive * times[-1]], "one for each latent", GREY, dash="dot")
