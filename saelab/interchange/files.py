"""Files of strangers: read without running anything, with one line that names the file when something is wrong.

Pickles are read by torch's reader that makes tensors and plain containers only, .npz files without pickles.
"""

import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.core.components import near_miss
from saelab.core.files import read_tensors
from saelab.core.read import expect, fits, read_json

WEIGHTS = (".safetensors", ".pt", ".pth", ".npz")
AGAIN = "restore it from a copy or download it again"


class Files:
    """A folder, or one file, that another library wrote.

    Attributes:
        path: what was named.
        folder: the folder it is, or lies in.

    Raises:
        ValueError: if there is nothing there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(f"there is no file or folder {path}")
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self._tensors: dict[Path, Mapping[str, Any]] = {}

    def has(self, *names: str) -> bool:
        """Whether the folder holds all these files; of one file, whether it is one of them and the others are there."""
        mine = self.path.is_dir() or self.path.name in names
        return mine and all((self.folder / name).is_file() for name in names)

    @cached_property
    def lone(self) -> Path | None:
        """The file that was named, or the only file of weights in the folder."""
        if self.path.is_file():
            return self.path if self.path.suffix in WEIGHTS else None
        found = [path for path in self.folder.iterdir() if path.suffix in WEIGHTS]
        return found[0] if len(found) == 1 else None

    def lone_has(self, *names: str, suffixes: tuple[str, ...] = WEIGHTS) -> bool:
        """Whether there is one file of weights, of one of these kinds, with all these entries."""
        return self.lone is not None and self.lone.suffix in suffixes and set(names) <= self.entries(self.lone).keys()

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
        """A JSON file in the folder."""
        return Settings.of(self.folder / name)

    def seen(self) -> str:
        """What there is, for a complaint."""
        if self.path.is_file():
            what = sorted(map(str, self.entries(self.path)))[:6] if self.path.suffix in WEIGHTS else []
            return f"it holds {', '.join(what)}" if what else f"'{self.path.suffix}' is no kind of file with weights"
        names = sorted(path.name for path in self.folder.iterdir())
        return f"it holds {', '.join(names[:6])}" if names else "it is empty"


def _entries(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return read_tensors(path, foreign=True)[0]
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({_line(error)}); {AGAIN}") from None
    except Exception as error:  # torch's reader passes on whatever a broken pickle leads it to
        why = "it names code, which is not run" if "GLOBAL" in str(error) else _line(error)
        raise ValueError(f"{path} is damaged or holds more than tensors ({why}); {AGAIN}") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected tensors by name")
    return found


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

    def take(self, name: str, axes: str) -> Tensor:
        """A tensor in float32, or float64 where it is kept so.

        Args:
            name: its name in the file.
            axes: a letter an axis; the same letter means the same size wherever it stands.

        Raises:
            ValueError: if it is missing, no tensor, mis-shaped, or holds NaN or infinity.
        """
        if name not in self.entries:
            raise ValueError(f"{self.path} has no tensor '{name}'{near_miss(name, map(str, self.entries))}")
        tensor = self.entries[name]
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{self.path}: {name} is a {type(tensor).__name__}, expected a tensor")
        wanted = [self.sizes.get(axis) for axis in axes]
        fits = tensor.ndim == len(axes) and all(w in (None, n) for w, n in zip(wanted, tensor.shape, strict=True))
        if not fits:
            shape = ", ".join(str(size or "?") for size in wanted)
            raise ValueError(f"{self.path}: {name} should be [{shape}], the file holds {list(tensor.shape)}")
        if 0 in tensor.shape:
            raise ValueError(f"{self.path}: {name} is empty, {list(tensor.shape)}")
        self.sizes |= dict(zip(axes, tensor.shape, strict=True))
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.path}: {name} holds NaN or infinity; {AGAIN}")
        return tensor


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
