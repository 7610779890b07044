"""The look that all figures share, and the files they are written to. plotly is imported when something is drawn."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.core.files import write_text
from saelab.figures.svg import svg

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
"""Okabe and Ito's colours, which the colour-blind can tell apart."""
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, "#882255", "#44AA99", "#999933")
"""Of lines, in their order."""
GREY, DARK_GREY = "#888888", "#555555"
"""Of what is undecided or only to compare with; of lines that mark a place."""
WIDTH, HEIGHT = 760, 480
LEGEND_BELOW = {"orientation": "h", "y": -0.22}


def new_figure(title: str, x: str, y: str, **layout: Any) -> "Figure":
    """An empty figure with named axes; `xaxis` and `yaxis` in the layout add to their settings."""
    from plotly.graph_objects import Figure

    return styled(Figure(), title, x, y, **layout)


def styled(figure: "Figure", title: str, x: str, y: str, **layout: Any) -> "Figure":
    """Give a figure the shared look, a title and names of its axes."""
    axes = {"xaxis": {"title": {"text": x}} | layout.pop("xaxis", {})}
    axes |= {"yaxis": {"title": {"text": y}} | layout.pop("yaxis", {})}
    size = {"width": WIDTH, "height": HEIGHT}
    return figure.update_layout(title=title, template="simple_white", colorway=PALETTE, **(size | axes | layout))


def colour(number: int) -> str:
    """The colour of the line of that number."""
    return PALETTE[number % len(PALETTE)]


def write_figures(made: Mapping[str, "Figure"], folder: Path) -> list[Path]:
    """Write figures as HTML and SVG into a folder, plotly's JavaScript once beside them; the files, HTML first."""
    from plotly.offline import get_plotlyjs

    pages, images = [], []
    if made:
        write_text(folder / "plotly.min.js", get_plotlyjs())
    for name, figure in made.items():
        pages.append(folder / f"{name}.html")
        write_text(pages[-1], figure.to_html(include_plotlyjs="plotly.min.js", div_id=name))
        images.append(folder / f"{name}.svg")
        write_text(images[-1], svg(figure.to_plotly_json()))
    return pages + images


def write_page(figures: Sequence["Figure"], path: Path, title: str) -> None:
    """Write figures as one page, with plotly's JavaScript in it: about 5 MB."""
    # Names of their own for places in the page, which plotly draws at random: equal results are equal files.
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, div_id=f"figure-{number}")
        for number, figure in enumerate(figures)
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>'
    write_text(path, head + "\n".join(parts))
