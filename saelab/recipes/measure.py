"""`saelab measure`: every metric of any number of SAEs, as one table."""

import torch

from saelab.core.files import write_tensors
from saelab.core.run import Run
from saelab.metrics import StoreEvaluation, TextEvaluation, measure
from saelab.metrics.measure import Measured
from saelab.models.subject import Subject
from saelab.recipes.show import print_scores
from saelab.recipes.train import fingerprint_of, is_run, subject_of
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
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
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
    for reason in dict.fromkeys(f"skipped {m}: {why}" for one in found.values() for m, why in one.skipped.items()):
        print(reason)


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
        fingerprint, of = evaluation.model.fingerprint, evaluation.model.name
    else:
        fingerprint, of = str(evaluation.store.manifest.origin.get("fingerprint", "")), str(evaluation.store.folder)
    for name in names:
        trained_on = fingerprint_of(Run(name)) if is_run(name) else None
        if trained_on and fingerprint and trained_on != fingerprint:
            raise ValueError(f"{name} was trained on another model than {of}: their weights differ")
