"""Published SAEs as runs: names on the hub and of the index, opened like folders of this machine.

    hf:org/repo[/folder][@revision]      a run or saved SAE of saelab, or the files of another library
    RELEASE/SAE                          an SAE of the index, see `saelab.interchange.index`

What is fetched stays in the hub's cache. The run, in whose folder commands leave scores and all else, is made in
saelab's own cache, one for each commit.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from saelab.core.files import cache_home, whole_folder
from saelab.core.run import SOURCE_FILE, Run
from saelab.interchange.family import Description, opened
from saelab.interchange.hub import PREFIX, Fetched, HubName, fetch
from saelab.interchange.index import at, find, hint, index
from saelab.interchange.plain import Plain, built, save
from saelab.sae.autoencoder import WEIGHTS, Autoencoder
from saelab.sae.files import is_saved
from saelab.sae.files import load as load_folder

README = """# A converted SAE

It was read from files of {family} by `saelab convert`; `config.yaml` says from which and what they said of themselves.
`saelab measure {name}` measures it, `saelab.load("{name}")` opens it.
"""


def load(name: str | Path) -> Autoencoder:
    """The SAE or ensemble in a folder of saelab's, or of a name: `hf:org/repo/folder@revision`, or one of the index.

    Raises:
        ValueError: naming what is wrong: of a folder as `saelab.sae.load`, of a name as `fetched` and `opened_fetched`.
        OSError: if the hub cannot be reached and its cache lacks something.
    """
    found = fetched(name)
    if found is None:
        return load_folder(name)
    return load_folder(found.path) if is_saved(found.path) else built(opened_fetched(found)[0], found.path)


def fetched(name: str | Path) -> Fetched | None:
    """The files of a published SAE, on this machine; None for what is no name of one, such as a folder.

    Raises:
        ValueError: for a name that is none of the hub or of the index, an SAE of the index that saelab does not read,
            and as of `fetch`.
        OSError: as of `fetch`.
    """
    text = name.as_posix() if isinstance(name, Path) else name
    if text.startswith(PREFIX):
        return fetch(HubName.of(text))
    if Path(text).exists():
        return None
    entry = find(text)
    if entry is None:
        if said := hint(text):
            raise ValueError(f"there is no folder {text}, and no published SAE of that name{said}")
        return None
    if entry.reason:
        raise ValueError(f"{entry.name} cannot be loaded: {entry.reason}")
    return fetch(HubName(entry.repo, entry.path))


def opened_fetched(found: Fetched) -> tuple[Plain, Description]:
    """The SAE of another library, opened with what the index knows of it; ValueError as of `interchange.read`."""
    entry = at(found.place.repo, found.place.path)
    plain, description = opened(found.path, entry.settings if entry else None)
    if entry and not description.source and (source := entry.source()):
        description.source = source
        description.notes.append(f"model and site are as in {index()['source']}")
    return plain, description


def place_of(name: str | Path) -> Path:
    """The folder of a run or saved SAE: of a published one that made for it, of all else what was given.

    Raises:
        ValueError, OSError: as of `fetched` and `opened_fetched`.
    """
    found = fetched(name)
    if found is None:
        return Path(name)
    repo, path = found.place.repo.split("/"), found.place.path.split("/")
    last = "--".join(re.sub(r"[^\w.-]+", "-", part) for part in (repo[1], *path) if part)
    folder = cache_home() / "published" / f"{repo[0]}-{found.place.revision}" / last
    if not folder.exists():
        with whole_folder(folder) as part:
            if is_saved(found.path):
                for file in found.files:
                    copy_whole(found.root / file, part / Path(file).relative_to(found.place.path))
            else:
                write_run(part, *opened_fetched(found), found, folder.name)
    return folder


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file; weights are linked where the disk allows, as they are replaced whole and never written into."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        if target.name == WEIGHTS:
            return os.link(source.resolve(), target)
    shutil.copyfile(source, target)


def write_run(folder: Path, plain: Plain, found: Description, place: Path | Fetched, name: str) -> None:
    """Write an SAE of another library as a run.

    Args:
        folder: new or empty.
        plain: the SAE.
        found: what its files said.
        place: where they are.
        name: what the run is called.
    """
    path, origin = (place.path, place.place) if isinstance(place, Fetched) else (place, place)
    about: dict[str, Any] = {"from": str(origin), "family": found.family, "architecture": found.architecture}
    beside = {SOURCE_FILE: found.source} if found.source else {}
    readme = README.replace("{family}", found.family).replace("{name}", name)
    Run.create(folder, {"convert": about | {"said": found.said}}, beside, readme)
    save(plain, folder / "sae", path)
