"""The figures of `canonical_units.py`, as small files: plotly draws, a headless Chromium, if there is one, prints."""

import base64
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go

from saelab.analysis.meta import read_meta
from saelab.analysis.stitch import read_stitch
from saelab.core.read import read_json
from saelab.figures.comparisons import bars_figure, curves_figure, path_figure, scatter_figure
from saelab.figures.theme import LEGEND_BELOW, PALETTE, styled

FAMILY_NAMES = {
    "ladder": "TopK, one threshold",
    "batch": "BatchTopK",
    "ladder-short": "TopK, a fifth, one threshold",
    "batch-short": "BatchTopK, a fifth",
    "jump": "JumpReLU, a quarter",
}
PAGE = """<!doctype html><div id="f"></div>{plot}<script>
const f = document.getElementsByClassName("plotly-graph-div")[0];
Plotly.toImage(f, {{format: "{kind}", width: 760, height: 480, scale: 1}}).then(u => {{
  document.body.innerHTML = "<pre id=u>" + u + "</pre>"; }});</script>"""


def draw(out: Path) -> None:
    """Draw everything that is there into figures/."""
    figures = {"scatter": scatter(out), "path": path_of(out / "stitch", "bundled model"), "thresholds": thresholds(out)}
    figures |= {
        "novel": novel(out),
        "meta": meta(out),
        "stability": stability(out),
        "world-path": path_of(out / "world" / "stitch", "world"),
    }
    (out / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        if figure is not None:
            figure.write_html(out / "figures" / f"{name}.html", include_plotlyjs=True)
            save_image(figure, out / "figures" / f"{name}.{'png' if name == 'scatter' else 'svg'}")


def save_image(figure: go.Figure, path: Path) -> None:
    """Print a figure as .svg or .png; says so where there is no browser to do it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        print(f"skipped {path}: no Chromium to print it")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        plot = figure.to_html(full_html=False, include_plotlyjs=True)
        page.write_text(PAGE.format(plot=plot, kind=path.suffix[1:]), encoding="utf-8")
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run(
            [browser, *words, f"--user-data-dir={folder}/u", page.as_uri()], capture_output=True, text=True, check=True
        )
    found = done.stdout.partition('<pre id="u">')[2].partition("</pre>")[0].replace("&amp;", "&")
    head, _, data = found.partition(",")
    if not data:
        print(f"skipped {path}: the browser drew nothing")
    elif "base64" in head:
        path.write_bytes(base64.b64decode(data))
    else:
        from urllib.parse import unquote

        path.write_text(unquote(data), encoding="utf-8")


def scatter(out: Path) -> go.Figure:
    pair = read_stitch(out / "batch-stitch")["pairs"][2]
    latents = pair["large_latents"]
    title = "1,024 to 2,048 latents, BatchTopK"
    return scatter_figure(latents["cosine"], latents["delta_mse"], latents["class"], title)


def novel(out: Path) -> go.Figure:
    """The share of novel latents by width, of each family; of TopK, read in both ways, with what other seeds gave."""
    figure = go.Figure()
    for (family, name), colour in zip(FAMILY_NAMES.items(), PALETTE, strict=False):
        folder = out / ("stitch" if family == "ladder" else f"{family}-stitch")
        for file, dash in (("stitch", "solid"), ("as-trained", "dash")):
            if (folder / f"{file}.json").exists():
                pairs = read_json(folder / f"{file}.json")["pairs"]
                said = name.replace("one threshold", "as trained") if file == "as-trained" else name
                line = {"color": colour, "dash": dash}
                sizes, shares = [int(pair["large"]) for pair in pairs], [pair["share_novel"] for pair in pairs]
                figure.add_scatter(x=sizes, y=shares, mode="lines+markers", name=said, line=line)
    seeds = read_json(out / "seeds.json")["ladder"]["pairs"] if (out / "seeds.json").exists() else []
    for reading, symbol in (("by_threshold", "circle-open"), ("as_trained", "diamond-open")):
        mark = {"color": PALETTE[0], "symbol": symbol, "size": 9}
        sizes, shares = [pair["large"] for pair in seeds], [pair[reading]["share_novel"] for pair in seeds]
        said = {"by_threshold": "one threshold, every two seeds", "as_trained": "as trained, every two seeds"}[reading]
        figure.add_scatter(x=sizes, y=shares, mode="markers", name=said, marker=mark)
    ticks = sorted({int(x) for trace in figure.data for x in trace.x})
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])
    figure.update_yaxes(range=[0, 1])
    title, x = "Novel latents", "latents of the larger SAE, twice the smaller one's"
    return styled(figure, title, x, "share of the decided", legend=LEGEND_BELOW)


def path_of(folder: Path, title: str) -> go.Figure:
    found = read_stitch(folder)
    return path_figure(found["path"], found["saes"], f"From each SAE to the next, {title}")


def thresholds(out: Path) -> go.Figure:
    found = read_json(out / "stitch" / "thresholds.json")
    lines = {f"from {cosine} on": (line["n_latents"], line["fvu"]) for cosine, line in found.items()}
    title = "512 to 1,024 latents, by the cosine of swaps"
    return curves_figure(lines, title, "number of latents", "FVU").update_xaxes(tickformat=",")


def meta(out: Path) -> go.Figure:
    found = read_meta(out / "meta")
    bars = {f"meta-SAE<br>{found['bits']:.0f} bits": found["explained"]["held_out"]}
    said = {
        "random": "of random<br>directions",
        "shuffled": "of shuffled<br>coordinates",
        "pca": "PCA",
        "kmeans": "k-means",
        "residual_kmeans": "residual<br>k-means",
    }
    for name, control in found["controls"].items():
        bars[f"{said[name]}<br>{control['bits']:.0f} bits"] = control["explained"]
    title = f"Directions of {found['n_latents']:,} latents, held out"
    return bars_figure(bars, title, "share of the variance explained").update_xaxes(tickangle=0)


def stability(out: Path) -> go.Figure:
    found = read_json(out / "match" / "all.json")["matches"]
    lines = {name: (one["curve"]["cosine"], one["curve"]["share"]) for name, one in found.items() if "by" not in name}
    lines = {_with_commas(name.replace("seed1", "1024, other seed")): line for name, line in lines.items()}
    return curves_figure(lines, "Latents with a partner", "cosine of the partner at least", "share of latents")


def _with_commas(text: str) -> str:
    return re.sub(r"\d{4,}", lambda found: f"{int(found[0]):,}", text)
