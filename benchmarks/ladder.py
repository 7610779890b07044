"""A ladder of SAEs on the bundled model's activations, for laws to be fitted to:  python benchmarks/ladder.py --out DIR

Three stages, each of which goes on where it was stopped:

    acts, held-out   stores of the residual stream after --site on the Python standard library, seen and unseen files
    rates            widths x learning rates at one k: where the best rate lies at each width
    ladder           widths x k, each trained until the FVU falls by less than --converge over a doubling of rows (or
                     for --rows), at the rate --rate / sqrt(width / 4096); one sweep a width, but wide SAEs one by one,
                     which the compiled kernels make quicker

and then the FVU of every SAE on the held-out store, into each run's scores.json. `saelab scaling fit DIR/ladder/*`
reads the result. The defaults are what docs/scaling.md reports; the full grid would be
--widths 256 512 1024 2048 4096 8192 16384 --ks 4 8 16 32 64 --tokens 20000000 --rows 40000000 --converge 0.01.
"""

import argparse
from pathlib import Path

import torch

from saelab.cli import main as saelab


def sweep(out: Path, words: list[str]) -> None:
    """Train a sweep, or go on with it."""
    if (out / "sweep.json").exists():
        saelab(["sweep", "--resume", str(out)])
    else:
        saelab(["sweep", "--out", str(out), *words])


def one_by_one(out: Path, ks: list[int], words: list[str]) -> None:
    """Train an SAE for each k in a folder of its own, or go on with it."""
    for k in ks:
        folder = out / f"k{k}"
        if (folder / "config.yaml").exists():
            if not (folder / "sae").exists():
                saelab(["train", "--resume", str(folder)])
        else:
            saelab(["train", "--out", str(folder), "--sae.activation.k", str(k), *words])


def words_of(options: argparse.Namespace, n: int) -> list[str]:
    """What all SAEs of a width have in common."""
    common = ["--store", str(options.out / "acts"), "--sae.n_latents", str(n), "--trainer.batch", str(options.batch)]
    return [*common, "--log_every", "10", "--save_every", "200", "--sae.losses.dead_after", "200000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", default="model.layers.3")
    parser.add_argument("--tokens", type=int, default=1_500_000, help="of the store")
    parser.add_argument("--rows", type=int, default=1_500_000, help="most rows an SAE of the ladder sees")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--ks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--converge", type=float, default=0.03)
    parser.add_argument("--apart_from", type=int, default=2048, help="width from which SAEs are trained one by one")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at 4,096 latents")
    parser.add_argument("--rate_widths", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument("--rates", nargs="+", default=["0.001", "0.002", "0.004", "0.008", "0.016", "0.032"])
    parser.add_argument("--rate_rows", type=int, default=300_000)
    parser.add_argument("--stages", nargs="+", default=["acts", "rates", "ladder", "measure"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out: Path = options.out
    if "acts" in options.stages:
        for name, split, tokens in (("acts", "train", options.tokens), ("held-out", "held-out", 100_000)):
            site = ["--site", options.site, "--split", split]
            if not (out / name).exists():
                saelab(["harvest", "--out", str(out / name), "--tokens", str(tokens), *site])
    if "rates" in options.stages:
        for n in options.rate_widths:
            fixed = [*words_of(options, n), "--rows", str(options.rate_rows), "--sae.activation.k", "16"]
            sweep(out / "rates" / f"n{n}", [*fixed, "--vary", f"trainer.lr={','.join(options.rates)}"])
    if "ladder" in options.stages:
        for n in options.widths:
            fixed = [*words_of(options, n), "--rows", str(options.rows), "--converge", str(options.converge)]
            rate = ["--trainer.lr", f"{options.rate * (4096 / n) ** 0.5:.6g}"]
            if n >= options.apart_from:
                one_by_one(out / "ladder" / f"n{n}", options.ks, [*fixed, *rate])
                continue
            sweep(
                out / "ladder" / f"n{n}",
                [*fixed, *rate, "--vary", f"sae.activation.k={','.join(map(str, options.ks))}"],
            )
    if "measure" in options.stages:
        runs = sorted(path.parent.parent for path in out.glob("*/n*/*/sae/config.json"))
        todo = [str(run) for run in runs if not (run / "scores.json").exists()]
        if todo:
            metrics = ["--metrics", "Reconstruction", "L0", "DeadLatents"]
            saelab(["measure", *todo, "--store", str(out / "held-out"), "--tokens", "32768", *metrics])


if __name__ == "__main__":
    main()
