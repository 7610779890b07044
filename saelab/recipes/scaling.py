"""`saelab scaling fit | plan`: laws of a ladder of SAEs, and plans made from them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saelab.core.components import near_miss
from saelab.core.files import write_json
from saelab.core.mesh import device_named
from saelab.scaling import plan as planning
from saelab.scaling.cells import Cell, check_alike, check_converged, points, read_cells, write_cells
from saelab.scaling.envelope import best_rates, envelope
from saelab.scaling.files import read_fit, write_fit
from saelab.scaling.fit import Fit, fit
from saelab.scaling.law import Law
from saelab.scaling.laws.compute import ComputeLaw
from saelab.scaling.laws.joint import JointLaw
from saelab.scaling.laws.rate import RateLaw
from saelab.scaling.laws.subject import SubjectLaw
from saelab.scaling.laws.tokens import TokensLaw
from saelab.scaling.laws.width import WidthLaw
from saelab.scaling.throughput import measure, of_cells
from saelab.train.convergence import Convergence

LAWS = ("joint", "width", "compute", "tokens", "rate", "subject")
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass
class Fitted:
    """One law of a ladder, or why there is none."""

    name: str
    k: float | None
    fit: Fit | None
    why: str = ""
    notes: tuple[str, ...] = ()


def fit_laws(
    runs: list[str],
    out: str,
    laws: list[str] | None = None,
    rates: list[str] | None = None,
    hold_out: int = 1,
    tolerance: float | None = None,
    converged_only: bool = False,
    figures: bool = False,
) -> None:
    """Fit scaling laws to a ladder of SAEs and write them into a folder for `saelab scaling plan`.

    Args:
        runs: folders of sweeps or runs, or a cells.parquet.
        out: folder for the laws and the table of cells.
        laws: which laws: joint, width, compute, tokens, rate, subject; by default all that the cells are enough for.
        rates: sweeps or runs that differ in learning rate, for the law of the best rate; they need not have converged.
        hold_out: how many of the largest widths to predict by a fit that has not seen them; 0 for none.
        tolerance: fall of the FVU over a doubling of rows below which a cell has converged; by default its own.
        converged_only: leave out cells that have not converged, instead of refusing to fit.
        figures: also draw every law and the loss curves, as HTML and SVG.
    """
    _check(out, laws, hold_out, tolerance)
    cells = read_cells(runs, tolerance)
    check_alike(cells, ("data", "d_in", "normalisation") if laws == ["subject"] else ())
    if converged_only:
        cells = _converged(cells)
    tried = read_cells(rates, tolerance) if rates else cells
    if rates:
        check_alike([*cells, *tried], ("loss_from",))
    wanted = [name for name in laws or LAWS if name != "subject" or laws]
    if set(wanted) - {"rate", "compute"}:
        check_converged(cells)
    folder = Path(out)
    write_cells(folder, cells)
    found = [one for name in wanted for one in _fits(name, best_of(cells), tried, hold_out)]
    for one in found:
        if one.fit is None and laws:
            raise ValueError(f"{one.name}: {one.why}")
        if one.fit:
            write_fit(folder / f"law-{label(one)}.json", one.fit, one.k, list(one.notes))
        print("\n".join(_told(one)))
    if figures:
        from saelab.figures.scaling import draw_laws

        draw_laws(folder, cells, {label(one): one.fit for one in found if one.fit})
    made = sorted(label(one) for one in found if one.fit)
    if not made:
        raise ValueError(
            f"{len(cells)} cell{'s are' if len(cells) > 1 else ' is'} not enough for any law; "
            "the lines above say what each needs"
        )
    print(f"\n{folder}: {', '.join(made)}, of {len(cells)} cells")
    if "joint" in made:
        print(f"`saelab scaling plan {folder} --tokens 1e9` says what to train")
    else:
        print("planning needs the joint law")


def _converged(cells: list[Cell]) -> list[Cell]:
    """Those that have converged; says which have not, ValueError if none has."""
    left = [cell.name for cell in cells if not cell.converged]
    if len(left) == len(cells):
        check_converged(cells, "raise --tolerance")
    print(f"left out, not converged: {', '.join(left) or 'none'}")
    return [cell for cell in cells if cell.converged]


def _check(out: str, laws: list[str] | None, hold_out: int, tolerance: float | None) -> None:
    for name in laws or ():
        if name not in LAWS:
            raise ValueError(f"unknown law '{name}'{near_miss(name, LAWS)}")
    if laws == []:
        raise ValueError(f"laws must name at least one of {', '.join(LAWS)}")
    if hold_out < 0:
        raise ValueError(f"hold_out must be a number of widths, 0 or more; got {hold_out}")
    if tolerance is not None:
        Convergence(tolerance)
    if Path(out).is_file():
        raise ValueError(f"out must be a folder, {out} is a file")


def label(one: Fitted) -> str:
    """A law's name in file names."""
    return one.name if one.k is None else f"{one.name}-k{one.k:g}"


def best_of(cells: list[Cell]) -> list[Cell]:
    """Where a size was trained at several learning rates, the cell with the lowest loss for each seed."""
    best: dict[tuple[int, float, int, int], Cell] = {}
    for cell in cells:
        key = (cell.n, cell.k, cell.seed, cell.d_in)
        if key not in best or cell.loss < best[key].loss:
            best[key] = cell
    return list(best.values())


def _fits(name: str, cells: list[Cell], tried: list[Cell], hold_out: int) -> list[Fitted]:
    if name in ("joint", "tokens"):
        return [_fitted(name, JointLaw() if name == "joint" else TokensLaw(), cells, hold_out, None)]
    if name == "rate":
        try:
            found, left = best_rates(tried)
            return [Fitted(name, None, fit(RateLaw(), found), notes=tuple(left))]
        except ValueError as error:
            return [Fitted(name, None, None, str(error))]
    results = []
    for k in sorted({cell.k for cell in cells}):
        own = [cell for cell in cells if cell.k == k]
        if name == "compute":
            try:
                results.append(Fitted(name, k, fit(ComputeLaw(), envelope(own))))
            except ValueError as error:
                results.append(Fitted(name, k, None, str(error)))
        else:
            law: Law = WidthLaw() if name == "width" else SubjectLaw()
            results.append(_fitted(name, law, own, hold_out, k))
    return results


def _fitted(name: str, law: Law, cells: list[Cell], hold_out: int, k: float | None) -> Fitted:
    try:
        numbers = points(cells, law)
        widest = sorted({cell.n for cell in cells})[-hold_out:] if hold_out else []
        mask, notes = np.isin([cell.n for cell in cells], widest), tuple[str, ...]()
        try:
            return Fitted(name, k, fit(law, numbers, mask))
        except ValueError as error:
            if not mask.any():
                raise
            notes = (f"nothing was held out: {error}",)
        return Fitted(name, k, fit(law, numbers), notes=notes)
    except ValueError as error:
        return Fitted(name, k, None, str(error))


def _told(one: Fitted) -> list[str]:
    """A law in words."""
    if one.fit is None:
        return [f"\n{label(one)}: not fitted: {one.why}"]
    found = one.fit
    lines = [f"\n{label(one)}: {len(found.points.y)} cells, spread {found.sigma:.2%}, R2 {found.r2:.4f}"]
    for name, estimate in found.estimates.items():
        if estimate.identified:
            lines.append(f"  {name:<7}{estimate.value:>11.4g}   [{estimate.low:.4g} to {estimate.high:.4g}]")
        else:
            lines.append(f"  {name:<7}not identified: {estimate.why}")
    if found.rival and found.aicc is not None and found.rival.aicc is not None:
        words = "without" if found.law.irreducible else "with"
        lines.append(f"  AICc {found.aicc:.1f}; {words} an irreducible part {found.rival.aicc:.1f}")
    if found.held_out:
        inside, cells = found.held_out["inside"], found.held_out["cells"]
        error = found.held_out["mean_abs_log_error"]
        lines.append(f"  held out: {inside} of {len(cells)} inside their intervals, mean error {error:.2%}")
    return lines + [f"  {note}" for note in one.notes]


# ---- plan ----


def plan(
    folder: str,
    tokens: float | None = None,
    hours: float | None = None,
    memory: str | None = None,
    disk: str | None = None,
    target_fvu: float | None = None,
    k: list[float] | None = None,
    device: str | None = None,
) -> None:
    """Plan which SAE to train for a budget or a target FVU, from fitted laws and measured speed.

    Args:
        folder: of `saelab scaling fit`.
        tokens: tokens (rows) available.
        hours: training time available.
        memory: memory available, such as 16GB.
        disk: disk space available, such as 100GB.
        target_fvu: the FVU to reach.
        k: active latents to plan for; by default those of the ladder.
        device: measure the speed here (cpu, cuda) by a few steps; by default the ladder's own speed is taken.
    """
    if hours is not None and not 0 < hours < float("inf"):
        raise ValueError(f"hours must be positive, got {hours:g}")
    if k == []:
        raise ValueError("k must name at least one number of active latents")
    seconds = None if hours is None else hours * 3600
    budget = planning.Budget(tokens, seconds, as_bytes("memory", memory), as_bytes("disk", disk), target_fvu)
    known = knowledge(Path(folder), device)
    rows = planning.Planner(known).plan(budget, k)
    heads = ("n", "k", "expected FVU", "tokens", "lr", "batch", "time", "memory", "disk", "limit")
    table = [heads, *(_row(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    for line in table:
        print("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())
    notes: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            notes.setdefault(note, []).append(f"n={row.n:,}, k={row.k:g}")
    for note, whose in notes.items():
        print(f"{'all' if len(whose) == len(rows) > 1 else '; '.join(whose)}: {note}")
    write_json(Path(folder) / "plan.json", planning.as_json(rows, budget))
    best = rows[0]
    print(
        f"first: saelab train ... --rows {best.tokens:.3g} --sae.n_latents {best.n} --sae.activation.k {best.k:g} "
        f"--trainer.lr {best.lr:.2g} --trainer.batch {best.batch}"
    )


def knowledge(folder: Path, device: str | None = None) -> planning.Knowledge:
    """What a folder of laws and cells says, with the speed of a device."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give the folder that `saelab scaling fit` has written")
    if not (folder / "law-joint.json").exists():
        raise ValueError(f"{folder} has no law-joint.json: `saelab scaling fit RUNS --out {folder}` makes one")
    cells = read_cells([folder / "cells.parquet"])
    first, widths = cells[0], sorted({cell.n for cell in cells})
    k = int(np.median([cell.k for cell in cells]))
    where = str(device_named(device)) if device else ""
    speed = measure(first.d_in, widths[-2:], k, first.batch, where) if where else of_cells(cells)
    laws = {name: folder / f"law-{name}.json" for name in ("tokens", "rate")}
    tokens, rate = (read_fit(path) if path.exists() else None for path in laws.values())
    joint = read_fit(folder / "law-joint.json")
    most = max(cell.rows for cell in cells)
    wide = max(cells, key=lambda cell: cell.n)
    return planning.Knowledge(joint, tokens, rate, speed, first.d_in, first.batch, most, (wide.n, wide.lr))


def _row(row: planning.PlannedSAE) -> tuple[str, ...]:
    return (
        f"{row.n:,}", f"{row.k:g}", f"{row.fvu:.4f} [{row.fvu_low:.4f} to {row.fvu_high:.4f}]", f"{row.tokens:.3g}",
        f"{row.lr:.2g}", f"{row.batch}", _time(row.seconds), _size(row.memory), _size(row.disk), row.limit,
    )  # fmt: skip


def _time(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.2g} s"


def _size(count: float) -> str:
    unit = next((unit for unit in ("TB", "GB", "MB") if count >= UNITS[unit]), "KB")
    return f"{count / UNITS[unit]:.3g} {unit}"


def as_bytes(name: str, text: str | None) -> float | None:
    """Bytes of a size such as 16GB; ValueError that names the setting."""
    if text is None:
        return None
    number = text.upper().replace(" ", "")
    unit = next((unit for unit in sorted(UNITS, key=len, reverse=True) if number.endswith(unit)), "")
    try:
        return float(number.removesuffix(unit)) * UNITS.get(unit, 1)
    except ValueError:
        raise ValueError(f"{name} must be a size such as 16GB or 500MiB, got '{text}'") from None
