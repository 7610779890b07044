"""`saelab figures`: draw what was measured of runs."""

from pathlib import Path

from saelab.core.files import read_tensors
from saelab.core.run import Run
from saelab.metrics.figures import Drawn, figures, write_figures
from saelab.metrics.table import read_columns, write_csv
from saelab.sae.sae import load


def draw_runs(runs: list[str], out: str = "figures") -> None:
    """Draw the scores and tables of runs, as HTML and SVG; the tables are written beside them as CSV.

    Args:
        runs: folders of runs that were measured.
        out: folder to write into; figures of the same names in it are replaced.
    """
    saes = [_drawn(name) for name in runs]
    made = figures(saes)
    if not made:
        raise ValueError("nothing of these runs can be drawn: `saelab measure` first")
    for path in write_figures(made, Path(out)):
        print(path)
    for sae in saes:
        for name, table in sae.tables.items():
            write_csv(Path(out) / f"{sae.name}-{name}.csv", table)


def _drawn(name: str) -> Drawn:
    run = Run.open(name)
    if not run.scores():
        raise ValueError(f"{name} has no scores yet: `saelab measure {name}` makes them")
    tables = {path.stem: read_columns(path) for path in sorted(run.tables.glob("*.parquet"))}
    latents = read_tensors(run.latents_file)[0] if run.latents_file.exists() else {}
    return Drawn(run.folder.name, load(name).n_latents, run.scores(), tables, latents)
