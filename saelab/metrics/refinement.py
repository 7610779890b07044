"""Refinement: what the best values on the active latents would be, and so how far codes are shrunk.

    refined_shift   sum |f*| / sum |f| - 1    f: codes, f*: refined ones, over all entries that are active
    refined_fvu     FVU with f*               refined_gain   (FVU - refined FVU) / FVU, on the same rows

Directions and which latents are active stay (Gao et al. 2024, arXiv 2406.04093, Section 5.1 and Figure 6, as we read
it; `saelab.sae.refine` says how it is solved): codes shrunk by an L1 penalty move up, codes of TopK hardly move. The
table `refinement` has the mean of f* over codes of similar size.
"""

# Shape letters: M rows of the sample, K kept per row, N quantiles.

import torch

from saelab.metrics.base import Metric, Score, Setting, Table, Totals, View
from saelab.metrics.sample import Sample, codes_of
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.refine import refine

QUANTILES = 20


class Refinement(Metric):
    """How codes change when their values are refined.

    Args:
        rows: rows of the sample.
    """

    def __init__(self, rows: int = 512):
        self.rows, self.sample = rows, Sample(rows)
        self.curve: Table = {}

    def begin(self, setting: Setting) -> None:
        if self.rows < 2:
            raise ValueError(f"Refinement: rows must be at least 2, got {self.rows}")

    def update(self, view: View) -> None:
        self.sample.update(x=view.x, read=view.rows, group=view.group)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        if not len(self.sample):
            raise ValueError("there are no rows")
        x, read = (self.sample.column(name).to(sae.device, sae.dtype) for name in ("x", "read"))
        codes = codes_of(sae, read)
        refined = refine(sae, read, codes, target=x if sae.d_out else None)
        before, after = codes.values.double().abs(), refined.values.double().abs()
        if not codes.active.any():
            raise ValueError("no latent fires in these rows")
        totals = Totals()
        totals.add(
            self.sample.column("group"),
            code=before.sum(1),
            refined=after.sum(1),
            error=(x - sae.decode(codes, read)).double().square().sum(1),
            refined_error=(x - sae.decode(refined, read)).double().square().sum(1),
            spread=(x - x.mean(0)).double().square().sum(1),
        )
        active = codes.active
        self.curve = _by_size(before[active], after[active])
        return {
            "refined_shift": totals.score(lambda code, refined: refined / code - 1, "share of the codes' size"),
            "refined_fvu": totals.score(lambda refined_error, spread: refined_error / spread, "share"),
            "refined_gain": totals.score(lambda error, refined_error: (error - refined_error) / error, "share of FVU"),
        }

    def tables(self) -> dict[str, Table]:
        return {"refinement": self.curve} if self.curve else {}


def _by_size(code: torch.Tensor, refined: torch.Tensor) -> Table:
    """Mean code and refined code in groups of codes of similar size, equally many in each."""
    order = code.sort().indices
    parts = [part for part in torch.tensor_split(order, QUANTILES) if len(part)]
    return {
        "code": [code[part].mean().item() for part in parts],
        "refined": [refined[part].mean().item() for part in parts],
        "n": [len(part) for part in parts],
    }
