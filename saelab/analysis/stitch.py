"""Stitching: what a larger SAE knows that a smaller one does not (paper D, Leask et al. 2025, arXiv 2502.04878).

For each pair of neighbours on a ladder of SAEs of one site: the insertion test (`insertion`), how well the cosine rule
foretells it, and the way from one to the other (`swaps`) with error, L0 and, with a model, the change of its loss. Ways
of neighbouring pairs join: each ends at the SAE where the next begins.

Files of a result, which `read_stitch` reads (floats NaN or null where there is nothing to say):

    stitch.json          saes: [{name, n_latents, mse, fvu, l0, fvu_trained}] in the order of the ladder, read by
                         thresholds, fvu_trained in their own way, which for TopK is another;
                         pairs: [{small, large, counts: {novel, reconstruction, undecided, dead}, rows_to_decide (about
                         how many would decide half of the undecided; null where that is not known), share_novel (of the
                         decided), share_novel_by_sign (of those with enough firings), share_novel_by_cosine (of those
                         that fired), auc_by_sign, rule: see `cosine_rule`, steps: {insert, swap, remove, finish}}];
                         settings, rows, variance (of an entry: fvu = mse / variance)
    pair-P/large.parquet latent, class, delta_mse, low, high, firings, cosine (largest, with the small SAE), nearest
                         (its latent), group (connected component), step (from which on it is there)
    pair-P/small.parquet latent, group, step (from which on it is gone)
    path.parquet         pair, step, phase, n_latents, mse, mse_low, mse_high, fvu, l0, ce_delta
"""

# Shape letters: L latents of the large SAE, N rows.

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.analysis.assembled import assembled, independent
from saelab.analysis.comparable import check_comparable, check_reads, check_width, error_and_l0
from saelab.analysis.insertion import CLASSES, Insertion, cosine_rule, insertion_test
from saelab.analysis.rows import Rows
from saelab.analysis.swaps import PHASES, PathSteps, Point, along, check_plan, plan
from saelab.analysis.tables import Columns, read_result, read_table, write_result, write_table
from saelab.core.progress import progress
from saelab.geometry import nearest
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.files import needed_sae
from saelab.sae.sae import SAE

RESULT = {
    "saes": [{"name": str, "n_latents": int, "mse": float, "fvu": float, "l0": float}],
    "pairs": [{"small": str, "large": str, "counts": {str: int}, "rule": (dict, None)}],
}
LARGE = {"latent": int, "class": str, "delta_mse": float, "low": float, "high": float, "cosine": float}
LARGE |= dict.fromkeys(("firings", "nearest", "group", "step"), int)
SMALL = {"latent": int, "group": int, "step": int}
PATH = {"pair": int, "step": int, "phase": str, "n_latents": int, "mse": float, "fvu": float, "l0": float}
"""What the files of a result hold."""
THRESHOLD_ROWS = 8192
"""Rows that TopK's threshold is set on."""


@dataclass(frozen=True)
class StitchSettings:
    """How SAEs are compared and interpolated.

    Args:
        threshold: cosine from which two latents count as the same, for the rule and for swaps.
        min_firings: minimum number of rows in which a latent must be active to be classified.
        order: of the steps within a phase: `cosine`, `delta` (the largest improvement first) or `random`.
        points: number of points between two SAEs at which error and L0 are measured, at least 2.
        ce_points: number of these at which the model's loss is measured, where there is a model; 0 for none.
        ce_tokens: tokens that the model's loss is measured on.
        seed: of the order `random`.
    """

    threshold: float = 0.7
    min_firings: int = 100
    order: str = "cosine"
    points: int = 41
    ce_points: int = 7
    ce_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        check_plan(self.order, self.threshold)
        if self.min_firings < 1:
            raise ValueError(f"min_firings must be at least 1, got {self.min_firings}")
        if self.points < 2:
            raise ValueError(f"points must be at least 2, got {self.points}")
        if self.ce_points < 0 or self.ce_tokens < 1:
            raise ValueError(f"need ce_points >= 0 and ce_tokens >= 1, got {self.ce_points} and {self.ce_tokens}")


@dataclass
class Pair:
    """What was found about two neighbours of a ladder."""

    names: tuple[str, str]
    small: SAE
    large: SAE
    insertion: Insertion
    cosine: Tensor
    """[L] largest cosine of each large latent with a small one."""
    nearest: Tensor
    """[L] int64, the small latent it belongs to."""
    rule: dict[str, Any]
    auc_by_sign: float | None
    """AUC of the cosine against the bare sign of delta, over all latents with enough firings."""
    steps: PathSteps
    rows: int
    """Rows that it was found on."""
    path: list[Point] = field(default_factory=list)
    ce: dict[int, float] = field(default_factory=dict)
    """Change of the model's loss by step, nats per token."""

    def sae(self, step: int) -> SAE:
        """The stitched SAE after a step, an ordinary SAE; the first ones of its latents are the small SAE's."""
        if not 0 <= step <= len(self.steps):
            raise ValueError(f"step must be from 0 to {len(self.steps)}, got {step}")
        ours, theirs = self.steps.latents(step)
        last = step == len(self.steps)
        bias = (self.large if last else self.small).dictionary.bias().detach()
        return assembled([(self.small, ours), (self.large, theirs)], bias)

    def with_novel(self) -> SAE:
        """The small SAE with every large latent put in that has no counterpart: the end of the first phase."""
        return self.sae(self.steps.last("insert"))

    def summary(self) -> dict[str, Any]:
        """Counts, shares and the rule's quality, as JSON-able values."""
        counts = self.insertion.counts()
        decided = counts["novel"] + counts["reconstruction"]
        enough = self.insertion.firings >= self.insertion.min_firings
        fired = self.insertion.firings > 0
        threshold = self.rule["threshold"]
        more = self.insertion.rows_to_decide(self.rows)
        phases = torch.bincount(self.steps.phase, minlength=len(PHASES)).tolist()
        return {
            "small": self.names[0],
            "large": self.names[1],
            "counts": counts,
            "rows_to_decide": more,
            "share_novel": counts["novel"] / decided if decided else None,
            "share_novel_by_sign": _share(self.insertion.delta[enough] < 0),
            "share_novel_by_cosine": _share(self.cosine[fired] < threshold),
            "auc_by_sign": self.auc_by_sign,
            "rule": self.rule,
            "steps": dict(zip(PHASES, phases, strict=True)),
        }


@dataclass
class Stitched:
    """A ladder of SAEs and what was found about its neighbours."""

    names: list[str]
    points: list[Point]
    """Each SAE's own error and L0."""
    pairs: list[Pair]
    settings: StitchSettings
    rows: int
    variance: float
    trained: list[float]
    """Each SAE's error read in its own way, which for TopK is not by a threshold."""

    def summary(self) -> dict[str, Any]:
        """What `stitch.json` holds."""
        saes = [
            {"name": name, "n_latents": p.n_latents, "mse": p.mse, "fvu": p.mse / self.variance, "l0": p.l0}
            | {"fvu_trained": mse / self.variance}
            for name, p, mse in zip(self.names, self.points, self.trained, strict=True)
        ]
        about = {"settings": asdict(self.settings), "rows": self.rows, "variance": self.variance}
        return {"saes": saes, "pairs": [pair.summary() for pair in self.pairs], **about}

    def path(self) -> dict[str, list[Any]]:
        """The columns of `path.parquet`."""
        lines = [(number, pair.ce, point) for number, pair in enumerate(self.pairs) for point in pair.path]
        found: dict[str, list[Any]] = {"pair": [number for number, _, _ in lines]}
        for key in ("step", "phase", "n_latents", "mse", "mse_low", "mse_high"):
            found[key] = [getattr(point, key) for _, _, point in lines]
        found["fvu"] = [point.mse / self.variance for _, _, point in lines]
        found["l0"] = [point.l0 for _, _, point in lines]
        found["ce_delta"] = [ce.get(point.step) for _, ce, point in lines]
        return found

    def write(self, folder: str | Path) -> None:
        """Write the files that the module's docstring lists."""
        folder = Path(folder)
        for number, pair in enumerate(self.pairs):
            test, steps = pair.insertion, pair.steps
            classes = [CLASSES[kind] for kind in test.kind.tolist()]
            large: Columns = {"latent": torch.arange(len(test.delta)), "class": classes}
            large |= {"delta_mse": test.delta, "low": test.low, "high": test.high, "firings": test.firings}
            large |= {"cosine": pair.cosine, "nearest": pair.nearest, "group": steps.group_large, "step": steps.comes}
            write_table(folder / f"pair-{number}" / "large.parquet", large)
            small = {"latent": torch.arange(len(steps.goes)), "group": steps.group_small, "step": steps.goes}
            write_table(folder / f"pair-{number}" / "small.parquet", small)
        write_table(folder / "path.parquet", self.path())
        write_result(folder, "stitch", self.summary())


@torch.no_grad()
def stitch(
    saes: Mapping[str, Autoencoder],
    rows: Rows,
    settings: StitchSettings | None = None,
    loss: Callable[[Pair, list[int]], dict[int, float]] | None = None,
    show: bool = True,
) -> Stitched:
    """Stitch a ladder of SAEs of one site, each with the next.

    Args:
        saes: by name, from small to large; two or more.
        rows: to test on.
        settings: see `StitchSettings`.
        loss: gives the change of the model's loss after some steps of a pair (`loss_along`), where there is a model.
        show: whether to show progress.

    Raises:
        ValueError: for fewer than two SAEs, SAEs that cannot be compared or taken apart, or rows that are not theirs.
    """
    settings = settings or StitchSettings()
    if len(saes) < 2:
        raise ValueError(f"stitching needs at least 2 SAEs, got {len(saes)}")
    check_comparable(saes)
    names, sample = list(saes), rows.x[:THRESHOLD_ROWS]
    check_width(names[0], saes[names[0]], rows)
    whole = {name: needed_sae(sae, name) for name, sae in saes.items()}
    alone = {name: independent(sae, sample, name) for name, sae in whole.items()}
    variance, own = rows.variance, [_own(sae, rows) for sae in alone.values()]
    check_reads({name: point.mse / variance for name, point in zip(names, own, strict=True)})
    trained = [
        error_and_l0(sae, rows)[0] if sae.thresholds() is None else point.mse
        for sae, point in zip(whole.values(), own, strict=True)
    ]
    pairs = []
    with progress("stitch", len(names) - 1, "pairs", show=show) as bar:
        for small, large in pairwise(names):
            pairs.append(_pair((small, large), alone[small], alone[large], rows, settings))
            if loss and settings.ce_points:
                pairs[-1].ce = loss(pairs[-1], _spread_of(pairs[-1].path, settings.ce_points))
            bar.advance(1, f"{small} to {large}")
    return Stitched(names, own, pairs, settings, len(rows), variance, trained)


def _pair(names: tuple[str, str], small: SAE, large: SAE, rows: Rows, settings: StitchSettings) -> Pair:
    test = insertion_test(small, large, rows, settings.min_firings)
    best, place = nearest(large.data_directions(), small.data_directions())
    cosine, place = best.squeeze(1).cpu(), place.squeeze(1).cpu()
    enough = test.firings >= settings.min_firings
    by_sign = cosine_rule(torch.where(test.delta < 0, 0, 1)[enough], cosine[enough])["auc"]
    steps = plan(small, large, test.firings, settings.threshold, settings.order, rows, settings.seed)
    pair = Pair(
        names, small, large, test, cosine, place, cosine_rule(test.kind, cosine, settings.threshold), by_sign, steps,
        len(rows),
    )  # fmt: skip
    pair.path = along(small, large, steps, _marks(steps, settings.points), rows)
    return pair


def _marks(steps: PathSteps, points: int) -> list[int]:
    """Steps spread over the way evenly, with the ends of the phases among them."""
    even = torch.linspace(0, len(steps), points).round().long().tolist()
    return sorted({*even, *(steps.last(phase) for phase in PHASES)})


def _spread_of(path: list[Point], count: int) -> list[int]:
    """The steps of `count` of the points, with both ends and those that end a phase."""
    places = torch.linspace(0, len(path) - 1, max(2, count)).round().long().tolist()
    ends = [here.step for here, after in pairwise(path) if here.phase != after.phase]
    return sorted({path[place].step for place in places} | set(ends))


def _own(sae: SAE, rows: Rows) -> Point:
    mse, l0 = error_and_l0(sae, rows)
    return Point(0, "trained", sae.n_latents, mse, mse, mse, l0)


def _share(chosen: Tensor) -> float | None:
    return chosen.double().mean().item() if len(chosen) else None


def read_stitch(folder: str | Path) -> dict[str, Any]:
    """A written result: `stitch.json` with the tables' columns under `path` and, of each pair, `large_latents` and
    `small_latents`.

    Raises:
        ValueError: that names the file that is missing, damaged or newer than this program.
    """
    folder = Path(folder)
    found = read_result(folder, "stitch", RESULT)
    for number, pair in enumerate(found["pairs"]):
        for side, columns in (("large", LARGE), ("small", SMALL)):
            pair |= {f"{side}_latents": read_table(folder / f"pair-{number}" / f"{side}.parquet", columns)}
    return found | {"path": read_table(folder / "path.parquet", PATH)}
