"""Test-time sparsity: the same SAE read with another k, or with one threshold in the place of a k.

    k          FVU with TopK(k') for k' = the SAE's own mean L0 times 1/4 ... 8
    threshold  FVU with f = pre * 1[pre > theta], theta such that the mean L0 on the sample is k'

Gao et al. 2024 (arXiv 2406.04093, "test-time activations", as we read it): plain TopK over-fits its k, a threshold
reads about as well as a fixed k at the same mean L0. Curves are in the table `test_time`; scores are a few of their
points, all on one sample of rows, so they differ a little from `fvu`. See `saelab.sae.reading`.
"""

# Shape letters: M rows of the sample, D width.

import torch
from torch import Tensor

from saelab.metrics.base import Metric, Score, Setting, Table, Totals, View
from saelab.metrics.sample import BLOCK_ENTRIES, Sample
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.reading import reread, threshold_for
from saelab.sae.sae import SAE

NAMES = {0.25: "quarter", 0.5: "half", 1: "same", 2: "double", 4: "fourfold"}


class TestTime(Metric):
    """FVU against L0 when the SAE is read otherwise.

    Args:
        factors: of the SAE's own mean L0 that it is read with.
        rows: rows of the sample.
    """

    __test__ = False  # a metric, though its name begins like a test's

    def __init__(self, factors: list[float] | None = None, rows: int = 2048):
        self.factors, self.rows = factors, rows
        self.sample = Sample(rows)
        self.curve: Table = {name: [] for name in ("reading", "factor", "k", "l0", "fvu", "low", "high")}

    def begin(self, setting: Setting) -> None:
        if self.rows < 2:
            raise ValueError(f"TestTime: rows must be at least 2, got {self.rows}")
        if self.factors is not None and (not self.factors or min(self.factors) <= 0):
            raise ValueError(f"TestTime: factors must be above 0, got {self.factors}")
        if not isinstance(setting.sae, SAE):
            raise ValueError("an ensemble has no activation to replace")
        self.sae = setting.sae

    def update(self, view: View) -> None:
        self.sample.update(x=view.x, read=view.rows, group=view.group)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        own = fvu_on(sae, self.sample)
        self._note("own", 1.0, None, own)
        if own[1].value == 0:
            raise ValueError("no latent fires in these rows")
        found, read = {"fvu_read_own": own[0]}, self.sample.column("read").to(sae.device, sae.dtype)
        for factor in self.factors or [0.25, 0.5, 1, 2, 4, 8]:
            k = max(1, round(own[1].value * factor))
            if k > sae.n_latents:
                continue
            for reading in ("topk", "threshold"):
                try:
                    activation = TopK(k) if reading == "topk" else JumpReLU(threshold=threshold_for(self.sae, read, k))
                except ValueError:  # fewer pre-activations than that are positive
                    continue
                point = fvu_on(reread(self.sae, activation), self.sample)
                self._note(reading, factor, k, point)
                if factor in NAMES:
                    found[f"fvu_read_{reading}_{NAMES[factor]}"] = point[0]
        return found

    def _note(self, reading: str, factor: float, k: int | None, point: tuple[Score, Score]) -> None:
        fvu, l0 = point
        line = (reading, factor, k, l0.value, fvu.value, fvu.low, fvu.high)
        for column, value in zip(self.curve.values(), line, strict=True):
            column.append(value)

    def tables(self) -> dict[str, Table]:
        return {"test_time": self.curve}


@torch.no_grad()
def fvu_on(sae: Autoencoder, sample: Sample) -> tuple[Score, Score]:
    """FVU and mean L0 of an SAE on a sample of rows with the columns x, read and group."""
    x, group, totals = sample.column("x").double(), sample.column("group"), Totals()
    if not len(x):
        raise ValueError("there are no rows")
    spread = (x - x.mean(0)).square().sum(1)
    parts: list[tuple[Tensor, Tensor]] = []
    for read in sample.column("read").split(max(1, BLOCK_ENTRIES // sae.n_latents)):
        codes = sae.encode(read.to(sae.device, sae.dtype))
        parts.append((sae.decode(codes, read.to(sae.device, sae.dtype)).double().cpu(), codes.l0().cpu()))
    x_hat, active = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    error = (x - x_hat).square().sum(1)
    totals.add(group, error=error, spread=spread, active=active, rows=torch.ones_like(error))
    fvu = totals.score(lambda error, spread: error / spread, "share")
    return fvu, totals.score(lambda active, rows: active / rows, "latents")
