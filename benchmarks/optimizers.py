"""Whether cheaper ways of Adam end where Adam ends:  python benchmarks/optimizers.py [--store STORE] [--seeds 3]

Trains TopK SAEs with dense fp32 Adam, with narrow moments, with touched rows only, and with AuxK on all rows and on an
eighth, on a world with many more latents than fire in a batch, and on a store of activations if one is given. Prints
the FVU of each (in the world on rows none has seen), and its ratio to dense fp32 Adam's with the same seed: mean over
seeds and standard error.
"""

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from saelab.data.source import Source
from saelab.data.store import Store, StoreSource
from saelab.data.synthetic import SparseWorld
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train.optimizers.adam import Adam
from saelab.train.trainer import Trainer

VARIANTS: dict[str, tuple[Callable[[], Adam], float]] = {
    "dense fp32 Adam": (Adam, 1 / 8),
    "bfloat16 moments": (lambda: Adam(moments="bfloat16"), 1 / 8),
    "8-bit moments": (lambda: Adam(moments="float8"), 1 / 8),
    "touched rows": (lambda: Adam(touched=True), 1 / 8),
    "touched rows, 8-bit": (lambda: Adam(touched=True, moments="float8"), 1 / 8),
    "AuxK on all rows": (Adam, 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="activations to train on as well, measured on 8,192 rows of its last shard")
    parser.add_argument("--skip-world", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.skip_world:
        in_a_world(options)
    if options.store:
        store = Store(options.store)
        rows = store.rows(len(store.manifest.shards) - 1)[:8192].float()
        compare(
            f"{options.store}: 4,096 latents, k 32, batch 1,024",
            StoreSource(store),
            rows,
            (4096, 32, 1024),
            options,
        )


def in_a_world(options: argparse.Namespace) -> None:
    world = SparseWorld(64, 2048, l0=8.0, alpha=-0.2, seed=0)
    compare(
        "world: 64 wide, 8,192 latents, k 8, batch 512", world, world.draw(world.HELD_OUT)[0], (8192, 8, 512), options
    )


def compare(
    title: str, source: Source, held_out: Tensor, sizes: tuple[int, int, int], options: argparse.Namespace
) -> None:
    print(
        f"\n{title}, {options.steps} steps, {options.seeds} seeds\n{'':22}{'FVU':>9}{'ratio':>20}{'dead':>8}",
        flush=True,
    )
    base: list[float] = []
    for name, (optimizer, share) in VARIANTS.items():
        found = [trained(source, held_out, sizes, (optimizer(), share), options.steps, s) for s in range(options.seeds)]
        errors, dead = [one[0] for one in found], [one[1] for one in found]
        base = base or errors
        ratios = [own / other for own, other in zip(errors, base, strict=True)]
        spread = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
        line = (
            f"{statistics.mean(errors):9.4f}{statistics.mean(ratios):12.4f} ± {spread:.4f}{statistics.mean(dead):8.3f}"
        )
        print(f"{name:22}{line}", flush=True)


def trained(
    source: Source,
    held_out: Tensor,
    sizes: tuple[int, int, int],
    variant: tuple[Adam, float],
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Held-out FVU, and the share of latents that are silent at the end."""
    n_latents, k, batch = sizes
    optimizer, share = variant
    sae = SAE(source.d_in, n_latents, TopK(k), [AuxK(dead_after=50 * batch, share=share)], seed=seed)
    trainer = Trainer(sae, lr=1e-3, batch=batch, warmup=20, optimizer=optimizer)
    trainer.prepare(source)
    trainer.rows_planned = steps * batch
    batches = source.batches(batch)
    for _ in range(steps):
        trainer.step(next(batches))
    batches.close()  # type: ignore[attr-defined]
    trainer.finish()
    with torch.no_grad():
        error = (sae(held_out) - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()
    return error.item(), sae.firing.dead(50 * batch).float().mean().item()


if __name__ == "__main__":
    main()
