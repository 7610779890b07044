"""Activations on disk: a folder of safetensors shards and a manifest.

    manifest.json            what the rows are, where they come from, every complete shard with its checksum
    shard-00000.safetensors  rows [n, D], token [n], document [n], position [n]

Where other activations are to be reconstructed than those that are read, they stand behind them in the same row:
[n, D + D_out], and the manifest says both widths. Mean and scale are those of what is read.

Rows stand in text order, so that the context of any row can be read back; shuffling is the reader's work. The manifest
names only shards that are complete, so a store is readable whenever its writer was killed, and the writer goes on from
there. Opening checks sizes; each shard's checksum and header are checked before its first row is used. Shards are read,
not mapped: one that is changed under a reader is an error that names it, and not the end of the process.
"""

# Shape letters: n rows of a shard, D input width, D_out width of the target, where there is one.

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.components import near_miss
from saelab.core.files import is_vacant, sha256, write_json, write_tensors
from saelab.core.places import TensorPlace, places, read_spans
from saelab.core.read import REMEDY, Row, check_format, expect, read_json
from saelab.data.source import WindowSource, generator_for

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_KINDS = {
    "d_in": int, "dtype": str, "origin": dict, "dropped?": {str: int}, "notes?": dict, "sums?": [float],
    "sum_squares?": float, "complete?": bool, "d_out?": (int, None),
    "shards": [{"file": str, "rows": int, "bytes": int, "sha256": str, "token_rows": int}],
}  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Shard:
    """One complete shard of a store."""

    file: str
    rows: int
    bytes: int
    sha256: str
    token_rows: int
    """Packed rows of text it was made from: what a resumed harvest skips."""


@dataclass
class Manifest:
    """What a store says about itself."""

    d_in: int
    dtype: str
    origin: dict[str, Any]
    """What the rows were made from (model, site, text, ...); a resumed harvest must agree with it."""
    shards: list[Shard] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    """Token positions left out, by reason."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the writer needs to go on, e.g. the norm above which a row is an outlier."""
    sums: list[float] = field(default_factory=list)
    """Sum of all input rows [D], in float64."""
    sum_squares: float = 0.0
    """Sum of all squared entries of input rows, in float64."""
    complete: bool = False
    d_out: int | None = None
    """Width of the target behind each input row, where there is one."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def width(self) -> int:
        """Width of a row on the disk: input and target."""
        return self.d_in + (self.d_out or 0)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and scale, the root mean square of a centred entry, of the input rows."""
        mean = torch.tensor(self.sums, dtype=torch.float64) / self.rows
        variance = self.sum_squares / (self.rows * self.d_in) - mean.square().mean()
        return mean.float(), variance.clamp_min(0).sqrt().float()

    def save(self, folder: Path) -> None:
        data = {"format": FORMAT, "rows": self.rows, **asdict(self)}
        if self.d_out is None:
            del data["d_out"]  # as stores were before there were targets
        write_json(folder / MANIFEST, data)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        path = folder / MANIFEST
        if not path.exists():
            raise ValueError(f"{folder} is not a store: it has no {MANIFEST}; make one with `saelab harvest`")
        data = read_json(path)
        check_format(path, data.pop("format", None), FORMAT)
        expect(data, MANIFEST_KINDS, path, "restore it or harvest again")
        data.pop("rows", None)
        try:
            shards = [Shard(**shard) for shard in data.pop("shards")]
            manifest = cls(shards=shards, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}; restore it or harvest again") from None
        sizes = [manifest.d_in, *(part for shard in shards for part in (shard.rows, shard.token_rows, shard.bytes))]
        if (
            min(sizes) < 0
            or manifest.d_in < 1
            or (manifest.d_out or 1) < 1
            or len(manifest.sums) not in (0, manifest.d_in)
        ):
            raise ValueError(f"{path} is damaged: its sizes are below 1 or do not fit; restore it or harvest again")
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise ValueError(f"{path} is damaged: a shard is outside its folder; restore it or harvest again")
        if manifest.dtype not in DTYPES:
            raise ValueError(f"{path}: unknown dtype '{manifest.dtype}'{near_miss(manifest.dtype, DTYPES)}")
        return manifest


class StoreWriter:
    """Appends shards to a store; killed at any moment, the store holds every shard that was complete.

    Args:
        folder: a new folder, or one that holds an unfinished store of the same origin, which is gone on with.
        d_in: width of an input row.
        dtype: "bf16", "fp16" or "fp32".
        origin: what the rows are made from.
        d_out: width of the target behind each input row, where there is one.

    Raises:
        ValueError: if the folder holds something else; the message says what differs.
    """

    def __init__(self, folder: str | Path, d_in: int, dtype: str, origin: dict[str, Any], d_out: int | None = None):
        self.folder = Path(folder)
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype '{dtype}'{near_miss(dtype, DTYPES)}")
        if (self.folder / MANIFEST).exists():
            self.manifest = Manifest.read(self.folder)
            self._check_same(Manifest(d_in, dtype, origin, d_out=d_out))
        elif not is_vacant(self.folder):
            raise ValueError(f"{self.folder} is not empty and is not a store; choose another folder")
        else:
            self.manifest = Manifest(d_in, dtype, origin, sums=[0.0] * d_in, d_out=d_out)

    def _check_same(self, wanted: Manifest) -> None:
        found, asked = {**self.manifest.origin}, {**wanted.origin}
        found |= {key: getattr(self.manifest, key) for key in ("d_in", "d_out", "dtype")}
        asked |= {key: getattr(wanted, key) for key in ("d_in", "d_out", "dtype")}
        for key in [*asked, *found]:
            if found.get(key) != asked.get(key):
                raise ValueError(
                    f"{self.folder} holds a store with {key} = {found.get(key)!r}, not {asked.get(key)!r}; "
                    "choose another folder, or remove this one first"
                )

    def append(
        self,
        rows: Tensor,
        token_rows: int,
        dropped: dict[str, int],
        names: Sequence[tuple[int, str]] = (),
        **columns: Tensor,
    ) -> None:
        """Write one shard of rows [n, D + D_out] in text order with its columns [n], then list it in the manifest.

        `names` gives number and name of each document that begins in the shard.

        Raises:
            ValueError: if a row is not finite in the store's precision; nothing is written.
            OSError: if the disk is full; the store keeps every earlier shard.
        """
        manifest = copy.deepcopy(self.manifest)  # ours changes with what is on the disk
        if rows.ndim != 2 or rows.shape[1] != manifest.width:
            raise ValueError(f"the store's rows are {manifest.width} wide, got {list(rows.shape)}")
        for name, column in columns.items():
            if len(column) != len(rows):
                raise ValueError(f"the column {name} has {len(column)} entries for {len(rows)} rows")
        stored = rows.to(DTYPES[manifest.dtype])
        bad = (~torch.isfinite(stored).all(1)).nonzero().flatten()
        if len(bad):
            where = {key: int(value[bad[0]]) for key, value in columns.items()}
            raise ValueError(_not_finite(rows[bad[0]], manifest.dtype, len(bad), where))
        if not manifest.shards:
            manifest.save(self.folder)  # so that a folder with a shard is a store whenever we are killed
        file = f"shard-{len(manifest.shards):05d}.safetensors"
        path = self.folder / file
        write_tensors(path, {"rows": stored, **columns}, {"documents": [list(pair) for pair in names]})
        exact = stored[:, : manifest.d_in].double()
        sums = torch.tensor(manifest.sums, dtype=torch.float64) + exact.sum(0)
        manifest.sums = sums.tolist()
        manifest.sum_squares += exact.square().sum().item()
        manifest.dropped = {key: manifest.dropped.get(key, 0) + count for key, count in dropped.items()}
        manifest.complete = False
        manifest.shards.append(Shard(file, len(stored), path.stat().st_size, sha256(path), token_rows))
        try:
            manifest.save(self.folder)
        finally:
            self.manifest = Manifest.read(self.folder)  # what is on the disk, also when saving failed half-way

    def finish(self) -> None:
        """Mark the store complete."""
        if not self.manifest.rows:
            raise ValueError("nothing was harvested: every token was dropped or there was no text")
        self.manifest.complete = True
        self.manifest.save(self.folder)


def _not_finite(row: Tensor, dtype: str, count: int, columns: dict[str, int]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in columns.items())
    if torch.isfinite(row).all():
        return f"{count} rows do not fit into {dtype} (entry {row.abs().max():.3g}, at {where}); use --dtype bf16"
    return f"the activations hold NaN or infinity in {count} rows (first at {where}): look at the model's precision"


class Store:
    """A store on disk, for reading.

    Raises:
        ValueError: naming the file and what is wrong, if the folder is not a store, a shard is missing, truncated or
            damaged, or the format is newer than this program.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.d_in, self.d_out = self.manifest.d_in, self.manifest.d_out
        if not self.manifest.rows:
            raise ValueError(f"the store {self.folder} holds no rows yet; run the same harvest again to resume it")
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            size = path.stat().st_size if path.exists() else None
            if size != shard.bytes:
                problem = "is missing" if size is None else f"is truncated: {size} bytes of {shard.bytes}"
                raise ValueError(f"the shard {path} {problem}; restore it from a copy or harvest again")
        self._places: dict[int, tuple[dict[str, TensorPlace], dict[str, Any]]] = {}
        self._check_header(0)  # so that a manifest of other rows is found before anything is made for them

    def __len__(self) -> int:
        return self.manifest.rows

    def rows(self, shard: int, first: int = 0, last: int | None = None) -> Tensor:
        """The rows first <= i < last [n, D + D_out] of a shard, by default all, read from the disk."""
        return self.spans({shard: [(first, self.manifest.shards[shard].rows if last is None else last)]})

    def spans(self, spans: Mapping[int, Sequence[tuple[int, int]]]) -> Tensor:
        """The rows first <= i < last of shards, for each span of each, one after another [n, D + D_out]."""
        counts = {shard: self.manifest.shards[shard].rows for shard in spans}
        within = {
            shard: [(a, min(b, counts[shard])) for a, b in own if a < counts[shard]] for shard, own in spans.items()
        }
        sizes = [sum(last - first for first, last in own) for own in within.values()]
        rows = torch.empty(sum(sizes), self.manifest.width, dtype=DTYPES[self.manifest.dtype])
        for (shard, own), out in zip(within.items(), rows.split(sizes), strict=True):
            self._read(shard, "rows", own, out)
        return rows

    def columns(self, shard: int) -> dict[str, Tensor]:
        """What is kept beside the rows of a shard: token, document and position, each [n]."""
        count = self.manifest.shards[shard].rows
        places = {name: place for name, place in self._checked(shard)[0].items() if name != "rows"}
        found = {name: torch.empty(place.shape, dtype=place.dtype) for name, place in places.items()}
        for name, out in found.items():
            self._read(shard, name, [(0, count)], out)
        return found

    def names(self, shard: int) -> list[tuple[int, str]]:
        """Number and name of each document that begins in a shard."""
        said = self._checked(shard)[1].get("documents", [])
        where = f"the header of {self.folder / self.manifest.shards[shard].file}"
        return [(number, name) for number, name in expect(said, [Row(int, str)], where)]

    def __repr__(self) -> str:
        made = self.manifest
        of = f", {made.origin['model']} at {made.origin['site']}" if {"model", "site"} <= made.origin.keys() else ""
        widths = f"{self.d_in} wide" + (f" and targets {self.d_out} wide" if self.d_out else "")
        unfinished = "" if made.complete else ", unfinished"
        kept = f"{len(self):,} rows, {widths}, {made.dtype}, {len(made.shards)} shards"
        return f"Store({self.folder}: {kept}{of}{unfinished})"

    def _read(self, shard: int, name: str, spans: Sequence[tuple[int, int]], out: Tensor) -> None:
        about = self.manifest.shards[shard]
        read_spans(self.folder / about.file, self._checked(shard)[0][name], spans, about.bytes, out)

    def _check_header(self, number: int) -> tuple[dict[str, TensorPlace], dict[str, Any]]:
        """What a shard's header says; ValueError unless it is what the manifest says."""
        manifest, shard = self.manifest, self.manifest.shards[number]
        path = self.folder / shard.file
        found, about = places(path)
        wanted = f"[{shard.rows}, {manifest.width}] {manifest.dtype}"
        kinds = {kind: name for name, kind in DTYPES.items()}
        place = found.get("rows")
        held = f"{list(place.shape)} {kinds.get(place.dtype, place.dtype)}" if place else "none"
        if held != wanted:
            problem = f"holds rows {held}, and {MANIFEST} says {wanted}"
            raise ValueError(f"the shard {path} {problem}; restore {MANIFEST} from a copy or harvest again")
        for name, column in found.items():
            if column.shape[:1] != (shard.rows,):
                raise ValueError(
                    f"the shard {path} holds {list(column.shape)} of {name} for {shard.rows} rows; {REMEDY}"
                )
        return found, about

    def _checked(self, number: int) -> tuple[dict[str, TensorPlace], dict[str, Any]]:
        """What a shard's header says, once its checksum was found right."""
        if number not in self._places:
            shard = self.manifest.shards[number]
            path = self.folder / shard.file
            if sha256(path) != shard.sha256:
                raise ValueError(f"the shard {path} is damaged (checksum); restore it from a copy or harvest again")
            self._places[number] = self._check_header(number)
        return self._places[number]


class StoreSource(WindowSource):
    """Rows of a store, shuffled block-wise.

    Every pass cuts the store into blocks of consecutive rows, deals the blocks in random order into windows and
    shuffles each window: the disk is read in blocks, and a batch mixes rows of window_rows / block_rows places.

    Args:
        store: the store, or its folder.
        seed: of the order.
        block_rows: consecutive rows read together.
        window_rows: rows shuffled together in memory.
    """

    def __init__(self, store: Store | str | Path, seed: int = 0, block_rows: int = 64, window_rows: int = 1 << 17):
        self.store = store if isinstance(store, Store) else Store(store)
        super().__init__(self.store.d_in, seed)
        self.d_out = self.store.d_out
        if block_rows < 1 or window_rows < block_rows:
            raise ValueError(f"need 1 <= block_rows <= window_rows, got {block_rows} and {window_rows}")
        counts = torch.tensor([shard.rows for shard in self.store.manifest.shards])
        blocks = (counts + block_rows - 1) // block_rows
        self._shard_of = torch.arange(len(counts)).repeat_interleave(blocks)
        first = (blocks.cumsum(0) - blocks).repeat_interleave(blocks)
        self._start_of = (torch.arange(len(self._shard_of)) - first) * block_rows
        self._block_rows = block_rows
        self._window_rows = window_rows
        self._blocks_a_window = window_rows // block_rows
        self.windows_a_pass = -(-len(self._shard_of) // self._blocks_a_window)

    def window(self, number: int) -> Tensor:
        assert self.windows_a_pass
        epoch, place = divmod(number, self.windows_a_pass)
        order = torch.randperm(len(self._shard_of), generator=generator_for(self.seed, epoch, 0))
        chosen = order[place * self._blocks_a_window :][: self._blocks_a_window].sort().values
        shards, starts = self._shard_of[chosen].tolist(), self._start_of[chosen].tolist()
        spans: dict[int, list[tuple[int, int]]] = {}
        for shard, start in zip(shards, starts, strict=True):
            spans.setdefault(shard, []).append((start, start + self._block_rows))
        return self.store.spans(spans)

    def _contents(self) -> str:
        return repr(self.store)

    def distinct_rows(self, most: int) -> int | None:
        return len(self.store) if len(self.store) < most else None

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.store.manifest.statistics()

    def identity(self) -> dict[str, Any]:
        sizes = {"block_rows": self._block_rows, "window_rows": self._window_rows, "rows": len(self.store)}
        return super().identity() | sizes
