"""Meta-SAEs: a sparse autoencoder whose rows are the directions of another one (paper D, arXiv 2502.04878).

    rows      directions d_j of unit norm, of latents that are alive; a tenth is held out
    model     BatchTopK with k active on average, n_meta = n / ratio latents, AuxK
    explained 1 - sum ||d - d_hat||^2 / sum ||d - d_bar||^2      d_bar: mean of the directions that are measured

Directions that are atoms cannot be written as few others; those that can are put together from what the meta-latents
stand for. Some share is explained because directions lie in clusters or few dimensions: `controls` says how much, at
equal bits. What is explained on directions that were trained on is called so, apart from the held out.

Files of a result (`read_meta`):

    meta.json          sae, n_latents, n_alive, n_meta, k, settings; explained {held_out, trained}, l0 {held_out,
                       trained}, bits (of a held-out direction), dead (share of meta-latents that write no direction),
                       controls: {random, shuffled, pca, kmeans, residual_kmeans: {explained, bits}}, and
                       similar: [{name, n_latents, mean, random, curve}] (see `similar_to`), fits: {SAE: {fvu, l0,
                       rows}} where there were rows to see how well these SAEs reconstruct
    codes.parquet      latent, meta, value: the decompositions, d = bias + sum value * (direction of meta)
    latents.parquet    latent (alive ones), held_out, explained (1 - squared error of the unit direction), l0
    metas.parquet      meta, count (directions it writes), mean (value where it does)
    sae/               the meta-SAE: `saelab.load`; it reads and writes unit directions as they are
"""

# Shape letters: n directions, D their width, M meta-latents, K active of a direction.

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.analysis.controls import bits, explained, pca, random_directions, residual_kmeans, shuffled
from saelab.analysis.match import CURVE, stability
from saelab.analysis.tables import read_result, read_table, write_result, write_table
from saelab.core.codes import Codes
from saelab.data.array import ArraySource
from saelab.data.source import generator_for
from saelab.geometry import nearest
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.losses.auxk import AuxK
from saelab.sae.sae import SAE
from saelab.train.trainer import Trainer

DEAD_STEPS = 100
"""Steps without firing after which a meta-latent is dead for AuxK."""
LEAST_DIRECTIONS = 20
RESULT = {"sae": str, "n_latents": int, "n_alive": int, "n_meta": int, "k": float, "explained": dict, "l0": dict}
TABLES = {
    "codes": {"latent": int, "meta": int, "value": float},
    "latents": {"latent": int, "held_out": bool, "explained": float, "l0": float},
    "metas": {"meta": int, "count": int, "mean": float},
}
"""What the files of a result hold."""


@dataclass(frozen=True)
class MetaSettings:
    """How a meta-SAE is trained.

    Args:
        ratio: number of directions per meta-latent.
        k: mean number of active meta-latents per direction.
        steps: of training.
        batch: directions of a step; at most as many as there are.
        lr: learning rate.
        hold_out: share of the directions that is kept out of training and measured on, above 0 and below 1.
        seed: of weights, order and what is held out.
    """

    ratio: float = 21.0
    k: float = 4.0
    steps: int = 3000
    batch: int = 1024
    lr: float = 3e-3
    hold_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise ValueError(f"ratio must be at least 1 direction for each meta-latent, got {self.ratio}")
        if not 0 < self.hold_out < 1:
            raise ValueError(f"hold_out must be above 0 and below 1, got {self.hold_out}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {self.steps} and {self.batch}")
        if self.k <= 0:
            raise ValueError(f"k must be above 0, got {self.k}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")


@dataclass
class Meta:
    """A meta-SAE and what it says about the directions it was trained on."""

    sae: SAE
    """Reads unit directions as they are; its codes are the sizes of its own unit directions."""
    latents: Tensor
    """[n] int64, numbers of the living latents whose directions the rows were."""
    directions: Tensor
    """[n, D] of unit norm."""
    held_out: Tensor
    """[n] bool."""
    settings: MetaSettings
    controls: dict[str, dict[str, float]] = field(default_factory=dict)
    similar: list[dict[str, Any]] = field(default_factory=list)
    fits: dict[str, dict[str, float]] = field(default_factory=dict)

    @torch.no_grad()
    def codes(self) -> Codes:
        """Codes of all directions [n, K]."""
        return self.sae.encode(self.directions.to(self.sae.device, self.sae.dtype)).compact()

    def share(self, chosen: Tensor) -> float:
        """Explained share of the variance of some directions, [n] bool."""
        rows = self.directions[chosen].to(self.sae.device, self.sae.dtype)
        return explained(rows, self.sae(rows).detach())

    def l0(self, chosen: Tensor) -> float:
        """Mean number of meta-latents of some directions, [n] bool."""
        return self.codes().l0().cpu()[chosen].double().mean().item()

    @torch.no_grad()
    def decomposition(self, latent: int) -> list[tuple[int, float]]:
        """The meta-latents of a latent and their values, largest first."""
        (place,) = (self.latents == latent).nonzero().flatten().tolist() or [None]
        if place is None:
            raise ValueError(f"latent {latent} has no decomposition: it is dead, or there is none of that number")
        codes = self.sae.encode(self.directions[place : place + 1].to(self.sae.device, self.sae.dtype)).compact()
        found = zip(codes.indices[0].tolist(), codes.values[0].tolist(), strict=True)
        return sorted(((meta, value) for meta, value in found if value), key=lambda pair: -abs(pair[1]))

    def sentence(self, latent: int) -> str:
        """The same in words: "latent 12 = 0.61 · meta 7 + 0.44 · meta 90"."""
        parts = [f"{value:.2f} · meta {meta}" for meta, value in self.decomposition(latent)]
        return f"latent {latent} = " + (" + ".join(parts) if parts else "no meta-latent")

    @torch.no_grad()
    def summary(self, name: str, n_latents: int) -> dict[str, Any]:
        """What `meta.json` holds."""
        held, l0 = self.held_out, self.l0(self.held_out)
        return {
            "sae": name,
            "n_latents": n_latents,
            "n_alive": len(self.latents),
            "n_meta": self.sae.n_latents,
            "k": self.settings.k,
            "settings": asdict(self.settings),
            "explained": {"held_out": self.share(held), "trained": self.share(~held)},
            "l0": {"held_out": l0, "trained": self.l0(~held)},
            "bits": bits(l0, self.sae.n_latents),
            "dead": (self.codes().counts() == 0).double().mean().item(),
            "controls": self.controls,
            "similar": self.similar,
        } | ({"fits": self.fits} if self.fits else {})

    @torch.no_grad()
    def write(self, folder: str | Path, name: str, n_latents: int) -> None:
        """Write the files that the module's docstring lists."""
        folder, codes = Path(folder), self.codes()
        active = codes.active.cpu()
        latent = self.latents[:, None].expand_as(active)[active]
        values = codes.values.cpu()[active]
        write_table(folder / "codes.parquet", {"latent": latent, "meta": codes.indices.cpu()[active], "value": values})
        rows = self.directions.to(self.sae.device, self.sae.dtype)
        share = 1 - (rows - self.sae.decode(codes)).square().sum(1).cpu()
        about = {"latent": self.latents, "held_out": self.held_out, "explained": share, "l0": codes.l0().cpu()}
        write_table(folder / "latents.parquet", about)
        counts = codes.counts().cpu()
        total = torch.zeros(len(counts)).index_add_(0, codes.indices.cpu()[active], values)
        metas = {"meta": torch.arange(len(counts)), "count": counts, "mean": total / counts.clamp_min(1)}
        write_table(folder / "metas.parquet", metas)
        self.sae.save(folder / "sae")
        write_result(folder, "meta", self.summary(name, n_latents))


def train_meta(sae: Autoencoder, settings: MetaSettings | None = None, show: bool = True) -> Meta:
    """Train a meta-SAE on the directions of an SAE's living latents.

    Args:
        sae: any SAE or ensemble.
        settings: see `MetaSettings`.
        show: whether to show progress.

    Raises:
        ValueError: for fewer than LEAST_DIRECTIONS living latents, or settings that do not fit them.
    """
    latents = sae.alive().nonzero().squeeze(1)
    return decompose(
        sae.data_directions(normalised=True).detach()[latents], latents.cpu(), settings or MetaSettings(), show
    )


def decompose(directions: Tensor, latents: Tensor, settings: MetaSettings, show: bool = True) -> Meta:
    """Train a meta-SAE on rows [n, D], brought to unit norm, which belong to latents [n]."""
    if len(directions) < LEAST_DIRECTIONS:
        raise ValueError(
            f"a meta-SAE is trained on directions of alive latents: there are {len(directions)}, it needs at least "
            f"{LEAST_DIRECTIONS}"
        )
    directions = F.normalize(directions.detach(), dim=1)
    count = min(len(directions) - 1, max(1, round(settings.hold_out * len(directions))))
    held = torch.zeros(len(directions), dtype=torch.bool)
    held[torch.randperm(len(directions), generator=generator_for(settings.seed, 10))[:count]] = True
    sae = _trained(directions[~held], len(directions), settings, show)
    return Meta(sae, latents, directions, held, settings)


def _trained(rows: Tensor, n: int, settings: MetaSettings, show: bool) -> SAE:
    """A meta-SAE after training on rows, as large as n directions make it, with its scaling folded in."""
    n_meta = max(1, round(n / settings.ratio))
    if settings.k > n_meta:
        raise ValueError(
            f"k must be at most the number of meta-latents, {n_meta} for {n} directions at a ratio of "
            f"{settings.ratio:g}; got {settings.k:g}"
        )
    batch = min(settings.batch, len(rows))
    losses = [AuxK(k_aux=max(1, n_meta // 2), dead_after=DEAD_STEPS * batch)]
    sae = SAE(rows.shape[1], n_meta, BatchTopK(k=settings.k), losses, seed=settings.seed).to(rows.device)
    trainer = Trainer(sae, lr=settings.lr, batch=batch, warmup=min(100, settings.steps // 5), decay=0.3)
    source = ArraySource(rows.cpu().float(), seed=settings.seed)
    return trainer.fit(source, settings.steps * batch, show=show).eval().fold()


@torch.no_grad()
def _quick_controls(meta: Meta) -> dict[str, dict[str, float]]:
    """PCA and k-means at the meta-SAE's bits."""
    train, held = (meta.directions[part].cpu().float() for part in (~meta.held_out, meta.held_out))
    n_meta, l0, seed = meta.sae.n_latents, meta.l0(meta.held_out), meta.settings.seed
    components, stages = int(bits(l0, n_meta) // bits(1, 1)), max(1, round(l0))
    each = max(1, n_meta // stages)
    found = {
        "pca": (pca(train, held, components), components * bits(1, 1)),
        "kmeans": (residual_kmeans(train, held, n_meta, 1, seed), bits(1, n_meta)),
        "residual_kmeans": (residual_kmeans(train, held, each, stages, seed), bits(stages, each)),
    }
    return {name: {"explained": explained(held, rows), "bits": pays} for name, (rows, pays) in found.items()}


def add_controls(meta: Meta, show: bool = True) -> None:
    """Fill in `meta.controls`; trains two more meta-SAEs, on random and on shuffled directions."""
    n, width = meta.directions.shape
    rows = {
        "random": random_directions(n, width, meta.settings.seed),
        "shuffled": shuffled(meta.directions.cpu(), meta.settings.seed),
    }
    for name, other in rows.items():
        found = decompose(other, meta.latents, meta.settings, show)
        held = found.held_out
        pays = bits(found.l0(held), found.sae.n_latents)
        meta.controls[name] = {"explained": found.share(held), "bits": pays}
    meta.controls |= _quick_controls(meta)


def similar_to(meta: Meta, others: Mapping[str, Autoencoder]) -> list[dict[str, Any]]:
    """How much meta-latents resemble latents of other SAEs, such as those of about as many latents.

    For each: mean over living meta-latents of the largest cosine with its directions, the same of as many random
    directions, and the share of meta-latents with a cosine of at least each of `match.CURVE`.
    """
    used = (meta.codes().counts() > 0).nonzero().squeeze(1)
    own = meta.sae.dictionary.directions().detach()[used].cpu().float()
    found = []
    for name, sae in others.items():
        directions = sae.data_directions(normalised=True).detach()[sae.alive()].cpu().float()
        if directions.shape[1] != own.shape[1]:
            raise ValueError(
                f"{name} has directions {directions.shape[1]} wide, the meta-latents {own.shape[1]}: not of one site"
            )
        best = nearest(own, directions)[0].squeeze(1)
        chance = nearest(random_directions(len(own), own.shape[1], meta.settings.seed), directions)[0]
        about = {"name": name, "n_latents": sae.n_latents, "mean": best.mean().item(), "random": chance.mean().item()}
        found.append(about | {"curve": {"cosine": CURVE, "share": stability(best)}})
    return found


def read_meta(folder: str | Path) -> dict[str, Any]:
    """A written result: `meta.json` with the tables' columns under `codes`, `latents` and `metas`.

    Raises:
        ValueError: that names the file that is missing, damaged or newer than this program.
    """
    folder = Path(folder)
    tables = {name: read_table(folder / f"{name}.parquet", columns) for name, columns in TABLES.items()}
    return read_result(folder, "meta", RESULT) | tables
