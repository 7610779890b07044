"""Files that appear whole or not at all, and checksums that tell a damaged one.

A file is written under a temporary name beside its place, flushed to the disk and renamed. What a reader finds under
the final name is complete, whenever the writer was killed.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

PART = ".part"
"""Ending of a file that is being written."""


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a file that appears as `path` only when it is complete and on the disk.

    Raises:
        OSError: with the path and what to do when the disk is full; nothing of the new file is left behind and an
            older file of that name is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
        for left_by_a_kill in path.parent.glob(f".{path.name}.*{PART}"):
            left_by_a_kill.unlink(missing_ok=True)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk is full: could not write {path}. Nothing was lost: free some space and run the same again",
            ) from error
        raise


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but what a killed writer left half-written."""
    return not folder.exists() or (folder.is_dir() and all(path.name.endswith(PART) for path in folder.iterdir()))


def _umask() -> int:
    # There is no call that reads the mask without setting it; files made by mkstemp are 0600.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError that names the file if it is missing, damaged or not an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}); restore it from a copy or make it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def check_format(path: Path, found: Any, known: int) -> None:
    """ValueError if a file's format number is missing or newer than this program knows."""
    if not isinstance(found, int):
        raise ValueError(f"{path} has no format number: it was not written by saelab")
    if found > known:
        raise ValueError(f"{path} has format {found}, newer than {known}, the newest this saelab reads; update saelab")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole."""
    data = safetensors.torch.save({key: value.detach().contiguous() for key, value in tensors.items()}, metadata)
    write_whole(path, lambda file: file.write(data))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ValueError that names the file if it is damaged or missing."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy or make it again") from None


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
