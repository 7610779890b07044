"""A loaded result of `saelab meta`, as pages ask for it."""

# Shape letters: M meta-latents, D width.

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.analysis.meta import read_meta
from saelab.explorer.directions import directions_of
from saelab.sae.files import load


@dataclass(frozen=True)
class MetaResult:
    """The meta-latents of one SAE.

    Args:
        folder: of the result.
        content: what `read_meta` returns.
    """

    folder: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "MetaResult":
        """Read a folder; ValueError where it is damaged."""
        return cls(folder, read_meta(folder))

    @property
    def sae_name(self) -> str:
        """The folder's name of the SAE whose directions were decomposed."""
        return Path(self.content["sae"]).name

    @property
    def n_meta(self) -> int:
        """How many meta-latents there are."""
        count: int = self.content["n_meta"]
        return count

    @cached_property
    def latents(self) -> dict[int, list[tuple[int, float]]]:
        """(latent, value) of each meta-latent that any goes through, largest first."""
        codes, found = self.content["codes"], dict[int, list[tuple[int, float]]]()
        columns = [codes[name].tolist() for name in ("latent", "meta", "value")]
        for latent, number, value in zip(*columns, strict=True):
            found.setdefault(number, []).append((latent, value))
        return {number: sorted(pairs, key=lambda pair: -pair[1]) for number, pairs in found.items()}

    def metas(self, latent: int) -> list[tuple[int, float]]:
        """(meta-latent, value) of a latent, largest first."""
        codes = self.content["codes"]
        own = codes["latent"] == latent
        return sorted(
            zip(codes["meta"][own].tolist(), codes["value"][own].tolist(), strict=True), key=lambda pair: -pair[1]
        )

    @cached_property
    def directions(self) -> Tensor:
        """Unit directions of the meta-latents [M, D]."""
        return directions_of(load(self.folder / "sae"))
