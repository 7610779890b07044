"""`saelab measure`: every metric of any number of SAEs, as one table."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.core.mesh import device_named
from saelab.core.read import parse_yaml
from saelab.core.run import Run
from saelab.data.store import MANIFEST, Manifest
from saelab.metrics import Metric, StoreEvaluation, TextEvaluation, measure
from saelab.metrics.keep import keep_scores
from saelab.metrics.measure import DEFAULT, Measured, metric_settings
from saelab.models.subject import Subject
from saelab.recipes.score_table import print_scores
from saelab.recipes.task_choice import first_few, tasks_for
from saelab.runs import SavedRun, open_runs


@dataclass(frozen=True)
class Suite:
    """The metrics to compute.

    Args:
        metrics: class names of the metrics; `default` stands for those that run if none are named.
        options: settings of metrics, METRIC.SETTING=VALUE.
        tasks: files of labelled tasks; `python` stands for tasks made from the standard library, which are the default
            for the bundled model.
    """

    metrics: list[str] | None = None
    options: list[str] | None = None
    tasks: list[str] | None = None


def measure_runs(
    runs: list[str],
    tokens: int = 32_768,
    split: str = "held-out",
    subject: Subject | None = None,
    store: str | None = None,
    suite: Suite | None = None,
    device: str = "auto",
    out: str | None = None,
) -> None:
    """Measure SAEs and print one table; a run keeps its scores in scores.json, scores.parquet and its log.

    Args:
        runs: folders of runs, of sweeps, or of saved SAEs (then --subject or --store must say what to measure on).
        tokens: rows to measure on.
        split: which documents of the text: `held-out`, `train` or `all`.
        subject: model, site and text to measure on; by default what each run was trained on.
        store: measure on this store of activations instead; what needs the model is skipped and said so.
        suite: what is measured.
        device: where the SAEs run; auto is the GPU if there is one.
        out: folder for what is found, one in it for each run; by default the runs' own folders keep it.
    """
    opened = {run.title: run for run in open_runs(runs)}
    kept = _kept_in(opened.values(), out)
    if subject and store:
        raise ValueError("give --subject or --store, not both")
    if store and split != "held-out":
        raise ValueError("--split chooses documents of a text; with --store leave it out")
    suite = suite or Suite()
    place, metrics = device_named(device), with_options(suite.metrics or [DEFAULT], suite.options or [])
    groups: dict[Subject | str, dict[str, SavedRun]] = {}
    for name, run in opened.items():
        groups.setdefault(store or subject or run.needed_subject(), {})[name] = run
    found: dict[str, Measured] = {}
    read: list[str] = []
    seen: list[str] = []
    replaced: list[str] = []
    for data, members in groups.items():
        evaluation = _evaluation(data, tokens, split)
        _check_models(members, evaluation)
        origin = evaluation.origin()
        seen += _trained_on_it(members, origin["store"] if store else origin, store)
        if isinstance(evaluation, StoreEvaluation):
            read.append(evaluation.description())
        needed = any(Metric.build(one).needs_tasks for one in metric_settings(metrics))
        tasks, left_out = tasks_for(suite.tasks, evaluation) if needed else ([], {})
        saes = {name: run.load().to(place) for name, run in members.items()}
        measured = measure(saes, evaluation, metrics, tasks=tasks)
        for name in members:
            measured[name].skipped |= {f"task {task}": why for task, why in left_out.items()}
            if name in kept and not measured[name].broken and keep_scores(kept[name], measured[name], origin):
                replaced.append(f"scores of {name} on other data were replaced; its log.jsonl still has their values")
        found |= measured
    print_scores({name: found[name].as_json() for name in opened})
    for note in [*read, *seen, *replaced]:
        print(note)
    _say_skipped(found)
    broken = [one.broken for one in found.values() if one.broken]
    if broken:
        raise ValueError("; ".join(broken))


def _say_skipped(found: dict[str, Measured]) -> None:
    """Print what could not be measured and why, each reason once."""
    reasons = list(dict.fromkeys(f"skipped {m}: {why}" for one in found.values() for m, why in one.skipped.items()))
    of_tasks = [reason for reason in reasons if reason.startswith("skipped task ")]
    for reason in [*(reason for reason in reasons if reason not in of_tasks), *first_few(of_tasks)]:
        print(reason)


def _kept_in(opened: Iterable[SavedRun], out: str | None) -> dict[str, Run]:
    """The folder that keeps the scores of each SAE that has one; ValueError for one that cannot be written to."""
    if not out:
        kept = {run.title: run.files for run in opened if run.is_run}
    else:
        kept = {run.title: Run(Path(out) / run.name) for run in opened}
        if len({run.folder for run in kept.values()}) < len(kept):
            raise ValueError(f"two runs have the same folder name: measure them separately, or leave --out {out} out")
    for run in kept.values():
        there = next(folder for folder in (run.folder, *run.folder.resolve().parents) if folder.exists())
        if not os.access(there, os.W_OK) or not there.is_dir():
            raise ValueError(f"the scores cannot be written to {there}: give another folder with --out")
    return kept


def with_options(metrics: list[str], options: list[str]) -> list[str | dict[str, Any]]:
    """Metrics with the settings that options give them, from words such as "N2G.latents=100"."""
    settings: dict[str, dict[str, Any]] = {}
    for option in options:
        path, equals, value = option.partition("=")
        name, dot, key = path.partition(".")
        if not (equals and dot and name and key):
            raise ValueError(f"--options takes METRIC.SETTING=VALUE, such as Stability.most=64; got '{option}'")
        settings.setdefault(name, {"name": name})[key] = parse_yaml(value, f"--options {path}", Any, "mend that value")
    for name in settings:
        if name not in metrics and not (DEFAULT in metrics and Metric.named(name).by_default):
            raise ValueError(f"--options has a setting for {name}, which is not measured: name it in --metrics")
    return [*(name for name in metrics if name not in settings), *settings.values()]


def _trained_on_it(opened: Mapping[str, SavedRun], data: dict[str, Any], store: str | None) -> list[str]:
    """A note for each run that was trained on what it is measured on, by the data's origin and the rows themselves."""
    notes = []
    for name, run in opened.items():
        if store and _shards(store) & _shards(run.config.get("store")):
            notes.append(f"note: {name} was trained on these rows")
        elif _same_documents(run.origin, data):
            notes.append(f"note: {name} was trained on these documents")
    return notes


def _shards(store: Any) -> set[str]:
    """Checksums of a store's shards; none where there is no store any more."""
    if not isinstance(store, str) or not (Path(store) / MANIFEST).exists():
        return set()
    return {shard.sha256 for shard in Manifest.read(Path(store)).shards}


def _same_documents(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two origins name documents of one text, and not parts of it that are kept apart."""
    if "text" not in one or any(one.get(key) != other.get(key) for key in ("text", "field")):
        return False
    splits = (one.get("split"), other.get("split"))
    return splits[0] == splits[1] or "all" in splits


def _evaluation(data: Subject | str, tokens: int, split: str) -> TextEvaluation | StoreEvaluation:
    return StoreEvaluation(data, tokens) if isinstance(data, str) else TextEvaluation(data, tokens, split)


def _check_models(opened: Mapping[str, SavedRun], evaluation: TextEvaluation | StoreEvaluation) -> None:
    """ValueError if a run was trained on another model than it is measured on."""
    if isinstance(evaluation, TextEvaluation):
        model = evaluation.model
        found, of = {"fingerprint": model.fingerprint, "site": model.site, "target": model.target}, model.name
    else:
        found, of = evaluation.store.manifest.origin, str(evaluation.store.folder)
    for name, run in opened.items():
        own = run.origin
        if _differ(own, found, "fingerprint"):
            raise ValueError(f"{name} was trained on another model than {of}: the weights differ")
        for key in ("site", "target"):
            if _differ(own, found, key):
                raise ValueError(f"{name} was trained on the {key} {own[key]}, {of} gives the {key} {found[key]}")


def _differ(one: dict[str, Any], other: dict[str, Any], key: str) -> bool:
    return key in one and key in other and one[key] != other[key]
