"""SAEs on the Hugging Face hub by name: `hf:org/repo[/folder or file][@revision]`.

Of a repository only what one SAE needs is fetched, its descriptions and its weights, into the hub's own cache, from
where it is read without a network. Nothing is executed. Left out: data sets, spaces, and what is in the files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from saelab.core.components import near_miss
from saelab.core.run import CONFIG_FILE, SAE_FOLDER, SHARED
from saelab.interchange.family import families
from saelab.interchange.files import WEIGHTS
from saelab.sae.autoencoder import CONFIG
from saelab.sae.autoencoder import WEIGHTS as OURS
from saelab.sae.ensemble import MEMBERS

PREFIX, LIBRARY = "hf:", "saelab"
MAIN = "main"
DESCRIPTIONS = (".json", ".yaml", ".yml")
OF_ONE_FILE = "_cfg.json"
"""How the description of one of several SAEs in a folder ends."""
NONE_OF_AN_SAE = re.compile(r"(tokenizer|vocab|merges|special_tokens|added_tokens|generation_config).*|.*\.index\.json")
"""Descriptions of a language model, which may lie in the same repository and be large."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """A place on the hub."""

    repo: str
    """Owner and repository."""
    path: str = ""
    """Folder or file in it; empty for its root."""
    revision: str | None = None
    """Branch, tag or commit; None for `main`."""

    @classmethod
    def of(cls, text: str) -> "HubName":
        """The place that a name says; ValueError for what is none."""
        place, at, revision = text.removeprefix(PREFIX).partition("@")
        parts = place.rstrip("/").split("/")
        is_safe = all(re.fullmatch(r"(?!\.+$)[^\\\0]+", part) for part in [*parts, *revision.split("/")] if at or part)
        if len(parts) < 2 or not all(parts) or not is_safe:
            forms = "hf:org/repo, hf:org/repo/folder or hf:org/repo/folder@revision"
            raise ValueError(f"'{text}' is no name of an SAE on the hub: expected {forms}")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        return PREFIX + self.repo + f"/{self.path}" * bool(self.path) + f"@{self.revision}" * bool(self.revision)


@dataclass(frozen=True)
class Fetched:
    """What was fetched of one SAE."""

    place: HubName
    """Where it lies, with the commit as its revision."""
    root: Path
    """The repository's folder in the cache."""
    files: tuple[str, ...]
    """What was needed, below `root`."""

    @property
    def path(self) -> Path:
        """The SAE's folder or file."""
        return self.root / self.place.path


def fetch(name: HubName) -> Fetched:
    """Fetch what one SAE needs, or find it in the hub's cache where the hub cannot be reached.

    Raises:
        ValueError: for a repository, revision, folder or file that is not there or not open to this user, and for a
            folder of which it is not clear which SAE is meant.
        ConnectionError: if the hub cannot be reached and the cache lacks something.
        OSError: for all else that the hub or the disk refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        listed = HfApi(library_name=LIBRARY).model_info(name.repo, revision=name.revision)
    except Exception as error:  # the hub's library raises its own, its HTTP library's and the system's
        if _is_unreachable(error) and (kept := _kept(name)):
            return kept
        raise explained(name, error) from None
    files = needed([one.rfilename for one in listed.siblings or ()], name)
    try:
        paths = [Path(hf_hub_download(name.repo, file, revision=name.revision, library_name=LIBRARY)) for file in files]
    except Exception as error:
        raise explained(name, error) from None
    roots = {path.parents[file.count("/")] for path, file in zip(paths, files, strict=True)}
    if len(roots) > 1:
        raise OSError(f"{name} was changed on the hub while it was fetched: do it again")
    return _fetched(name, roots.pop(), files)


def _fetched(name: HubName, root: Path, files: Sequence[str]) -> Fetched:
    return Fetched(HubName(name.repo, name.path, root.name), root, tuple(files))


def _kept(name: HubName) -> Fetched | None:
    """What the cache has of an SAE; None unless it is all there, weights having been fetched last."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repo, repo_type="model")
    revision = home / "refs" / (name.revision or MAIN)
    commit = revision.read_text(encoding="utf-8").strip() if revision.is_file() else name.revision or MAIN
    root = home / "snapshots" / commit
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    try:
        return _fetched(name, root, needed(files, name)) if files else None
    except ValueError:  # another folder of the repository was fetched
        return None


# ---- which files ----


def needed(files: Sequence[str], name: HubName) -> list[str]:
    """Those of a repository's files that an SAE is read from, its weights last; ValueError if that is not clear."""
    files = [file for file in files if not re.search(r"(^|/)\.\.(/|$)|^/|\\", file)]
    if name.path in files:
        own, others = f"{name.path.rpartition('.')[0]}{OF_ONE_FILE}", _descriptions(files, name.path.rpartition("/")[0])
        return [*(one for one in others if one == own or not one.endswith(OF_ONE_FILE)), name.path]
    start = f"{name.path}/" if name.path else ""
    inside = [file.removeprefix(start) for file in files if file.startswith(start)]
    if not inside:
        raise ValueError(f"{name.repo} has no folder or file '{name.path}'{near_miss(name.path, _places(files))}")
    if ours := _of_ours(inside):
        return [start + file for file in ours]
    weights = _of_family(inside)
    lone = [file for file in inside if "/" not in file and file.endswith(WEIGHTS)]
    if weights or len(lone) == 1:
        return [*_descriptions(files, name.path), *(start + file for file in weights or lone)]
    if lone:
        raise ValueError(
            f"{name} holds {len(lone)} files of weights: give one of them"
            f"{near_miss('', (PREFIX + f'{name.repo}/{start}{file}' for file in lone))}"
        )
    raise ValueError(f"{name} holds no SAE{near_miss(name.path, _places(files))}")


def _of_family(inside: Sequence[str]) -> list[str]:
    """The weights of one SAE, for a family whose files always have the same names; empty where they have not."""
    patterns = (family.weights for family in families().values())
    found = ([file for file in inside if any(fnmatch(file, one) for one in names)] for names in patterns)
    return next(filter(None, found), [])


def _descriptions(files: Sequence[str], folder: str) -> list[str]:
    """The descriptions that lie in a folder itself, or in the one above it."""
    split = ((file, *file.rpartition("/")[::2]) for file in files if file.endswith(DESCRIPTIONS))
    near = (folder, folder.rpartition("/")[0])
    return [file for file, above, last in split if above in near and not NONE_OF_AN_SAE.fullmatch(last)]


def _of_ours(inside: Sequence[str]) -> list[str]:
    """The files of a run, a saved SAE or an ensemble of saelab; empty where it is none."""
    if CONFIG_FILE in inside and f"{SAE_FOLDER}/{CONFIG}" in inside:
        found = [file for file in inside if file.split("/")[0] in SHARED]
    else:
        found = [file for file in inside if file in (CONFIG, OURS) or fnmatch(file, f"{MEMBERS}/*")]
        found = found if CONFIG in found and any(file.endswith(OURS) for file in found) else []
    return sorted(found, key=lambda file: file.endswith(OURS))


def _places(files: Sequence[str]) -> set[str]:
    """The folders of a repository that hold weights."""
    folders = {file.rpartition("/")[0] for file in files if file.endswith(WEIGHTS)}
    return {re.sub(rf"(^|/)(checkpoints|{SAE_FOLDER})$", "", folder) for folder in folders} - {""}


# ---- why not ----


def _is_unreachable(error: Exception) -> bool:
    """Whether it is the network, and not the hub's answer."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, ConnectionError | LocalEntryNotFoundError):
        return True
    # The errors of an HTTP library that has another name in each version of the hub's.
    return not isinstance(error, HfHubHTTPError) and "HTTPError" in {kind.__name__ for kind in type(error).__mro__}


def explained(name: HubName, error: Exception, done: str = "fetched") -> Exception:
    """The error as one line that says what to do; it was to be `done`."""
    from huggingface_hub import constants, errors

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of an upload in a thread of its own
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        terms = f"accept its terms at {constants.ENDPOINT}/{name.repo}"
        return ValueError(f"{name} is gated: {terms}, then {LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(f"the hub has no repository {name.repo}, or it is private: check the name, or {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{name.repo} has no revision '{name.revision}': give a branch, a tag or a commit of it")
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{name} is no name of an SAE on the hub: {first}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        lacking = f", and the hub's cache has not all of {name}" if done == "fetched" else ""
        return ConnectionError(f"HF_HUB_OFFLINE is set{lacking}: unset it")
    if _is_unreachable(error):
        return ConnectionError(f"the hub cannot be reached for {name}: try again, whole files are kept ({first})")
    if isinstance(error, errors.HfHubHTTPError):
        code = error.response.status_code
        then = LOG_IN if code in (401, 403) else "try again later"
        return OSError(f"the hub answers {code} for {name}: {then}")
    return error if isinstance(error, ValueError) else OSError(f"{name} cannot be {done} ({first})")
