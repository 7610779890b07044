"""Files of strangers: read without running anything, with one line that names the file when something is wrong.

Pickles are read by torch's reader that makes tensors and plain containers only, .npz files without pickles. Tensors
stay in their file until they are looked at: what is read of them at once is a part of one (see `matrix.py`), so that
memory is bounded by the largest vector, whatever the size of the file. An archive that would unpack to much more than
it is, and a tensor that claims more entries than its file holds, are refused before memory is taken.
"""

import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.core.components import near_miss
from saelab.core.files import TensorFile, forget
from saelab.core.read import expect, fits, read_json
from saelab.interchange.matrix import Matrix

WEIGHTS = (".safetensors", ".pt", ".pth", ".npz")
AGAIN = "restore it from a copy or download it again"
PACKED_MORE = 50
"""How many times its own size an archive may unpack to: weights are hardly smaller packed, zeros a thousand times."""
INERT = ("vit_prisma.",)
"""How names of classes begin in whose place an empty class is put, so that what is pickled as one is its attributes."""
DEEPEST = 4
"""Folders inside each other that are searched for SAEs."""


class Files:
    """A folder, or one file, that another library wrote.

    Attributes:
        path: what was named.
        folder: the folder it is, or lies in.
        beside: settings that are known from elsewhere, by file: they stand in for what that file says of them.

    Raises:
        ValueError: if there is nothing there.
    """

    def __init__(self, path: str | Path, beside: Mapping[str, Mapping[str, Any]] | None = None):
        self.path, self.beside = Path(path), beside or {}
        if not self.path.exists():
            raise ValueError(f"there is no file or folder {path}")
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self._tensors: dict[Path, Mapping[str, Any]] = {}

    def has(self, *names: str) -> bool:
        """Whether the folder holds all these files; of one file, whether it is one of them and the others are there."""
        mine = self.path.is_dir() or self.path.name in names
        return mine and all((self.folder / name).is_file() for name in names)

    def has_settings(self, name: str) -> bool:
        """Whether a JSON file lies in the folder, or is known from elsewhere."""
        return name in self.beside or (self.folder / name).is_file()

    @cached_property
    def lone(self) -> Path | None:
        """The file that was named, or the only file of weights in the folder."""
        if self.path.is_file():
            return self.path if self.path.suffix in WEIGHTS else None
        found = [path for path in self.folder.iterdir() if path.suffix in WEIGHTS and path.is_file()]
        return found[0] if len(found) == 1 else None

    def lone_has(self, *names: str, suffixes: tuple[str, ...] = WEIGHTS) -> bool:
        """Whether there is one file of weights, of one of these kinds, with all these entries."""
        return self.lone is not None and self.lone.suffix in suffixes and set(names) <= self.entries(self.lone).keys()

    def numbered(self, before: str, after: str) -> list[Path]:
        """The files called `before` N `after` for N = 0, 1, ..., as far as they are there."""
        found: list[Path] = []
        while (path := self.folder / f"{before}{len(found)}{after}").is_file():
            found.append(path)
        return found

    def entries(self, path: Path) -> Mapping[str, Any]:
        """Everything in a file of weights, by name."""
        if path not in self._tensors:
            self._tensors[path] = _entries(path)
        return self._tensors[path]

    def tensors(self, path: Path | str) -> "Tensors":
        """The tensors of a file of weights."""
        path = self.folder / path
        return Tensors(path, self.entries(path))

    def settings(self, name: str) -> "Settings":
        """A JSON file in the folder, with what is known from elsewhere."""
        path, known = self.folder / name, dict(self.beside.get(name, {}))
        found = Settings.of(path) if path.is_file() or not known else Settings(path, {})
        return Settings(path, found.table | known)

    def below(self) -> Iterator["Files"]:
        """The folders inside this one, and its files of weights, each alone; not what lies outside it."""
        if self.path.is_dir():
            for path in sorted(self.path.iterdir(), key=_by_number):
                if (path.is_dir() and not path.is_symlink()) or (path.is_file() and path.suffix in WEIGHTS):
                    yield Files(path)

    def seen(self) -> str:
        """What there is, for a complaint."""
        if self.path.is_file():
            what = sorted(map(str, self.entries(self.path)))[:6] if self.path.suffix in WEIGHTS else []
            return f"it holds {', '.join(what)}" if what else f"'{self.path.suffix}' is no kind of file with weights"
        names = sorted(path.name for path in self.folder.iterdir())
        return f"it holds {', '.join(names[:6])}" if names else "it is empty"


def _by_number(path: Path) -> tuple[Any, ...]:
    """Layer 9 before layer 10."""
    words = "".join(letter if letter.isdigit() else " " for letter in path.name).split()
    return path.name.rstrip("0123456789"), [int(word) for word in words if len(word) < 19], path.name


def _entries(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        file = TensorFile(path)
        return {name: file.get(name) for name in file.names}
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        is_archive = zipfile.is_zipfile(path)
        found = _npz(path) if path.suffix == ".npz" else _pickled(path, is_archive)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({_line(error)}); {AGAIN}") from None
    except Exception as error:  # torch's reader passes on whatever a broken pickle leads it to
        why = "it names code, which is not run" if "GLOBAL" in str(error) else _line(error)
        raise ValueError(f"{path} is damaged or holds more than tensors ({why}); {AGAIN}") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected tensors by name")
    return found


def _pickled(path: Path, is_archive: bool) -> Any:
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing, and what is packed could unpack to any size.
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"{packed[0]} in it is packed, which torch does not do")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        inert: list[Any] = [(type("Inert", (), {}), name) for name in names if name.startswith(INERT)]
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return torch.load(path, map_location="cpu", weights_only=True)


def _npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, mapped where they are not packed."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > PACKED_MORE * path.stat().st_size:
            raise ValueError(f"it would unpack to more than {PACKED_MORE} times its size")
        for entry in entries:
            with archive.open(entry) as file:
                shape, by_columns, dtype = _npy_header(file)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if dtype.hasobject or size > entry.file_size:
                    raise ValueError(f"{entry.filename} holds {'objects' if dtype.hasobject else 'less than it says'}")
                order: Any = "F" if by_columns else "C"
                if entry.compress_type == zipfile.ZIP_STORED:
                    place = _start(path, entry) + file.tell()
                    array = np.memmap(path, dtype, "c", place, shape, order) if size else np.empty(shape, dtype)
                else:
                    array = np.frombuffer(bytearray(file.read(size)), dtype).reshape(shape, order=order)
            found[entry.filename.removesuffix(".npy")] = torch.from_numpy(array)
    return found


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind its own header, whose length the archive's list does not say."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _line(error: Exception) -> str:
    if isinstance(error, KeyError):  # its text is a number of the pickle's own
        return "it is no whole pickle"
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__


class Tensors:
    """The tensors of one file, whose shapes have to fit each other.

    Attributes:
        sizes: what each axis letter was found or told to be.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]):
        self.path, self.entries = path, entries
        self.sizes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def under(self, prefix: str) -> "Tensors":
        """Those whose names begin with a prefix, by what follows it; all of them where none does."""
        found = {str(name).removeprefix(prefix): entry for name, entry in self.entries.items()}
        return Tensors(self.path, found)

    def take(self, name: str, axes: str) -> Tensor:
        """A vector or a number in float32, or float64 where it is kept so; it may be of whole numbers.

        Args:
            name: its name in the file.
            axes: a letter an axis; the same letter means the same size wherever it stands.

        Raises:
            ValueError: if it is missing, no tensor, mis-shaped, of another kind, or holds NaN or infinity.
        """
        tensor = self._found(name, axes)
        # A copy: what is written to a tensor that is mapped from a file is lost when the file is let go of.
        tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)
        self._check_finite(name, tensor)
        return tensor

    def matrix(self, name: str, axes: str, flipped: bool = False) -> Matrix:
        """A matrix that stays in the file, with the same checks.

        Args:
            name: its name in the file.
            axes: as in `take`, of the tensor as the file has it.
            flipped: whether its rows are wanted as columns.
        """
        found = self._checked(name, Matrix([self._floating(name, axes)], forget=lambda: forget(self.path)))
        return found.T if flipped else found

    def stacked(self, name: str, axes: str, wanted: str) -> Matrix:
        """A tensor of three axes that stays in the file as a matrix: the first wanted axis by the others.

        Args:
            name: its name in the file.
            axes: as in `take`, of the tensor as the file has it.
            wanted: the same letters in the order wanted.
        """
        tensor = self._floating(name, axes).permute([axes.index(axis) for axis in wanted])
        return self._checked(name, Matrix([tensor], forget=lambda: forget(self.path)))

    def _floating(self, name: str, axes: str) -> Tensor:
        tensor = self._found(name, axes)
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{self.path}: {name} is of {kind}, expected floating-point numbers")
        return tensor

    def _checked(self, name: str, matrix: Matrix) -> Matrix:
        for _, block in matrix.blocks():
            self._check_finite(name, block)
        return matrix

    def _found(self, name: str, axes: str) -> Tensor:
        if name not in self.entries:
            raise ValueError(f"{self.path} has no tensor '{name}'{near_miss(name, map(str, self.entries))}")
        tensor = self.entries[name]
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{self.path}: {name} is a {type(tensor).__name__}, expected a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise ValueError(f"{self.path}: {name} is no ordinary tensor of numbers")
        wanted = [self.sizes.get(axis) for axis in axes]
        fits = tensor.ndim == len(axes) and all(w in (None, n) for w, n in zip(wanted, tensor.shape, strict=True))
        if not fits:
            shape = ", ".join(str(size or "?") for size in wanted)
            raise ValueError(f"{self.path}: {name} should be [{shape}], the file holds {list(tensor.shape)}")
        if 0 in tensor.shape:
            raise ValueError(f"{self.path}: {name} is empty, {list(tensor.shape)}")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"{self.path}: {name} says to be {list(tensor.shape)}, which is more than the file holds")
        self.sizes |= dict(zip(axes, tensor.shape, strict=True))
        return tensor.detach()

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.path}: {name} holds NaN or infinity; {AGAIN}")


class Settings:
    """A table of settings from a JSON file.

    Attributes:
        path: the file.
        table: what it holds.
    """

    def __init__(self, path: Path, table: dict[str, Any]):
        self.path, self.table = path, table

    @classmethod
    def of(cls, path: Path) -> "Settings":
        """What a file holds; ValueError that names it if it is missing or damaged."""
        return cls(path, read_json(path, foreign=True))

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A setting; ValueError that names it unless it is of that kind, or missing or null and so the default."""
        value = self.table.get(key)
        if value is None:
            return default
        return expect({key: value}, {key: kind}, self.path, AGAIN)[key]

    def need(self, key: str, kind: type) -> Any:
        """A setting that has to be there."""
        if self.table.get(key) is None:
            raise ValueError(f"{self.path} does not say '{key}'")
        return self.get(key, kind)

    def said(self, *keys: str) -> dict[str, Any]:
        """What it says of these, as far as it says it by a text, a number, or true or false."""
        return {
            key: self.table[key]
            for key in keys
            if fits(self.table.get(key), (str, int, float, bool, None)) and key in self.table
        }

    def part(self, key: str) -> "Settings":
        """A table inside; empty where there is none."""
        return Settings(self.path, self.get(key, dict, {}))

    def refuse(self, setting: str, instead: str) -> ValueError:
        """The error for a setting that our SAE does not hold."""
        return ValueError(f"{self.path}: {setting} is not something that saelab's SAE can hold exactly; {instead}")
