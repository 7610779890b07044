"""`saelab explore`: what a dictionary learned, in the browser."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saelab.explorer.collect import collect
from saelab.explorer.corpus import BareCorpus, Corpus, StoreCorpus, TextCorpus
from saelab.explorer.export import folder, neuronpedia, pages
from saelab.explorer.known import bring_in
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
    """Look at SAEs in a browser; what is shown is collected first where it is missing, into the run's folder.

    Args:
        runs: folders of runs or saved SAEs, and of results of `saelab stitch`, `match`, `meta`, `manifolds` and
            `scaling`.
        tokens: tokens to look at each SAE on.
        store: activations to look at them on; by default what each was trained on.
        recollect: collect again what was collected before; notes stay.
        host: address to listen on; anything but the loopback interface lets others in.
        port: to listen on; 0 takes a free one.
        browser: whether to open a browser.
        export: write a copy that needs no server, instead of serving.
    """
    workspace = Workspace(runs)
    if not workspace.members:
        raise ValueError("there is no SAE to show: give the folder of a run")
    for member in workspace.members.values():
        if member.is_trained and (recollect or not member.is_collected):
            collect_member(workspace, member, tokens, store)
    bring_in(workspace)
    if export is not None:
        WRITERS[export.form](workspace, Path(export.to), export.latents)
        print(f"wrote {export.to}")
        return
    from saelab.explorer.serve import serve  # what serves takes long to import, and only this needs it

    serve(workspace, host, port, browser)


def collect_member(workspace: Workspace, member: Member, tokens: int, store: str | None) -> None:
    """Collect one SAE on a store, on the store it was trained on, or on its text."""
    print(f"{member.name}: collecting what its latents do on {tokens:,} tokens", file=sys.stderr)
    model = workspace.model(member) if member.subject else None
    corpus = _corpus(member, model, tokens, store)
    collect(member.sae, member.weights, corpus, model, member.folder)


def _corpus(member: Member, model: LanguageModel | None, tokens: int, store: str | None) -> Corpus:
    config = member.run.config() if member.is_run else {}
    folder = store or config.get("store")
    if folder and (store or Path(folder).exists()):
        return StoreCorpus(folder, tokens)
    if model is not None and member.subject is not None:
        return TextCorpus(member.subject, model, tokens, member.origin.get("split", "train"))
    if config.get("world"):
        from saelab.recipes.train import parsed

        world = parsed(config, f"{member.run.config_file} is damaged").world
        return BareCorpus(world, tokens, config["world"])
    raise ValueError(f"{member.name} does not say what its rows come from: give --store")
