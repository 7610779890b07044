"""Put a run on the Hugging Face hub: its files, those of other libraries beside them, and a model card.

    config.yaml, source.json, scores.json, tables/, sae/, ...     as in the run's folder (of a saved SAE its own files)
    sae_lens/, ...                                                what `interchange.write` writes for that library
    README.md                                                     the card

`saelab.load("hf:org/name")` gives the same SAE to the bit. Logs, checkpoints and what other commands keep stay here.
"""

import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from saelab.core.files import whole_folder, write_text
from saelab.core.run import SHARED
from saelab.interchange.family import write
from saelab.interchange.hub import LIBRARY, PREFIX, HubName, explained
from saelab.models.loading import BUNDLED
from saelab.runs.published import copy_whole
from saelab.runs.saved import SavedRun, open_run
from saelab.sae.autoencoder import CONFIG, WEIGHTS
from saelab.sae.ensemble import MEMBERS

ORIGIN = ("model", "site", "target", "text", "split", "seq_len", "world")
TAGS = ["sparse-autoencoder", "mechanistic-interpretability", "saelab"]


def publish(
    run: str | Path,
    to: str,
    private: bool = False,
    also: Sequence[str] = (),
    license: str | None = None,
    citation: str | None = None,
    dry_run: bool = False,
) -> str:
    """Publish a run or saved SAE; what of ours was in the repository before and is of it no longer goes.

    Settings go as they are, with the names of folders on this machine: `dry_run` shows them.

    Args:
        run: its folder, or the name of a published one.
        to: repository, `org/name`; it is made if it is not there.
        private: make the repository private.
        also: libraries to write files for as well, such as `sae_lens`.
        license: of the SAE, as the hub has them, such as `mit`.
        citation: how it is to be cited; by default a BibTeX entry of the repository.
        dry_run: write the files into a new folder, called like the repository, and upload nothing.

    Returns:
        The repository's address, or the folder.

    Raises:
        ValueError: for a run that is not finished, a sweep, a library that has no form for the SAE, a repository that
            is not there for this user, or one that is public where `private` is asked for.
        OSError: for what the hub or the disk refuses.
    """
    place = to.removeprefix(PREFIX)
    if place.count("/") != 1 or "@" in place:
        raise ValueError(f"an SAE is published as a repository of its own, org/name; got '{to}'")
    name = HubName.of(PREFIX + place)
    saved = open_run(run)
    about = {"license": license, "citation": citation}
    if dry_run:
        with whole_folder(name.repo.partition("/")[2]) as folder:
            _fill(folder, saved, name, also, about)
        return name.repo.partition("/")[2]
    with tempfile.TemporaryDirectory() as place:
        _fill(Path(place), saved, name, also, about)
        return _upload(Path(place), name, private, also)


def _fill(folder: Path, saved: SavedRun, name: HubName, also: Sequence[str], about: dict[str, Any]) -> None:
    """Write all that is published."""
    sae = saved.load()
    for path in saved.folder.rglob("*"):
        file = path.relative_to(saved.folder).as_posix()
        if path.is_file() and _is_ours(file, () if saved.is_run else SHARED):
            copy_whole(path, folder / file)
    notes = {family: write(sae, folder / family, family, saved.origin) for family in also}
    write_text(folder / "README.md", card(saved, name, notes, **about))


def _is_ours(file: str, others: Sequence[str] = ()) -> bool:
    """Whether a file is one of those that are published of a run, a saved SAE or an ensemble."""
    first = file.split("/")[0]
    return first not in others and (first in SHARED or file in (CONFIG, WEIGHTS) or fnmatch(file, f"{MEMBERS}/*"))


def _upload(folder: Path, name: HubName, private: bool, also: Sequence[str]) -> str:
    """Make the repository if it is not there, and put the files into it in one commit; its address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name=LIBRARY)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        url = str(api.create_repo(name.repo, private=private or None, exist_ok=True))
        there = api.model_info(name.repo)
        if private and not there.private:
            raise ValueError(f"{name.repo} is there and public: make it private on the hub, or leave --private out")
        held = [one.rfilename for one in there.siblings or ()]
        stale = [file for file in held if file not in files and (_is_ours(file) or file.split("/")[0] in also)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(file, path) for file, path in files.items()),
            *(CommitOperationDelete(file) for file in stale),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks whether tables belong into a data set
            api.create_commit(name.repo, operations, commit_message=f"Publish with {LIBRARY}")
    except Exception as error:  # the hub's library raises its own, its HTTP library's and the system's
        raise explained(name, error, "published") from None
    return url


# ---- the card ----


def card(
    saved: SavedRun, name: HubName, also: dict[str, list[str]], license: str | None = None, citation: str | None = None
) -> str:
    """The model card: what it is, how it is loaded, what it was trained on, scores with intervals, how to cite it.

    Args:
        saved: the run.
        name: where it is published.
        also: libraries that files are there for, and what was done to fit the SAE into their form.
        license: as the hub has them.
        citation: in place of a BibTeX entry of the repository.
    """
    title, origin = name.repo.partition("/")[2], saved.origin
    model = str(origin.get("model", ""))
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) and model != BUNDLED and not Path(model).exists()
    head = {"library_name": LIBRARY, "tags": TAGS}
    head |= {"license": license} if license else {}
    head |= {"base_model": model} if on_hub else {}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {title}\n\n{_what(saved)}",
        f'## Loading\n\n```python\nimport saelab\n\nsae = saelab.load("{name}")\n```',
        *(_elsewhere(family, name, notes) for family, notes in also.items()),
        f"## Trained on\n\n{_trained_on(saved)}",
        *([f"## Scores\n\n{_scores(saved)}"] if saved.scores else []),
        f"## Citation\n\n{citation or _citation(name)}",
    ]
    return "\n\n".join(parts) + "\n"


def _what(saved: SavedRun) -> str:
    config = saved.sae_config
    if "activation" not in config:
        return f"{config['members']} sparse autoencoders read as one ({config.get('how')})."
    settings = {key: value for key, value in config["activation"].items() if key != "name" and value is not None}
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    reading = config["activation"]["name"] + (f" ({words})" if words else "")
    return (
        f"A sparse autoencoder of {config['n_latents']:,} latents on rows {config['d_in']:,} wide, read with {reading}."
    )


def _trained_on(saved: SavedRun) -> str:
    rows = {"rows": saved.config["rows"]} if isinstance(saved.config.get("rows"), int) else {}
    about = {key: saved.origin[key] for key in ORIGIN if saved.origin.get(key)} | rows
    return _table(("what", "which"), about.items()) if about else "Its files do not say."


def _elsewhere(family: str, name: HubName, notes: list[str]) -> str:
    lines = [f"Files for {family} are in `{family}/`.", *(f"- {note}" for note in notes)]
    return f"### {family}\n\n" + "\n".join(lines)


def _scores(saved: SavedRun) -> str:
    """Every score with its interval, and on what it was measured."""
    rows = []
    for metric, score in saved.scores.items():
        known = score.get("low") is not None
        interval = f"{score['low']:.4g} to {score['high']:.4g}" if known else ""
        rows.append((metric, f"{score['value']:.4g}", interval, f"{score['n']:,}", score["unit"]))
    data = saved.measured.get("data", {})
    said = ", ".join(f"{key} {data[key]}" for key in ORIGIN if isinstance(data.get(key), str | int))
    heads = ("metric", "value", "95 % interval", "n", "unit")
    return _table(heads, rows) + (f"\n\nMeasured on {said}." if said else "")


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _citation(name: HubName) -> str:
    author, title = name.repo.split("/")
    key = re.sub(r"\W+", "-", name.repo)
    entry = f"@misc{{{key},\n  author = {{{author}}},\n  title = {{{title}: a sparse autoencoder}},\n"
    return f"```bibtex\n{entry}  howpublished = {{https://huggingface.co/{name.repo}}}\n}}\n```"
