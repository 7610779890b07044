"""Figures of what was measured: plotly, from scores, tables and numbers per latent; nothing is measured here.

    density        how many latents are how often active          l0_error     FVU against L0
    zf             norm of codes against norm of rows, with the lines where eps (h - 1) is 1/4, 1/2 and 1
    violin         how errors (left) and eps_lbo (right) are distributed over rows, up to the 99th percentile
    probe_loss, probe_loss_train, ablation_sparsity, n2g          against L0, a line for SAEs of one size
    precision_recall    of token patterns, the same lines         refinement   refined over original codes
    test_time      FVU when read with another k or a threshold

Every figure is written as HTML, with plotly's JavaScript in one file beside them all, and as SVG (see `svg.py`); the
rows behind `zf` and `violin` are in the tables of the run.
"""

# Shape letters: M rows of a sample, L latents.

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelab.figures.theme import GREY, colour, new_figure
from saelab.metrics.base import Table
from saelab.metrics.causal.ablation_sparsity import reference_points

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BANDS = (0.25, 0.5, 1.0)
COLUMNS: dict[str, dict[str, Any]] = {
    "zf": dict.fromkeys(("norm_x", "norm_f", "nmse", "eps_lbo"), float),
    "refinement": {"code": float, "refined": float},
    "test_time": {"reading": str, "l0": float, "fvu": float},
}
"""What is drawn of the tables of a run."""
POINTS = 2000
"""Rows that a scatter plot shows of one SAE."""


@dataclass(frozen=True)
class ScoredSAE:
    """What is known of one SAE."""

    name: str
    n_latents: int
    scores: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Table] = field(default_factory=dict)
    latents: Mapping[str, Tensor] = field(default_factory=dict)

    def score(self, name: str) -> Mapping[str, Any] | None:
        return self.scores.get(name)


def figures(saes: Sequence[ScoredSAE]) -> dict[str, "Figure"]:
    """Every figure for which something was measured, by name."""
    made = {name: draw(saes) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in made.items() if figure.data}


def _line(figure: "Figure", x: Sequence[Any], y: Sequence[Any], name: str, number: int | None, **more: Any) -> None:
    """A line, in the colour of its number, or grey and dashed without one."""
    from plotly.graph_objects import Scatter

    shade = GREY if number is None else colour(number)
    line = {"color": shade, "width": 1.5} | ({"dash": "dash"} if number is None else {}) | more.pop("line", {})
    style = {"mode": "lines"} | more
    figure.add_trace(Scatter(x=list(x), y=list(y), name=name, line=line, marker={"color": shade, "size": 6}, **style))


def _level(figure: "Figure", x: Sequence[Any], y: Sequence[Any], name: str) -> None:
    """A line to compare with, its name at its end."""
    more = {"mode": "lines+text", "text": ["", name], "textposition": "top left", "showlegend": False}
    _line(figure, x, y, name, None, **more)


def _density(saes: Sequence[ScoredSAE]) -> "Figure":
    figure = new_figure("Density spectrum", "density, share of rows", "share of latents", xaxis={"type": "log"})
    edges = torch.linspace(-6, 0, 49)
    for number, sae in enumerate(saes):
        if "density" in sae.latents:
            density = sae.latents["density"].double()
            fired = density[density > 0].log10().clamp(-6, 0)
            share = torch.histc(fired, 48, -6, 0) / len(density)
            silent = 1 - len(fired) / len(density)
            middle = (10 ** ((edges[:-1] + edges[1:]) / 2)).tolist()
            _line(figure, middle, share.tolist(), f"{sae.name}, {silent:.1%} silent", number, line={"shape": "hvh"})
    return figure


def _zf(saes: Sequence[ScoredSAE]) -> "Figure":
    figure = new_figure("ZF plot", "norm of the row", "norm of the codes, the bias being one")
    largest = 0.0
    for number, sae in enumerate(saes):
        if table := sae.tables.get("zf"):
            some = slice(0, POINTS)
            largest = max(largest, max(table["norm_x"][some], default=0.0))
            marker = {"size": 4, "opacity": 0.5, "color": colour(number)}
            _points(figure, (table["norm_x"][some], table["norm_f"][some]), sae.name, marker, table.get("text"))
    if largest:
        for name, slope in _bands():
            _level(figure, [0, largest], [0, slope * largest], name)
    return figure


def _bands() -> list[tuple[str, float]]:
    """Slopes between which the norms lie where eps (h - 1) is so large."""
    lines = [("orthogonal", 1.0)]
    for spread in BANDS:
        lines.append((f"ε(h-1) = {spread:g}", 1 / math.sqrt(1 + spread)))
        if spread < 1:
            lines.append((f"ε(h-1) = {spread:g}", 1 / math.sqrt(1 - spread)))
    return lines


def _points(
    figure: "Figure", at: tuple[list[Any], list[Any]], name: str, marker: dict[str, Any], text: list[Any] | None = None
) -> None:
    from plotly.graph_objects import Scatter

    shown = None if text is None else [str(one)[-80:].replace("<", "&lt;") for one in text[: len(at[0])]]
    figure.add_trace(Scatter(x=at[0], y=at[1], name=name, mode="markers", marker=marker, text=shown))


def _violin(saes: Sequence[ScoredSAE]) -> "Figure":
    right = {"title": {"text": "ε_LBO (right halves)"}, "overlaying": "y", "side": "right"}
    having = [sae for sae in saes if sae.tables.get("zf")]
    names = {"tickvals": list(range(len(having))), "ticktext": [sae.name for sae in having]}
    figure = new_figure("Errors and ε_LBO of rows", "", "normalised error (left halves)", xaxis=names, yaxis2=right)
    for number, sae in enumerate(having):
        for column, side, axis in (("nmse", -1, "y"), ("eps_lbo", 1, "y2")):
            values = torch.tensor(sae.tables["zf"][column], dtype=torch.float64)
            if not (values := values[torch.isfinite(values)]).numel():
                continue
            height, width = _shape(values)
            across = [number + side * 0.4 * one for one in width]
            more = {"fill": "toself", "yaxis": axis, "showlegend": side < 0}
            _line(figure, [number, *across, number], [height[0], *height, height[-1]], sae.name, number, **more)
    return figure


def _shape(values: Tensor) -> tuple[list[float], list[float]]:
    """Half a violin: heights, and widths of at most 1 from a Gaussian kernel, up to the 99th percentile."""
    top = values.quantile(0.99)
    values = values[values <= top]
    height = torch.linspace(float(values.min()), float(values.max()), 60, dtype=torch.float64)
    band = 0.9 * values.std().nan_to_num(0.0) * len(values) ** -0.2 + 1e-12 * (1 + top.abs())
    width = (-0.5 * ((height[:, None] - values) / band).square()).exp().sum(1)
    return height.tolist(), (width / width.max()).tolist()


def _against_l0(score: str, title: str, y: str, beside: Mapping[str, str]) -> Callable[[Sequence[ScoredSAE]], "Figure"]:
    """A score against L0, a line for the SAEs of one size, other scores dashed beside it."""

    def draw(saes: Sequence[ScoredSAE]) -> "Figure":
        figure = new_figure(title, "L0, latents active on a row", y, xaxis={"type": "log"})
        for number, (name, having) in enumerate(_lines([sae for sae in saes if sae.score(score) and sae.score("l0")])):
            x = [sae.scores["l0"]["value"] for sae in having]
            found = [sae.scores[score] for sae in having]
            more = {"mode": "lines+markers", "error_y": _bars(found), "text": [sae.name for sae in having]}
            _line(figure, x, [one["value"] for one in found], name, number, **more)
        if figure.data:
            _beside(figure, saes, beside)
        return figure

    return draw


def _lines(saes: Sequence[ScoredSAE]) -> list[tuple[str, list[ScoredSAE]]]:
    """SAEs that have an L0 in lines with names: those of one size in the order of L0.

    One that has the L0 of an SAE named before it (another seed, a control) is a line of its own, with its own name.
    """
    lines: dict[str, list[ScoredSAE]] = {}
    alone: dict[str, list[ScoredSAE]] = {}
    for sae in sorted(saes, key=lambda sae: sae.n_latents):
        line = lines.setdefault(f"{sae.n_latents:,} latents", [])
        own = sae.scores["l0"]["value"]
        if any(math.isclose(own, other.scores["l0"]["value"], rel_tol=0.02) for other in line):
            alone[sae.name] = [sae]
        else:
            line.append(sae)
    for line in lines.values():
        line.sort(key=lambda sae: sae.scores["l0"]["value"])
    return [*lines.items(), *alone.items()]


def _bars(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    up = [0 if one["high"] is None else one["high"] - one["value"] for one in found]
    down = [0 if one["low"] is None else one["value"] - one["low"] for one in found]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1}


def _beside(figure: "Figure", saes: Sequence[ScoredSAE], beside: Mapping[str, str]) -> None:
    """Levels of baselines: means over the SAEs that have them, or the constant given."""
    ends = [sae.scores["l0"]["value"] for sae in saes if sae.score("l0")]
    for name, key in beside.items():
        values = [sae.scores[key]["value"] for sae in saes if sae.score(key)]
        level = sum(values) / len(values) if values else _constant(key)
        if level is not None:
            _level(figure, [min(ends), max(ends) * 1.0001], [level, level], name)


def _constant(key: str) -> float | None:
    return reference_points(1).get(key)


def _precision_recall(saes: Sequence[ScoredSAE]) -> "Figure":
    having = [sae for sae in saes if all(map(sae.score, ("n2g_recall", "n2g_precision", "l0")))]
    title = "Token patterns (N2G); at each point its L0"
    figure = new_figure(title, "recall", "precision", xaxis={"type": "log"}, yaxis={"range": [0, 1]})
    for number, (name, line) in enumerate(_lines(having)):
        recall, precision = ([sae.scores[f"n2g_{key}"] for sae in line] for key in ("recall", "precision"))
        more = {"mode": "lines+markers+text", "error_x": _bars(recall), "error_y": _bars(precision)}
        more |= {"text": [f"{sae.scores['l0']['value']:.3g}" for sae in line], "textposition": "top left"}
        x, y = ([one["value"] for one in scores] for scores in (recall, precision))
        _line(figure, x, y, name, number, **more)
    return figure


def _refinement(saes: Sequence[ScoredSAE]) -> "Figure":
    figure = new_figure("Refined codes", "code", "refined over original code", xaxis={"type": "log"})
    for number, sae in enumerate(saes):
        if table := sae.tables.get("refinement"):
            pairs = [(code, new / code) for code, new in zip(table["code"], table["refined"], strict=True) if code > 0]
            _line(figure, [x for x, _ in pairs], [y for _, y in pairs], sae.name, number, mode="lines+markers")
    return figure


def _test_time(saes: Sequence[ScoredSAE]) -> "Figure":
    log = {"type": "log"}
    figure = new_figure("Read with another k or a threshold", "mean L0", "FVU", xaxis=log, yaxis=log)
    for number, sae in enumerate(saes):
        if table := sae.tables.get("test_time"):
            for reading, dash in (("topk", "solid"), ("threshold", "dot"), ("own", "solid")):
                lines = zip(table["reading"], table["l0"], table["fvu"], strict=True)
                points = sorted((x, y) for kind, x, y in lines if kind == reading and x > 0)
                mode = "markers" if reading == "own" else "lines+markers"
                x, y = [one for one, _ in points], [one for _, one in points]
                _line(figure, x, y, f"{sae.name}, {reading}", number, mode=mode, line={"dash": dash})
    return figure


FIGURES: dict[str, Callable[[Sequence[ScoredSAE]], "Figure"]] = {
    "density": _density,
    "l0_error": _against_l0("fvu", "L0 and error", "FVU", {}),
    "zf": _zf,
    "violin": _violin,
    "probe_loss": _against_l0(
        "probe_loss", "Probe loss", "nats", {"best channel": "probe_loss_channels", "permuted": "probe_loss_null"}
    ),
    "probe_loss_train": _against_l0(
        "probe_loss_train", "Probe loss where latents are chosen", "nats", {"permuted": "probe_loss_null_train"}
    ),
    "precision_recall": _precision_recall,
    "n2g": _against_l0("n2g_precision", "Precision of token patterns", "precision", {}),
    "ablation_sparsity": _against_l0(
        "ablation_sparsity",
        "Ablation sparsity",
        "share of logits",
        {"channels": "ablation_sparsity_channels", "Laplace": "Laplace", "Gaussian": "Gaussian"},
    ),
    "refinement": _refinement,
    "test_time": _test_time,
}
