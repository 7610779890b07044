"""`saelab measure`: every metric of any number of SAEs, as one table."""

from typing import Any

from saelab.core.files import write_tensors
from saelab.core.mesh import device_named
from saelab.core.run import Run
from saelab.data.store import Store
from saelab.metrics import StoreEvaluation, TextEvaluation, measure
from saelab.metrics.measure import Measured
from saelab.models.subject import Subject
from saelab.recipes.show import print_scores
from saelab.recipes.train import is_run, origin_of, subject_of
from saelab.sae.sae import load


def measure_runs(
    runs: list[str],
    tokens: int = 32_768,
    split: str = "held-out",
    subject: Subject | None = None,
    store: str | None = None,
    metrics: list[str] | None = None,
    device: str = "auto",
) -> None:
    """Measure SAEs and print one table; a run keeps its scores in scores.json.

    Args:
        runs: folders of runs, or of saved SAEs (then --subject or --store must say what to measure on).
        tokens: rows to measure on.
        split: which documents of the text: `held-out`, `train` or `all`.
        subject: model, site and text to measure on; by default what each run was trained on.
        store: measure on this store of activations instead; what needs the model is skipped and said so.
        metrics: class names of the metrics; by default all.
        device: where the SAEs run; auto is the GPU if there is one.
    """
    if subject and store:
        raise ValueError("give --subject or --store, not both")
    if store and split != "held-out":
        raise ValueError("--split chooses documents of a text; with --store leave it out")
    place = device_named(device)
    groups: dict[Subject | str, list[str]] = {}
    for name in runs:
        if not is_run(name) and not (subject or store):
            Run.open(name)
        groups.setdefault(store or subject or subject_of(Run.open(name)), []).append(name)
    found: dict[str, Measured] = {}
    for data, names in groups.items():
        evaluation = _evaluation(data, tokens, split)
        _check_models(names, evaluation)
        found |= measure({name: load(name).to(place) for name in names}, evaluation, metrics)
    for name, measured in found.items():
        if is_run(name):
            keep(Run.open(name), measured)
    print_scores({name: {key: score.as_json() for key, score in found[name].scores.items()} for name in runs})
    for note in _trained_on_it(runs, split, store):
        print(note)
    for reason in dict.fromkeys(f"skipped {m}: {why}" for one in found.values() for m, why in one.skipped.items()):
        print(reason)


def _trained_on_it(runs: list[str], split: str, store: str | None) -> list[str]:
    """A note for each run that was trained on the documents it is measured on."""
    seen = Store(store).manifest.origin if store else {}
    notes = []
    for name in runs:
        origin = origin_of(Run(name)) if is_run(name) else {}
        if origin and (origin == seen if store else origin.get("split") in ("all", split)):
            notes.append(f"note: {name} was trained on these documents")
    return notes


def _evaluation(data: Subject | str, tokens: int, split: str) -> TextEvaluation | StoreEvaluation:
    return StoreEvaluation(data, tokens) if isinstance(data, str) else TextEvaluation(data, tokens, split)


def keep(run: Run, measured: Measured) -> None:
    """Write what was measured into a run's folder."""
    run.write_scores({key: score.as_json() for key, score in measured.scores.items()})
    if measured.latents:
        write_tensors(run.latents_file, measured.latents)


def _check_models(names: list[str], evaluation: TextEvaluation | StoreEvaluation) -> None:
    """ValueError if a run was trained on another model than it is measured on."""
    if isinstance(evaluation, TextEvaluation):
        model = evaluation.model
        found, of = {"fingerprint": model.fingerprint, "site": model.site, "target": model.target}, model.name
    else:
        found, of = evaluation.store.manifest.origin, str(evaluation.store.folder)
    for name in names:
        own = origin_of(Run(name)) if is_run(name) else {}
        if _differ(own, found, "fingerprint"):
            raise ValueError(f"{name} was trained on another model than {of}: their weights differ")
        for key in ("site", "target"):
            if _differ(own, found, key):
                raise ValueError(f"{name} was trained on the {key} {own[key]}, {of} gives the {key} {found[key]}")


def _differ(one: dict[str, Any], other: dict[str, Any], key: str) -> bool:
    return key in one and key in other and one[key] != other[key]
