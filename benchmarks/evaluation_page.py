"""SAEs of the bundled model in several widths and k, and two controls, measured with the whole suite, as one table.

    python benchmarks/evaluation_page.py train   --out evaluation      # a store, a sweep for each width, the controls
    python benchmarks/evaluation_page.py measure --out evaluation      # `saelab measure` on each; measured ones stay
    python benchmarks/evaluation_page.py table   --out evaluation      # Markdown of chosen scores, on standard output

The controls have the shape of the SAE of --control latents with the middle k: `untrained` is as it stood before its
first step (scaled to the data, encoder and decoder transposed random directions), `random` has its trained encoder and
decoder replaced by random directions of the same norms. Every SAE of a width sees the same rows in the same order.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from saelab.cli import main
from saelab.data.store import StoreSource
from saelab.sae.files import load_sae
from saelab.sae.sae import SAE

SHOWN = {
    "fvu": "FVU", "ce_recovered": "CE recovered", "probe_loss": "probe loss", "probe_loss_null": "permuted labels",
    "probe_accuracy": "probe accuracy", "sparse_probing_1": "top-1 accuracy", "sparse_probing_5": "top-5 accuracy",
    "absorption": "absorption", "tpp_10": "TPP 10", "scr_10": "SCR 10", "ssd": "SSD", "information_scope": "scope",
    "n2g_precision": "N2G precision", "n2g_recall": "N2G recall", "ce_delta": "CE added", "tpp_50": "TPP 50",
    "probe_loss_train": "on the training part", "absorption_full": "full absorption", "l0": "L0", "mdl": "MDL",
    "n2g_recall_pooled": "recall, pooled", "n2g_precision_pooled": "precision, pooled",
    "ablation_sparsity_channels": "of channels", "refined_shift": "shift", "fvu_read_topk_double": "read with 2 k",
    "fvu_read_threshold_same": "read with a threshold", "ablation_sparsity": "ablation sparsity",
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=400_000, help="of the store")
    parser.add_argument("--rows", type=int, default=400_000, help="to train on")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 4096, 16_384])
    parser.add_argument("--control", type=int, default=4096, help="latents of the controls")
    parser.add_argument("--ks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--metrics", nargs="+", default=["default"])
    parser.add_argument("--measure_tokens", type=int, default=16_384)
    parser.add_argument("--shown", nargs="+", default=list(SHOWN), help="scores of the table")
    return parser.parse_args()


def train(options: argparse.Namespace) -> None:
    """Make what is not there yet."""
    store = options.out / "acts"
    if not (store / "manifest.json").exists() or not json.loads((store / "manifest.json").read_text()).get("complete"):
        main(["harvest", "--out", str(store), "--tokens", str(options.tokens), "--piece", "2000"])
    for width in options.widths:
        out = options.out / f"n{width}"
        if (out / "sweep.json").exists():
            if not all((out / f"k{k}" / "sae").exists() for k in options.ks):
                main(["sweep", "--resume", str(out)])
            continue
        words = ["sweep", "--store", str(store), "--out", str(out), "--rows", str(options.rows)]
        words += ["--sae.n_latents", str(width), "--trainer.lr", "0.004", "--trainer.batch", "1024"]
        words += ["--trainer.decay", "0.7", "--sae.losses.dead_after", str(options.rows // 8)]
        main([*words, "--save_every", "1000000", "--vary", f"sae.activation.k={','.join(map(str, options.ks))}"])
    controls(options, store)


def controls(options: argparse.Namespace, store: Path) -> None:
    """An SAE with the middle k, untrained and with random directions."""
    middle = options.out / f"n{options.control}" / f"k{options.ks[len(options.ks) // 2]}"
    trained = load_sae(middle)
    untrained = SAE.from_config(trained.config())
    untrained.initialise(StoreSource(store).sample(32_768).float())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("W_enc", "W_dec"):
            weight = getattr(trained.dictionary, name)
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn * (weight.norm(dim=1) / drawn.norm(dim=1))[:, None])
    for name, sae in (("untrained", untrained), ("random", trained)):
        out = options.out / "controls" / name
        if not out.exists():
            kept = shutil.ignore_patterns("checkpoints", "scores.*", "tables", "latents.*", "measured.json")
            shutil.copytree(middle, out, ignore=kept)
            sae.save(out / "sae")


def runs(options: argparse.Namespace) -> list[Path]:
    trained = [options.out / f"n{width}" / f"k{k}" for width in options.widths for k in options.ks]
    return [*trained, *sorted((options.out / "controls").iterdir())]


def table(options: argparse.Namespace) -> None:
    """Scores of all runs, with half the width of their intervals."""
    shown = [name for name in options.shown if any(name in scores(run) for run in runs(options))]
    print("| SAE | " + " | ".join(SHOWN.get(name, name) for name in shown) + " |")
    print("|---|" + "---|" * len(shown))
    for run in runs(options):
        name = run.name if run.parent.name == "controls" else f"{run.parent.name} {run.name}"
        print(f"| {name} | " + " | ".join(cell(scores(run).get(one)) for one in shown) + " |")


def scores(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "scores.json").read_text()) if (run / "scores.json").exists() else {}


def cell(score: dict[str, float] | None) -> str:
    if score is None:
        return ""
    if score["low"] is None:
        return f"{score['value']:.3g}"
    return f"{score['value']:.3g} ± {(score['high'] - score['low']) / 2:.1g}"


if __name__ == "__main__":
    chosen = arguments()
    torch.set_num_threads(1)
    if chosen.what == "train":
        train(chosen)
    elif chosen.what == "table":
        table(chosen)
    else:
        words = ["measure", *map(str, runs(chosen)), "--tokens", str(chosen.measure_tokens)]
        main([*words, "--metrics", *chosen.metrics])
