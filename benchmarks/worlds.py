"""Every architecture against known features:  python benchmarks/worlds.py --out worlds [--seeds 3] [--rows 1000000]

Trains each architecture on three worlds (sparse, hierarchical, manifold) at equal mean L0 and equal rows, several seeds
each (of the world and of the SAE), compares it with the world's truth on held-out rows, and writes worlds.parquet and
worlds.html: one line an architecture and world, the mean over seeds and its standard error. Where a penalty and not k
sets the L0, the penalty is steered during the first part of training and then held. Below the table stand four
findings of the literature, each with this run's numbers, whether or not it appears.

A few architectures are also tried on circles alone, with two latents a circle and with eight.

Runs that are already in worlds.parquet are not trained again: --architectures, --seeds and --rows may grow a table.
"""

import argparse
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from worlds_page import write_page

from saelab.core.progress import progress
from saelab.data.synthetic import HierarchicalWorld, ManifoldWorld, SparseWorld
from saelab.data.synthetic.world import World
from saelab.metrics.truth import compare
from saelab.sae import SAE
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.sae.reading import reread
from saelab.sae.refine import refine
from saelab.train.trainer import Trainer

WIDTH, BATCH, RATE = 64, 512, 3e-3
STEER_UNTIL, STEER_GAIN = 0.7, 0.005
"""For which share of the rows a penalty follows the L0, and by how much (of its logarithm) it moves in a step: slowly,
because a penalty that runs ahead of the weights leaves codes shrunk for good."""
HELD_OUT_ROWS = 32_768


@dataclass(frozen=True)
class Setting:
    """A world, how many latents it is given and how many may be active."""

    make: Callable[[int], World]
    n_latents: int
    l0: int
    only: tuple[str, ...] = ()
    """The architectures it is a trial of; by default all."""


def circles(seed: int) -> World:
    """Sixteen circles, one a row on average; six active latents are enough for three in their own planes."""
    return ManifoldWorld(WIDTH, 16, l0=1.0, alpha=-0.5, seed=seed, shapes=["circle"])


WORLDS = {
    "sparse": Setting(lambda seed: SparseWorld(WIDTH, 128, l0=5.0, alpha=-0.5, seed=seed), 192, 5),
    "hierarchical": Setting(
        lambda seed: HierarchicalWorld(WIDTH, 120, l0=4.0, alpha=-0.5, seed=seed, branching=[4], chance=0.2), 180, 4
    ),
    "manifold": Setting(
        lambda seed: ManifoldWorld(WIDTH, 24, l0=2.0, alpha=-0.5, seed=seed, shapes=["circle", "line"]), 128, 4
    ),
    "circles, 2 latents each": Setting(circles, 32, 6, ("TopK", "BatchTopK", "BlockTopK (rank 2)")),
    "circles, 8 latents each": Setting(circles, 128, 6, ("TopK", "BatchTopK", "BlockTopK (rank 2)")),
}


@dataclass(frozen=True)
class Architecture:
    """What is put together; `steered` names the weight that sets the mean L0, where k does not."""

    activation: dict[str, Any]
    losses: tuple[dict[str, Any], ...] = ()
    dictionary: dict[str, Any] = field(default_factory=lambda: {"name": "Dense"})
    steered: str | None = None

    def sae(self, setting: Setting, seed: int) -> SAE:
        """The SAE, with "k" in place of the setting's L0, "k/2" of half of it and so on."""
        return SAE(
            WIDTH,
            setting.n_latents,
            Activation.build(filled(self.activation, setting)),
            [Loss.build(filled(loss, setting)) for loss in self.losses],
            Dictionary.build(filled(self.dictionary, setting)),
            seed=seed,
        )


def filled(config: dict[str, Any], setting: Setting) -> dict[str, Any]:
    k = setting.l0
    values = {"k": k, "k/2": max(1, k // 2), "2k": 2 * k, "4k": 4 * k}
    return {key: values.get(value, value) if isinstance(value, str) else value for key, value in config.items()}


AUXK = {"name": "AuxK", "dead_after": 50_000, "k_aux": 32}
NO_BIAS = {"name": "Dense", "encoder_bias": False}
ARCHITECTURES = {
    "ReLU + L1": Architecture({"name": "ReLU", "l1": 0.02}, steered="l1"),
    "JumpReLU": Architecture({"name": "JumpReLU", "weight": 0.001}, steered="weight"),
    "Gated": Architecture({"name": "Gated", "l1": 0.02}, steered="l1"),
    "BiJumpReLU": Architecture({"name": "BiJumpReLU", "l1": 0.02}, steered="l1"),
    "ProLU": Architecture({"name": "ProLU", "l1": 0.02}, steered="l1"),
    "Binary": Architecture({"name": "Binary", "entropy": 0.001}, steered="entropy"),
    "TopK": Architecture({"name": "TopK", "k": "k"}, (AUXK,)),
    "Multi-TopK": Architecture({"name": "TopK", "k": "k"}, (AUXK, {"name": "MultiTopK", "k": "4k"})),
    "BatchTopK": Architecture({"name": "BatchTopK", "k": "k"}, (AUXK,)),
    "AbsTopK": Architecture({"name": "AbsTopK", "k": "k"}, (AUXK,)),
    "BlockTopK (rank 2)": Architecture({"name": "BlockTopK", "k": "k/2", "rank": 2}, (), NO_BIAS),
    "MatchingPursuit": Architecture(
        {"name": "MatchingPursuit", "k": "k"}, (AUXK,), {"name": "Dense", "tied": True, "encoder_bias": False}
    ),
    "Top-AFA": Architecture({"name": "TopAFA"}, (AUXK, {"name": "NormMatch"}), NO_BIAS),
    "Matryoshka (BatchTopK)": Architecture(
        {"name": "BatchTopK", "k": "k"}, (AUXK, {"name": "Matryoshka", "prefixes": [0.125, 0.25, 0.5]})
    ),
    "Orthogonality (BatchTopK)": Architecture(
        {"name": "BatchTopK", "k": "k"}, (AUXK, {"name": "Orthogonality", "chunk": 64, "weight": 0.25})
    ),
    "Expander (TopK, degree 16)": Architecture({"name": "TopK", "k": "k"}, (), {"name": "Expander", "degree": 16}),
}


def trained(architecture: Architecture, setting: Setting, world: World, seed: int, rows: int) -> SAE:
    """The SAE after `rows` rows of a world, its penalty steered to the setting's L0 where it has one."""
    sae = architecture.sae(setting, seed)
    trainer = Trainer(sae, lr=RATE, batch=BATCH, warmup=50)
    trainer.prepare(world)
    trainer.rows_planned = rows
    steps, batches = rows // BATCH, world.batches(BATCH)
    mean_l0 = float(setting.l0)
    for step in range(steps):
        _, forward = trainer.step(next(batches))
        if architecture.steered and step < STEER_UNTIL * steps:
            mean_l0 = 0.9 * mean_l0 + 0.1 * forward.codes.l0().float().mean().item()
            weight = getattr(sae.activation, architecture.steered)
            push = STEER_GAIN * max(-1.0, min(1.0, 3 * math.log(max(mean_l0, 0.01) / setting.l0)))
            setattr(sae.activation, architecture.steered, weight * math.exp(push))
    batches.close()  # type: ignore[attr-defined]
    return sae


def outcome(job: tuple[str, str, int, int]) -> dict[str, Any]:
    """One line of the table of runs."""
    torch.set_num_threads(1)
    name, world_name, seed, rows = job
    setting, architecture = WORLDS[world_name], ARCHITECTURES[name]
    world = setting.make(seed)
    sae = trained(architecture, setting, world, seed, rows)
    found = compare(sae, world, rows=HELD_OUT_ROWS)
    line: dict[str, Any] = {"architecture": name, "world": world_name, "seed": seed, "rows": rows}
    line |= {key: score.value for key, score in found.scores.items()}
    circles = world.dims == 2
    if circles.any():
        line["latents_per_circle"] = found.features["latents_per_feature"][circles].double().mean().item()
    if architecture.steered:
        line["penalty"] = getattr(sae.activation, architecture.steered)
    return line | further(sae, world, setting)


@torch.no_grad()
def further(sae: SAE, world: World, setting: Setting) -> dict[str, float]:
    """What the four findings need: the error at other k, the scale of codes before and after refinement."""
    x, _ = world.draw(world.HELD_OUT + 1000)
    x = x[:4096]
    found: dict[str, float] = {}
    if type(sae.activation).__name__ == "TopK" and sae.dictionary.sites == 1:
        for factor in (1, 2, 4):
            activation = Activation.build({"name": "TopK", "k": factor * setting.l0})
            found[f"fvu_at_{factor}k"] = fvu(x, reread(sae, activation)(x))
    codes = sae.encode(x)
    if (codes.values >= 0).all() and type(sae.activation).__name__ != "Binary":
        refined = refine(sae, x, codes)
        found["fvu_refined"] = fvu(x, sae.decode(refined))
        found["refined_over_code"] = (refined.values.sum() / codes.values.sum()).item()
    return found


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return ((x_hat - x).square().sum() / (x - x.mean(0)).square().sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for worlds.parquet and worlds.html")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows each SAE sees")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "worlds.parquet"
    lines: list[dict[str, Any]] = pq.read_table(table).to_pylist() if table.exists() else []
    done = {(line["architecture"], line["world"], line["seed"], line["rows"]) for line in lines}
    jobs = [
        (name, world, seed, options.rows)
        for seed in range(options.seeds)
        for world in options.worlds
        for name in options.architectures
        if not WORLDS[world].only or name in WORLDS[world].only
        if (name, world, seed, options.rows) not in done
    ]
    with ProcessPoolExecutor(options.processes) as pool, progress("worlds", len(jobs), "runs") as bar:
        for future in as_completed([pool.submit(outcome, job) for job in jobs]):
            lines.append(future.result())
            pq.write_table(pa.Table.from_pylist(lines, schema=schema(lines)), table)
            bar.advance(1)
    write_page(options.out / "worlds.html", lines, list(ARCHITECTURES), list(WORLDS))
    print(f"wrote {table} and {options.out / 'worlds.html'}")


def schema(lines: list[dict[str, Any]]) -> pa.Schema:
    """Every column that any line has; numbers are float64."""
    kinds: dict[str, pa.DataType] = {"architecture": pa.string(), "world": pa.string()}
    kinds |= {"seed": pa.int64(), "rows": pa.int64()}
    for line in lines:
        for key in line:
            kinds.setdefault(key, pa.float64())
    return pa.schema(list(kinds.items()))


if __name__ == "__main__":
    main()
