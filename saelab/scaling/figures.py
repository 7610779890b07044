"""Figures of scaling: the only module of the folder that draws. Each function takes a result file's content.

    law_figure          loss (or tokens, or rate) against n for each k, with the law, its interval and its extrapolation
    curves_figure       loss curves of cells against rows or compute
    allocation_figure   latents of each rank, with the line that theory expects
    growth_figure       D(N) of allocations
    manifold_figure     loss curves of manifolds, with their floors
    tiling_figure       a circle's latents: which serves which angle (arcs), and where it points (arrows)
    diagnosis_figure    frequencies, nearest cosines and the prediction, on one panel

`write_figure` writes HTML with plotly's JavaScript beside it, and SVG; `write_panel` the panel as HTML and its parts as
both.
"""

# Shape letters: B points of a circle, n latents.

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.core.files import write_text
from saelab.metrics.figures import COLOURS, write_figures
from saelab.scaling.cells import Cell
from saelab.scaling.fit import Fit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LOG = {"type": "log"}
MIDDLES = [(number - 19.5) / 20 for number in range(40)]
"""Of a histogram's bins."""
BEYOND = 8.0
"""How far a law is drawn beyond the cells."""


def write_figure(path: Path, figure: "Figure") -> None:
    """Write PATH.html and PATH.svg."""
    write_figures({path.stem: figure}, path.parent)


def write_panel(path: Path, result: Mapping[str, Any]) -> None:
    """Write a diagnosis: the panel as PATH.html, and its parts as figures of their own beside it."""
    write_figures({f"{path.stem}-{name}": figure for name, figure in _parts(result).items()}, path.parent)
    write_text(path.with_suffix(".html"), diagnosis_figure(result).to_html(include_plotlyjs="plotly.min.js"))


def _parts(result: Mapping[str, Any]) -> dict[str, "Figure"]:
    ends = _range(result)
    cosines = _figure("Nearest cosine", "cosine", "share of latents", across={"range": ends}, up={})
    for number, (name, spread) in enumerate(result["nearest"].items()):
        shown = [(x, y) for x, y in zip(MIDDLES, _shares(spread), strict=True) if ends[0] <= x <= ends[1]]
        _add(cosines, [x for x, _ in shown], [y for _, y in shown], name, number)
    spectrum = _figure("Firing frequencies", "rank", "share of rows")
    _add(spectrum, result["frequencies"]["rank"], result["frequencies"]["density"], "latents", 0)
    growth = _figure("Features found, predicted", "times the width", "features")
    for key, dash in (("found", "solid"), ("found_low", "dot"), ("found_high", "dot")):
        lines = result["predicted"]
        name = "features found" if key == "found" else "95 %"
        values = [line[key] for line in lines]
        _add(growth, [line["times"] for line in lines], values, name, 0, dash=dash, showlegend=key != "found_high")
    return {"cosines": cosines, "frequencies": spectrum, "growth": growth}


def _shares(spread: Mapping[str, Any]) -> list[float]:
    counts = np.array(spread["histogram"], float)
    return (counts / counts.sum()).tolist()


def _range(result: Mapping[str, Any]) -> list[float]:
    """Between which cosines there are any."""
    some = [number for spread in result["nearest"].values() for number, c in enumerate(spread["histogram"]) if c]
    return [MIDDLES[min(some)] - 0.1, MIDDLES[max(some)] + 0.1]


def _figure(title: str, x: str, y: str, **axes: Any) -> "Figure":
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        title=title, template="simple_white", width=760, height=480, legend={"font": {"size": 10}},
        xaxis={"title": {"text": x}, **axes.get("across", LOG)},
        yaxis={"title": {"text": y}, **axes.get("up", LOG)},
    )  # fmt: skip
    return figure


def _add(figure: "Figure", x: Sequence[float], y: Sequence[float], name: str, number: int, **more: Any) -> None:
    colour = COLOURS[number % len(COLOURS)]
    line = {"color": colour, "dash": more.pop("dash", "solid")}
    marker = {"color": colour, "size": more.pop("size", 7)}
    kept = {"mode": "lines", "line": line, "marker": marker} | more
    figure.add_scatter(x=[float(v) for v in x], y=[float(v) for v in y], name=name, **kept)


def law_figure(fit: Fit, title: str) -> "Figure":
    """A law with its cells; lines are dashed where they extrapolate."""
    law = fit.law
    figure = _figure(title, law.variables[0], law.target)
    others = sorted({tuple(row[1:]) for row in fit.points.x.tolist()})
    low, high = fit.range()[law.variables[0]]
    for number, other in enumerate(others):
        own = [row[1:] == list(other) for row in fit.points.x.tolist()]
        name = ", ".join(f"{key}={value:g}" for key, value in zip(law.variables[1:], other, strict=True)) or law.target
        x, y = fit.points.x[own, 0], fit.points.y[own]
        _add(figure, x.tolist(), y.tolist(), name, number, mode="markers")
        for start, end, dash in ((low, high, "solid"), (high, BEYOND * high, "dash")):
            grid = np.geomspace(start, end, 30)
            value, down, up = fit.predict(np.array([[n, *other] for n in grid]))
            _add(figure, grid.tolist(), value.tolist(), name, number, dash=dash, showlegend=False)
            for edge in (down, up):
                _add(figure, grid.tolist(), edge.tolist(), name, number, dash="dot", showlegend=False, opacity=0.4)
    return figure


def curves_figure(cells: Sequence[Cell], against: str = "compute") -> "Figure":
    """Loss curves of cells against `rows` or `compute`, smoothed a little; a colour for each width."""
    figure = _figure(f"Loss curves against {against}", against, "FVU")
    widths, shown = sorted({cell.n for cell in cells}), set[int]()
    for cell in sorted(cells, key=lambda cell: cell.n):
        loss = np.array(cell.curve["loss"])
        width = max(1, len(loss) // 60)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        x, first = cell.curve[against][width - 1 :], cell.n not in shown
        shown.add(cell.n)
        _add(figure, x, smooth.tolist(), f"n={cell.n}", widths.index(cell.n), hovertext=cell.name, showlegend=first)
    return figure


def draw_laws(folder: Path, cells: Sequence[Cell], laws: Mapping[str, Fit]) -> None:
    """Every law and both kinds of loss curves, into a folder."""
    made = {f"law-{name}": law_figure(fit, name) for name, fit in laws.items()}
    if all(cell.curve for cell in cells):
        made |= {f"curves-{against}": curves_figure(cells, against) for against in ("rows", "compute")}
    write_figures(made, folder)


def allocation_figure(result: Mapping[str, Any]) -> "Figure":
    """Latents against rank, for the largest N of an allocation's file."""
    own, theory = result["allocation"], result["theory"]
    figure = _figure(f"Allocation of {result['rows'][-1]['latents']:,} latents", "rank of the feature", "latents")
    _add(figure, own["rank"], own["count"], "exact", 0, mode="markers", size=4)
    ends = [own["rank"][0], own["rank"][-1]]
    expected = [own["count"][0] * (rank / ends[0]) ** theory["n_i"] for rank in ends]
    _add(figure, ends, expected, f"rank^{theory['n_i']:.2f}", 1, dash="dash")
    return figure


def growth_figure(results: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """D(N) of several allocations by name, with the exponents that theory expects."""
    figure = _figure("Features found", "latents N", "features with a latent D")
    for number, (name, result) in enumerate(results.items()):
        n, found = ([row[key] for row in result["rows"]] for key in ("latents", "found"))
        _add(figure, n, found, name, number, mode="lines+markers")
        expected = [found[-1] * (n[0] / n[-1]) ** result["theory"]["found"], found[-1]]
        _add(figure, [n[0], n[-1]], expected, f"N^{result['theory']['found']:.2f}", number, dash="dot")
    return figure


def manifold_figure(curves: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Loss curves of single manifolds by name, with the floors that are known."""
    figure = _figure("Loss on one manifold", "latents", "loss per occurrence")
    for number, (name, curve) in enumerate(curves.items()):
        n, total = ([row[key] for row in curve["rows"]] for key in ("n", "total"))
        _add(figure, n, total, name, number, mode="lines+markers")
        if curve["floor"]:
            _add(figure, [n[0], n[-1]], [curve["floor"]] * 2, f"floor, {name}", number, dash="dot")
    return figure


def tiling_figure(directions: Tensor, codes: Tensor, angles: Tensor, x_hat: Tensor | None = None) -> "Figure":
    """Which latent serves which angle of a circle.

    Args:
        directions: of the latents [n, 2].
        codes: of points on the circle [B, n].
        angles: of these points [B].
        x_hat: their reconstructions [B, 2], drawn in black.
    """
    plain: dict[str, Any] = {"across": {"range": [-1.8, 1.8]}, "up": {"range": [-1.8, 1.8], "scaleanchor": "x"}}
    figure = _figure("Tiles of a circle", "", "", **plain)
    order = angles.argsort()
    angle, codes = angles[order], codes[order]
    _add(figure, angle.cos().tolist(), angle.sin().tolist(), "data", 9, mode="markers", size=2, opacity=0.3)
    if x_hat is not None:
        points = x_hat[order]
        figure.add_scatter(
            x=points[:, 0].tolist(), y=points[:, 1].tolist(), mode="markers", marker={"color": "#000000", "size": 2},
            name="reconstructions",
        )  # fmt: skip
    for number, direction in enumerate(directions):
        on, radius = codes[:, number] > 0, 1.15 + 0.5 * number / max(1, len(directions))
        gap = torch.where(on, radius, math.nan)
        _add(figure, (gap * angle.cos()).tolist(), (gap * angle.sin()).tolist(), f"latent {number}", number)
        tip = [0.0, direction[0].item()], [0.0, direction[1].item()]
        _add(figure, *tip, f"latent {number}", number, mode="lines+markers", size=4, showlegend=False)
    return figure


def diagnosis_figure(result: Mapping[str, Any]) -> "Figure":
    """The panel of a diagnosis: nearest cosines above, frequencies and prediction beside them."""
    from plotly.subplots import make_subplots

    titles = ("nearest cosine", "firing frequency", "features found")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles)
    for number, (name, spread) in enumerate(result["nearest"].items()):
        line = {"color": COLOURS[number % len(COLOURS)]}
        figure.add_scatter(x=MIDDLES, y=_shares(spread), name=name, line=line, row=1, col=1)
    spectrum = result["frequencies"]
    figure.add_scatter(x=spectrum["rank"], y=spectrum["density"], name="latents", row=1, col=2)
    figure.update_xaxes(title_text="cosine", range=_range(result), row=1, col=1)
    figure.update_xaxes(type="log", title_text="rank", row=1, col=2)
    figure.update_yaxes(type="log", title_text="share of rows", row=1, col=2)
    times = [line["times"] for line in result["predicted"]]
    for key, dash in (("found", "solid"), ("found_low", "dot"), ("found_high", "dot")):
        values, line = [one[key] for one in result["predicted"]], {"dash": dash, "color": COLOURS[0]}
        figure.add_scatter(x=times, y=values, name=key.replace("_", " "), line=line, row=1, col=3)
    figure.update_xaxes(type="log", title_text="times the width", row=1, col=3)
    figure.update_yaxes(type="log", row=1, col=3)
    share = f"{result['share_in_clusters']:.1%} of the latents in {len(result['clusters'])} tiling clusters"
    figure.update_layout(title=f"{result['verdict']}: {share}", template="simple_white", width=1100, height=420)
    return figure
