"""Files and folders that appear whole or not at all, and checksums that tell a damaged one.

A file, or a folder of results, is written under a temporary name beside its place, flushed to the disk and renamed.
What a reader finds under the final name is complete, whenever the writer was killed.
"""

import ctypes
import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import safetensors
import torch
from torch import Tensor, nn

from saelab.core.read import REMEDY, parse_json

PART = ".part"
"""Ending of a file or folder that is being written."""
AGAIN = "run the same again"
"""What to do once there is space on a disk, where no other command goes on."""
FULL = (errno.ENOSPC, errno.EDQUOT)
HEADER = "saelab"
"""The key of a safetensors file's header under which its description stands, as JSON."""
CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What a safetensors file calls a precision."""
BLOCK_BYTES = 1 << 24
"""Of a tensor that is read or written in parts."""


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a file that appears as `path` only when it is complete and on the disk.

    Raises:
        OSError: with the path and what to do when the disk is full; nothing of the new file is left behind and an
            older file of that name is untouched.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}{PART}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(
                error.errno,
                f"the disk is full: could not write {path}. Nothing was lost: free some space and {AGAIN}",
            ) from error
        raise


def cache_home() -> Path:
    """Where saelab keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saelab"


@contextmanager
def hint_on_full_disk(how: str) -> Iterator[None]:
    """A full disk inside is told with the command that resumes, such as "`saelab train --resume RUN` resumes it"."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        said = error.strerror or ""
        said = said if AGAIN in said else f"the disk is full ({said}). Free some space and {AGAIN}"
        raise OSError(error.errno, said.replace(f"and {AGAIN}", f"then {how}")) from error


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but what a killed writer left half-written."""
    return not folder.exists() or (folder.is_dir() and all(path.name.endswith(PART) for path in folder.iterdir()))


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into, which appears as `out` once the block has ended without an error, or not at all.

    It is written as `.NAME.part` beside its place; what a killed writer left there is removed first. Where `out` is an
    empty folder that must stay (the current one, a mounted volume), it is filled entry by entry at the end.

    Raises:
        ValueError: unless `out` is new or empty.
    """
    out = Path(out)
    if not is_vacant(out):
        raise ValueError(f"{out} is not an empty folder; choose another --out")
    for above in out.parents:
        if above.is_file():
            raise ValueError(f"{above} is a file, and {out} would be a folder in it; choose another")
    place = out.resolve()
    stays = place.is_dir() and (place == Path.cwd() or os.path.ismount(place) or not os.access(place.parent, os.W_OK))
    part = (place if stays else place.parent) / f".{place.name}{PART}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        _sync_tree(part)
        if place.is_dir():
            for left in set(place.glob(f"*{PART}")) - {part}:
                left.unlink()
        if stays:
            for entry in sorted(part.iterdir()):
                os.replace(entry, place / entry.name)
        else:
            os.replace(part, place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    # The rename itself is on the disk only once its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole; NaN and infinities are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class Streamed(Protocol):
    """A tensor that is made some rows at a time, so that it is never whole in memory."""

    @property
    def shape(self) -> torch.Size:
        """Its sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """Its precision."""

    def rows(self, first: int, last: int) -> Tensor:
        """The entries first <= i < last along its first axis."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Streamed], about: dict[str, Any] | None = None) -> None:
    """Write a safetensors file whole, with a description, and a checksum of both, in its header."""
    said = json.loads(json.dumps(about or {}, allow_nan=False))
    # One key only: several would come in any order, and equal content should give equal files.
    described = json.dumps({**said, "sha256": _digest(tensors, said)})
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {HEADER: described}}
    end = 0
    for name in order:
        part = tensors[name]
        start, end = end, end + part.shape.numel() * part.dtype.itemsize
        header[name] = {"dtype": CODES[part.dtype], "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for block in _blocks(tensors[name]):
                file.write(block)

    write_whole(path, write)


def _blocks(tensor: Tensor | Streamed) -> Iterator[memoryview]:
    """The bytes of a tensor, some rows at a time."""
    if isinstance(tensor, Tensor):
        tensor = tensor.detach() if tensor.ndim else tensor.detach().reshape(1)
    for first, last in spans(tensor):
        part = tensor[first:last] if isinstance(tensor, Tensor) else tensor.rows(first, last)
        yield part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def spans(tensor: Tensor | Streamed) -> Iterator[tuple[int, int]]:
    """First and last row of parts of a tensor of so many bytes that neither time nor memory is wasted."""
    rows = tensor.shape[0]
    step = max(1, BLOCK_BYTES // max(1, tensor.shape[1:].numel() * tensor.dtype.itemsize))
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


def forget(path: Path) -> None:
    """Let go of what was looked at of a file that is mapped into memory; it is read again when it is looked at again.

    Without this all of a large file would stand in memory once its tensors were gone through. Does nothing where the
    system does not say what is mapped.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    place = str(path.resolve())
    for line in lines:
        span, *_, name = line.split(maxsplit=5)
        if name == place:
            first, last = (int(end, 16) for end in span.split("-"))
            size = ctypes.c_size_t(last - first)
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)


def read_tensors(path: Path, foreign: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a safetensors file, by its checksum those that were written.

    Args:
        path: of the file.
        foreign: whether it may be another program's, without checksum; its description is then empty.

    Raises:
        ValueError: that names the file if it is missing or damaged.
    """
    file = TensorFile(path)
    tensors, about = {name: file.get(name) for name in file.names}, file.about
    if not about and foreign:
        return tensors, about
    if "sha256" not in about:
        raise ValueError(f"{path} has no checksum: it was not written by saelab, or is damaged; {REMEDY}")
    found = about.pop("sha256")
    # Files written before 2026-11-28 have a checksum of their tensors alone.
    if found not in (_digest(tensors, about), _digest(tensors)):
        raise ValueError(f"{path} is damaged (checksum); {REMEDY}")
    return tensors, about


class TensorFile:
    """A safetensors file of which some tensors are read, or parts of them; the checksum is not looked at.

    Attributes:
        names: of its tensors.
        about: what saelab wrote into its header, the checksum of everything among it; empty in files of others.

    Raises:
        ValueError: that names the file, if it is missing or not such a file, or has no such tensor.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = self._tried(lambda: safetensors.safe_open(path, framework="pt"))
        self.names: list[str] = self._tried(lambda: list(self._file.keys()))
        said = self._tried(lambda: (self._file.metadata() or {}).get(HEADER, "{}"))
        self.about: dict[str, Any] = parse_json(said, f"the header of {path}")

    def get(self, name: str) -> Tensor:
        """A tensor, mapped from the disk: what is looked at of it is read then."""
        tensor: Tensor = self._tried(lambda: self._file.get_tensor(name))
        return tensor

    def part(self, name: str, first: int, last: int) -> Tensor:
        """The entries first <= i < last along a tensor's first axis."""
        tensor: Tensor = self._tried(lambda: self._file.get_slice(name)[first:last])
        return tensor

    def _tried(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"there is no file {self.path}") from None
        except IsADirectoryError:
            raise ValueError(f"{self.path} is a folder, expected a file") from None
        except (safetensors.SafetensorError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged ({' '.join(str(error).split())}); {REMEDY}") from None


def _digest(tensors: Mapping[str, Tensor | Streamed], about: dict[str, Any] | None = None) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        for block in _blocks(tensor):
            digest.update(block)
    if about is not None:
        digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fit(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load tensors from a file into a module; ValueError that names the file and the first tensor that does not fit."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        found = list(tensors[name].shape) if name in tensors else "nothing"
        needed = list(wanted[name].shape) if name in wanted else "nothing"
        if found != needed:
            raise ValueError(f"{path} does not fit its config: {name} should be {needed}, the file holds {found}")
    module.load_state_dict(tensors)
