"""The index of published SAEs: where each lies, and its model, site, width and L0 as far as names and registries say.

    gpt2-small-res-jb/blocks.8.hook_resid_pre       RELEASE/SAE; the beginning of a name will do where it is only one's

It holds facts and no weights; `tools/index_published.py` makes it, and its source and date are in it. Which kinds of
files load, and why others do not, is the table KINDS here. Nothing is fetched here.
"""

import difflib
import functools
import gzip
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab.core.components import near_miss
from saelab.core.read import parse_json
from saelab.interchange.sites import CHANGES, site_of, source

FILE = Path(__file__).parents[1] / "assets" / "published.json.gz"
FORMAT = 1
RELEASE = {"repo": str, "model": str, "kind": str, "id": list, "path": list}
"""What a release has at least; its columns may also be `hook`, `width`, `l0` and `factor`, and `settings` a table."""
KINDS: dict[str, tuple[str, str]] = {
    "sae_lens": ("sae_lens", ""),
    "gemma_2": ("gemma_scope", ""),
    "gemma_2_transcoder": ("gemma_scope", ""),
    "gemma_3": ("gemma_scope", ""),
    "dictionary_learning_1": ("dictionary_learning", ""),
    "qwen_scope": ("qwen_scope", ""),
    "mwhanna_transcoder": ("circuit_tracer", ""),
    "llama_scope": ("llama_scope", ""),
    "goodfire": ("goodfire", ""),
    "llama_scope_r1_distill": ("llamascopium", ""),
    "connor_rob_hook_z": ("hook_z", ""),
    "deepseek_r1": ("dictionary_learning", ""),
    "mntss_clt_layer_transcoder": (
        "circuit_tracer_clt",
        "it is a layer of a cross-layer transcoder",
    ),
    "temporal": ("temporal", "a temporal SAE reads earlier tokens as well, which saelab's SAE does not"),
}
"""Kinds of releases: the family of their files, and why they cannot be loaded; empty where they can."""


@dataclass(frozen=True)
class Published:
    """One published SAE."""

    release: str
    id: str
    repo: str
    """On the hub."""
    path: str
    """Its folder or file there."""
    model: str
    """Name on the hub."""
    hook: str | None
    """What it reads, by TransformerLens' names."""
    width: int | None
    l0: float | None
    family: str
    reason: str
    """Why it cannot be loaded; empty if it can."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What its files should say and do not, by file."""

    @property
    def name(self) -> str:
        """By which it is loaded."""
        return f"{self.release}/{self.id}"

    @property
    def site(self) -> str | None:
        """The hook as a site of the model's own modules, where that is certain."""
        return site_of(self.model, self.hook) if self.hook else None

    def source(self) -> dict[str, Any]:
        """Model and site as a run's source.json has them; empty unless both are certain, and of SAEs of one site."""
        options = self.settings.get("cfg.json", {}).get("model_from_pretrained_kwargs", {})
        if any(options.get(key) for key in CHANGES) or "transcoder" in f"{self.release} {self.path}":
            return {}
        return source(self.model, self.site)


@functools.cache
def index() -> dict[str, Any]:
    """What the file holds: `source`, `date`, and `releases` by name, each with columns."""
    if not FILE.exists():
        raise ValueError(f"the index of published SAEs is missing from {FILE}: install saelab again")
    kinds = {"format": FORMAT, "source": str, "date": str, "releases": {str: RELEASE}}
    found: dict[str, Any] = parse_json(gzip.decompress(FILE.read_bytes()), FILE, kinds, remedy="install saelab again")
    return found


def published(release: str | None = None) -> Iterator[Published]:
    """All of the index, or one release of it."""
    for name, table in index()["releases"].items():
        if release in (None, name):
            yield from _of_release(name, table)


def _of_release(name: str, table: dict[str, Any]) -> Iterator[Published]:
    family, reason = KINDS.get(table["kind"], (table["kind"], "its family is not known"))
    nothing = [None] * len(table["id"])
    columns = (table.get(key, nothing) for key in ("id", "path", "hook", "width", "l0", "factor"))
    overridden = {"cfg.json": table["settings"]} if "settings" in table else {}
    for sae, path, hook, width, l0, factor in zip(*columns, strict=True):
        scaler = {"activation_scaler.json": {"scaling_factor": factor}} if factor and family == "sae_lens" else {}
        about = (table["model"], hook, width, l0, family, reason, overridden | scaler)
        yield Published(name, sae, table["repo"], path, *about)


def find(name: str) -> Published | None:
    """The SAE of that name; None if no release is called so.

    Raises:
        ValueError: for a name that a release has not, or that is the beginning of several.
    """
    release, _, sae = name.partition("/")
    if release not in index()["releases"]:
        return None
    inside = {one.id: one for one in published(release)}
    if sae in inside:
        return inside[sae]
    begun = [one for one in inside if sae and one.startswith(sae) and not one[len(sae)].isalnum()]
    if len(begun) == 1:
        return inside[begun[0]]
    if len(inside) == 1 and not sae:
        return next(iter(inside.values()))
    if begun or not sae:
        some = ", ".join(f"{release}/{one}" for one in (begun or list(inside))[:3])
        raise ValueError(f"{name} is the name of {len(begun or inside)} published SAEs: give one, such as {some}")
    raise ValueError(f"the release {release} has no SAE '{sae}'{near_miss(sae, inside)}")


def latents(text: str) -> int:
    """How many latents names mean: "16384", and "16k", "131k" or "1m", which are powers of two where one is near."""
    found = re.fullmatch(r"(\d+)([km]?)", text.lower())
    if not found or not int(found[1]):
        raise ValueError(f"expected a number of latents, such as 16384 or 16k; got '{text}'")
    if not found[2]:
        return int(text)
    count = int(found[1]) * {"k": 1000, "m": 1_000_000}[found[2]]
    power = 1 << round(math.log2(count))
    return power if abs(power / count - 1) < 0.05 else count * 1024 // 1000


def hint(name: str) -> str:
    """The words "; did you mean ...?" for a name that begins almost like one of a release; otherwise empty."""
    release, slash, sae = name.partition("/")
    close = difflib.get_close_matches(release, index()["releases"], n=1, cutoff=0.85)
    return f"; did you mean '{close[0]}{slash}{sae}'?" if close else ""


def at(repo: str, path: str) -> Published | None:
    """What the index has of a place on the hub; None where it knows of nothing there."""
    return next((one for one in published() if (one.repo, one.path) == (repo, path)), None)
