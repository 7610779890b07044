"""`saelab figures`: draw what was measured of runs."""

from pathlib import Path

from saelab.figures.scores import COLUMNS, ScoredSAE, figures
from saelab.figures.theme import write_figures
from saelab.metrics.table import read_columns, write_csv
from saelab.runs import SavedRun, open_runs


def draw_runs(runs: list[str], out: str = "figures") -> None:
    """Draw the scores and tables of runs as HTML and SVG, and write the tables as CSV.

    Args:
        runs: folders of runs that were measured, or of sweeps of them.
        out: folder to write into; figures of the same names in it are replaced.
    """
    opened = list(open_runs(runs))
    saes = [_scored(run, name) for run, name in zip(opened, _names(opened), strict=True)]
    made = figures(saes)
    if not made:
        raise ValueError("nothing of these runs can be drawn: `saelab measure` first")
    for path in write_figures(made, Path(out)):
        print(path)
    for sae in saes:
        for name, table in sae.tables.items():
            write_csv(Path(out) / f"{sae.name}-{name}.csv", table)


def _names(runs: list[SavedRun]) -> list[str]:
    """What each run is called: its folder's name, behind that of the folder it is in where runs share one."""
    names = [run.name for run in runs]
    return [
        run.name if names.count(run.name) == 1 else f"{run.folder.resolve().parent.name}-{run.name}" for run in runs
    ]


def _scored(run: SavedRun, name: str) -> ScoredSAE:
    scores = run.scores
    if not scores:
        raise ValueError(f"{run.folder} has no scores yet: `saelab measure {run.folder}` makes them")
    tables = {name: read_columns(path, COLUMNS.get(name)) for name, path in run.tables.items()}
    return ScoredSAE(name, run.load().n_latents, scores, tables, run.latents)
