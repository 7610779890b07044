"""Scores as one table on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saelab.metrics.base import LEAST_DOCUMENTS
from saelab.metrics.chunks import GROUPS

Scores = Mapping[str, Mapping[str, Any]]


def print_scores(scores: Mapping[str, Scores], console: Console | None = None) -> None:
    """Print scores as one table: a line per metric, a column per SAE."""
    if not scores:
        return
    several = len(scores) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for name in scores:
        table.add_column(Path(name).name if several else "value", justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for metric in dict.fromkeys(metric for found in scores.values() for metric in found):
        cells = [metric]
        for found in scores.values():
            cells += value_and_interval(found.get(metric))
        table.add_row(*cells, *_stands_on([found[metric] for found in scores.values() if metric in found]))
    (console or wide_console()).print(table)


def _stands_on(found: list[Mapping[str, Any]]) -> list[str]:
    """Three cells: how many tokens (latents, tasks) a metric's scores stand on, in how many documents; their unit."""
    counts = [[score["n"] for score in found], [count for score in found if (count := score.get("documents"))]]
    more = "+" if max(counts[1], default=0) == GROUPS else ""  # as many as are told apart
    return [_span(counts[0]), _span(counts[1]) + more, found[0]["unit"]]


def _span(counts: list[int]) -> str:
    if not counts:
        return ""
    fewest, most = min(counts), max(counts)
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def wide_console() -> Console:
    """The terminal; or, where there is none, a page so wide that nothing is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def few_documents(count: int) -> str:
    """What stands in place of an interval."""
    return f"only {count} document{'s' * (count != 1)}"


def value_and_interval(score: Mapping[str, Any] | None) -> list[str]:
    """Two cells: the value, and the ends of its interval."""
    if score is None:
        return ["", ""]
    if score["low"] is None:
        documents = score.get("documents")
        few = few_documents(documents) if documents is not None and documents < LEAST_DOCUMENTS else ""
        return [f"{score['value']:.4g}", few]
    return [f"{score['value']:.4g}", f"{score['low']:.4g} to {score['high']:.4g}"]
