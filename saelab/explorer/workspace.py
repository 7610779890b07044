"""What is loaded: SAEs with their databases, models and files, and results of comparisons between them."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saelab.core.components import near_miss
from saelab.core.read import read_json
from saelab.explorer.database import FILE, Database
from saelab.explorer.directions import directions_of
from saelab.explorer.lens import Lens
from saelab.explorer.meta_result import MetaResult
from saelab.geometry import nearest
from saelab.models.language_model import LanguageModel
from saelab.runs import SavedRun, kind_of, open_run, place_of
from saelab.sae.autoencoder import Autoencoder

RESULTS = ("stitch", "match", "meta", "manifolds")
SCALING = ("law", "plan", "allocation", "diagnosis")
"""Kinds of files that `saelab scaling` writes."""


@dataclass
class Member:
    """One SAE of a workspace, under a name of its own: a run's, finished or not, or a saved one."""

    name: str
    saved: SavedRun
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def folder(self) -> Path:
        return self.saved.folder

    @property
    def is_trained(self) -> bool:
        """Whether there is an SAE to look at."""
        return self.saved.is_trained

    @property
    def database_file(self) -> Path:
        return self.folder / FILE

    @property
    def is_collected(self) -> bool:
        """Whether there is a database."""
        return self.database_file.exists()

    @cached_property
    def database(self) -> Database:
        """Its database; ValueError where nothing was collected."""
        return Database(self.database_file)

    @cached_property
    def sae(self) -> Autoencoder:
        """The SAE, on the CPU."""
        with self._lock:
            return self.saved.load().eval()

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token; empty where rows stand for none."""
        return self.database.vocabulary()

    @property
    def has_text(self) -> bool:
        """Whether the rows that it was collected on stand for tokens whose text is known."""
        return bool(self.database.meta()["has_text"])

    def need_text(self) -> None:
        """ValueError where the rows that it was collected on stand for no text."""
        if not self.has_text:
            raise ValueError(
                f"{self.name} was collected on rows without text, and this page needs text: collect again from "
                "a store that `saelab harvest` wrote, with --store STORE --recollect true"
            )


class Nearest(NamedTuple):
    """For each latent of one SAE the nearest of another."""

    cosine: np.ndarray
    latent: np.ndarray


class Workspace:
    """Everything that one explorer shows.

    Args:
        folders: of runs, sweeps, saved SAEs, and results of `saelab stitch`, `match`, `meta`, `manifolds` and
            `scaling`; of the last also single files. A published SAE is given by its name.
        results: further folders of results.

    Raises:
        ValueError: for a folder that is none of them, naming it.
    """

    def __init__(self, folders: Sequence[str | Path], results: Sequence[str | Path] = ()):
        self.members: dict[str, Member] = {}
        self.results: dict[str, list[Path]] = {kind: [] for kind in (*RESULTS, "scaling")}
        self._models: dict[tuple[str, str, str | None, str], LanguageModel] = {}
        self._lenses: dict[str, Lens] = {}
        self._metas: dict[str, MetaResult | None] = {}
        self._nearest: dict[tuple[str, str], tuple[Nearest, Nearest]] = {}
        self._lock = threading.Lock()
        for folder in map(place_of, [*folders, *results]):
            kinds = [kind for kind in RESULTS if (folder / f"{kind}.json").exists()]
            if kinds:
                self.results[kinds[0]].append(folder)
            elif kind_of(folder):
                for saved in open_run(folder).members:
                    name = _free(re.sub(r"[^\w.-]+", "-", saved.name) or "sae", self.members)
                    self.members[name] = Member(name, saved)
            elif scaling_files(folder):
                self.results["scaling"].append(folder)
            else:
                kinds_text = " or a result of `saelab stitch`, `match`, `meta`, `manifolds` or `scaling`"
                raise ValueError(f"{folder} is neither a run, a saved SAE{kinds_text}")

    def __getitem__(self, name: str) -> Member:
        if name not in self.members:
            raise ValueError(f"there is no SAE '{name}' here{near_miss(name, self.members)}")
        return self.members[name]

    def model(self, member: Member) -> LanguageModel:
        """The model of an SAE's rows; loaded once for all SAEs of one site. ValueError where there is none."""
        subject = member.saved.subject
        if subject is None:
            raise ValueError(f"{member.name} does not say which model its rows come from")
        key = (subject.model, subject.site, subject.target, subject.precision)
        with self._lock:
            if key not in self._models:
                self._models[key] = LanguageModel(subject.model, subject.site, "cpu", subject.precision, subject.target)
            return self._models[key]

    def lens(self, member: Member) -> Lens:
        """The model seen through an SAE; ValueError where it reads other rows than the model gives."""
        if member.name not in self._lenses:
            model = self.model(member)
            if member.sae.d_in != model.d_in:
                raise ValueError(f"{member.name} reads rows {member.sae.d_in} wide, {model.name} gives {model.d_in}")
            self._lenses[member.name] = Lens(member.sae, model)
        return self._lenses[member.name]

    def meta_results(self) -> list[MetaResult]:
        """Every result of `saelab meta` that is loaded, of whichever SAE; ValueError if one is damaged."""
        return [MetaResult.open(folder) for folder in self.results["meta"]]

    def meta(self, member: Member) -> MetaResult | None:
        """The result of `saelab meta` for an SAE, None if none is loaded; ValueError if one is damaged."""
        if member.name not in self._metas:
            names = (member.name, member.folder.resolve().name)
            found = (one for one in reversed(self.meta_results()) if one.sae_name in names)
            self._metas[member.name] = next(found, None)
        return self._metas[member.name]

    def nearest(self, a: Member, b: Member) -> tuple[Nearest, Nearest]:
        """The nearest latent of B for each of A's, and of A for each of B's, by the cosine of their directions."""
        if (a.name, b.name) not in self._nearest:
            pairs = [(directions_of(a.sae), directions_of(b.sae)), (directions_of(b.sae), directions_of(a.sae))]
            to_b, to_a = (Nearest(*(part[:, 0].numpy() for part in nearest(*pair))) for pair in pairs)
            self._nearest[a.name, b.name] = to_b, to_a
        return self._nearest[a.name, b.name]


def scaling_files(path: Path) -> list[Path]:
    """The files of `saelab scaling` in a folder, or the one that a path is; ValueError for one that is damaged."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.suffix == ".json" else []
    return [file for file in files if read_json(file).get("kind") in SCALING]


def _free(name: str, taken: dict[str, Member]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found
