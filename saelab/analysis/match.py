"""Which latent of one SAE is which of another: layers, seeds, widths (SAE Match, arXiv 2410.07656, as we read it).

Two ways to compare latents i and j, each then assigned one to one (`assignment`):

    directions   the cosine of their directions
    weights      minus half the squared distance of [w_i / theta_i, b_i / theta_i, theta_i d_i]: encoder row, bias and
                 direction after the threshold is folded in, so that every latent fires from 1 on; needs thresholds
                 above 0 (JumpReLU, trained BatchTopK, TopK through its threshold)

One-to-one pairs are forced; what holds without force is the graph of all pairs with a cosine of at least a threshold.
Its connected components sort the latents of either SAE:

    shared   one here with one there           split    one here with several there
    merged   several here with one there       tangled  several with several
    unique   without an edge                   dead     left out: never fired for as long as training counts

so that what is split seen from A is merged seen from B.

Files of a result (`read_match`):

    match.json       a, b, n_a, n_b, by, threshold, bound (how far the mean similarity can be from the best one to one),
                     mean_cosine, median_cosine (of pairs), share_matched (pairs with a cosine of at least the
                     threshold), random_cosine (mean nearest cosine of random directions of the same numbers),
                     counts: {a: {shared, split, merged, tangled, unique, dead}, b: {...}}, curve: {cosine, share: of
                     A's living latents whose partner has at least that cosine}, and `swap` where it was measured;
                     fits: {SAE: {fvu, l0, rows}} where there were rows to see how well the SAEs reconstruct
    a.parquet        latent, partner (-1: none), cosine (with it), nearest, nearest_cosine (whoever else has it too),
                     kind, group
    b.parquet        the same from the other side
"""

# Shape letters: A and B latents of the two SAEs, D input width.

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.analysis.assembled import independent
from saelab.analysis.assignment import EXACT_ENTRIES, Assignment, assign
from saelab.analysis.tables import AGAIN, Columns, read_result, read_table, write_result, write_table
from saelab.core.components import near_miss
from saelab.data.source import generator_for
from saelab.geometry import components, nearest, pairs_above
from saelab.sae.autoencoder import Autoencoder

METHODS = ("directions", "weights")
KINDS = ("shared", "split", "merged", "tangled", "unique", "dead")
RESULT = {
    **dict.fromkeys(("a", "b", "by"), str), **dict.fromkeys(("n_a", "n_b"), int),
    **dict.fromkeys(("threshold", "bound", "mean_cosine", "median_cosine", "share_matched", "random_cosine"), float),
    "curve": {"cosine": [float], "share": [float]},
}  # fmt: skip
SIDE: dict[str, Any] = dict.fromkeys(("latent", "partner", "nearest", "group"), int) | {"kind": str}
SIDE |= dict.fromkeys(("cosine", "nearest_cosine"), float)
"""What the files of a result hold."""
CURVE = [round(0.01 * step, 2) for step in range(101)]
RANDOM_PROBES = 1024


@dataclass(frozen=True)
class Side:
    """What was found about one SAE's latents; on the CPU."""

    partner: Tensor
    """[L] int64, its one-to-one partner, -1 for none."""
    cosine: Tensor
    """[L] float64, of their directions; NaN for none."""
    nearest: Tensor
    """[L] int64, the other SAE's living latent with the closest direction."""
    nearest_cosine: Tensor
    """[L], theirs."""
    kind: Tensor
    """[L] int64, number in KINDS."""
    group: Tensor
    """[L] int64, connected component, counted through both SAEs."""

    def counts(self) -> dict[str, int]:
        """How many latents there are of each kind."""
        return dict(zip(KINDS, torch.bincount(self.kind, minlength=len(KINDS)).tolist(), strict=True))

    def of_kind(self, *names: str) -> Tensor:
        """Numbers of the latents of some kinds; [n] int64."""
        return torch.isin(self.kind, torch.tensor([KINDS.index(name) for name in names])).nonzero().squeeze(1)


@dataclass
class Match:
    """Two SAEs' latents side by side."""

    names: tuple[str, str]
    a: Side
    b: Side
    by: str
    threshold: float
    bound: float
    """How far the mean similarity of pairs can be from the best; 0 where it is exact."""
    random_cosine: float
    swap: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """One-to-one pairs: latents of A and of B, [n] each."""
        left = (self.a.partner >= 0).nonzero().squeeze(1)
        return left, self.a.partner[left]

    def curve(self) -> list[float]:
        """Share of A's living latents whose partner has at least each cosine of CURVE."""
        living = self.a.kind != KINDS.index("dead")
        return stability(self.a.cosine[living].nan_to_num(-1))

    def summary(self) -> dict[str, Any]:
        """What `match.json` holds."""
        cosine = self.a.cosine[self.a.partner >= 0]
        return {
            "a": self.names[0],
            "b": self.names[1],
            "n_a": len(self.a.kind),
            "n_b": len(self.b.kind),
            "by": self.by,
            "threshold": self.threshold,
            "bound": self.bound,
            "mean_cosine": cosine.mean().item(),
            "median_cosine": cosine.median().item(),
            "share_matched": (cosine >= self.threshold).double().mean().item(),
            "random_cosine": self.random_cosine,
            "counts": {"a": self.a.counts(), "b": self.b.counts()},
            "curve": {"cosine": CURVE, "share": self.curve()},
        } | {name: part for name, part in (("swap", self.swap), ("fits", self.fits)) if part}

    def write(self, folder: str | Path) -> None:
        """Write the files that the module's docstring lists."""
        folder = Path(folder)
        for name, side in (("a", self.a), ("b", self.b)):
            kinds = [KINDS[kind] for kind in side.kind.tolist()]
            table: Columns = {"latent": torch.arange(len(kinds)), "partner": side.partner, "cosine": side.cosine}
            table |= {"nearest": side.nearest, "nearest_cosine": side.nearest_cosine, "kind": kinds}
            write_table(folder / f"{name}.parquet", table | {"group": side.group})
        write_result(folder, "match", self.summary())


def stability(cosine: Tensor) -> list[float]:
    """Share of latents with a partner at each cosine of CURVE or above, from their partners' cosines [L]."""
    ordered = cosine.double().sort().values
    # A cosine of 1 comes out a little below it.
    below = torch.searchsorted(ordered, torch.tensor(CURVE, dtype=torch.float64) - 1e-6)
    return ((len(ordered) - below).double() / max(1, len(ordered))).tolist()


def check_method(by: str, threshold: float) -> None:
    """ValueError for settings that `match` does not take."""
    if by not in METHODS:
        raise ValueError(f"unknown matching method '{by}'{near_miss(by, METHODS)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")


@torch.no_grad()
def match(
    a: Autoencoder,
    b: Autoencoder,
    names: tuple[str, str] = ("A", "B"),
    by: str = "directions",
    threshold: float = 0.7,
    rows: Tensor | None = None,
    exact_entries: int = EXACT_ENTRIES,
) -> Match:
    """Match the latents of two SAEs.

    Args:
        a: one SAE; "directions" asks for nothing but directions, so that any dictionary and ensemble will do.
        b: the other.
        names: for errors and files.
        by: "directions" or "weights".
        threshold: cosine from which latents count as the same, above 0 and at most 1.
        rows: [n, D], that TopK's threshold is set on, for "weights"; rows of A, and of B where it is of the same site.
        exact_entries: largest number of pairs that are assigned exactly.

    Raises:
        ValueError: for SAEs of different widths, settings out of their range, or fewer than one living latent each.
    """
    check_method(by, threshold)
    if by == "weights" and (a.scale.per_row or b.scale.per_row):
        why = a.scale.difference(b.scale)
        if why:
            raise ValueError(f"{names[0]} and {names[1]} {why}")
    directions = [sae.data_directions(normalised=True).detach() for sae in (a, b)]
    if directions[0].shape[1] != directions[1].shape[1]:
        raise ValueError(
            f"{names[0]} has directions {directions[0].shape[1]} wide, {names[1]} {directions[1].shape[1]}: they "
            "cannot be matched"
        )
    living = [sae.alive().nonzero().squeeze(1) for sae in (a, b)]
    for name, kept in zip(names, living, strict=True):
        if not len(kept):
            raise ValueError(f"{name} has no alive latents to match")
    ours, theirs = (part[kept] for part, kept in zip(directions, living, strict=True))
    if by == "weights":
        left, right = (folded(sae, rows, name)[kept] for sae, name, kept in zip((a, b), names, living, strict=True))
        found = assign(left, right, "distance", exact_entries)
    else:
        found = assign(ours, theirs, "cosine", exact_entries)
    i, j, _ = (part.cpu() for part in pairs_above(ours, theirs, threshold))
    labels = components(len(ours) + len(theirs), i, j + len(ours)).split([len(ours), len(theirs)])
    one = _side(found, (ours, theirs), labels, living, a.n_latents)
    other = _side(_turned(found, len(theirs)), (theirs, ours), labels[::-1], living[::-1], b.n_latents)
    return Match(names, one, other, by, threshold, found.bound, _chance(ours, theirs))


def folded(sae: Autoencoder, rows: Tensor | None = None, name: str = "the SAE") -> Tensor:
    """Encoder rows, biases and directions with the thresholds folded in, as one vector a latent; [L, 2 D + 1].

    Raises:
        ValueError: for an SAE whose latents have no threshold above 0, or that `independent` refuses.
    """
    one = independent(sae, rows, name)
    theta = one.thresholds()
    assert theta is not None
    theta = theta.to(one.device, one.dtype)[:, None]
    if not (theta > 0).all():
        raise ValueError(f"weights are compared after thresholds are folded in, and {name} has thresholds of 0")
    # As the bias of a latent that reads rows themselves, not rows without the centre.
    bias = one.dictionary.pre(torch.zeros(1, one.d_in).to(one.device, one.dtype)).dense().T
    return torch.cat([one.dictionary.encoder / theta, bias / theta, one.data_directions() * theta], 1).detach()


def _turned(found: Assignment, n: int) -> Assignment:
    """The same assignment seen from the other side, which has n vectors."""
    partner, similarity = torch.full((n,), -1), torch.full((n,), torch.nan, dtype=torch.float64)
    left = (found.partner >= 0).nonzero().squeeze(1)
    partner[found.partner[left]], similarity[found.partner[left]] = left, found.similarity[left]
    return Assignment(partner, similarity, found.bound)


def _side(
    found: Assignment,
    directions: tuple[Tensor, Tensor],
    labels: tuple[Tensor, ...],
    living: list[Tensor],
    n_latents: int,
) -> Side:
    """From numbers among living latents to numbers among all of them."""
    kept, others = (part.cpu() for part in living)
    own, other = directions
    best, place = (part.squeeze(1).cpu() for part in nearest(own, other))
    has = found.partner >= 0
    cosine = torch.full((len(kept),), torch.nan, dtype=torch.float64)
    cosine[has] = (own[has.to(own.device)].double() * other[found.partner[has]].double()).sum(1).cpu()
    count = int(max(part.max() for part in labels)) + 1
    ours, theirs = (torch.bincount(part, minlength=count)[labels[0]] for part in labels)
    kind = torch.where(theirs == 0, 4, torch.where(ours == 1, (theirs > 1).long(), torch.where(theirs == 1, 2, 3)))

    def spread(values: Tensor, rest: float) -> Tensor:
        whole = torch.full((n_latents,), rest, dtype=values.dtype)
        whole[kept] = values
        return whole

    return Side(
        partner=spread(others[found.partner].where(has, -1), -1),
        cosine=spread(cosine, torch.nan),
        nearest=spread(others[place], -1),
        nearest_cosine=spread(best.double(), torch.nan),
        kind=spread(kind, KINDS.index("dead")),
        group=spread(labels[0], -1),
    )


def _chance(ours: Tensor, theirs: Tensor) -> float:
    """Mean nearest cosine of random directions, as many as there are."""
    generator = generator_for(6)
    probes = torch.randn(min(len(ours), RANDOM_PROBES), ours.shape[1], generator=generator)
    return nearest(probes, torch.randn(theirs.shape, generator=generator))[0].mean().item()


def read_match(folder: str | Path) -> dict[str, Any]:
    """A written result: `match.json` with the tables' columns under `latents_a` and `latents_b`.

    Raises:
        ValueError: that names the file that is missing, damaged or newer than this program.
    """
    folder = Path(folder)
    found = read_result(folder, "match", RESULT)
    tables = {f"latents_{name}": read_table(folder / f"{name}.parquet", SIDE) for name in ("a", "b")}
    for name in ("a", "b"):
        if other := set(tables[f"latents_{name}"]["kind"]) - set(KINDS):
            raise ValueError(
                f"{folder / name}.parquet: unknown kind {min(other)!r}{near_miss(min(other), KINDS)}; {AGAIN}"
            )
    return found | tables
