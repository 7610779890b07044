"""Scores as a table, and a run as text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from saelab.core.run import Run

Scores = Mapping[str, Mapping[str, Any]]


def show(runs: list[str]) -> None:
    """Print the config and the scores of runs.

    Args:
        runs: folders of runs.
    """
    console = _console()
    opened = {name: Run.open(name) for name in runs}
    for name, run in opened.items():
        console.print(f"[bold]{name}[/]\n", highlight=False)
        console.print(yaml.safe_dump(run.config(), sort_keys=False).rstrip(), highlight=False, markup=False)
    scores = {name: run.scores() for name, run in opened.items()}
    print_scores({name: found for name, found in scores.items() if found}, console)
    for name, found in scores.items():
        if not found:
            console.print(f"{name} has no scores yet: `saelab measure {name}` makes them", markup=False)


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
    table.add_column("unit", no_wrap=True)
    for metric in dict.fromkeys(metric for found in scores.values() for metric in found):
        cells = [metric]
        for found in scores.values():
            cells += value_and_interval(found.get(metric))
        table.add_row(*cells, *_n_and_unit([found[metric] for found in scores.values() if metric in found]))
    (console or _console()).print(table)


def _n_and_unit(found: list[Mapping[str, Any]]) -> list[str]:
    """Two cells: how many tokens (latents, tasks) a metric's scores stand on, and their unit."""
    fewest, most = (pick(score["n"] for score in found) for pick in (min, max))
    return [f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}", found[0]["unit"]]


def _console() -> Console:
    """The terminal; or, where there is none, a page so wide that nothing is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def value_and_interval(score: Mapping[str, Any] | None) -> list[str]:
    """Two cells: the value, and the ends of its interval."""
    if score is None:
        return ["", ""]
    if score["low"] is None:
        return [f"{score['value']:.4g}", ""]
    return [f"{score['value']:.4g}", f"{score['low']:.4g} to {score['high']:.4g}"]
