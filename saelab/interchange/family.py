"""What a family of files is: how it is told from others, read and written; and what reading one tells.

A file says of an SAE which weights it has, how it computes codes, and often which model and site it is for. The first
two become a `Plain`, from which ours is built; the last becomes what a run keeps in `source.json`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from saelab.core.components import Component, near_miss
from saelab.core.files import whole_folder
from saelab.interchange.files import DEEPEST, Files
from saelab.interchange.mapped import offered, plain_of
from saelab.interchange.plain import Plain, apart, built, check_computes
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.files import is_saved
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale

MANY = 9
"""Names of SAEs that a complaint lists."""


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
    dictionaries: ClassVar[tuple[str, ...]] = ("Dense",)
    """Of those that a `Plain` may have, the ones it has a form for."""
    is_set: ClassVar[bool] = False
    """Whether what is written of several SAEs lies in one folder, each under a name of its own."""
    weights: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files of weights of one SAE, where they always have the same names."""

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


def read(path: str | Path, beside: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[SAE, Description]:
    """The SAE in another library's folder or file, and what the file said beside it.

    Args:
        path: the folder or file.
        beside: settings that are known from elsewhere, by file; they stand in for what that file says of them.

    Raises:
        ValueError: naming the file: of no known family, damaged, mis-shaped, holding NaN, or computing something that
            our SAE does not hold exactly.
    """
    plain, description = opened(path, beside)
    return built(plain, Path(path)), description


def opened(path: str | Path, beside: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Plain, Description]:
    """As `read`, with the weights left in their file until they are asked for."""
    files = Files(path, beside)
    if is_saved(path):
        raise ValueError(f"{path} is saelab's own: `saelab.load` opens it")
    family = _family_of(files)
    if not family:
        raise ValueError(_unknown(files))
    return _checked(files, *family.read(files))


def opened_by_map(
    path: str | Path, words: Sequence[str], activation: str, k: float | None
) -> tuple[Plain, Description]:
    """A file of no known library, by the map of its tensors and the rest that `mapped.plain_of` takes."""
    files = Files(path)
    return _checked(files, plain_of(files, words, activation, k), Description("a map", activation))


def _checked(files: Files, plain: Plain, description: Description) -> tuple[Plain, Description]:
    description.notes[:0] = plain.notes
    check_computes(plain, files.path)
    return plain, description


def _family_of(files: Files) -> Family | None:
    return next((family for family in families().values() if family.claims(files)), None)


def members(path: str | Path) -> dict[str, Path]:
    """The SAEs in a folder of several, by their names in it: of other libraries, and saelab's own; empty for one SAE.

    Folders inside it are searched, those of an SAE not further.
    """
    return {place.relative_to(path).as_posix(): place for place in _members(Files(path), DEEPEST)}


def _members(files: Files, deep: int) -> Iterator[Path]:
    for one in files.below():
        if is_saved(one.path) or _family_of(one):
            yield one.path
        elif deep > 1:
            yield from _members(one, deep - 1)


def _unknown(files: Files) -> str:
    """What to say of a file or folder that is of no family."""
    if found := list(members(files.path)):
        names = found if len(found) < MANY else [*found[: MANY - 2], "...", found[-1]]
        return f"{files.path} holds {len(found)} SAEs: {', '.join(names)}; take one of them, or several by --only"
    what = offered(files) or files.seen()
    return f"{files.path} is of no family that saelab reads ({', '.join(families())}): {what}"


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
    known = family_called(family)
    with whole_folder(folder) as part:
        plain = apart(sae)
        return [*plain.notes, *write_plain(plain, part, known, source or {}, Path(folder))]


def family_called(title: str) -> Family:
    """The family that the command line calls so; ValueError for an unknown one."""
    known = families()
    if title not in known:
        raise ValueError(f"unknown family '{title}'{near_miss(title, written())}")
    return known[title]


def write_plain(plain: Plain, folder: Path, family: Family, source: dict[str, Any], name: Path) -> list[str]:
    """Write plain weights for another library into a folder that others may have been written to.

    Args:
        plain: which may be changed.
        folder: where to.
        family: the library.
        source: what a run's source.json says of model and site.
        name: the SAE, for complaints.

    Returns:
        What could not be said.

    Raises:
        ValueError: for an SAE that the library has no form for.
    """
    check_computes(plain, name)
    is_written = type(family).write is not Family.write  # else it says itself that it is not
    if is_written and plain.row_scale and type(plain.row_scale) not in family.row_scales:
        raise family.no_form(f"rows that are each scaled by themselves ({plain.row_scale.sentence()})")
    if is_written and plain.dictionary not in family.dictionaries:
        raise family.no_form(f"the dictionary {plain.dictionary}")
    return family.write(plain, folder, source)
