"""The page of benchmarks/worlds.py: tables of means and standard errors over seeds, and four findings with numbers."""

import html
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
COLUMNS = {
    "l0": ("L0", "latents active in a row, on average", None),
    "fvu": ("FVU", "fraction of variance unexplained; lower is better", min),
    "mcc": ("MCC", "mean cosine of matched directions; higher is better", max),
    "recovery_90": ("rec. 0.9", "share of features matched with a cosine of at least 0.9", max),
    "f1": ("F1", "firing of matched latents against the features'; higher is better", max),
    "dead": ("dead", "share of latents silent on all held-out rows", min),
    "shrinkage": ("shrinkage", "1 - slope of codes against true intensities; 0 is unbiased", None),
    "absorption": ("absorption", "share of a parent's activation taken over by its children's latents", min),
    "hedging": ("hedging", "share of a latent's direction along other features it fires with", min),
    "latents_per_circle": ("per circle", "latents that serve one circle", None),
}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8889; --best: #2a9d5c33; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .28rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; cursor: help }
td small { color: var(--soft); margin-left: .3em } td.best { background: var(--best) }
.table { overflow-x: auto } dt { font-weight: 600; margin-top: .9rem } dd { margin: .15rem 0 0 0 }
tr.apart { opacity: .5 } .no { color: #c0392b } .yes { color: #2a9d5c }
"""


def write_page(path: Path, lines: list[Line], architectures: list[str], worlds: list[str]) -> None:
    """Write the page from the table of runs."""
    rows = sorted({line["rows"] for line in lines})
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>saelab: worlds</title><style>{STYLE}</style><h1>Architectures in worlds with known features</h1>",
        "<p>Mean over seeds and, small, its standard error. Rows seen by each SAE: ",
        ", ".join(f"{count:,}" for count in rows),
        ". The best mean of a column is shaded, and what is within two standard errors of it; faint lines stand at ",
        "another L0 and are left out of that. ",
        "Hover over a heading for its meaning.</p>",
    ]
    for world in worlds:
        of_world = [line for line in lines if line["world"] == world]
        if of_world:
            parts += [f"<h2>{html.escape(world.capitalize())} world</h2>", table(of_world, architectures)]
    parts += ["<h2>Four findings of the literature, here</h2><dl>", *findings(lines), "</dl></html>"]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def mean(lines: list[Line], key: str) -> tuple[float, float, int]:
    """Mean, its standard error and the number of seeds with a value; NaN where there is none."""
    values = [line[key] for line in lines if line.get(key) is not None]
    if not values:
        return math.nan, math.nan, 0
    middle = sum(values) / len(values)
    if len(values) == 1:
        return middle, math.nan, 1
    spread = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return middle, math.sqrt(spread / len(values)), len(values)


def table(lines: list[Line], architectures: list[str]) -> str:
    keys = [key for key in COLUMNS if any(line.get(key) is not None for line in lines)]
    names = [name for name in architectures if any(line["architecture"] == name for line in lines)]
    cells = {(n, key): mean([li for li in lines if li["architecture"] == n], key) for n in names for key in keys}
    head = "".join(f"<th title='{html.escape(COLUMNS[key][1])}'>{COLUMNS[key][0]}</th>" for key in keys)
    body = []
    middle = statistics.median(cells[name, "l0"][0] for name in names)
    equal = [name for name in names if abs(math.log(cells[name, "l0"][0] / middle)) < math.log(1.6)]
    for name in names:
        row = "".join(
            cell(cells[name, key], key, [cells[n, key] for n in equal] if name in equal else []) for key in keys
        )
        kind = "" if name in equal else " class=apart title='not at this L0, so not compared'"
        body.append(f"<tr{kind}><td>{html.escape(name)}</td>{row}</tr>")
    return f"<div class=table><table><tr><th>architecture</th>{head}</tr>{''.join(body)}</table></div>"


def cell(own: tuple[float, float, int], key: str, all_of_column: list[tuple[float, float, int]]) -> str:
    value, error, count = own
    if not count:
        return "<td>–</td>"
    better: Callable[..., float] | None = COLUMNS[key][2]
    known = [one for one in all_of_column if one[2]]
    best = False
    if better and known:
        top = better(known, key=lambda one: one[0])  # type: ignore[call-overload]
        slack = 2 * math.hypot(*(0 if math.isnan(part) else part for part in (error, top[1])))
        best = abs(value - top[0]) <= slack
    small = "" if math.isnan(error) else f"<small>±{error:.3f}</small>"
    return f"<td{' class=best' if best else ''}>{value:.3f}{small}</td>"


def findings(lines: list[Line]) -> list[str]:
    """Each finding, whether it appears, and the numbers."""

    def of(name: str, world: str, key: str) -> tuple[float, float, int]:
        return mean([li for li in lines if li["architecture"] == name and li["world"] == world], key)

    def said(one: tuple[float, float, int]) -> str:
        return f"{one[0]:.3f}" + ("" if math.isnan(one[1]) else f" ± {one[1]:.3f}")

    found = []
    matryoshka = of("Matryoshka (BatchTopK)", "hierarchical", "absorption")
    batch = of("BatchTopK", "hierarchical", "absorption")
    found.append(
        verdict(
            "Matryoshka absorbs less than BatchTopK (arXiv 2503.17547)",
            clearly_less(matryoshka, batch),
            f"Absorption in the hierarchical world: Matryoshka {said(matryoshka)}, BatchTopK {said(batch)}.",
        )
    )
    shrunk, refined = of("ReLU + L1", "sparse", "shrinkage"), of("ReLU + L1", "sparse", "refined_over_code")
    before, after = of("ReLU + L1", "sparse", "fvu"), of("ReLU + L1", "sparse", "fvu_refined")
    topk = of("TopK", "sparse", "refined_over_code")
    found.append(
        verdict(
            "ReLU + L1 shrinks codes, refinement undoes it (arXiv 2406.04093, section 5.1)",
            shrunk[0] > 0.02 and clearly_less(after, before) and refined[0] - 1 > 2 * abs(topk[0] - 1),
            f"Shrinkage {said(shrunk)} in the sparse world; refined codes are {said(refined)} times as large "
            f"(TopK's: {said(topk)}); FVU {said(before)} before and {said(after)} after.",
        )
    )
    few, many = "circles, 2 latents each", "circles, 8 latents each"
    subspace, single = ([of(name, world, "fvu") for world in (few, many)] for name in ("BlockTopK (rank 2)", "TopK"))
    found.append(
        verdict(
            "Subspaces (SASA, BlockTopK) end the tiling of a circle (arXiv 2606.06333)",
            clearly_less(subspace[0], single[0]) and subspace[0][0] < 2 * subspace[1][0],
            f"FVU with two latents a circle and with eight: BlockTopK {said(subspace[0])} and {said(subspace[1])}, "
            f"TopK {said(single[0])} and {said(single[1])}: a plane needs two latents, single directions need many. "
            f"Spare groups still share circles: {said(of('BlockTopK (rank 2)', many, 'latents_per_circle'))} latents "
            "serve one where there are eight.",
        )
    )
    ratio = {
        name: [of(name, "sparse", f"fvu_at_{factor}k")[0] for factor in (1, 2, 4)] for name in ("TopK", "Multi-TopK")
    }
    words = "; ".join(f"{name} " + ", ".join(f"{value:.3f}" for value in values) for name, values in ratio.items())
    found.append(
        verdict(
            "Multi-TopK holds up when k changes at test time, TopK does not (arXiv 2406.04093)",
            ratio["Multi-TopK"][2] < ratio["TopK"][2] and ratio["TopK"][2] > ratio["TopK"][0],
            f"FVU in the sparse world read with k, 2k and 4k: {words}.",
        )
    )
    return found


def clearly_less(one: tuple[float, float, int], other: tuple[float, float, int]) -> bool:
    """Whether the first mean is below the second by more than two standard errors of the difference."""
    slack = 2 * math.hypot(*(0 if math.isnan(part) else part for part in (one[1], other[1])))
    return other[0] - one[0] > slack


def verdict(claim: str, appears: bool, numbers: str) -> str:
    mark = "<span class=yes>appears</span>" if appears else "<span class=no>does not appear</span>"
    return f"<dt>{html.escape(claim)}: {mark}</dt><dd>{html.escape(numbers)}</dd>"
