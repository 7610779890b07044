"""Minimum description length: how many bits a token's codes take, at a precision that keeps the error.

    mdl         sum_j  H(p_j) + p_j H(q_j)           SAEBench's form (MDL-SAE, Ayonrinde et al. 2024, arXiv 2410.11179)
    mdl_fixed   L0 (B + log2 L)                      B = 7 bits a value, as in the code of arXiv 2503.24277

p_j is how often latent j is active, H(p) the entropy of a coin, q_j the distribution of its values over bins of equal
width, signs told apart. There are 4, 8, 16 or 32 bins between 0 and the next power of two above the latent's largest
value: the fewest with which the error grows by at most `tolerance` of itself on a sample of rows, when every value
becomes its bin's middle. If even 32 do not keep it, `mdl_error_kept` is 0. SAEBench tries 4 to 32 bins with .01.

Values are counted in 64 bins whose width doubles, and whose counts are joined in pairs, when a larger value comes, so
memory is L * 64 numbers and nothing depends on the order. The interval of `mdl` is that of the code length of rows of
the sample, moved to its value.
"""

# Shape letters: B rows of a chunk, K kept per row, L latents, M rows of the sample, N bins.

import math

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.metrics.base import Metric, Score, Setting, Totals, View
from saelab.metrics.sample import Sample, codes_of
from saelab.sae.autoencoder import Autoencoder

FINE = 64
CHOICES = (4, 8, 16, 32)
LOWEST = -126  # exponent of the smallest power of two that a bin's range may have


class MDL(Metric):
    """Bits a token.

    Args:
        bits: B, bits of a value in the fixed form.
        tolerance: by how much of itself the error may grow when values are rounded to their bins.
        rows: rows of the sample.
    """

    def __init__(self, bits: float = 7.0, tolerance: float = 0.01, rows: int = 1024):
        self.bits, self.tolerance, self.rows = bits, tolerance, rows
        self.totals, self.sample, self.values = Totals(), Sample(rows), Histograms()

    def begin(self, setting: Setting) -> None:
        for name in ("bits", "tolerance", "rows"):
            if getattr(self, name) <= 0:
                raise ValueError(f"MDL: {name} must be above 0, got {getattr(self, name)}")

    def update(self, view: View) -> None:
        codes = view.codes
        self.values.update(codes)
        active = codes.l0()
        self.totals.add(view.group, active=active, rows=torch.ones_like(active))
        self.sample.update(x=view.x, read=view.rows, group=view.group)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        if not self.values.total:
            raise ValueError("no latent fires in these rows")
        bins, kept = self._bins(sae)
        frequency = self.values.counts().double() / self.totals.n
        entropy = self.values.entropy(bins)
        value = (coin(frequency) + frequency * entropy).sum().item()
        low, high, documents = self._spread(sae, bins, value)
        count = self.totals.n
        return {
            "mdl_fixed": self.fixed(sae),
            "mdl": Score(value, low, high, count, "bits per token", documents),
            "mdl_bins": Score(float(bins), None, None, count, "bins a value"),
            "mdl_error_kept": Score(float(kept), None, None, len(self.sample), "1 for yes"),
        }

    def fixed(self, sae: Autoencoder) -> Score:
        """The fixed form."""
        width = self.bits + math.log2(sae.n_latents)
        return self.totals.score(lambda active, rows: active / rows * width, "bits per token")

    def _codes(self, sae: Autoencoder) -> Codes:
        return codes_of(sae, self.sample.column("read"))

    def _bins(self, sae: Autoencoder) -> tuple[int, bool]:
        """The fewest bins that keep the error, and whether they do."""
        x, read = (self.sample.column(name).to(sae.device) for name in ("x", "read"))
        codes = self._codes(sae)

        def error(of: Codes) -> float:
            return (x - sae.decode(of, read)).double().square().sum().item()

        most = error(codes) * (1 + self.tolerance)
        for bins in CHOICES:
            if error(codes.with_values(self.values.rounded(codes, bins))) <= most:
                return bins, True
        return CHOICES[-1], False

    def _spread(self, sae: Autoencoder, bins: int, value: float) -> tuple[float | None, float | None, int | None]:
        """The interval of rows' code lengths, moved to the value, and how many documents it is over."""
        frequency = (self.values.counts().double() / self.totals.n).clamp(1e-12, 1 - 1e-12)
        silent = -(1 - frequency).log2()
        codes, lengths = self._codes(sae), Totals()
        surprise = -frequency.log2() - silent
        each = surprise[codes.indices.cpu()] + self.values.surprise(codes, bins)
        length = each.where(codes.active.cpu(), 0).sum(1) + silent.sum()
        lengths.add(self.sample.column("group"), bits=length, rows=torch.ones_like(length))
        found = lengths.score(lambda bits, rows: bits / rows, "bits")
        if found.low is None or found.high is None:
            return None, None, found.documents
        low, high = value + found.low - found.value, value + found.high - found.value
        return min(value, low), max(value, high), found.documents


class Histograms:
    """Histograms of the active values of every latent, over bins of equal width from 0 to a power of two."""

    def __init__(self) -> None:
        self.bins = torch.empty(0)
        """[L, 2, FINE] int64: positive and negative values."""
        self.range = torch.empty(0)
        """Exponent of the power of two that ends the range; [L] int64."""

    @property
    def total(self) -> int:
        return int(self.bins.sum())

    def update(self, codes: Codes) -> None:
        """Count the active values of codes [B, K]."""
        if not len(self.bins):
            self.bins = torch.zeros(codes.n_latents, 2, FINE, dtype=torch.int64)
            self.range = torch.full((codes.n_latents,), LOWEST)
        active = codes.active
        latent = codes.indices[active].cpu()
        value = codes.values[active].detach().double().cpu()
        largest = torch.zeros(codes.n_latents, dtype=torch.float64).scatter_reduce(0, latent, value.abs(), "amax")
        self._widen(torch.frexp(largest).exponent.long().where(largest > 0, LOWEST).clamp_min(LOWEST))
        place = self._place(latent, value)
        self.bins.view(-1).index_add_(0, place, torch.ones_like(place))

    def _widen(self, wanted: Tensor) -> None:
        """Double bins until every latent's range reaches the wanted exponent [L]."""
        while len(grow := (self.range < wanted).nonzero().flatten()):
            # A latent that was empty can go at once to where it is wanted.
            empty = self.bins[grow].sum((1, 2)) == 0
            self.range[grow[empty]] = wanted[grow[empty]]
            full = grow[~empty]
            joined = self.bins[full].unflatten(2, (FINE // 2, 2)).sum(3)
            self.bins[full] = torch.nn.functional.pad(joined, (0, FINE // 2))
            self.range[full] += 1

    def _place(self, latent: Tensor, value: Tensor, bins: int = FINE) -> Tensor:
        """Where values stand in the flat table of `bins` bins a sign."""
        number = torch.ldexp(value.abs(), -self.range[latent].double() + math.log2(bins)).floor()
        return (latent * 2 + (value < 0)) * bins + number.clamp_max(bins - 1).long()

    def joined(self, bins: int) -> Tensor:
        """Counts in fewer bins, [L, 2, bins]."""
        return self.bins.unflatten(2, (bins, FINE // bins)).sum(3)

    def counts(self) -> Tensor:
        """Active values of each latent, [L]."""
        return self.bins.sum((1, 2))

    def entropy(self, bins: int) -> Tensor:
        """Entropy of each latent's values in bits; 0 for one that was never active; [L]."""
        share = self.joined(bins).flatten(1).double() / self.counts().clamp_min(1)[:, None]
        return -torch.xlogy(share, share).sum(1) / math.log(2)

    def surprise(self, codes: Codes, bins: int) -> Tensor:
        """Bits of the bin that each value [B, K] falls into; means nothing for unused entries."""
        latent, value = codes.indices.cpu(), codes.values.detach().double().cpu()
        place = self._place(latent.flatten(), value.flatten(), bins)
        share = self.joined(bins).flatten()[place].double() / self.counts()[latent.flatten()].clamp_min(1)
        return -share.clamp_min(1e-12).log2().view_as(latent)

    def rounded(self, codes: Codes, bins: int) -> Tensor:
        """Values [B, K] with every active one at the middle of its bin."""
        latent, value = codes.indices.cpu(), codes.values.detach().double().cpu()
        number = torch.ldexp(value.abs(), -self.range[latent].double() + math.log2(bins)).floor().clamp_max(bins - 1)
        middle = torch.ldexp(number + 0.5, self.range[latent].double() - math.log2(bins)) * value.sign()
        return middle.to(codes.values)


def coin(frequency: Tensor) -> Tensor:
    """Entropy in bits of a coin that falls on one side with this frequency."""
    rest = 1 - frequency
    return -(torch.xlogy(frequency, frequency) + torch.xlogy(rest, rest)) / math.log(2)
