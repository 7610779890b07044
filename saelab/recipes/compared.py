"""SAEs that are compared with each other, and the data they are compared on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.analysis.comparable import check_comparable, check_origins, check_width, error_and_l0, poor_fit_warning
from saelab.analysis.rows import Rows
from saelab.core.mesh import device_named
from saelab.core.run import SOURCE_FILE, Run
from saelab.metrics import StoreEvaluation, TextEvaluation
from saelab.models.subject import Subject
from saelab.models.token_text import TokenText
from saelab.runs import open_run
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.base import Dictionary
from saelab.sae.sae import SAE

README = """# An SAE that was put together

It was not trained but made by `saelab {command}` of latents of other SAEs; `config.yaml` says of which.
`saelab measure {name}` measures it, `saelab.load("{name}")` opens it.
"""


@dataclass(frozen=True)
class Data:
    """The rows that SAEs are compared on.

    Args:
        tokens: number of rows; they are held in memory.
        split: which documents of the text: `held-out`, `train` or `all`.
        subject: model, site and text; by default what the first run was trained on.
        store: a store of activations instead; results that need the model are then skipped, with a note.
        device: where the SAEs run; auto is the GPU if there is one.
    """

    tokens: int = 65_536
    split: str = "held-out"
    subject: Subject | None = None
    store: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(f"tokens must be at least 0, got {self.tokens}")
        if self.subject and self.store:
            raise ValueError("give --subject or --store, not both")
        if self.store and self.split != "held-out":
            raise ValueError("--split chooses documents of a text; with --store leave it out")

    def evaluation(self, first: str, tokens: int | None = None) -> TextEvaluation | StoreEvaluation:
        """The data, of which `tokens` rows; of what the run `first` was trained on where nothing else is said."""
        if self.store:
            return StoreEvaluation(self.store, tokens or self.tokens)
        subject = self.subject or open_run(first).needed_subject()
        return TextEvaluation(subject, tokens or self.tokens, self.split)


def opened(names: list[str], device: str, across: bool = False) -> dict[str, Autoencoder]:
    """SAEs by the names of their folders; ValueError if they cannot be compared or hold NaN."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice")
    saes = {name: open_run(name).load().to(device_named(device)) for name in names}
    for name, sae in saes.items():
        weights = [part for module in sae.modules() if isinstance(module, Dictionary) for part in module.parameters()]
        if not all(torch.isfinite(part).all() for part in weights):
            raise ValueError(f"{name} is broken: its weights hold NaN or infinity")
    check_comparable(saes, {name: origin(name) for name in names}, across)
    return saes


def origin(name: str) -> dict[str, Any]:
    """What an SAE's rows were made from, as far as its folder says."""
    return open_run(name).origin


def rows_of(evaluation: TextEvaluation | StoreEvaluation, first: str) -> Rows:
    """The rows of an evaluation; ValueError if the SAE `first` was trained on another model or site."""
    found = evaluation.origin()
    found = found.get("store", found)
    known = {key: found[key] for key in ("fingerprint", "site", "target", "average", "world") if key in found}
    own = {key: value for key, value in origin(first).items() if key in known}
    check_origins(first, "the data", {first: own, "the data": {key: known[key] for key in own}})
    return Rows.of(evaluation)


def check_show(show: int) -> None:
    """ValueError for a negative number of lines."""
    if show < 0:
        raise ValueError(f"show must be at least 0, got {show}")


def keep_sae(sae: SAE, folder: Path, command: str, settings: Mapping[str, Any], of: str) -> None:
    """Save an SAE that was put together as a run, which can be measured and explored, with the origin of run `of`."""
    beside = {SOURCE_FILE: origin(of)} if origin(of) else {}
    run = Run.create(folder, {command: dict(settings)}, beside, README.replace("{command}", command))
    sae.save(run.sae)


def token_text_of(evaluation: TextEvaluation | StoreEvaluation) -> TokenText | None:
    """What the tokens of the model that the rows come from stand for; None where it is not at hand."""
    if isinstance(evaluation, TextEvaluation):
        return evaluation.model.token_text
    model = evaluation.store.manifest.origin.get("model")
    site = evaluation.store.manifest.origin.get("site")
    if not model or not site:
        return None
    return Subject(model=model, site=site, device="cpu").language_model().token_text


def sample_of(rows: Rows) -> torch.Tensor:
    """Rows that TopK's threshold is set on, and that it is said on how well SAEs reconstruct."""
    return rows.x[:8192]


def print_fits(saes: Mapping[str, Autoencoder], rows: Rows) -> dict[str, dict[str, float]]:
    """Print how well each SAE reconstructs a sample of the rows, and what is to be doubted; the same for a file."""
    sample, found = Rows.independent(sample_of(rows)), {}
    for name, sae in saes.items():
        check_width(name, sae, sample)
        mse, l0 = error_and_l0(sae, sample)
        found[name] = {"fvu": mse / sample.variance, "l0": l0, "rows": len(sample)}
        print(f"{name}: FVU {found[name]['fvu']:.4g}, L0 {l0:.4g} on {len(sample):,} rows")
    warn_of_poor_fits({name: fit["fvu"] for name, fit in found.items()})
    return found


def warn_of_poor_fits(fvu: Mapping[str, float]) -> None:
    """Warn, a line each, of SAEs that hardly reconstruct the rows."""
    for name, value in fvu.items():
        if warning := poor_fit_warning(name, value):
            print(f"warning: {warning}")
