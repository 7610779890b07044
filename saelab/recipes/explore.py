"""`saelab explore`: what a dictionary learned, in the browser."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from saelab.explorer.collect import collect
from saelab.explorer.corpus import BareCorpus, Corpus, StoreCorpus, TextCorpus
from saelab.explorer.database import DamagedError
from saelab.explorer.directions import fits
from saelab.explorer.export import folder, neuronpedia, pages
from saelab.explorer.gather import checksums
from saelab.explorer.known import import_results
from saelab.explorer.notes import Notes, notes_file, set_aside
from saelab.explorer.workspace import Member, Workspace
from saelab.models.language_model import LanguageModel

WRITERS = {"folder": folder, "html": pages, "neuronpedia": neuronpedia}


@dataclass(frozen=True)
class Export:
    """A copy of the explorer that needs no server.

    Args:
        to: the folder, or Neuronpedia's file, to write.
        form: `folder` opens from the disk in any browser, `html` is one file for each latent, `neuronpedia` is
            Neuronpedia's JSON lines.
        latents: which latents; by default all.
    """

    to: str
    form: Literal["folder", "html", "neuronpedia"] = "folder"
    latents: list[int] | None = None


def explore(
    runs: list[str],
    tokens: int = 200_000,
    store: str | None = None,
    recollect: bool = False,
    host: str = "127.0.0.1",
    port: int = 8770,
    browser: bool = True,
    export: Export | None = None,
) -> None:
    """Open runs in a local web application; examples are collected into the run's folder first where they are missing.

    Args:
        runs: folders of runs or saved SAEs, and of results of `saelab stitch`, `match`, `meta`, `manifolds` and
            `scaling`.
        tokens: tokens to collect examples from.
        store: activations to collect from; by default those that each was trained on.
        recollect: collect again; notes are kept.
        host: address to listen on; anything but the loopback interface lets others in.
        port: to listen on; 0 takes a free one.
        browser: whether to open a browser.
        export: write a copy that needs no server, instead of serving.
    """
    workspace = Workspace(runs)
    if not workspace.members:
        raise ValueError("there is no SAE to show: give the folder of a run")
    for member in workspace.members.values():
        if member.is_trained and (recollect or not member.is_collected or _is_outdated(member, store)):
            collect_member(workspace, member, tokens, store)
        for complaint in Notes(notes_file(member.database_file)).complaints():
            _say(complaint)
    import_results(workspace)
    if export is not None:
        WRITERS[export.form](workspace, Path(export.to), export.latents)
        print(f"wrote {export.to}")
        return
    from saelab.explorer.serve import serve  # what serves takes long to import, and only this needs it

    serve(workspace, host, port, browser)


def _say(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def _is_outdated(member: Member, store: str | None) -> bool:
    """Whether a database is damaged or of other weights, and so is collected anew; says so, and what goes on with it.

    Notes are in a file of their own, which stays as it is; a damaged database is not removed, but gets another name.
    """
    try:
        meta = member.database.meta()
    except DamagedError as error:
        why = str(error).partition("; `")[0]
        aside = set_aside(member.database_file)
        _say(f"{why}: collecting again; notes are kept in {notes_file(aside).name}, the damaged file in {aside.name}")
        return True
    if (known := meta.get("sae")) is None:
        # Databases made before 2026-11-28 have no checksums, but directions of other weights lie otherwise.
        count = meta["n_latents"]
        cosines, near = (torch.from_numpy(member.database.array(name).copy()) for name in ("cosines", "neighbours"))
        changed = not fits(member.sae, cosines.view(count, -1), near.view(count, -1))
    else:
        changed = known != checksums(member.saved.weights_file)
    if changed:
        _say(f"{member.name} was collected with other weights or settings: collecting again, notes are kept")
    elif store and meta["corpus"] != StoreCorpus(store, meta["rows"]).identity():
        _say(f"{member.name} was collected on other rows than those of {store}; `--recollect true` reads these")
    return changed


def collect_member(workspace: Workspace, member: Member, tokens: int, store: str | None) -> None:
    """Collect one SAE on a store, on the store it was trained on, or on its text."""
    if not os.access(member.folder, os.W_OK):
        raise ValueError(
            f"{member.folder} cannot be written to, and the collected examples go there: copy it and explore the copy"
        )
    print(f"{member.name}: collecting examples of its latents on {tokens:,} tokens", file=sys.stderr)
    model = workspace.model(member) if member.saved.subject else None
    corpus = _corpus(member, model, tokens, store)
    collect(member.sae, member.saved.weights_file, corpus, model, member.folder)


def _corpus(member: Member, model: LanguageModel | None, tokens: int, store: str | None) -> Corpus:
    config = member.saved.config
    folder = store or config.get("store")
    if folder and (store or Path(folder).exists()):
        return StoreCorpus(folder, tokens)
    if model is not None and member.saved.subject is not None:
        return TextCorpus(member.saved.subject, model, tokens, member.saved.origin.get("split", "train"))
    if config.get("world"):
        from saelab.train.config import TrainConfig

        world = TrainConfig.of_run(member.saved.files).world
        assert world is not None
        return BareCorpus(world, tokens, config["world"])
    raise ValueError(f"{member.name} does not say what its rows come from: give --store")
