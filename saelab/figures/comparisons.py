"""Figures of comparisons: stitching, paths between SAEs, pairs and clusters of directions."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from saelab.analysis.insertion import CLASSES
from saelab.figures.theme import BLACK, BLUE, DARK_GREY, GREEN, GREY, LEGEND_BELOW, PURPLE, VERMILION, styled

CLASS_COLOURS = {"novel": BLUE, "reconstruction": VERMILION, "undecided": GREY}
PHASE_COLOURS = {"insert": BLUE, "swap": VERMILION, "remove": GREEN, "finish": BLACK}
PAIR_COLOURS = {
    "duplicate": PURPLE, "overlapping": BLUE, "disjoint": VERMILION, "between": GREEN, "undecided": GREY,
}  # fmt: skip
MOST_POINTS = 5000
MOST_NAMED = 8
"""Latents of a cluster that its colours are told by."""


def _styled(figure: go.Figure, title: str, x: str, y: str, **layout: Any) -> go.Figure:
    margin = {"l": 80, "r": 20, "t": 50, "b": 60}
    return styled(figure, title, x, y, **({"margin": margin, "legend": LEGEND_BELOW} | layout))


def scatter_figure(
    cosine: Sequence[float], delta: Sequence[float], kind: Sequence[str], title: str, threshold: float = 0.7
) -> go.Figure:
    """Change of the error against the largest cosine, a dot for each latent of the large SAE.

    Changes span orders of magnitude on both sides of zero: they are drawn as asinh(change / a typical one).

    Args:
        cosine: of each, `cosine` of `large.parquet`.
        delta: its `delta_mse`.
        kind: its `class`.
        title: of the figure.
        threshold: of the cosine rule.
    """
    figure = go.Figure()
    changes = [float(value) for value in delta]
    sizes = sorted(abs(value) for value in changes if value)
    unit = sizes[len(sizes) // 4] if sizes else 1.0
    for name in CLASSES[2::-1]:  # the rarest on top
        all_own = [number for number, word in enumerate(kind) if word == name]
        own = all_own[:: -(-len(all_own) // MOST_POINTS) or 1]
        figure.add_scattergl(
            x=[float(cosine[i]) for i in own], y=[math.asinh(changes[i] / unit) for i in own], mode="markers",
            name=f"{name} ({len(all_own):,})", marker={"size": 5, "color": CLASS_COLOURS[name], "opacity": 0.6},
            customdata=[[i, changes[i]] for i in own],
            hovertemplate="latent %{customdata[0]}: cosine %{x:.3f}, %{customdata[1]:.3g}",
        )  # fmt: skip
    ticks = _signed_powers(min(changes, default=0.0), max(changes, default=0.0), unit)
    figure.update_yaxes(tickvals=[math.asinh(tick / unit) for tick in ticks], ticktext=[f"{tick:g}" for tick in ticks])
    said = {"text": f"cosine {threshold:g}", "font_color": DARK_GREY, "xanchor": "right", "textangle": -90}
    figure.add_vline(x=threshold, line_dash="dot", line_color=DARK_GREY, annotation=said)
    figure.add_hline(y=0, line_color=DARK_GREY, line_width=1)
    y = "change of the mean squared error<br>(of an entry, data's units squared)"
    return _styled(figure, title, "largest cosine with the small SAE", y, legend_itemsizing="constant")


def _signed_powers(low: float, high: float, unit: float) -> list[float]:
    """Powers of ten from about `unit` on, of either sign and zero, that reach from `low` to `high`.

    A side with none of them that reaches far enough to be read has the largest of 1, 2 and 5 times a power.
    """
    sides = []
    for end in (-low, high):
        powers = range(math.ceil(math.log10(unit)), math.floor(math.log10(end)) + 1) if end > 0 else range(0)
        side = [10.0**power for power in powers]
        if not side and end > unit / 2:
            power = math.floor(math.log10(end))
            side = [max(float(f"{digit}e{power}") for digit in (1, 2, 5) if float(f"{digit}e{power}") <= end)]
        sides.append(side)
    return [*(-tick for tick in reversed(sides[0])), 0.0, *sides[1]]


def path_figure(
    path: Mapping[str, Sequence[Any]], saes: Sequence[Mapping[str, Any]], title: str, against: str = "n_latents"
) -> go.Figure:
    """FVU along the way from the smallest to the largest SAE, and of the SAEs themselves.

    Args:
        path: the columns of `path.parquet`.
        saes: `saes` of `stitch.json`.
        title: of the figure.
        against: "n_latents" or "l0".
    """
    figure = go.Figure()
    keys = [(int(pair), phase) for pair, phase in zip(path["pair"], path["phase"], strict=True)]
    for number, phase in sorted(set(keys), key=lambda key: (key[0], ["small", *PHASE_COLOURS].index(key[1]))):
        if phase == "small":
            continue
        own = [i for i, key in enumerate(keys) if key == (number, phase)]
        own = [own[0] - 1, *own]  # from where the phase before ended
        figure.add_scatter(
            x=[float(path[against][i]) for i in own], y=[float(path["fvu"][i]) for i in own], mode="lines",
            name=phase, line={"color": PHASE_COLOURS[phase]}, legendgroup=phase, showlegend=not number,
        )  # fmt: skip
    figure.add_scatter(
        x=[sae[against] for sae in saes], y=[sae["fvu"] for sae in saes], mode="markers", name="trained",
        marker={"size": 9, "color": BLACK, "symbol": "diamond"},
    )  # fmt: skip
    if against == "n_latents":
        sizes = [int(sae["n_latents"]) for sae in saes]
        most = max([*sizes, *map(int, path["n_latents"])])
        ends = [math.log10(sizes[0] * 0.85), math.log10(most * 1.15)]
        figure.update_xaxes(type="log", tickvals=sizes, ticktext=[f"{size:,}" for size in sizes], range=ends)
    return _styled(figure, title, {"n_latents": "number of latents", "l0": "L0"}[against], "FVU")


def kinds_figure(pairs: Mapping[str, Sequence[Any]], threshold: float, title: str) -> go.Figure:
    """Pairs of close directions: how often their latents fire together against their cosine, by what they are.

    Args:
        pairs: the columns of `pairs.parquet` of a manifolds result.
        threshold: the cosine that pairs begin at.
        title: of the figure.
    """
    figure = go.Figure()
    for name, colour in PAIR_COLOURS.items():
        own = [number for number, kind in enumerate(pairs["kind"]) if kind == name]
        if own:
            chosen = own[:: -(-len(own) // MOST_POINTS)]
            figure.add_scattergl(
                x=[float(pairs["cosine"][i]) for i in chosen], y=[float(pairs["overlap"][i]) for i in chosen],
                mode="markers", name=f"{name} ({len(own):,})", marker={"size": 5, "color": colour, "opacity": 0.7},
                text=[f"latents {int(pairs['left'][i])} and {int(pairs['right'][i])}" for i in chosen],
                hovertemplate="%{text}: cosine %{x:.3f}, overlap %{y:.3f}",
            )  # fmt: skip
    most = max(map(float, pairs["cosine"]), default=1.0)
    room = max(0.02, 0.1 * (most - threshold))
    figure.update_xaxes(range=[threshold - room, min(1.02, most + room)])
    figure.update_yaxes(range=[-0.04, 1.04])
    return _styled(
        figure,
        title,
        "cosine of the directions",
        "share of the rarer one's rows with both",
        showlegend=True,
        legend_itemsizing="constant",
    )


def clouds_figure(points: Mapping[str, Sequence[Any]], clusters: Sequence[Mapping[str, Any]], title: str) -> go.Figure:
    """What each cluster reconstructs, along its first three principal components; a menu chooses the cluster.

    Args:
        points: the columns of `points.parquet` of a manifolds result.
        clusters: `clusters` of its `manifolds.json`.
        title: of the figure.
    """
    figure, buttons = go.Figure(), []
    numbers = [int(number) for number in points["cluster"]]
    shown = sorted(set(numbers))
    for place, number in enumerate(shown):
        own = [i for i, other in enumerate(numbers) if other == number]
        latents = [int(points["latent"][i]) for i in own]
        rank = {latent: order for order, latent in enumerate(sorted(set(latents)))}
        named = list(rank)[:: -(-len(rank) // MOST_NAMED)]
        bar = {"title": "strongest<br>latent", "tickvals": [rank[latent] for latent in named], "ticktext": named}
        figure.add_scatter3d(
            **{axis: [float(points[axis][i]) for i in own] for axis in "xyz"}, mode="markers", visible=not place,
            marker={
                "size": 3, "color": [rank[latent] for latent in latents], "colorscale": "Turbo", "cmin": 0,
                "cmax": max(1, len(rank) - 1), "colorbar": bar | {"len": 0.7, "thickness": 14},
            },
            text=[_hover(points, i) for i in own], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        line = clusters[number]
        label = f"cluster {number}: {line['size']} latents, {line['kind']}"
        visible = [other == number for other in shown]
        buttons.append({"label": label, "method": "update", "args": [{"visible": visible}]})
    menu = {"buttons": buttons, "x": 0.02, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    figure = _styled(figure, title, "", "", updatemenus=[menu], showlegend=False)
    axes = {f"{axis}axis_title": f"component {number + 1}" for number, axis in enumerate("xyz")}
    figure.update_scenes(camera_eye={"x": 1.5, "y": 1.5, "z": 1.1}, **axes)
    return figure.update_layout(height=640, title_y=0.97, margin={"l": 30, "r": 10, "t": 110, "b": 30})


def _hover(points: Mapping[str, Sequence[Any]], place: int) -> str:
    said = (
        f"row {int(points['row'][place])}: latent {int(points['latent'][place])}, {float(points['value'][place]):.3g}"
    )
    if "at" not in points:
        return said
    before, at, after = (html.escape(str(points[part][place])) for part in ("before", "at", "after"))
    return f"{before}<b>«{at}»</b>{after}<br>{said}".replace("\n", "⏎")


def curves_figure(
    lines: dict[str, tuple[list[float], list[float]]], title: str, x: str, y: str, **more: Any
) -> go.Figure:
    """Lines by name, each with its x and y."""
    figure = go.Figure()
    for name, (xs, ys) in lines.items():
        figure.add_scatter(x=xs, y=ys, mode="lines+markers" if len(xs) < 30 else "lines", name=name)
    return _styled(figure, title, x, y, **more)


def bars_figure(bars: dict[str, float], title: str, y: str) -> go.Figure:
    """One bar for each name."""
    said = [f"{value:.3g}" for value in bars.values()]
    figure = go.Figure(go.Bar(x=list(bars), y=list(bars.values()), text=said, textposition="outside", cliponaxis=False))
    return _styled(figure, title, "", y)
