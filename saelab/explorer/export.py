"""Copies that need no server: a folder that opens from the disk, a file for each latent, Neuronpedia's JSON lines.

A folder holds the table and the latents in scripts of SHARD latents each, so that one latent is read without the rest.
What a copy leaves out is whatever needs the model or the weights: prompts, ablation, steering, comparing, manifolds.
"""

# Shape letters: L latents, D width.

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader

from saelab.core.files import whole_folder, write_text
from saelab.core.progress import progress
from saelab.explorer.bundle import WEB, script
from saelab.explorer.directions import directions_of
from saelab.explorer.pages import latents as latents_of
from saelab.explorer.pages import pages as all_pages
from saelab.explorer.pages import runs as runs_of
from saelab.explorer.safety import json_in_html
from saelab.explorer.search import SHOWN, filled
from saelab.explorer.workspace import Member, Workspace

SHARD = 16
"""Latents of one script."""
ALIGNED = 3


def _chosen(member: Member, latents: Sequence[int] | None) -> list[int]:
    count = member.database.meta()["n_latents"]
    for latent in latents or ():
        if not 0 <= latent < count:
            raise ValueError(f"{member.name} has no latent {latent}; it has {count}")
    return list(range(count)) if latents is None else sorted(set(latents))


def _page(workspace: Workspace, name: str, latent: int) -> dict[str, Any]:
    return latents_of.latent(workspace, name, latent, {}) | {"others": []}


def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True)
    environment.globals["data"] = json_in_html
    return environment.get_template("static.html")


# ---- a folder ----


def folder(workspace: Workspace, out: Path, latents: Sequence[int] | None = None, show: bool = True) -> None:
    """Write all collected SAEs into a new or empty folder; `index.html` in it opens in any browser.

    Raises:
        ValueError: if the folder holds something.
    """
    with whole_folder(out) as part:
        _write_folder(workspace, part, latents, show)


def _write_folder(workspace: Workspace, out: Path, latents: Sequence[int] | None, show: bool) -> None:
    for name in ("style.css", "theme.js", "icon.svg"):
        shutil.copyfile(WEB / "static" / name, out / name)
    shutil.copyfile(WEB / "exported" / "source.js", out / "source.js")
    shutil.copyfile(_plotly(), out / "plotly.min.js")
    copied = [page for page in all_pages() if page.in_copies]
    write_text(out / "app.js", script(page.module for page in copied))
    members = [member for member in workspace.members.values() if member.is_collected]
    page = runs_of.runs(workspace)
    page["runs"] = [run for run in page["runs"] if run["collected"]]
    _put(out, "runs", page)
    for member in members:
        _put(out, f"{member.name}/run", runs_of.run(workspace, member.name))
        _write_latents(workspace, member, out, _chosen(member, latents), show)
    names = [member.name for member in members]
    records = [page.record for page in copied]
    write_text(out / "index.html", _template().render(title="Explorer", names=names, inline=False, pages=records))


def _plotly() -> Path:
    import plotly

    return Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def _put(out: Path, name: str, value: Any) -> None:
    write_text(out / "data" / f"{name}.js", f"SAELAB_PUT({json_in_html(name)}, {json_in_html(value)});\n")


def _write_latents(workspace: Workspace, member: Member, out: Path, chosen: list[int], show: bool) -> None:
    names = [name for name in SHOWN if name != "id"]
    wanted = set(chosen)
    rows = member.database.all(
        f"SELECT id, {', '.join(names)}, (SELECT tags FROM temp.written WHERE latent = id) AS tags "
        "FROM latents ORDER BY id"
    )
    rows = [row for row in rows if row["id"] in wanted]
    columns = {name: [_short(row[name]) for row in rows] for name in ("id", *names, "tags")}
    meta = member.database.meta()
    about: dict[str, Any] = {"page": "latents", "title": f"Latents of {member.name}", "run": member.name}
    about |= {"unit": "tokens" if meta["has_text"] else "rows"}
    about |= {"rows_seen": meta["rows"], "n_latents": len(chosen), "columns": names, "filled": filled(member.database)}
    _put(out, f"{member.name}/table", {"page": about, "columns": columns, "shard": SHARD})
    contexts: list[str] = []
    with progress("export", len(chosen), "latents", show=show) as bar:
        for number, first in enumerate(range(0, len(chosen), SHARD)):
            found = [_page(workspace, member.name, latent) for latent in chosen[first : first + SHARD]]
            contexts += [_said(page) for page in found]
            _put(out, f"{member.name}/latents-{number}", _interned(found))
            bar.advance(len(found))
    _put(out, f"{member.name}/contexts", contexts)


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _windows(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for windows in page["examples"].values():
        yield from windows
    for part in page["intervals"]:
        yield from part["examples"]


def _said(page: dict[str, Any]) -> str:
    """What the search of a copy looks through, in lower case: as the server's index, but for notes' word stems."""
    own, note = page["numbers"], page["note"]
    texts = ["".join(window["tokens"]) for window in page["examples"]["top"][:8]]
    return "\n".join([own["tokens"] or "", own["explanation"] or "", note["note"], *note["tags"], *texts]).lower()


def _interned(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Pages whose tokens are numbers in one list of words."""
    words: dict[str, int] = {}
    for page in found:
        for window in _windows(page):
            window["tokens"] = [words.setdefault(token, len(words)) for token in window["tokens"]]
    return {"words": list(words), "pages": found}


# ---- a file for each latent ----


def pages(workspace: Workspace, out: Path, latents: Sequence[int] | None = None) -> None:
    """Write `NAME-latent-J.html` files, each complete in itself."""
    style, theme = ((WEB / "static" / name).read_text(encoding="utf-8") for name in ("style.css", "theme.js"))
    source, app = (WEB / "exported" / "single.js").read_text(encoding="utf-8"), script(["latent"])
    assert "</script" not in source + app + theme
    assert "</style" not in style
    template, records = _template(), [page.record for page in all_pages() if page.name == "latent"]
    for member in workspace.members.values():
        if not member.is_collected:
            continue
        for latent in _chosen(member, latents):
            page = _page(workspace, member.name, latent)
            text = template.render(
                title=page["title"], names=[member.name], page=page, inline=True, style=style, theme=theme,
                source=source, app=app, pages=records,
            )  # fmt: skip
            write_text(out / f"{member.name}-latent-{latent}.html", text)


# ---- Neuronpedia ----


def neuronpedia(workspace: Workspace, out: Path, latents: Sequence[int] | None = None) -> None:
    """Write latents as Neuronpedia's rows, one JSON object a line, its activations inside; of one SAE."""
    members = [member for member in workspace.members.values() if member.is_collected]
    if len(members) != 1:
        raise ValueError(f"Neuronpedia's file is of one SAE, {len(members)} are loaded: give one run")
    (member,) = members
    directions = directions_of(member.sae)
    lines = (_neuron(workspace, member, latent, directions[latent]) for latent in _chosen(member, latents))
    write_text(out, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def _neuron(workspace: Workspace, member: Member, latent: int, direction: torch.Tensor) -> dict[str, Any]:
    page, origin = _page(workspace, member.name, latent), member.saved.origin
    own, details, logits = page["numbers"], member.database.details(latent), page["logits"]
    largest = abs(own["largest"] or 0.0)
    aligned = direction.abs().topk(min(ALIGNED, len(direction))).indices
    bins = len(page["histogram"]) or 1
    found = {
        "modelId": origin.get("model"),
        "layer": f"{origin.get('site')}-{member.name}",
        "index": str(latent),
        "sourceSetName": member.name,
        "hookName": origin.get("site"),
        "frac_nonzero": own["density"],
        "maxActApprox": largest,
        "freq_hist_data_bar_heights": page["histogram"],
        "freq_hist_data_bar_values": [largest * (place + 0.5) / bins for place in range(bins)],
        "topkCosSimIndices": [number for number, _ in details.get("neighbours", [])],
        "topkCosSimValues": [cosine for _, cosine in details.get("neighbours", [])],
        "correlated_features_indices": [number for number, _, _ in details.get("correlated", [])],
        "correlated_features_pearson": [r for _, r, _ in details.get("correlated", [])],
        "correlated_features_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_pearson": [],
        "correlated_neurons_l1": [],
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": [_short(value) for value in direction[aligned].tolist()],
        "neuron_alignment_l1": [_short(value) for value in (direction[aligned].abs() / direction.abs().sum()).tolist()],
        "decoder_weights_dist": [],
        "hasVector": True,
        "vector": [_short(value) for value in direction.tolist()],
        "activations": [_activation(window) for window in page["examples"]["top"]],
    }
    if own["explanation"]:
        found["explanations"] = [{"description": own["explanation"], "score": own["score"]}]
    if logits:
        low, high, counts = logits["low"], logits["high"], logits["histogram"]
        found |= {
            f"{side}_str": [token for token, _ in logits[key]] for side, key in (("pos", "top"), ("neg", "bottom"))
        }
        found |= {f"{side}_values": [v for _, v in logits[key]] for side, key in (("pos", "top"), ("neg", "bottom"))}
        found["logits_hist_data_bar_heights"] = counts
        found["logits_hist_data_bar_values"] = [
            _short(low + (high - low) * (place + 0.5) / len(counts)) for place in range(len(counts))
        ]
    for part in page["intervals"]:
        share = part["count"] / own["count"] if own["count"] else 0.0
        bounds = {"binMin": _short(part["low"]), "binMax": _short(part["high"]), "binContains": _short(share)}
        found["activations"] += [_activation(window) | bounds for window in part["examples"]]
    return found


def _activation(window: dict[str, Any]) -> dict[str, Any]:
    values = window["values"]
    return {
        "tokens": window["tokens"],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "qualifyingTokenIndex": window["focus"],
    }
