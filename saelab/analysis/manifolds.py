"""Clusters of directions, and what they are: tiles of a manifold, an absorbed parent, or the same latent twice.

Directions with a cosine of at least a threshold are neighbours, clusters what hangs together over neighbours. What a
close pair means shows in when its latents fire (`saelab.geometry.coactivation`):

    duplicate    Jaccard >= 0.9                                       the same latent twice
    overlapping  share of the rarer one's rows with both >= 0.1,      neighbouring tiles of one manifold
                 and more than by chance (phi > 0)
    disjoint     that share <= 0.02                                   one fires in the other's place (absorption)
    between      anything else
    undecided    one of the two fires in too few rows

and a cluster is `duplicates`, `tiling` or `absorption` where more than half of its decided pairs are of that kind,
`mixed` where none is the majority, `undecided` where no pair is decided. Thresholds are our choice; tiling of manifolds
is what Michaud et al. 2025 (arXiv 2509.02565) warn of.

Of a cluster's own part of the reconstruction, y_b = sum over its latents of f_bj w_j, are told: the participation ratio
and the TwoNN dimension, and a cloud of points along its first three principal components.

Files of a result (`read_manifolds`):

    manifolds.json   sae, settings, rows, clusters: [{cluster, size, kind, median cosine, jaccard, overlap, phi, pairs:
                     {duplicate, overlapping, disjoint, between, undecided}, rows (with any latent of it active),
                     participation, two_nearest, explained (share of variance along the three components)}], largest
                     first; share_in: share of living latents in clusters of each kind
    latents.parquet  latent, cluster (-1 for none)
    pairs.parquet    left, right, cosine, jaccard, overlap, phi, kind
    points.parquet   cluster, row, x, y, z, latent (the one with the largest code), value; and token, document, position
                     where they are known, and before, at, after: the context as text, where tokens can be decoded
"""

# Shape letters: L latents, D width, P pairs, N rows, n points of a cluster.

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.analysis.assembled import contributed
from saelab.analysis.rows import Rows
from saelab.analysis.tables import Columns, read_result, read_table, write_result, write_table
from saelab.analysis.top_tokens import context
from saelab.core.codes import Codes
from saelab.data.source import generator_for
from saelab.geometry import Coactivation, components, members, neighbour_graph, participation_ratio, two_nearest
from saelab.models.token_text import TokenText
from saelab.sae.autoencoder import Autoencoder

PAIRS = ("duplicate", "overlapping", "disjoint", "between", "undecided")
KINDS = ("duplicates", "tiling", "absorption", "mixed", "undecided")
SAME, OVERLAP, APART = 0.9, 0.1, 0.02
BLOCK_ROWS = 2048
CLUSTER: dict[str, Any] = {
    "cluster": int,
    "size": int,
    "kind": str,
    "cosine": float,
    "jaccard": float,
    "overlap": float,
}
CLUSTER |= {"rows?": int, **dict.fromkeys(("participation?", "two_nearest?", "explained?"), (float, None))}
RESULT = {"sae": str, "settings": {"threshold": float}, "rows": int, "living": int, "clusters": [CLUSTER]}
TABLES: dict[str, dict[str, Any]] = {
    "latents": {"latent": int, "cluster": int},
    "pairs": {"left": int, "right": int, "cosine": float, "jaccard": float, "overlap": float, "kind": str},
    "points": {"cluster": int, "row": int, "x": float, "y": float, "z": float, "latent": int, "value": float},
}
"""What the files of a result hold."""


@dataclass(frozen=True)
class ManifoldSettings:
    """How clusters are found and classified.

    Args:
        threshold: cosine from which directions are neighbours, above 0 and at most 1.
        neighbours: number of nearest neighbours of each direction to consider.
        min_firings: rows that both latents of a pair must be active in for it to be decided.
        clusters: number of largest clusters for which points and dimensions are computed.
        points: maximum number of points of a cluster.
        seed: of the random choice of points.
    """

    threshold: float = 0.6
    neighbours: int = 16
    min_firings: int = 50
    clusters: int = 20
    points: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {self.threshold}")
        for name in ("neighbours", "min_firings", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clusters < 0:
            raise ValueError(f"clusters must be at least 0, got {self.clusters}")


@dataclass(frozen=True)
class Pairs:
    """Close pairs of directions and how their latents fire together; [P] each, on the CPU."""

    left: Tensor
    right: Tensor
    cosine: Tensor
    jaccard: Tensor
    overlap: Tensor
    phi: Tensor
    kind: Tensor
    """Number in PAIRS."""


@dataclass
class Cloud:
    """A cluster's own part of the reconstruction, in some of the rows where it has any."""

    row: Tensor
    """[n] int64, numbers of rows."""
    place: Tensor
    """[n, 3] float64, along the first three principal components."""
    latent: Tensor
    """[n] int64, the cluster's latent with the largest code."""
    value: Tensor
    """[n], that code times the length of its direction."""
    rows: int
    """How many rows there are with any of its latents active."""
    participation: float
    two_nearest: float
    explained: float


@dataclass
class Manifolds:
    """Clusters of an SAE's directions, the largest first."""

    clusters: list[Tensor]
    """Latents of each, ascending."""
    kinds: list[str]
    pairs: Pairs
    clouds: list[Cloud]
    """Of the first clusters."""
    n_latents: int
    living: int
    rows: int
    settings: ManifoldSettings
    columns: dict[str, Tensor] = field(default_factory=dict)

    def of_latent(self) -> Tensor:
        """The cluster of each latent, -1 for none; [L] int64."""
        found = torch.full((self.n_latents,), -1)
        for number, latents in enumerate(self.clusters):
            found[latents] = number
        return found

    def summary(self, name: str) -> dict[str, Any]:
        """What `manifolds.json` holds."""
        of, lines = self.of_latent(), []
        cluster_of_pair = of[self.pairs.left]
        for number, (latents, kind) in enumerate(zip(self.clusters, self.kinds, strict=True)):
            own = (cluster_of_pair == number).nonzero().squeeze(1)
            line: dict[str, Any] = {"cluster": number, "size": len(latents), "kind": kind}
            for key in ("cosine", "jaccard", "overlap", "phi"):
                line[key] = getattr(self.pairs, key)[own].double().median().item()
            counts = torch.bincount(self.pairs.kind[own], minlength=len(PAIRS)).tolist()
            line["pairs"] = dict(zip(PAIRS, counts, strict=True))
            if number < len(self.clouds):
                cloud = self.clouds[number]
                line["rows"] = cloud.rows
                for key in ("participation", "two_nearest", "explained"):
                    value = getattr(cloud, key)
                    line[key] = value if value == value else None  # JSON has no NaN
            lines.append(line)
        sizes = {kind: sum(line["size"] for line in lines if line["kind"] == kind) for kind in KINDS}
        share = {kind: size / max(1, self.living) for kind, size in sizes.items()}
        return {
            "sae": name,
            "settings": asdict(self.settings),
            "rows": self.rows,
            "living": self.living,
            "share_in": share,
            "clusters": lines,
        }

    def write(self, folder: str | Path, name: str, rows: Rows, text: TokenText | None = None) -> None:
        """Write the files that the module's docstring lists.

        Args:
            folder: where.
            name: of the SAE.
            rows: that the clusters were looked at on.
            text: what the rows' tokens stand for.
        """
        folder = Path(folder)
        write_table(folder / "latents.parquet", {"latent": torch.arange(self.n_latents), "cluster": self.of_latent()})
        pairs = {key: getattr(self.pairs, key) for key in ("left", "right", "cosine", "jaccard", "overlap", "phi")}
        write_table(folder / "pairs.parquet", pairs | {"kind": [PAIRS[kind] for kind in self.pairs.kind.tolist()]})
        write_table(folder / "points.parquet", self._points(rows, text))
        write_result(folder, "manifolds", self.summary(name))

    def _points(self, rows: Rows, text: TokenText | None) -> Columns:
        row = torch.cat([cloud.row for cloud in self.clouds]) if self.clouds else torch.empty(0, dtype=torch.int64)
        numbers = [torch.full((len(cloud.row),), number) for number, cloud in enumerate(self.clouds)]
        found: Columns = {"cluster": torch.cat(numbers) if numbers else row, "row": row}
        for axis, key in enumerate("xyz"):
            parts = [cloud.place[:, axis] for cloud in self.clouds]
            found[key] = torch.cat(parts) if parts else row.double()
        for key in ("latent", "value"):
            parts = [getattr(cloud, key) for cloud in self.clouds]
            found[key] = torch.cat(parts) if parts else row
        found |= {key: column[row] for key, column in rows.columns.items()}
        if text and "token" in rows.columns:
            contexts = [text.context(*context(rows, place)) for place in row.tolist()]
            for part, key in enumerate(("before", "at", "after")):
                found[key] = [one[part] for one in contexts]
        return found


@torch.no_grad()
def manifolds(sae: Autoencoder, rows: Rows, settings: ManifoldSettings | None = None) -> Manifolds:
    """Find clusters of directions and tell what they are.

    Args:
        sae: any SAE or ensemble of one process.
        rows: in the data's units, to see on which latents fire together.
        settings: see `ManifoldSettings`.
    """
    settings = settings or ManifoldSettings()
    living = sae.alive().nonzero().squeeze(1).cpu()
    directions = sae.data_directions(normalised=True).detach()
    i, j, cosine = (part.cpu() for part in neighbour_graph(directions[living], settings.threshold, settings.neighbours))
    left, right = living[i], living[j]
    clusters = [living[part] for part in members(components(len(living), i, j))]
    seen, shown = Coactivation(sae.n_latents), clusters[: settings.clusters]
    own: list[list[tuple[Tensor, Tensor]]] = [[] for _ in shown]
    for start, x in zip(range(0, len(rows), BLOCK_ROWS), rows.x.split(BLOCK_ROWS), strict=True):
        codes = contributed(sae, x).to("cpu")
        seen.update(codes)
        for latents, parts in zip(shown, own, strict=True):
            place, value = _of_cluster(codes, latents)
            parts.append((place + start, value))
    pairs = _told(seen, left, right, cosine, settings.min_firings)
    of = torch.full((sae.n_latents,), -1)
    for number, latents in enumerate(clusters):
        of[latents] = number
    kinds = [_kind(pairs.kind[of[left] == number]) for number in range(len(clusters))]
    clouds = [_cloud(sae, latents, parts, settings) for latents, parts in zip(shown, own, strict=True)]
    return Manifolds(clusters, kinds, pairs, clouds, sae.n_latents, len(living), len(rows), settings)


def _told(seen: Coactivation, left: Tensor, right: Tensor, cosine: Tensor, least: int) -> Pairs:
    """What each close pair is."""
    jaccard, overlap, phi = seen.jaccard(left, right), seen.overlap(left, right), seen.phi(left, right)
    kind = torch.full_like(left, PAIRS.index("between"))
    kind[overlap <= APART] = PAIRS.index("disjoint")
    kind[(overlap >= OVERLAP) & (phi > 0)] = PAIRS.index("overlapping")
    kind[jaccard >= SAME] = PAIRS.index("duplicate")
    kind[torch.minimum(seen.left[left], seen.left[right]) < least] = PAIRS.index("undecided")
    return Pairs(left, right, cosine, jaccard, overlap, phi, kind)


def _kind(pairs: Tensor) -> str:
    """What a cluster is, from the kinds of its pairs."""
    counts = torch.bincount(pairs, minlength=len(PAIRS))
    decided = int(counts[:4].sum())
    if not decided:
        return "undecided"
    for number, kind in enumerate(KINDS[:3]):
        if 2 * int(counts[number]) > decided:
            return kind
    return "mixed"


def _of_cluster(codes: Codes, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in which any of a cluster's latents is active [n], and their codes [n, latents]."""
    place_of = torch.full((codes.n_latents,), -1)
    place_of[latents] = torch.arange(len(latents))
    place = place_of[codes.indices].where(codes.active, -1)
    some = (place >= 0).any(1).nonzero().squeeze(1)
    place = place[some]
    own = torch.zeros(len(some), len(latents) + 1, dtype=codes.values.dtype)
    own.scatter_add_(1, place.where(place >= 0, len(latents)), codes.values[some])
    return some, own[:, :-1]


def _cloud(sae: Autoencoder, latents: Tensor, parts: list[tuple[Tensor, Tensor]], settings: ManifoldSettings) -> Cloud:
    """A cluster's own part of the reconstruction in the data's units, from what `_of_cluster` gave block by block."""
    long = sae.data_directions().detach().cpu()[latents]
    number, value = (torch.cat(part) for part in zip(*parts, strict=True))
    chosen = torch.randperm(len(number), generator=generator_for(settings.seed, 11))[: settings.points].sort().values
    points = (value[chosen] @ long).double()
    strength = value[chosen] * long.norm(dim=1)
    best = strength.abs().max(1) if len(chosen) else (torch.empty(0), torch.empty(0, dtype=torch.int64))
    place3, explained = _three(points)
    return Cloud(
        number[chosen], place3, latents[best[1]], best[0], len(number),
        participation_ratio(points) if len(points) > 1 else float("nan"), two_nearest(points), explained,
    )  # fmt: skip


def _three(points: Tensor) -> tuple[Tensor, float]:
    """Points [n, D] along their first three principal components [n, 3], and the share of the variance in these."""
    if not len(points):
        return points.new_zeros(0, 3), float("nan")
    centred = points - points.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    flat = F.pad(u * s, (0, max(0, 3 - len(s))))[:, :3]
    total = s.square().sum()
    return flat, (s[:3].square().sum() / total).item() if total > 0 else float("nan")


def read_manifolds(folder: str | Path) -> dict[str, Any]:
    """A written result: `manifolds.json` with the tables' columns under `latents`, `pairs` and `points`.

    Raises:
        ValueError: that names the file that is missing, damaged or newer than this program.
    """
    folder = Path(folder)
    tables = {name: read_table(folder / f"{name}.parquet", columns) for name, columns in TABLES.items()}
    return read_result(folder, "manifolds", RESULT) | tables
