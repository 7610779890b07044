"""What other commands found out about a run's latents, brought into its database.

    explain/explanations.json     `saelab explain`: a phrase and its scores          explanation, score
    latents.json                  `saelab quickstart`: readings of ten latents       explanation, score (F1)
    tables/probes.parquet         `saelab measure`: the latent of every task         probe, probe_score (accuracy)
    stitch results                the class of a larger SAE's latents                kind: novel, reconstruction

A phrase of `saelab explain` goes before a reading. The score is the mean of an explanation's overall scores.
A task has one latent, that of the smallest probe loss; a latent of several tasks shows the one with the smallest loss.
"""

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saelab.analysis.stitch import read_stitch
from saelab.core.read import read_json
from saelab.explorer.database import index_explanations
from saelab.explorer.workspace import Member, Workspace
from saelab.metrics.table import read_columns

PROBES = "probes.parquet"
EXPLAINED, READ = Path("explain") / "explanations.json", Path("latents.json")
LABELS = {"latents": [{"latent": int, "label": str, "f1": float}]}
PHRASES = {"latents": [{"latent": int, "phrase": str, "scores?": {str: {str: (float, None)}}}]}
COLUMNS = {"loss": float, "latent": int, "task": str, "accuracy": float}
"""What is read of a table of probes."""
CLASSES = ("novel", "reconstruction")


def import_results(workspace: Workspace) -> None:
    """Bring what was found about every SAE into its database, in place of what was brought in before.

    A database in a folder that may not be written to is shown as it is.
    """
    for member in workspace.members.values():
        if member.is_collected and os.access(member.folder, os.W_OK):
            _write(member, explanations(member.folder), kinds(workspace, member))
            _write_probes(member, probes(member))


def explanations(folder: Path) -> dict[int, tuple[str, float | None]]:
    """Phrase and score by latent."""
    found: dict[int, tuple[str, float | None]] = {}
    if (folder / READ).exists():
        for one in read_json(folder / READ, LABELS)["latents"]:
            found[one["latent"]] = (one["label"], float(one["f1"]))
    if (folder / EXPLAINED).exists():
        for one in read_json(folder / EXPLAINED, PHRASES)["latents"]:
            found[one["latent"]] = (one["phrase"], _mean(one.get("scores", {}).values()))
    return found


def _mean(scorers: Iterable[dict[str, float | None]]) -> float | None:
    """Mean over scorers of what each says of the explanation itself: its first number."""
    firsts = [next(iter(scores.values())) for scores in scorers if scores]
    values = [float(first) for first in firsts if first is not None]
    return sum(values) / len(values) if values else None


def kinds(workspace: Workspace, member: Member) -> dict[int, str]:
    """The class of latents that an insertion test was done on."""
    found: dict[int, str] = {}
    for folder in workspace.results["stitch"]:
        for pair in read_stitch(folder)["pairs"]:
            if Path(pair["large"]).name == member.folder.resolve().name:
                table: dict[str, Any] = pair["large_latents"]
                lines = zip(table["latent"].tolist(), table["class"], strict=True)
                found |= {latent: kind for latent, kind in lines if kind in CLASSES}
    return found


def probes(member: Member) -> dict[int, tuple[str, float]]:
    """Task and accuracy by latent, of the last measurement with labelled tasks."""
    file = member.saved.files.tables / PROBES
    table = read_columns(file, COLUMNS) if file.exists() else {}
    lines = zip(*(table.get(key, []) for key in ("loss", "latent", "task", "accuracy")), strict=True)
    best: dict[int, tuple[str, float]] = {}
    for _, latent, task, accuracy in sorted(lines, reverse=True):
        best[latent] = (task, float(accuracy))
    return best


def _write_probes(member: Member, found: dict[int, tuple[str, float]]) -> None:
    rows = member.database.all("SELECT id, probe, probe_score FROM latents WHERE probe_score IS NOT NULL")
    if {row["id"]: (row["probe"], row["probe_score"]) for row in rows} == found:
        return

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE latents SET probe = NULL, probe_score = NULL WHERE probe_score IS NOT NULL")
        lines = [(*hit, latent) for latent, hit in found.items()]
        connection.executemany("UPDATE latents SET probe = ?, probe_score = ? WHERE id = ?", lines)

    member.database.change(change)


def _write(member: Member, explained: dict[int, tuple[str, float | None]], kinds_of: dict[int, str]) -> None:
    """Nothing is written where nothing changed, so that a database may lie where nobody may write."""
    held = {
        row["id"]: (row["explanation"], row["score"])
        for row in member.database.all("SELECT id, explanation, score FROM latents WHERE explanation IS NOT NULL")
    }
    classed = {
        row["id"]: row["kind"]
        for row in member.database.all(f"SELECT id, kind FROM latents WHERE kind IN {CLASSES}")
    }  # fmt: skip
    if held == explained and all(classed.get(latent) == kind for latent, kind in kinds_of.items()):
        return

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE latents SET explanation = NULL, score = NULL WHERE explanation IS NOT NULL")
        pairs = [(phrase, score, latent) for latent, (phrase, score) in explained.items()]
        connection.executemany("UPDATE latents SET explanation = ?, score = ? WHERE id = ?", pairs)
        connection.executemany(
            "UPDATE latents SET kind = ? WHERE id = ? AND kind IN ('ordinary', 'novel', 'reconstruction')",
            [(kind, latent) for latent, kind in kinds_of.items()],
        )
        index_explanations(connection, {*held, *explained})

    member.database.change(change)
