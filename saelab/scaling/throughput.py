"""How many rows a second training takes, as measured: from a ladder's cells, or from a few steps on a device.

    seconds a row = fixed + per_flop * FLOP a row        fitted to what was measured, both at least 0

Cells that were trained together share their seconds, so the speed of a cell of a sweep of M members is that of a
computation M times as large: what a cell alone would take is at most what is said here.
"""

# Shape letters: D input width, L latents, K active, B rows of a batch.

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saelab.data.source import Batch
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.scaling.cells import Cell
from saelab.scaling.compute import flops_a_row
from saelab.train.trainer import Trainer


@dataclass(frozen=True)
class Throughput:
    """Speed of training on one machine."""

    fixed: float
    """Seconds a row that do not depend on the size."""
    per_flop: float
    """Seconds a floating-point operation."""
    measured_from: float
    """Smallest FLOP a row that was measured."""
    measured_to: float
    """Largest."""
    where: str
    """What was measured."""

    def seconds(self, d_in: int, n_latents: int, k: float, rows: float) -> float:
        """Time to train on this many rows."""
        return rows * (self.fixed + self.per_flop * flops_a_row(d_in, n_latents, k))

    def extrapolates(self, d_in: int, n_latents: int, k: float) -> float:
        """By which factor a size lies outside what was measured; 1 inside."""
        flops = flops_a_row(d_in, n_latents, k)
        return max(1.0, flops / self.measured_to, self.measured_from / flops)


def from_speeds(flops: Sequence[float], rows_per_second: Sequence[float], where: str) -> Throughput:
    """The model of speeds that were measured at these FLOP a row; ValueError without any."""
    from scipy.optimize import nnls

    cost, seconds = np.asarray(flops, float), 1 / np.asarray(rows_per_second, float)
    if not len(cost) or not np.isfinite(seconds).all():
        raise ValueError(f"no speed was measured: {where}")
    scaled = np.stack([np.ones(len(cost)), cost / cost.max()], 1) / seconds[:, None]  # relative errors count alike
    (fixed, slope), _ = nnls(scaled, np.ones(len(cost)))
    return Throughput(float(fixed), float(slope / cost.max()), float(cost.min()), float(cost.max()), where)


def measure(d_in: int, n_latents: Sequence[int], k: int, batch: int, device: str = "cpu", steps: int = 6) -> Throughput:
    """Train TopK SAEs of a few widths on random rows for a few steps each, and time them.

    Args:
        d_in: width of rows.
        n_latents: widths of SAEs.
        k: active latents.
        batch: rows of a step.
        device: where.
        steps: timed, after two that are not.
    """
    flops, speeds = [], []
    for n in n_latents:
        sae = SAE(d_in, n, TopK(k)).to(device)
        trainer, rows = Trainer(sae, batch=batch), torch.randn(batch, d_in, device=device)
        sae.initialise(rows)
        for step in range(steps + 2):
            if step == 2:
                _wait(device)
                start = time.perf_counter()
            trainer.step(Batch(rows))
        _wait(device)
        flops.append(flops_a_row(d_in, n, k))
        speeds.append(steps * batch / (time.perf_counter() - start))
    return from_speeds(flops, speeds, f"{steps} steps of {batch} rows on {device}, widths {list(n_latents)}")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def of_cells(cells: Sequence[Cell]) -> Throughput:
    """The model of the speeds that a ladder's cells were trained at; those of SAEs trained together count once."""
    # Members of one computation lie in one folder and have one width; their clocks differ a little.
    groups = {(cell.n, str(Path(cell.folder).parent) if cell.together > 1 else cell.folder): cell for cell in cells}
    flops = [cell.together * cell.compute / cell.rows for cell in groups.values()]
    where = f"{len(groups)} computations of this ladder"
    return from_speeds(flops, [cell.rows_per_second for cell in groups.values()], where)
