"""`saelab stitch`: what larger SAEs know that smaller ones do not, and the way from one to the next."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saelab.analysis.insertion import CLASSES
from saelab.analysis.loss_along import loss_along
from saelab.analysis.rows import Rows
from saelab.analysis.stitch import Stitched, StitchSettings, stitch
from saelab.core.files import whole_folder
from saelab.metrics import TextEvaluation
from saelab.metrics.base import LEAST_DOCUMENTS
from saelab.recipes.compared import Data, keep_sae, opened, rows_of, warn_of_poor_fits
from saelab.recipes.score_table import few_documents

WORSE = 1.02
"""How much larger an error is worth a warning. TopK SAEs lose more the wider they are, and then hide what they know."""


def stitch_runs(runs: list[str], out: str, settings: StitchSettings, data: Data, figures: bool = True) -> None:
    """Test which latents of each SAE are novel to the next smaller one, and interpolate between them.

    Args:
        runs: folders of runs or saved SAEs, two or more.
        out: folder for the results, new or empty.
        settings: of the test and the interpolation.
        data: rows to evaluate on.
        figures: whether to draw path.html and scatter.html there.
    """
    if len(runs) < 2:
        raise ValueError(f"stitching needs at least 2 SAEs: give 2 runs or more, got {len(runs)}")
    with whole_folder(out) as folder:
        saes = opened(runs, data.device)
        for small, large in pairwise(runs):
            if saes[small].n_latents > saes[large].n_latents:
                sizes = f"{saes[small].n_latents:,} latents and {large} after it {saes[large].n_latents:,}"
                raise ValueError(f"SAEs are stitched from small to large: {small} has {sizes}")
        evaluation = data.evaluation(runs[0])
        rows, loss = rows_of(evaluation, runs[0]), None
        if settings.ce_points and not evaluation.why_no_model and isinstance(evaluation, TextEvaluation):
            loss = loss_along(TextEvaluation(evaluation.subject, settings.ce_tokens, data.split, evaluation.model))
        found = stitch(saes, rows, settings, loss)
        found.write(folder)
        for number, pair in enumerate(found.pairs):
            step = pair.steps.last("insert")
            about = {"small": pair.names[0], "large": pair.names[1], "step": step, "latents": "small and novel"}
            keep_sae(pair.sae(step), folder / f"pair-{number}" / "stitched", "stitch", about, runs[0])
        if figures:
            _draw(found, folder)
    _print(found, rows)
    warn_of_poor_fits({name: own.mse / found.variance for name, own in zip(found.names, found.points, strict=True)})
    for name, own, mse in zip(found.names, found.points, found.trained, strict=True):
        if own.mse > WORSE * mse:
            fvu = f"{own.mse / found.variance:.4g}, as trained {mse / found.variance:.4g}"
            print(f"warning: {name} reconstructs worse with a threshold (FVU {fvu}): its latents may look less novel")
    if settings.ce_points and not loss:
        print(f"skipped ce_delta: {evaluation.why_no_model}")
    print(
        f"{out}: stitch.json, path.parquet, pair-*/; `saelab measure {out}/pair-0/stitched` measures what was stitched"
    )


def _draw(found: Stitched, folder: Path) -> None:
    from saelab.figures.comparisons import path_figure, scatter_figure
    from saelab.figures.theme import write_page

    path = path_figure(found.path(), found.summary()["saes"], "Stitching a ladder")
    write_page([path], folder / "path.html", "The way from one SAE to the next")
    scatters = []
    for pair in found.pairs:
        kinds = [CLASSES[kind] for kind in pair.insertion.kind.tolist()]
        title = " to ".join(Path(name).name for name in pair.names)
        cosine, delta = pair.cosine.tolist(), pair.insertion.delta.tolist()
        scatters.append(scatter_figure(cosine, delta, kinds, title, found.settings.threshold))
    write_page(scatters, folder / "scatter.html", "Insertion test")


def _print(found: Stitched, rows: Rows) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=10_000)
    table = _table(["SAE", "latents", "FVU", "L0", "FVU as trained"])
    for name, own, mse in zip(found.names, found.points, found.trained, strict=True):
        fvu = [f"{value / found.variance:.4g}" for value in (own.mse, mse)]
        table.add_row(name, f"{own.n_latents:,}", fvu[0], f"{own.l0:.4g}", fvu[1])
    console.print(table)
    table = _table(["pair", *CLASSES, "AUC", "accuracy", "at best", "FVU with novel"])
    for pair in found.pairs:
        line, rule = pair.summary(), pair.rule
        counts = [f"{count:,}" for count in line["counts"].values()]
        point = next(point for point in pair.path if point.step == pair.steps.last("insert"))
        best = "" if rule["best_threshold"] is None else f"{rule['best_accuracy']:.3f} ({rule['best_threshold']:.2f})"
        told = [_number(rule["auc"]), _number(rule["accuracy"]), best, f"{point.mse / found.variance:.4g}"]
        table.add_row(f"{pair.names[0]} to {pair.names[1]}", *counts, *told)
    console.print(table)
    documents = len(rows.group.unique())
    for line in (pair.summary() for pair in found.pairs):
        if said := _undecided(line, found.rows, documents):
            print(said)


def _undecided(pair: dict[str, Any], rows: int, documents: int) -> str:
    """How many rows would decide what is undecided of a pair; empty if that is less than half of it."""
    undecided, total = pair["counts"]["undecided"], sum(pair["counts"].values())
    if 2 * undecided < total:
        return ""
    said = f"{pair['small']} to {pair['large']}: {undecided:,} of {total:,} are undecided on {rows:,} rows"
    if documents < LEAST_DOCUMENTS:
        return f"{said} of {few_documents(documents)}: intervals need {LEAST_DOCUMENTS}; give more --tokens"
    more = pair["rows_to_decide"]
    return f"{said}; about {more:,} would decide half of these, going by their intervals: --tokens" if more else said


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"
