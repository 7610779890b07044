"""Rows of a tensor in a safetensors file, read from their place instead of mapped.

A file that is mapped ends the process (SIGBUS) when it gets shorter while it is in use. One that is read gives an error
that names it, and so here. Checksums are the reader's business.
"""

# Shape letters: n entries along a tensor's first axis.

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.core.files import HEADER
from saelab.core.read import REMEDY, Row, expect, parse_json

LONGEST = 100_000_000
"""Bytes of a header at most, as the format has it."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    @property
    def entry(self) -> int:
        """Bytes of an entry along the first axis."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def places(path: Path) -> tuple[dict[str, TensorPlace], dict[str, Any]]:
    """Where the tensors of a file lie, and what saelab wrote of them into its header.

    Raises:
        ValueError: that names the file, if it is missing, cut short or no such file.
    """
    try:
        with open(path, "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(head, "little")
            text = file.read(length) if len(head) == 8 and length <= min(LONGEST, size - 8) else b""
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    if not text:
        raise ValueError(f"{path} is damaged: it is not a complete safetensors file; {REMEDY}")
    where = f"the header of {path}"
    header = expect(parse_json(text, where), {str: dict}, where)
    about = expect(header.pop("__metadata__", {}), {str: str}, where)
    found = {}
    for name, said in header.items():
        expect(said, {"dtype": tuple(DTYPES), "shape": [int], "data_offsets": Row(int, int)}, f"{where}, {name}")
        place = TensorPlace(DTYPES[said["dtype"]], tuple(said["shape"]), 8 + length + said["data_offsets"][0])
        first, last = said["data_offsets"]
        fits = 0 <= first <= last <= size - 8 - length and all(extent >= 0 for extent in place.shape)
        if not fits or last - first != place.dtype.itemsize * math.prod(place.shape):
            raise ValueError(f"{path} is damaged: the header's entry for {name} does not fit the file; {REMEDY}")
        found[name] = place
    return found, parse_json(about.get(HEADER, "{}"), where)


def read_spans(path: Path, place: TensorPlace, spans: Sequence[tuple[int, int]], size: int, out: Tensor) -> None:
    """Read entries first <= i < last of a tensor, for each span, one after another.

    Args:
        path: of the file.
        place: of the tensor in it.
        spans: which entries; within the tensor.
        size: bytes that the file has to have.
        out: where they go, [n, ...] of the tensor's own precision, in one piece.

    Raises:
        ValueError: if the file's size is another, or gets so while it is read.
    """
    assert out.dtype == place.dtype
    assert out.shape == (sum(last - first for first, last in spans), *place.shape[1:])
    if not out.numel():
        return
    into, at = out.flatten().view(torch.uint8).numpy().data, 0
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size:
            raise ValueError(_changed(path, size))
        for first, last in spans:
            end, offset = at + (last - first) * place.entry, place.start + first * place.entry
            while at < end:
                got = os.preadv(file.fileno(), [into[at:end]], offset)
                if not got:
                    raise ValueError(_changed(path, size))
                at, offset = at + got, offset + got


def _changed(path: Path, size: int) -> str:
    found = path.stat().st_size if path.exists() else 0
    return f"{path} was changed while it was in use: {found} bytes of {size}; {REMEDY}"
