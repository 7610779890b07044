"""Progress with ETA: a bar on a terminal, a line every few seconds elsewhere (a log file, CI)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 10.0
"""Seconds between lines where there is no terminal."""


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, amount: int, note: str = "") -> None:
        """Say that `amount` more is done, with a few words on how it goes."""


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0, show: bool = True) -> Iterator[Bar]:
    """Show the progress of a block of work on standard error.

    Args:
        title: what is being done, a word or two.
        total: how much there is in all.
        unit: what is counted, e.g. "tokens".
        done: how much was done before, when work is resumed.
        show: False shows nothing.
    """
    console = Console(stderr=True)
    if not show:
        yield _Silent()
    elif console.is_terminal:
        with _rich_bar(console, unit) as bars:
            task = bars.add_task(title, total=total, completed=done, note="")
            yield _Terminal(bars, task)
    else:
        bar = _Lines(title, total, unit, done)
        yield bar
        bar.close()


def _rich_bar(console: Console, unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class _Silent:
    def advance(self, amount: int, note: str = "") -> None:
        pass


class _Terminal:
    def __init__(self, bars: Progress, task: object):
        self.bars, self.task = bars, task

    def advance(self, amount: int, note: str = "") -> None:
        self.bars.update(self.task, advance=amount, **({"note": note} if note else {}))  # type: ignore[arg-type]


class _Lines:
    def __init__(self, title: str, total: int, unit: str, done: int):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.first = done
        self.note = ""
        self.start = self.said = time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.said >= LINE_EVERY:
            self.said = now
            rate = (self.done - self.first) / (now - self.start)
            left = (self.total - self.done) / rate if rate else float("inf")
            self._say(f"{self.done:,} of {self.total:,} {self.unit}, ETA {left:.0f} s")

    def close(self) -> None:
        self._say(f"{self.done:,} {self.unit} in {time.monotonic() - self.start:.1f} s")

    def _say(self, text: str) -> None:
        print(f"{self.title}: {text}{'  ' + self.note if self.note else ''}", file=sys.stderr, flush=True)
