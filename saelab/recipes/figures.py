"""`saelab figures`: draw what was measured of runs."""

from pathlib import Path

from saelab.core.files import read_tensors
from saelab.core.run import Run
from saelab.figures.scores import ScoredSAE, figures
from saelab.figures.theme import write_figures
from saelab.metrics.table import read_columns, write_csv
from saelab.sae.sae import load


def draw_runs(runs: list[str], out: str = "figures") -> None:
    """Draw the scores and tables of runs, as HTML and SVG; the tables are written beside them as CSV.

    Args:
        runs: folders of runs that were measured.
        out: folder to write into; figures of the same names in it are replaced.
    """
    saes = [_drawn(run, name) for run, name in _named(runs).items()]
    made = figures(saes)
    if not made:
        raise ValueError("nothing of these runs can be drawn: `saelab measure` first")
    for path in write_figures(made, Path(out)):
        print(path)
    for sae in saes:
        for name, table in sae.tables.items():
            write_csv(Path(out) / f"{sae.name}-{name}.csv", table)


def _named(runs: list[str]) -> dict[str, str]:
    """What each run is called: its folder's name, behind that of the folder it is in where runs share one."""
    folders = {run: Run.open(run).folder.resolve() for run in runs}
    names = [folder.name for folder in folders.values()]
    return {
        run: folder.name if names.count(folder.name) == 1 else f"{folder.parent.name}-{folder.name}"
        for run, folder in folders.items()
    }


def _drawn(path: str, name: str) -> ScoredSAE:
    run = Run.open(path)
    if not run.scores():
        raise ValueError(f"{path} has no scores yet: `saelab measure {path}` makes them")
    tables = {path.stem: read_columns(path) for path in sorted(run.tables.glob("*.parquet"))}
    latents = read_tensors(run.latents_file)[0] if run.latents_file.exists() else {}
    return ScoredSAE(name, load(path).n_latents, run.scores(), tables, latents)
