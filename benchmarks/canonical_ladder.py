"""The SAEs that `canonical_units.py` asks about: families of several widths and seeds on one stream of activations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from saelab.core.files import write_json
from saelab.core.run import Run
from saelab.data.store import StoreSource
from saelab.models.subject import Subject
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.losses.auxk import AuxK
from saelab.train.trainer import Trainer

SUBJECT = Subject(model="pycode-7m", site="model.layers.3", text="stdlib", piece=2000)
LADDER = {256: 1, 512: 0, 1024: 1, 2048: 0, 4096: 1, 8192: 0}
"""Seed of each width. Neighbours differ, because SAEs of one seed begin with the same directions."""
SEEDS, SEED_WIDTH = (0, 1), 1024
OTHER_SEEDS: dict[str, dict[int, list[int]]] = {"ladder": {256: [3], 512: [2], 1024: [0]}}
"""Further seeds of a family's widths: what differs between them is the size of chance."""
K, BATCH = 32, 2048


@dataclass(frozen=True)
class Family:
    """SAEs that differ in width and seed alone.

    Args:
        activation: makes their activation.
        widths: how many of LADDER's, the narrowest first.
        part: what they see of all rows, as 1 / part.
        auxk: whether latents that are silent for an eighth of the training are trained by AuxK.
    """

    activation: Callable[[], Activation]
    widths: int
    part: int = 1
    auxk: bool = True

    def seeds(self) -> dict[int, int]:
        """Seed of each width."""
        return dict(list(LADDER.items())[: self.widths])

    def rows(self, rows: int) -> int:
        """What it sees of so many rows."""
        return rows // self.part


def topk() -> Activation:
    return TopK(k=K)


def batch_topk() -> Activation:
    # Few steps are made: a threshold that remembers a thousand of them would still be that of the beginning.
    return BatchTopK(k=K)


def jump_relu() -> Activation:
    # Rows have a mean square of 1: thresholds end up near 1, and are too slow to come there from the default.
    return JumpReLU("target_l0", weight=0.1, target=K, threshold=1.0, bandwidth=1.0)


FAMILIES = {
    "ladder": Family(topk, 6),
    "batch": Family(batch_topk, 4),
    "ladder-short": Family(topk, 3, part=5),
    "batch-short": Family(batch_topk, 3, part=5),
    "jump": Family(jump_relu, 3, part=4, auxk=False),
}


def ladder_sae(width: int, seed: int, rows: int, family: str = "ladder") -> SAE:
    """One rung, which will see so many rows."""
    kind = FAMILIES[family]
    return SAE(256, width, kind.activation(), [AuxK(dead_after=rows // 8)] if kind.auxk else [], seed=seed)


def rung(out: Path, width: int, seed: int | None = None, family: str = "ladder") -> Path:
    """The folder of one SAE of a family, of its own seed or of another."""
    seed = LADDER[width] if seed is None else seed
    return out / family / (f"{width}" if not seed else f"{width}-seed{seed}")


def is_trained(folder: Path) -> bool:
    return (folder / "sae" / "config.json").exists()


def wanted() -> Iterator[tuple[str, int, int]]:
    """Family, width and seed of every SAE; some come twice."""
    yield from (("ladder", width, seed) for width, seed in LADDER.items())
    yield from (("ladder", SEED_WIDTH, seed) for seed in SEEDS)
    for family, kind in FAMILIES.items():
        yield from ((family, width, seed) for width, seed in kind.seeds().items())
    for family, others in OTHER_SEEDS.items():
        yield from ((family, width, seed) for width, seeds in others.items() for seed in seeds)


def train_one(out: Path, rows: int, family: str, width: int, seed: int) -> None:
    """Train one SAE unless it is there, on the same rows in the same order as all of its family.

    After Ctrl-C it goes on where it was.
    """
    folder = rung(out, width, seed, family)
    if is_trained(folder):
        return
    source, rows = StoreSource(out / "acts"), FAMILIES[family].rows(rows)
    if folder.exists():
        run = Run.open(folder)
    else:
        run = Run.create(folder, {"width": width, "seed": seed})
        write_json(run.source_file, source.store.manifest.origin)
    rate = 4e-3 * min(1, (4096 / width) ** 0.5)
    trainer = Trainer(ladder_sae(width, seed, rows, family), lr=rate, batch=BATCH, decay=0.5)
    trainer.fit(source, rows, run, save_every=10**9)


def train_ladder(out: Path, rows: int) -> None:
    """Train every SAE that is not there."""
    for family, width, seed in wanted():
        train_one(out, rows, family, width, seed)


def widths_of(out: Path, family: str = "ladder") -> list[int]:
    """The rungs that are there."""
    return [width for width in FAMILIES[family].seeds() if is_trained(rung(out, width, family=family))]


def seeds_of(out: Path, family: str, width: int) -> list[int]:
    """The seeds of a width that are there."""
    all_seeds = {seed for kind, own, seed in wanted() if (kind, own) == (family, width)}
    return sorted(seed for seed in all_seeds if is_trained(rung(out, width, seed, family)))
