"""The table of SAEs, and a run: its settings, scores and, while it is going, its training curves."""

from typing import Any

from saelab.core.read import expect
from saelab.explorer.route import Page, Route
from saelab.explorer.workspace import Member, Workspace
from saelab.sae.files import read_config
from saelab.sae.scale import Scale

POINTS = 600
"""Records of a log that are drawn; of a longer one, evenly spaced ones."""
ROUTES = (
    Page("/", lambda w, r: runs(w), name="runs", title="Runs", module="runs", in_copies=True),
    Page("/run/{name}", lambda w, r: run(w, r.name), name="run", title="Run", module="runs", in_copies=True),
    Route("/run/{name}/log", lambda w, r: log(w, r.name, r.number("after", -1))),
)


def runs(workspace: Workspace) -> dict[str, Any]:
    """All SAEs with their settings and scores."""
    return {
        "page": "runs",
        "title": "Runs",
        "runs": [_line(member) for member in workspace.members.values()],
        "results": {kind: [folder.name for folder in folders] for kind, folders in workspace.results.items()},
    }


def _line(member: Member) -> dict[str, Any]:
    config = _config(member)
    scores = member.saved.scores
    last = member.saved.training_log[-1:] or [{}]
    return {
        "name": member.name,
        "folder": str(member.folder),
        "state": "trained" if member.is_trained else "training",
        "collected": member.is_collected,
        "n_latents": config.get("n_latents"),
        "activation": _words(config.get("activation", {})),
        "losses": ", ".join(_words(loss) for loss in config.get("losses") or []),
        "dictionary": _words(config.get("dictionary") or {}),
        "scale": _words(config.get("scale") or {}),
        "rows": last[0].get("rows"),
        "step": last[0].get("step"),
        "site": member.saved.origin.get("site"),
        "model": member.saved.origin.get("model"),
        "scores": scores,
    }


def row_scale(member: Member) -> str:
    """How an SAE scales every row by itself, in whose unit its codes then are; empty where one scale holds for all."""
    words = _words(_config(member).get("scale") or {})
    return words if words and Scale.named(words.partition("(")[0]).per_row else ""


def _config(member: Member) -> dict[str, Any]:
    """The SAE's own settings, whether it is trained or only begun."""
    if member.is_trained:
        return read_config(member.saved.sae_folder)
    found: dict[str, Any] = expect(member.saved.config, {"sae?": dict}, member.saved.files.config_file).get("sae", {})
    return found


def _words(part: Any) -> str:
    """`TopK(k=32)` from either way of writing a component down."""
    if not isinstance(part, dict) or not part:
        return ""
    name = part.get("name") or str(part.get("class_path", "")).rpartition(".")[2]
    settings = part.get("init_args") or {key: value for key, value in part.items() if key not in ("name", "class_path")}
    short = {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
    return f"{name}({', '.join(f'{key}={_short(value)}' for key, value in short.items())})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(workspace: Workspace, name: str) -> dict[str, Any]:
    """One SAE: settings, scores, training curves."""
    member = workspace[name]
    return {
        "page": "run",
        "title": name,
        "run": _line(member),
        "config": member.saved.config if member.saved.is_run else _config(member),
        "origin": member.saved.origin,
        "log": thinned(member.saved.training_log),
    }


def log(workspace: Workspace, name: str, after: int) -> dict[str, Any]:
    """Records of later steps than `after`, for a page that follows a run that is going."""
    member = workspace[name]
    records = [record for record in member.saved.training_log if record["step"] > after]
    return {"records": thinned(records), "state": "trained" if member.is_trained else "training"}


def thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most POINTS records, the last among them."""
    step = -(-len(records) // POINTS) or 1
    return records[::-1][::step][::-1]
