"""Files that appear whole or not at all, and checksums that tell a damaged one.

A file is written under a temporary name beside its place, flushed to the disk and renamed. What a reader finds under
the final name is complete, whenever the writer was killed.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

PART = ".part"
"""Ending of a file that is being written."""
HEADER = "saelab"
"""The key of a safetensors file's header under which its description stands, as JSON."""


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
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk is full: could not write {path}. Nothing was lost: free some space and run the same again",
            ) from error
        raise


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but what a killed writer left half-written."""
    return not folder.exists() or (folder.is_dir() and all(path.name.endswith(PART) for path in folder.iterdir()))


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
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}); restore it from a copy or make it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def check_format(path: Path, found: Any, known: int) -> None:
    """ValueError if a file's format number is missing or newer than this program knows."""
    if type(found) is not int:
        raise ValueError(f"{path} has no format number: it was not written by saelab")
    if found > known:
        raise ValueError(f"{path} has format {found}, newer than {known}, the newest this saelab reads; update saelab")


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
    """Write a safetensors file whole, with a description and a checksum of its tensors in its header."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    # One key only: several would come in any order, and equal content should give equal files.
    header = {HEADER: json.dumps({**(about or {}), "sha256": _digest(plain)}, allow_nan=False)}
    data = safetensors.torch.save(plain, header)
    write_whole(path, lambda file: file.write(data))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a safetensors file; the description of one that saelab did not write is empty.

    Raises:
        ValueError: that names the file if it is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy or make it again") from None
    if about and about.pop("sha256", None) != _digest(tensors):
        raise ValueError(f"{path} is damaged (checksum); restore it from a copy or make it again")
    return tensors, about


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
