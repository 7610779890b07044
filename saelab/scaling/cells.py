"""Cells: what laws are fitted to. A cell is one trained SAE with its settings, its loss and its loss curve.

Cells are read from runs: the settings from `sae/config.json` and `config.yaml`, the curve from `log.jsonl`, what the
rows were from `source.json`. The loss is the FVU:

    held-out    from `scores.json`, where `saelab measure` has left it
    training    otherwise: the mean over the records of the last 5 % of rows (rows the SAE has not seen before, as long
                as the source does not repeat itself)

`write_cells` keeps them as two tables, one line a cell and one line a record:

    cells.parquet     name, folder, n, k, seed, lr, batch, d_in, rows, loss, loss_low, loss_high, loss_from, l0,
                      converged_rows (null: not converged), fall, tolerance, compute (FLOP), rows_per_second,
                      together (SAEs trained as one computation), architecture, data, normalisation
    curves.parquet    name, rows, compute (FLOP), loss (FVU of the batch), lr

`k` is the activation's, or the measured L0 of one that has none.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from saelab.core.components import kind_of
from saelab.core.files import TensorFile
from saelab.core.read import expect
from saelab.data.parquet import read_parquet, write_parquet
from saelab.runs import SavedRun, open_run
from saelab.sae.autoencoder import ENSEMBLE
from saelab.sae.base import Activation
from saelab.scaling.compute import flops_a_row
from saelab.scaling.fit import Points
from saelab.scaling.law import Law
from saelab.train.convergence import Convergence, at_full_rate, fall

SETTINGS = {"converge?": (float, None), "trainer?": {"batch?": int}}
"""What is read of a run's config.yaml."""
FIT_AGAIN = "restore it from a copy, or write it again with `saelab scaling fit`"
TAIL = 0.05
"""Share of the rows, at the end, that a training loss is averaged over."""
DATA = ("model", "fingerprint", "site", "target", "average", "world", "text")
"""What of a source says whether two cells saw the same kind of rows."""


@dataclass(frozen=True)
class Cell:
    """One trained SAE."""

    name: str
    folder: str
    n: int
    k: float
    seed: int
    lr: float
    batch: int
    d_in: int
    rows: int
    loss: float
    loss_low: float | None
    loss_high: float | None
    loss_from: str
    l0: float
    converged_rows: int | None
    fall: float | None
    tolerance: float
    compute: float
    rows_per_second: float
    """Of all SAEs that were trained together."""
    together: int
    architecture: str
    data: str
    normalisation: float | None
    """Scale that rows are divided by; None for a cell without saved weights."""
    curve: dict[str, list[float]] = field(default_factory=dict, repr=False)
    """rows, compute, loss and lr of each record."""

    @property
    def converged(self) -> bool:
        return self.converged_rows is not None


def read_cells(paths: Iterable[str | Path], tolerance: float | None = None) -> list[Cell]:
    """Cells of runs, of sweeps (folders with a sweep.json), or of a cells.parquet.

    Args:
        paths: folders or tables.
        tolerance: of the criterion of convergence; by default each run's own `converge`, or 0.02.

    Raises:
        ValueError: that names the file, for a folder that holds no finished run, or one that is given twice.
    """
    found: list[Cell] = []
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            found += _from_table(path, tolerance)
        else:
            found += _of_run(open_run(path), tolerance)
    folders = Counter(cell.folder for cell in found)
    if twice := [folder for folder, count in folders.items() if count > 1]:
        raise ValueError(f"{twice[0]} was given twice: each cell counts once")
    names = [cell.name for cell in found]
    if len(set(names)) < len(names):  # sweeps of several widths have members of the same names
        found = [replace(cell, name=f"{Path(cell.folder).parent.name}/{cell.name}") for cell in found]
    return found


def _of_run(run: SavedRun, tolerance: float | None) -> list[Cell]:
    """The cell of a run, or those of a sweep; of one width, all members were trained together."""
    cells = [read_cell(member, tolerance) for member in run.members]
    widths = Counter(cell.n for cell in cells)
    return [replace(cell, together=widths[cell.n]) for cell in cells]


def read_cell(run: SavedRun, tolerance: float | None = None) -> Cell:
    """The cell of one run; ValueError if it is none, or is not finished."""
    if not run.is_run:
        raise ValueError(f"{run.folder} has no settings and no log: laws are of runs of `saelab train` and `sweep`")
    settings = expect(run.config, SETTINGS, run.files.config_file)
    sae = run.sae_config
    if sae.get("kind") == ENSEMBLE:
        raise ValueError(f"{run.folder} is an ensemble: laws are of single SAEs")
    records = run.training_log
    if not records:
        raise ValueError(f"{run.files.log_file} has no records")
    activation = Activation.build(sae["activation"])
    tail = [record for record in records if record["rows"] > (1 - TAIL) * records[-1]["rows"]] or records[-1:]
    l0 = float(np.mean([record["l0"] for record in tail]))
    k = float(sae["activation"].get("k") or l0)
    cost = flops_a_row(sae["d_in"], sae["n_latents"], k, activation.topk_k is not None)
    criterion = Convergence(tolerance or settings.get("converge") or Convergence().tolerance)
    rows, fvus = at_full_rate(records)
    losses, low, high, origin = _loss(run, tail)
    return Cell(
        name=run.name,
        folder=str(run.folder),
        n=sae["n_latents"],
        k=k,
        seed=sae.get("seed", 0),
        lr=max(record["lr"] for record in records),
        batch=settings.get("trainer", {}).get("batch", 0),
        d_in=sae["d_in"],
        rows=records[-1]["rows"],
        loss=losses,
        loss_low=low,
        loss_high=high,
        loss_from=origin,
        l0=l0,
        converged_rows=criterion.first(rows, fvus),
        fall=fall(rows, fvus),
        tolerance=criterion.tolerance,
        compute=cost * records[-1]["rows"],
        rows_per_second=float(np.median([record["rows_per_second"] or 0.0 for record in records])),
        together=1,
        architecture=_architecture(sae),
        data=_data(run),
        normalisation=_scale(run.weights_file),
        curve={
            "rows": [float(record["rows"]) for record in records],
            "compute": [cost * record["rows"] for record in records],
            "loss": [float("nan") if record["fvu"] is None else record["fvu"] for record in records],
            "lr": [record["lr"] for record in records],
        },
    )


def _loss(run: SavedRun, tail: Sequence[dict[str, Any]]) -> tuple[float, float | None, float | None, str]:
    score = run.scores.get("fvu")
    if score:
        return score["value"], score["low"], score["high"], "held-out"
    fvus = [record["fvu"] for record in tail if record["fvu"] is not None]
    if not fvus:
        raise ValueError(f"{run.files.log_file}: the FVU of the last records is not finite: train {run.folder} again")
    return float(np.mean(fvus)), None, None, "training"


def _architecture(sae: dict[str, Any]) -> str:
    parts = [sae.get("dictionary", {"name": "Dense"}), sae["activation"], *sae.get("losses", [])]
    parts += [sae["scale"]] if "scale" in sae else []
    return " ".join(part["name"] for part in parts)


def _data(run: SavedRun) -> str:
    origin = run.origin
    return "; ".join(f"{key} {origin[key]}" for key in DATA if origin.get(key) is not None)


def _scale(path: Path) -> float | None:
    """The one number of an SAE's normalisation, read alone from its file."""
    file = TensorFile(path) if path.exists() else None
    return float(file.get("scale.scale").double().mean()) if file and "scale.scale" in file.names else None


# ---- whether cells go together, and as numbers ----


def check_alike(cells: Sequence[Cell], but: Sequence[str] = ()) -> None:
    """ValueError unless cells come from one kind of rows, normalised alike, of one architecture and kind of loss.

    Args:
        cells: at least one.
        but: fields that may differ.
    """
    if not cells:
        raise ValueError("there are no cells: give runs or sweeps")
    first = cells[0]
    for key, what in (
        ("data", "sites or data"),
        ("d_in", "widths of rows"),
        ("architecture", "architectures"),
        ("loss_from", "kinds of loss (measure all of them, or none)"),
    ):
        for cell in cells if key not in but else []:
            own, wanted = getattr(cell, key), getattr(first, key)
            if own != wanted:
                raise ValueError(
                    f"mixed {what}: {first.name} has '{wanted}', {cell.name} has '{own}'; fit them separately"
                )
    for cell in cells if "normalisation" not in but else []:
        own_scale, scale = cell.normalisation, first.normalisation
        if own_scale is not None and scale is not None and abs(own_scale / scale - 1) > 0.02:
            raise ValueError(
                f"mixed normalisations: {first.name} divides rows by {scale:.4g}, {cell.name} by {own_scale:.4g}; "
                "fit them apart"
            )


def check_converged(cells: Sequence[Cell], instead: str = "set --converged_only true") -> None:
    """ValueError that names the cells which have not converged, and what can be done."""
    left = [cell for cell in cells if not cell.converged]
    if left:
        named = ", ".join(
            f"{cell.name} ({'too short a log' if cell.fall is None else f'still falls {cell.fall:.1%} a doubling'})"
            for cell in left[:4]
        )
        raise ValueError(
            f"{len(left)} of {len(cells)} cells have not converged to {left[0].tolerance:.1%} a doubling of rows: "
            f"{named}{', ...' if len(left) > 4 else ''}; train them longer, or {instead}"
        )


def points(cells: Sequence[Cell], law: Law) -> Points:
    """Cells as numbers for a law."""
    columns = [[_column(cell, variable) for variable in law.variables] for cell in cells]
    target = [_column(cell, law.target) for cell in cells]
    return Points(np.array(columns, float), np.array(target, float), [cell.name for cell in cells])


def _column(cell: Cell, name: str) -> float:
    value = cell.d_in if name == "subject" else getattr(cell, name)
    return float("nan") if value is None else float(value)


# ---- tables ----


def write_cells(folder: str | Path, cells: Sequence[Cell]) -> Path:
    """Write cells.parquet and curves.parquet; returns the path of the first."""
    import pyarrow as pa

    folder = Path(folder)
    lines = [{key: value for key, value in asdict(cell).items() if key != "curve"} for cell in cells]
    curves: dict[str, list[Any]] = {key: [] for key in ("name", "rows", "compute", "loss", "lr")}
    for cell in cells:
        count = len(cell.curve.get("rows", ()))
        curves["name"] += [cell.name] * count
        for key in ("rows", "compute", "loss", "lr"):
            curves[key] += cell.curve.get(key, [])
    write_parquet(folder / "curves.parquet", pa.table(curves))
    write_parquet(folder / "cells.parquet", pa.Table.from_pylist(lines))
    return folder / "cells.parquet"


def _from_table(path: Path, tolerance: float | None) -> list[Cell]:
    kinds = {name: kind_of(hint) for name, hint in get_type_hints(Cell).items() if name != "curve"}
    lines = read_parquet(path, kinds, FIT_AGAIN).select(list(kinds)).to_pylist()
    curves: dict[str, dict[str, list[float]]] = {}
    if (beside := path.with_name("curves.parquet")).exists():
        columns = {"name": str, "rows": float, "compute": float, "loss": float, "lr": float}
        for line in read_parquet(beside, columns, FIT_AGAIN).to_pylist():
            own = curves.setdefault(line.pop("name"), {})
            for key, value in line.items():
                own.setdefault(key, []).append(value)
    if not lines:
        raise ValueError(f"{path} holds no cells; {FIT_AGAIN}")
    cells = [Cell(**line, curve=curves.get(line["name"], {})) for line in lines]
    return [_judged(cell, tolerance) for cell in cells] if tolerance else cells


def _judged(cell: Cell, tolerance: float) -> Cell:
    """A cell with the rows of its convergence by another tolerance, from its curve; as it is without one."""
    if not cell.curve:
        return cell
    lines = zip(*(cell.curve[key] for key in ("rows", "loss", "lr")), strict=True)
    records = [{"rows": rows, "fvu": loss, "lr": lr} for rows, loss, lr in lines if np.isfinite(loss)]
    rows, fvus = at_full_rate(records)
    return replace(cell, converged_rows=Convergence(tolerance).first(rows, fvus), tolerance=tolerance)
