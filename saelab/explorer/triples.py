"""Triples (latent, row, value) of all active codes, kept on disk sorted by latent, and read back by latent.

    offsets [L + 1]                  where each latent's entries begin
    row, value [n]                   the entries, latent by latent, rows rising

and whatever columns the pass keeps beside them.

A part belongs to one piece of the corpus and appears whole or not at all, so that an interrupted pass goes on with the
next piece. Reading a block of latents takes one stretch out of every part: nothing is sorted over the whole corpus.
"""

# Shape letters: n entries of a part, L latents, E entries of a block.

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saelab.core.files import TensorFile, read_tensors, write_json, write_tensors
from saelab.core.read import read_json

IDENTITY = "identity.json"
BLOCK_ENTRIES = 1 << 22
"""Entries that are worked on at once."""
Array = np.ndarray


def order_by(keys: Array, size: int) -> Array:
    """Stable order of integer keys in [0, size); numpy sorts 16-bit numbers by radix, others take two rounds of it."""
    if size <= 1 << 16:
        return np.argsort(keys.astype(np.uint16), kind="stable")
    low = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    return low[np.argsort((keys[low] >> 16).astype(np.uint16), kind="stable")]


@dataclass(frozen=True)
class Block:
    """All entries of the latents first <= j < last, latent by latent, rows rising within one."""

    first: int
    last: int
    offsets: Array
    """Where each latent's entries begin, and the end; [last - first + 1] int64."""
    row: Array
    """[E] int32: row of the corpus."""
    value: Array
    """[E] float32."""

    @property
    def count(self) -> Array:
        """Entries of each latent; [last - first]."""
        return np.diff(self.offsets)

    @property
    def latent(self) -> Array:
        """Latent of each entry, counted from `first`; [E] int32."""
        return np.repeat(np.arange(self.last - self.first, dtype=np.int32), self.count)


class Triples:
    """A folder of parts.

    Args:
        folder: new, or what an interrupted pass left; parts of another pass (by `identity`) are removed.
        n_latents: L.
        identity: what the entries depend on, JSON-able.
    """

    def __init__(self, folder: Path, n_latents: int, identity: dict[str, object]):
        self.folder, self.n_latents = folder, n_latents
        if folder.exists() and (not (folder / IDENTITY).exists() or read_json(folder / IDENTITY) != identity):
            self.remove()
        for path in self.parts:
            read_tensors(path)  # what an interrupted pass left is gone on with only if it is as it was written
        write_json(folder / IDENTITY, identity)

    @property
    def parts(self) -> list[Path]:
        """The complete parts, in order."""
        found: list[Path] = []
        while (path := self.folder / f"part-{len(found):05d}.safetensors").exists():
            found.append(path)
        return found

    def remove(self) -> None:
        """Remove the folder."""
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def append(self, number: int, latent: Array, row: Array, value: Array, columns: dict[str, Array]) -> None:
        """Keep a piece's entries, in the order of their rows [n], and columns that go with it."""
        order = order_by(latent, self.n_latents)
        offsets = np.zeros(self.n_latents + 1, np.int64)
        np.cumsum(np.bincount(latent, minlength=self.n_latents), out=offsets[1:])
        own = {"offsets": offsets, "row": row[order].astype(np.int32), "value": value[order].astype(np.float32)}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in (own | columns).items()}
        write_tensors(self.folder / f"part-{number:05d}.safetensors", tensors)

    def column(self, name: str) -> Array:
        """A column of all parts, one after another."""
        return np.concatenate(self.columns(name))

    def columns(self, name: str) -> list[Array]:
        """A column, part by part; parts that lack it are left out."""
        found: list[Array] = []
        for path in self.parts:
            file = TensorFile(path)
            if name in file.names:
                found.append(file.get(name).numpy())
        return found

    def blocks(self, entries: int = BLOCK_ENTRIES) -> Iterator[Block]:
        """All latents in order, in blocks of about so many entries; latents without entries are in one too."""
        parts = [TensorFile(path) for path in self.parts]
        offsets = [part.get("offsets").numpy() for part in parts]
        total = sum(offsets)
        assert isinstance(total, np.ndarray)
        first = 0
        while first < self.n_latents:
            last = int(np.searchsorted(total, total[first] + entries, side="right")) - 1
            last = min(max(last, first + 1), first + (1 << 16), self.n_latents)
            pieces = [
                [part.part(name, int(own[first]), int(own[last])).numpy() for name in ("row", "value")]
                for part, own in zip(parts, offsets, strict=True)
            ]
            latent = np.concatenate(
                [np.repeat(np.arange(last - first), np.diff(own[first : last + 1])) for own in offsets]
            )
            order = order_by(latent, last - first)
            row, value = (np.concatenate(column)[order] for column in zip(*pieces, strict=True))
            yield Block(first, last, total[first : last + 1] - total[first], row, value)
            first = last
