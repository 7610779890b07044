"""All ground-truth metrics of one SAE, in one sweep over held-out rows of a world.

    mcc                mean cosine of matched pairs                                            `matching`
    recovery_90        share of all features whose matched cosine is at least 0.9
    precision, recall, f1   of matched latents as detectors; mean over features that occurred  `firing`
    f1_best            the same F1 for each feature's best latent; biased upwards
    purity             mean over latents that fired of the cosine with the nearest feature     `manifolds`
    discovered         number of features whose own latents together cover half their rows
    discovered_single  number of features of which one own latent does so alone
    shrinkage          mean over recovered one-dimensional features of 1 - slope               `shrinkage`
    absorption, absorption_full   mean over parents                                            `absorption`
    hedging            mean over features with correlated ones                                 `hedging`
    fvu, l0            as in the metrics of these names
    dead               share of latents silent on all these rows

Intervals are bootstrapped over features, latents or parents; of fvu and l0, over rows. They leave out how SAEs of
other seeds would differ. Whether a latent's sign counts is read off the codes: if one is negative, it does not.
"""

# Shape letters: B rows, D width, F features, L latents, Q parents.

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes
from saelab.data.synthetic.world import World
from saelab.geometry.pair_counts import DENSE_ENTRIES, PairCounts
from saelab.metrics.base import Score, View, score_of_latents
from saelab.metrics.chunks import GROUPS
from saelab.metrics.l0 import L0
from saelab.metrics.reconstruction import Reconstruction
from saelab.metrics.truth import firing
from saelab.metrics.truth.absorption import Absorption
from saelab.metrics.truth.hedging import static_hedging
from saelab.metrics.truth.manifolds import DISCOVERED, Coverage, latents_per_feature, single_coverage
from saelab.metrics.truth.matching import RECOVERED, cosines, match
from saelab.metrics.truth.shrinkage import Shrinkage, pair_cosines
from saelab.sae.autoencoder import Autoencoder

ROWS = 65_536
CHUNK_ROWS = 2048
TRIPLES = 1 << 22
"""Largest number of (row, latent entry, feature entry) looked at together."""


@dataclass
class GroundTruth:
    """What was found about one SAE."""

    scores: dict[str, Score] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per feature, [F] each, on the CPU. Float64, NaN where one does not apply: matched_cosine, precision,
    recall, f1, f1_best, coverage, single_coverage, slope, absorption, absorption_full, hedging. Int64: matched_latent
    (-1 for none), best_latent, latents_per_feature (those that fired), own_latents_per_feature (of these, those with
    a purity of at least 0.9), occurrences (rows)."""
    latents: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per latent, [L] each, on the CPU: nearest_feature, purity, occurrences (rows)."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Scores that do not apply, and why."""
    rows: int = 0
    signed: bool = False
    """Whether codes were negative in some row, so that a direction and its opposite were taken for the same."""

    def mean(self, name: str, values: Tensor, unit: str, reason: str) -> None:
        """Score the mean of the numbers [n] that are not NaN; where there are none, give the reason."""
        values = values[~values.isnan()].double().cpu()
        if len(values):
            self.scores[name] = score_of_latents(values, unit)
        else:
            self.skipped[name] = reason


@torch.no_grad()
def compare(sae: Autoencoder, world: World, rows: int = ROWS, first_window: int | None = None) -> GroundTruth:
    """Compare an SAE's latents with the features of a world.

    Args:
        sae: whole, on any device; it reconstructs what it reads.
        world: has the features.
        rows: how many rows to look at.
        first_window: where to begin; by default at the windows that training never reaches.

    Raises:
        ValueError: for a transcoder, an SAE of another width than the world's rows, one with weights or
            reconstructions that are not finite, or rows below 1.
    """
    if sae.d_in != world.d_in:
        raise ValueError(f"the SAE reads rows {sae.d_in} wide, the world's are {world.d_in}")
    if sae.d_out is not None:
        raise ValueError(
            "a transcoder cannot be compared with a world: its directions are not in the rows that it reads"
        )
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    start = world.HELD_OUT if first_window is None else first_window
    sweep = TruthTotals(sae, world, signed=False)
    if not sweep.run(start, rows):
        sweep = TruthTotals(sae, world, signed=True)
        sweep.run(start, rows)
    return sweep.scores(rows)


def chunks(world: World, window: int, rows: int) -> Iterator[tuple[Tensor, Codes]]:
    """The first `rows` rows from a window on with the features that are active in them, in chunks."""
    while rows > 0:
        x, truth = world.draw(window)
        x = x[:rows]
        for start in range(0, len(x), CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, len(x)))
            yield x[part], truth.codes.rows(part)
        window, rows = window + 1, rows - len(x)


class TruthTotals:
    """Everything that is summed over rows.

    Args:
        sae: the SAE.
        world: has the features.
        signed: whether its codes may be negative.
    """

    def __init__(self, sae: Autoencoder, world: World, signed: bool):
        self.sae, self.world, self.signed = sae, world, signed
        self.directions = sae.data_directions().float()
        self.device, self.norms = self.directions.device, self.directions.norm(dim=1)
        self.matching = match(self.directions, world, signed)
        n_features, n_latents = world.n_features, len(self.directions)
        self.both = PairCounts(n_features, n_latents, self.device)
        self.together = PairCounts(n_features, n_features, self.device)
        self.n_feature = torch.zeros(n_features, dtype=torch.int64, device=self.device)
        self.n_latent = torch.zeros(n_latents, dtype=torch.int64, device=self.device)
        self.coverage = Coverage(self.matching.owner, n_features)
        self.shrinkage = Shrinkage(self.matching.latent)
        self.parents = self._parents()
        self.no_absorption = self._why_no_absorption()
        self.absorption = None if self.no_absorption else self._absorption()
        self.reconstruction, self.l0 = Reconstruction(), L0()

    def _parents(self) -> Tensor:
        """Parents that absorption can be told of: of one dimension and with a matched latent; [Q]."""
        parents = self.world.parent[self.world.parent >= 0].unique()
        parents = parents[self.world.dims[parents] == 1].to(self.device)
        return parents[self.matching.latent[parents] >= 0]

    def _why_no_absorption(self) -> str | None:
        if (self.world.parent < 0).all():
            return "the world's features have no parents"
        if not len(self.parents):
            return "no parent is one-dimensional and has a matched latent"
        if len(self.parents) * len(self.directions) > DENSE_ENTRIES:
            return f"{len(self.parents)} parents times {len(self.directions)} latents is more than {DENSE_ENTRIES}"
        return None

    def _absorption(self) -> Absorption:
        parents = self.parents.cpu()
        bases = self.world.bases(parents).to(self.directions)[:, :1]
        unit = F.normalize(self.directions, dim=1)
        along = cosines(unit, bases, torch.ones_like(self.parents), signed=False)
        return Absorption(
            self.parents, along, self.matching.latent[self.parents], self.world.n_features, signed=self.signed
        )

    def run(self, window: int, rows: int) -> bool:
        """Take in rows from a window on; False, and unfinished, if a code is negative where none should be."""
        seen = 0
        for x, truth in chunks(self.world, window, rows):
            x = x.to(self.device)
            codes = self.sae.encode(x)
            if not self.signed and (codes.values < 0).any():
                return False
            x_hat = self.sae.decode(codes)
            if not torch.isfinite(x_hat).all():
                raise ValueError("the SAE reconstructs NaN or infinity; its weights are not finite")
            view = View(self.sae, x, x_hat, codes, torch.arange(seen, seen + len(x)) % GROUPS, None)
            self.reconstruction.update(view)
            self.l0.update(view)
            codes = codes.compact()
            contributions = codes.with_values(self.sae.data_values(codes).float() * self.norms[codes.indices])
            self._count(contributions, truth.to(self.device).compact())
            seen += len(x)
        return True

    def _count(self, codes: Codes, truth: Codes) -> None:
        """Take in contributions of latents, signed, and intensities of features."""
        self.n_latent += codes.counts()
        self.n_feature += truth.counts()
        width, n_true = codes.values.shape[1], truth.values.shape[1]
        size = max(1, TRIPLES // (max(width, n_true) * n_true))
        for start in range(0, len(codes), size):
            found, true = (part.rows(slice(start, start + size)) for part in (codes, truth))
            self.both.add(true, found)
            self.together.add(true, true)
            self.coverage.update(found, true)
            self.shrinkage.update(found, true)
            if self.absorption:
                self.absorption.update(found, true)

    def scores(self, rows: int) -> GroundTruth:
        """The scores, after a run over this many rows."""
        truth = GroundTruth(rows=rows, signed=self.signed)
        self._match_scores(truth)
        self._firing_scores(truth)
        self._manifold_scores(truth)
        self._shrinkage_scores(truth)
        self._absorption_scores(truth)
        self._hedging_scores(truth, rows)
        for name, score in (self.reconstruction.scores(self.sae) | self.l0.scores(self.sae)).items():
            if name in ("fvu", "l0"):
                if math.isfinite(score.value):
                    truth.scores[name] = score
                else:
                    truth.skipped[name] = "has no value here: all rows are the same"
        truth.scores["dead"] = score_of_latents((self.n_latent == 0).double().cpu(), "share of latents")
        truth.features = {name: value.cpu() for name, value in truth.features.items()}
        return truth

    def _match_scores(self, truth: GroundTruth) -> None:
        matching = self.matching
        truth.features |= {"matched_cosine": matching.cosine, "matched_latent": matching.latent}
        truth.features["occurrences"] = self.n_feature
        truth.mean("mcc", matching.cosine, "cosine", "")
        truth.mean("recovery_90", (matching.cosine >= RECOVERED).double(), "share of features", "")
        if not matching.one_to_one:
            truth.skipped["one-to-one matching"] = "too many pairs of features and latents: each has its best latent"

    def _firing_scores(self, truth: GroundTruth) -> None:
        matched = firing.of_matched(self.both, self.n_latent, self.n_feature, self.matching.latent)
        f1_best, latent = firing.best(self.both, self.n_latent, self.n_feature)
        per_feature = {"precision": matched.precision, "recall": matched.recall, "f1": matched.f1, "f1_best": f1_best}
        truth.features |= per_feature | {"best_latent": latent}
        for name, values in per_feature.items():
            truth.mean(name, values, "share of rows", "no feature was active in these rows")

    def _manifold_scores(self, truth: GroundTruth) -> None:
        matching, fired, n_features = self.matching, self.n_latent > 0, self.world.n_features
        truth.latents = {
            "nearest_feature": matching.nearest.cpu(),
            "purity": matching.purity.cpu(),
            "occurrences": self.n_latent.cpu(),
        }
        truth.mean("purity", matching.purity[fired], "cosine", "no latent was active in these rows")
        truth.features["latents_per_feature"] = latents_per_feature(matching.nearest, fired, n_features)
        truth.features["own_latents_per_feature"] = latents_per_feature(matching.owner, fired, n_features)
        truth.features["coverage"] = self.coverage.share(self.n_feature)
        truth.features["single_coverage"] = single_coverage(self.both, matching.owner, self.n_feature)
        for name, coverage in (("discovered", "coverage"), ("discovered_single", "single_coverage")):
            share = score_of_latents((truth.features[coverage] >= DISCOVERED).double().cpu(), "features")
            low, high = (None if end is None else end * n_features for end in (share.low, share.high))
            truth.scores[name] = replace(share, value=share.value * n_features, low=low, high=high)

    def _shrinkage_scores(self, truth: GroundTruth) -> None:
        slope = self.shrinkage.slope(pair_cosines(self.directions, self.world, self.matching.latent))
        truth.features["slope"] = slope
        reason = f"no one-dimensional feature with a matched cosine of {RECOVERED} was active together with its latent"
        recovered = slope[self.matching.cosine >= RECOVERED]
        truth.mean("shrinkage", 1 - recovered, "share of intensity", reason)

    def _absorption_scores(self, truth: GroundTruth) -> None:
        if self.absorption is None:
            reason = self.no_absorption or ""
            truth.skipped |= {"absorption": reason, "absorption_full": reason}
            return
        for name, values in (("absorption", self.absorption.fraction), ("absorption_full", self.absorption.full)):
            truth.mean(name, values, "share", "no parent was active in these rows")
            truth.features[name] = torch.full_like(self.matching.cosine, torch.nan).scatter(0, self.parents, values)

    def _hedging_scores(self, truth: GroundTruth, rows: int) -> None:
        hedging = static_hedging(self.directions, self.world, self.matching, self.together, self.n_feature, rows)
        truth.features["hedging"] = hedging
        reason = "no matched feature fires together with others more or less often than by chance, as far as rows tell"
        truth.mean("hedging", hedging, "share of squared norm", reason)
