"""Progress with ETA: a bar on a terminal, a line every few seconds elsewhere (a log file, CI)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
        with _rich_bar(console) as bars:
            yield _Terminal(bars, title, total, unit, done)
    else:
        bar = _Lines(title, total, unit, done)
        yield bar
        bar.close()


def _rich_bar(console: Console) -> Progress:
    # Narrow enough for 80 characters.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[count]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _short(count: int) -> str:
    """1234567 as 1.23M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


class _Silent:
    def advance(self, amount: int, note: str = "") -> None:
        pass


class _Terminal:
    def __init__(self, bars: Progress, title: str, total: int, unit: str, done: int):
        self.bars, self.total, self.unit, self.done, self.note = bars, total, unit, done, ""
        self.task = bars.add_task(title, total=total, completed=done, note="", count=self._count())

    def _count(self) -> str:
        return f"{_short(self.done)}/{_short(self.total)} {self.unit}"

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        self.bars.update(self.task, completed=self.done, count=self._count(), note=self.note)


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
            left = f"{max(0.0, (self.total - self.done) / rate):.0f} s" if rate else "?"
            self._say(f"{self.done:,} of {self.total:,} {self.unit}, ETA {left}")

    def close(self) -> None:
        self._say(f"{self.done:,} {self.unit} in {time.monotonic() - self.start:.1f} s")

    def _say(self, text: str) -> None:
        print(f"{self.title}: {text}{'  ' + self.note if self.note else ''}", file=sys.stderr, flush=True)
