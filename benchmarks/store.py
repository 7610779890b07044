"""How fast shuffled rows come out of a store:  python benchmarks/store.py [--rows 1000000] [--width 768] [--batch 4096]

Also how long a training step on it waits for them: --latents and --k of a TopK SAE, --steps of it.

Writes a store of random rows into a temporary folder, reads one pass of it in shuffled batches, and prints rows per
second beside what copying the same rows in memory reaches, in the same run. The page cache is warm: it measures the
reader, not the disk.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from saelab.data.store import Store, StoreSource, StoreWriter
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.train.trainer import Trainer

SHARD_ROWS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder) / "store", options.rows, options.width)
        batches = StoreSource(store).batches(options.batch)
        count = options.rows // options.batch
        next(batches)  # checksums and the first window
        shuffled = rows_per_second((next(batches).x for _ in range(count)), options.batch)
        rows = store.rows(0)
        places = [torch.randint(len(rows), (options.batch,)) for _ in range(count)]
        copied = rows_per_second((rows[place] for place in places), options.batch)
        sae = SAE(options.width, options.latents, TopK(options.k))
        sae.initialise(rows[:4096].float())
        waited, spent = training(StoreSource(store), Trainer(sae, batch=options.batch), options.steps)
    print(f"width {options.width}, bf16, batches of {options.batch}: {shuffled:,.0f} shuffled rows/s")
    print(f"random rows of one shard in memory: {copied:,.0f} rows/s; ratio {shuffled / copied:.2f}")
    share = waited / (waited + spent)
    print(f"{options.steps} training steps, {options.latents:,} latents: {share:.1%} of the time is waiting for rows")


def write(folder: Path, rows: int, width: int) -> Store:
    writer = StoreWriter(folder, width, "bf16", {"made by": "benchmarks/store.py"})
    for start in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - start)
        writer.append(torch.randn(count, width), 1, {}, document=torch.zeros(count, dtype=torch.int32))
    writer.finish()
    return Store(folder)


def training(source: StoreSource, trainer: Trainer, steps: int) -> tuple[float, float]:
    """Seconds spent waiting for batches and in steps."""
    batches, waited, spent = source.batches(trainer.batch), 0.0, 0.0
    trainer.step(next(batches))  # the first window is not read ahead
    for _ in range(steps):
        begun = time.perf_counter()
        batch = next(batches)
        come = time.perf_counter()
        trainer.step(batch)
        waited, spent = waited + come - begun, spent + time.perf_counter() - come
    return waited, spent


def rows_per_second(batches: Iterable[torch.Tensor], batch: int) -> float:
    begun, count = time.perf_counter(), 0
    for x in batches:
        x.float()  # what the trainer does with it
        count += 1
    return count * batch / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
