"""What a family of files is: how it is told from others, read and written; and what reading one tells.

A file says of an SAE which weights it has, how it computes codes, and often which model and site it is for. The first
two become a `Plain`, from which ours is built; the last becomes what a run keeps in `source.json`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from saelab.core.components import Component, near_miss
from saelab.core.files import whole_folder
from saelab.interchange.files import Files
from saelab.interchange.plain import Plain, apart, built, check_computes
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.files import is_saved
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale


@dataclass
class Description:
    """What a file said beside the weights."""

    family: str
    """Name of its family."""
    architecture: str
    """What that library calls the way it computes."""
    source: dict[str, Any] = field(default_factory=dict)
    """Model, site, target and seq_len as a run's source.json has them; empty unless model and site are certain."""
    said: dict[str, Any] = field(default_factory=dict)
    """What it says of its origin, in its own words."""
    notes: list[str] = field(default_factory=list)
    """What was done to fit it into ours, and why the source is not certain."""


class Family(Component, ABC):
    """Files of one library."""

    home = "saelab.interchange.families"
    title: ClassVar[str]
    """What the command line calls it."""
    row_scales: ClassVar[tuple[type[Scale], ...]] = ()
    """Scalings of each row by itself that `write` can say."""

    @abstractmethod
    def claims(self, files: Files) -> bool:
        """Whether these files look like this family's; no two families claim the same."""

    @abstractmethod
    def read(self, files: Files) -> tuple[Plain, Description]:
        """What the files hold; ValueError that names the file and the setting that is wrong or cannot be held."""

    def write(self, plain: Plain, folder: Path, source: dict[str, Any]) -> list[str]:
        """Write files that the library loads, each whole or not at all.

        Args:
            plain: the SAE.
            folder: where to.
            source: what a run's source.json says.

        Returns:
            What of the source could not be said.

        Raises:
            ValueError: for an SAE that the library has no form for.
        """
        raise ValueError(f"saelab reads SAEs of {self.title} but does not write them; it writes {', '.join(written())}")

    def no_form(self, what: str) -> ValueError:
        """The error for an SAE that the library cannot hold exactly."""
        return ValueError(f"{self.title} has no form for {what}")


def families() -> dict[str, Family]:
    """Every family by its title."""
    return {variant.title: variant() for variant in Family.variants().values()}


def written() -> list[str]:
    """Titles of the families that can be written."""
    return [title for title, family in families().items() if type(family).write is not Family.write]


def read(path: str | Path) -> tuple[SAE, Description]:
    """The SAE in another library's folder or file, and what the file said beside it.

    Raises:
        ValueError: naming the file: of no known family, damaged, mis-shaped, holding NaN, or computing something that
            our SAE does not hold exactly.
    """
    files = Files(path)
    if is_saved(path):
        raise ValueError(f"{path} is saelab's own: `saelab.load` opens it")
    for family in families().values():
        if family.claims(files):
            plain, description = family.read(files)
            description.notes[:0] = plain.notes
            sae = built(plain, files.path)
            check_computes(sae, files.path)
            return sae, description
    raise ValueError(f"{path} is of no family that saelab reads ({', '.join(families())}): {files.seen()}")


def write(sae: Autoencoder, folder: str | Path, family: str, source: dict[str, Any] | None = None) -> list[str]:
    """Write an SAE for another library into a new folder.

    Args:
        sae: of which what is needed for reading rows is written; losses and the state of training are left out.
        folder: new or empty.
        family: the library, e.g. `sae_lens`.
        source: what a run's source.json says of model and site.

    Returns:
        What was done to the SAE to fit it into the library's form, and what could not be said.

    Raises:
        ValueError: for an unknown family, an SAE that it has no form for, or a folder that is not empty.
    """
    folder, known = Path(folder), families()
    if family not in known:
        raise ValueError(f"unknown family '{family}'{near_miss(family, written())}")
    with whole_folder(folder) as part:
        plain, library = apart(sae), known[family]
        if plain.row_scale and family in written() and type(plain.row_scale) not in library.row_scales:
            raise library.no_form(f"rows that are each scaled by themselves ({plain.row_scale.sentence()})")
        check_computes(sae, folder)
        return [*plain.notes, *library.write(plain, part, source or {})]
