"""Quasi-orthogonality of codes and directions: approximate feature activation (AFA) and the ZF plot.

If x = sum_j f_j d_j + b with directions that are nearly orthogonal, the norm of the codes can be read off the row:

    f~        f_j ||d_j|| for every latent, and ||b|| behind them: the decoder's bias as a latent that is always on
    ratio     ||f~|| / ||x||                                  1 for orthogonal directions and exact reconstruction
    eps_lbo   | ||x||^2 - ||f~||^2 | / ((h - 1) ||f~||^2)     h latents: the smallest eps that fits both norms
    excess    | ||x||^2 - ||f~||^2 | / ||f~||^2               the same, comparable between SAEs of different h

(Lee et al. 2025, arXiv 2503.24277, as in the authors' code; they look at the last token of each context, here all kept
positions count.) If every |cos(d_i, d_j)| <= eps and m latents are active, exact reconstruction implies

    ||x||^2 / (1 + eps (m - 1)) <= ||f~||^2 <= ||x||^2 / (1 - eps (m - 1))      the upper end where eps (m - 1) < 1

with m = h at worst and m = L0 + 1, the bias being one, in practice.
All is in the data's own units, which makes the result the same before and after `fold`; where every row is scaled by
itself it is in the scaled rows', as the authors'. In data with a large mean the bias dominates ||x||:
`afa_ratio_centred` leaves it out on both sides. Scores are medians over a sample of rows. A skip connection is not part
of the sum: skipped.
"""

# Shape letters: B rows of a chunk, D width, L latents, M rows of the sample, G groups of documents, S resamples.

import torch
from torch import Tensor

from saelab.geometry.cosines import Cosines, cosines_of
from saelab.metrics.base import RESAMPLES, Metric, Score, Setting, Table, View
from saelab.metrics.sample import Sample
from saelab.models.language_model import LanguageModel
from saelab.sae.autoencoder import Autoencoder

TAIL = 24
"""Tokens of a row's text that are kept."""
TINY, ROUNDING = 1e-30, 1e-5


class AFA(Metric):
    """Norms of codes against norms of rows, and cosines of directions.

    Args:
        rows: rows that medians and plots are made from.
    """

    def __init__(self, rows: int = 4096):
        self.rows = rows
        self.sample, self.norms, self.bias = Sample(rows), torch.empty(0), torch.empty(0)
        self.model: LanguageModel | None = None

    def begin(self, setting: Setting) -> None:
        if self.rows < 1:
            raise ValueError(f"AFA: rows must be at least 1, got {self.rows}")
        sae = setting.sae
        if sae.dictionary.skip(torch.zeros(1, sae.d_in).to(sae.device, sae.dtype)) is not None:
            raise ValueError("norms of codes cannot be compared where a skip connection adds to the reconstruction")
        self.model = setting.evaluation.model

    def update(self, view: View) -> None:
        codes, sae = view.codes, view.sae
        x, x_hat = view.x, view.x_hat
        if sae.target_scale.per_row:
            x, x_hat = (sae.target_scale.apply_to(part, codes.row_scale) for part in (x, x_hat))
        x = x.double()
        if not len(self.norms):
            self.norms = sae.data_directions().norm(dim=1).detach()
            self.bias = sae.data_bias().detach()
        # Full codes name every latent; the norms then stand in their order.
        norms = self.norms if codes.is_full else self.norms[codes.indices]
        contributions = (codes.values.detach() * norms).double().square().sum(1)
        error = (x - x_hat.double()).square().sum(1)
        columns = {
            "norm_x": x.norm(dim=1),
            "norm_centred": (x - self.bias.double()).norm(dim=1),
            "norm_codes": contributions.sqrt(),
            "norm_f": (contributions + self.bias.double().square().sum()).sqrt(),
            "nmse": error / x.square().sum(1).clamp_min(TINY),
            "l0": codes.l0(),
            "group": view.group,
        }
        if view.places is not None:
            columns["tail"] = _tails(view.places.tokens.ids, view.places.keep)
        self.sample.update(**columns)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        column, latents = self.sample.column, sae.n_latents
        if not len(self.sample):
            raise ValueError("there are no rows")
        directions = sae.dictionary.directions().float()
        cosines = cosines_of(directions)
        # The bound holds for everything in the sum, the bias too.
        with_bias = torch.cosine_similarity(directions, self.bias.float()[None]).abs().max().item()
        largest = max(with_bias, cosines.largest_absolute) if cosines.count > 1 else with_bias
        excess, ratio = self._excess(), column("norm_f") / column("norm_x").clamp_min(TINY)
        centred = column("norm_codes") / column("norm_centred").clamp_min(TINY)
        low, high = bounds(largest, column("l0") + 1)
        inside = ((ratio >= low * (1 - ROUNDING)) & (ratio <= high * (1 + ROUNDING))).double()
        lowest = bounds(largest, torch.tensor(latents))[0].item()
        found = {
            "afa_ratio": self._median(ratio, "ratio"),
            "afa_ratio_centred": self._median(centred, "ratio"),
            "afa_excess": self._median(excess, "share of squared norm"),
            "afa_nmse": self._median(column("nmse"), "share"),
            "afa_bound_h": Score(lowest, None, None, latents, "smallest ratio"),
            "afa_bound_l0": self._median(low, "smallest ratio"),
            "afa_inside_l0": self._mean(inside, "share of rows"),
        }
        if latents > 1:
            found["afa_eps_lbo"] = self._median(excess / (latents - 1), "cosine")
        return found | cosine_scores(cosines)

    def _excess(self) -> Tensor:
        x, f = self.sample.column("norm_x").square(), self.sample.column("norm_f").square()
        return (x - f).abs() / f.clamp_min(TINY)

    def _median(self, values: Tensor, unit: str) -> Score:
        return median_score(values, self.sample.column("group"), unit)

    def _mean(self, values: Tensor, unit: str) -> Score:
        drawn = _resampled(self.sample.column("group"))
        means = (drawn @ values) / drawn.sum(1)
        low, high = _ends(means[torch.isfinite(means)])
        documents = len(self.sample.column("group").unique())
        return Score(values.mean().item(), low, high, len(values), unit, documents)

    def tables(self) -> dict[str, Table]:
        """One row of the sample each: what the ZF plot shows."""
        column = self.sample.column
        latents = max(1, len(self.norms) - 1)
        found: Table = {name: column(name).tolist() for name in ("norm_x", "norm_f", "nmse")}
        found["eps_lbo"] = (self._excess() / latents).tolist()
        found["l0"] = column("l0").tolist()
        if self.model is not None and "tail" in self.sample.names:
            tails = [[token for token in tail if token >= 0] for tail in column("tail").tolist()]
            found["text"] = [self.model.token_text.of_ids(tail, begins=False).text for tail in tails]
        return {"zf": found}


def cosine_scores(cosines: Cosines) -> dict[str, Score]:
    """Scores of the directions' cosines; none where there are fewer than two directions."""
    named = {"max": cosines.largest, "abs_max": cosines.largest_absolute, "mean": cosines.mean}
    if cosines.count < 2:
        return {}
    return {f"decoder_cosine_{key}": Score(value, None, None, cosines.count, "cosine") for key, value in named.items()}


def bounds(largest: float, active: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest ratio ||f~|| / ||x|| that m active latents [M] allow; infinity where there is no largest."""
    spread = largest * (active.double() - 1).clamp_min(0)
    return (1 + spread).rsqrt(), torch.where(spread < 1, (1 - spread).clamp_min(TINY).rsqrt(), torch.inf)


def median_score(values: Tensor, group: Tensor, unit: str) -> Score:
    """Median of values [M] with its interval over documents, which are drawn with replacement."""
    order = values.sort().indices
    weights = _resampled(group)[:, order].cumsum(1)
    half = weights[:, -1:] / 2
    place = torch.searchsorted(weights, half).squeeze(1).clamp_max(len(values) - 1)
    medians = values[order][place][weights[:, -1] > 0]
    low, high = _ends(medians)
    value = values.double().quantile(0.5).item()
    if low is not None and high is not None:
        low, high = min(low, value), max(high, value)
    return Score(value, low, high, len(values), unit, len(group.unique()))


def _resampled(group: Tensor) -> Tensor:
    """How often each row counts when documents are drawn with replacement; [S, M] float64."""
    names, which = group.unique(return_inverse=True)
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(RESAMPLES, len(names), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts[:, which]


def _ends(values: Tensor) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _tails(ids: Tensor, keep: Tensor) -> Tensor:
    """The last tokens up to each kept position of rows [R, T], -1 where the row has none; [B, TAIL] int32."""
    padded = torch.nn.functional.pad(ids, (TAIL - 1, 0), value=-1)
    return padded.unfold(1, TAIL, 1)[keep].int()
