"""What the trainer knows of data: a source gives batches of rows and can say, and go back to, where it stands.

Most sources are a function from a window number to rows: `WindowSource` shuffles each window by a generator seeded
with (seed, window), cuts windows into batches that may straddle two windows, prepares the next windows on a thread, and
keeps its place as two numbers. So a restored source goes on bit for bit, whatever was prefetched.
"""

# Shape letters: B rows of a batch, W rows of a window, D input width.

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows to learn from."""

    x: Tensor
    """Input rows [B, D], in the source's own precision."""
    target: Tensor | None = None
    """Rows to reconstruct [B, D], where they are not the input."""
    gradient: Tensor | None = None
    """Of a loss downstream with respect to the rows [B, D], where the source knows it."""
    downstream: Callable[[Tensor], Tensor] | None = None
    """The model's loss [] when its rows are replaced by reconstructions [B, D], where the source has a model."""
    place: dict[str, Any] | None = None
    """The source's state just after this batch; what a checkpoint keeps."""


class Source(ABC):
    """Rows without end, in batches."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._contents()})"

    def _contents(self) -> str:
        """What the rows are, in a few words."""
        return f"rows {self.d_in} wide{f', targets {self.d_out} wide' if self.d_out else ''}"

    d_in: int
    d_out: int | None = None
    """Width of the rows to reconstruct, where they are not the input."""

    @abstractmethod
    def batches(self, rows: int) -> Iterator[Batch]:
        """Batches of exactly `rows` rows, from the source's place on."""

    @abstractmethod
    def sample(self, rows: int) -> Tensor:
        """Up to `rows` rows [n, D] to initialise from, the same ones every time; does not move the source's place.

        Not for while `batches` is under way, which may work on a thread of its own.

        A row to reconstruct stands behind its input, in the same row [n, d_in + d_out].
        """

    def distinct_rows(self, most: int) -> int | None:
        """How many rows there are before they come again; None where these are `most` or more, or it is not known."""
        return None

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean [D] and scale (root mean square of a centred entry) of all rows, where they are known."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The place of the next batch, as JSON-able values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a place."""


def generator_for(*numbers: int) -> torch.Generator:
    """A generator whose stream is fixed by these non-negative numbers alone."""
    seed = 0
    for number in numbers:
        # SplitMix64's finaliser: neighbouring numbers give unrelated seeds.
        seed = (seed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        seed ^= seed >> 31
    return torch.Generator().manual_seed(seed)


SAMPLE_WINDOWS = 64
"""A sample is drawn from at most this many windows."""


class WindowSource(Source):
    """A source made of numbered windows of rows.

    Args:
        d_in: width of a row.
        seed: of the shuffling.
        prefetch: windows prepared ahead on a thread; 0 prepares each when it is needed.
    """

    def __init__(self, d_in: int, seed: int = 0, prefetch: int = 1):
        self.d_in, self.seed, self.prefetch = d_in, seed, prefetch
        self._window, self._offset = 0, 0
        self._held = 0  # rows of the window that the place is in; 0 before the first batch

    windows_a_pass: int | None = None
    """After how many windows rows come again, where that is known."""

    @abstractmethod
    def window(self, number: int) -> Tensor:
        """The rows of window `number`, unshuffled; at least one row, for every number from 0 on.

        [W, d_in], or [W, d_in + d_out] where other rows are to be reconstructed: those stand behind their inputs.
        """

    def identity(self) -> dict[str, Any]:
        """What a place depends on: it means the same rows only to a source with the same."""
        return {"seed": self.seed}

    def state(self) -> dict[str, Any]:
        return {"window": self._window, "offset": self._offset, "held": self._held, **self.identity()}

    def restore(self, state: dict[str, Any]) -> None:
        for key, own in self.identity().items():
            if state.get(key) != own:
                raise ValueError(f"the saved position is for {key} {state.get(key)}, this source has {own}")
        self._window, self._offset = int(state["window"]), int(state["offset"])
        self._held = int(state["held"])

    def sample(self, rows: int) -> Tensor:
        parts, number, have = [], 0, 0
        while have < rows and number < (self.windows_a_pass or SAMPLE_WINDOWS):
            parts.append(self._shuffled(number))
            have += len(parts[-1])
            number += 1
        return torch.cat(parts)[:rows]

    def batches(self, rows: int) -> Iterator[Batch]:
        if rows < 1:
            raise ValueError(f"a batch needs at least 1 row, got {rows}")
        number, offset = self._window, self._offset
        windows = _ahead(self._shuffled, number, self.prefetch)
        held = next(windows)
        if self._held and len(held) != self._held:
            windows.close()
            raise ValueError(
                f"the data changed since this position was saved: window {number} has {len(held)} rows, "
                f"it had {self._held}; resume with the original data"
            )
        try:
            while True:
                parts, missing = [], rows
                while missing:
                    if offset == len(held):
                        held, number, offset = next(windows), number + 1, 0
                    part = held[offset : offset + missing]
                    parts.append(part)
                    offset += len(part)
                    missing -= len(part)
                self._window, self._offset, self._held = number, offset, len(held)
                yield self._batch(parts[0] if len(parts) == 1 else torch.cat(parts))
        finally:
            windows.close()

    def _batch(self, rows: Tensor) -> Batch:
        target = None if self.d_out is None else rows[:, self.d_in :]
        return Batch(rows[:, : self.d_in], target, place=self.state())

    def _shuffled(self, number: int) -> Tensor:
        rows = self.window(number)
        shuffled = rows[torch.randperm(len(rows), generator=generator_for(self.seed, number, 1))]
        # Pinned memory is copied to a GPU while it computes; its slices, the batches, are pinned too.
        return shuffled.pin_memory() if torch.cuda.is_available() else shuffled


def _ahead(make: Callable[[int], Tensor], start: int, depth: int) -> Generator[Tensor, None, None]:
    """make(start), make(start + 1), ..., up to `depth` of them prepared ahead on a thread."""
    if depth == 0:
        number = start
        while True:
            yield make(number)
            number += 1
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        number = start
        while not stop.is_set():
            try:
                item: Any = (make(number), None)
            except BaseException as error:  # handed over to the reader, which raises it
                item = (None, error)
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[1] is not None:
                return
            number += 1

    thread = threading.Thread(target=work, name="saelab-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            yield value
    finally:
        stop.set()
        thread.join()
