"""Are latents canonical units?  python benchmarks/canonical_units.py --out canonical [--steps stitch meta ...]

Repeats the questions of Leask et al. 2025 (arXiv 2502.04878) on the bundled model and on a world with known features:
a ladder of SAEs trained on one stream of activations, stitched, matched and looked at by meta-SAEs. Writes everything
into a folder, one step after another; what is there is not made again:

    harvest   acts/              activations of the bundled model
    ladder    ladder/, jump/     SAEs of several widths on the same stream, and another seed of one width; TopK and, at
                                 three widths on fewer rows, JumpReLU
    stitch    stitch/            insertion test, cosine rule, the way from the narrowest to the widest; other orders
    jump      jump-stitch/       the same of the JumpReLU family
    meta      meta/              meta-SAEs of the widest with controls at equal bits, and of other k, sizes and widths
    match     match/             seeds and neighbouring widths matched
    manifolds manifolds/         clusters of the widest SAE's directions
    world     world/             the same where the features are known
    report    numbers.json, figures/

`docs/canonical-units.md` tells what was found.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from canonical_figures import draw

from saelab import load
from saelab.analysis.assembled import independent
from saelab.analysis.assignment import assign
from saelab.analysis.loss_along import loss_along
from saelab.analysis.manifolds import ManifoldSettings, manifolds
from saelab.analysis.match import match
from saelab.analysis.meta import MetaSettings, add_controls, decompose, similar_to, train_meta
from saelab.analysis.rows import Rows
from saelab.analysis.stitch import StitchSettings, stitch
from saelab.analysis.unions import swapped
from saelab.core.files import read_json, write_json
from saelab.core.run import Run
from saelab.data.store import StoreSource
from saelab.data.synthetic.sparse import SparseWorld
from saelab.metrics import TextEvaluation, measure
from saelab.metrics.truth import compare
from saelab.models.harvest import harvest
from saelab.models.subject import Subject
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train.trainer import Trainer

SUBJECT = Subject(model="pycode-7m", site="model.layers.3", text="stdlib", piece=2000)
TOKENS, HELD_OUT = 2_000_000, 40_000
LADDER = {256: 1, 512: 0, 1024: 1, 2048: 0, 4096: 1, 8192: 0}
"""Seed of each width. Neighbours differ, because SAEs of one seed begin with the same directions."""
SEEDS, SEED_WIDTH = (0, 1), 1024
JUMPS = {256: 1, 512: 0, 1024: 1}
"""The same of the JumpReLU family, which sees a quarter of the rows."""
K, BATCH = 32, 2048
WORLD_WIDTHS = [32, 64, 128, 256, 512]


def ladder_sae(width: int, seed: int, rows: int, family: str = "ladder") -> SAE:
    """One rung: only width and seed differ within a family."""
    if family == "jump":
        # Rows have a mean square of 1: thresholds end up near 1, and are too slow to come there from the default.
        return SAE(256, width, JumpReLU("target_l0", weight=0.1, target=K, threshold=1.0, bandwidth=1.0), seed=seed)
    return SAE(256, width, TopK(k=K), [AuxK(dead_after=rows // 8)], seed=seed)


def rung(out: Path, width: int, seed: int | None = None, family: str = "ladder") -> Path:
    """The folder of one SAE of a family, of its own seed or of another."""
    seed = (JUMPS if family == "jump" else LADDER)[width] if seed is None else seed
    return out / family / (f"{width}" if not seed else f"{width}-seed{seed}")


def train_ladder(out: Path, rows: int) -> None:
    """Train every width on the same rows in the same order; then another seed of one width; then the other family."""
    wanted = [("ladder", width, seed) for width, seed in [*LADDER.items(), *((SEED_WIDTH, seed) for seed in SEEDS)]]
    for family, width, seed in [*wanted, *(("jump", width, seed) for width, seed in JUMPS.items())]:
        folder = rung(out, width, seed, family)
        if (folder / "sae" / "config.json").exists():
            continue
        source = StoreSource(out / "acts")
        run = Run.create(folder, {"width": width, "seed": seed})
        write_json(run.source_file, source.store.manifest.origin)
        rate = 4e-3 * min(1, (4096 / width) ** 0.5)
        trainer = Trainer(ladder_sae(width, seed, rows, family), lr=rate, batch=BATCH, decay=0.5)
        trainer.fit(source, rows // 4 if family == "jump" else rows, run, save_every=10**9)


def held_out(out: Path) -> Rows:
    """Held-out rows, read through the model once."""
    path = out / "held-out.pt"
    if not path.exists():
        rows = Rows.of(TextEvaluation(SUBJECT, HELD_OUT))
        torch.save({"x": rows.x, "group": rows.group, "columns": rows.columns}, path)
    return Rows(**torch.load(path, weights_only=True))


def widths_of(out: Path) -> list[int]:
    """The rungs that are there."""
    return [width for width in LADDER if (rung(out, width) / "sae" / "config.json").exists()]


def stitch_ladder(out: Path) -> None:
    """The whole ladder in the order by cosine, with the model's loss; one pair in the other orders."""
    widths = widths_of(out)
    saes = {str(width): load(rung(out, width)) for width in widths}
    rows = held_out(out)
    loss = loss_along(TextEvaluation(SUBJECT, 2000))
    found = stitch(saes, rows, StitchSettings(points=13, ce_points=2), loss)
    found.write(out / "stitch")
    few = Rows(rows.x[::4], rows.group[::4])
    pair = {str(width): saes[str(width)] for width in (512, 1024)}
    orders = {}
    for order in ("cosine", "delta", "random"):
        path = stitch(pair, few, StitchSettings(points=13, order=order)).path()
        orders[order] = {key: path[key] for key in ("n_latents", "fvu", "l0", "phase")}
    alike = {"512": saes["512"], "1024 of the same seed": load(rung(out, 1024, LADDER[512]))}
    orders["same seed"] = stitch(alike, rows, StitchSettings(points=2, ce_points=0)).summary()["pairs"][0]
    write_json(out / "stitch" / "orders.json", orders)


def stitch_jumps(out: Path) -> None:
    """The other family's ladder."""
    saes = {str(width): load(rung(out, width, family="jump")) for width in JUMPS}
    stitch(saes, held_out(out), StitchSettings(points=13)).write(out / "jump-stitch")


def thresholds(out: Path) -> None:
    """One pair with swaps at other cosines than 0.7."""
    saes = {str(width): load(rung(out, width)) for width in (512, 1024)}
    rows = held_out(out)
    few, found = Rows(rows.x[::4], rows.group[::4]), {}
    for threshold in (0.2, 0.3, 0.4, 0.5, 0.7):
        stitched = stitch(saes, few, StitchSettings(points=13, threshold=threshold, ce_points=0))
        (pair,), path = stitched.pairs, stitched.path()
        found[str(threshold)] = {key: path[key] for key in ("n_latents", "fvu", "l0", "phase")}
        found[str(threshold)] |= {"steps": pair.summary()["steps"], "accuracy": pair.rule["accuracy"]}
    write_json(out / "stitch" / "thresholds.json", found)


def meta_all(out: Path) -> None:
    """The widest with controls and resemblance; then other k, sizes and widths."""
    widths = widths_of(out)
    widest = load(rung(out, widths[-1]))
    settings = MetaSettings(steps=600, lr=4e-3)
    meta = train_meta(widest, settings)
    add_controls(meta)
    meta.similar = similar_to(meta, {str(width): load(rung(out, width)) for width in widths})
    meta.write(out / "meta", str(widths[-1]), widest.n_latents)
    lines = []
    for width, k, ratio in [
        *((2048, k, 21.0) for k in (1, 4)),
        (2048, 4, 8.0),
        (4096, 4, 21.0),
    ]:
        one = train_meta(load(rung(out, width)), MetaSettings(k=k, ratio=ratio, steps=500, lr=4e-3))
        about = one.summary(str(width), width)
        lines.append({key: about[key] for key in ("sae", "n_meta", "k", "explained", "l0", "bits", "dead")})
    write_json(out / "meta" / "sweep.json", {"lines": lines})


def match_all(out: Path) -> None:
    """Three seeds of one width, and every width with the next; what swapping directions costs."""
    seeds = [load(rung(out, SEED_WIDTH, seed)) for seed in SEEDS]
    found = {}
    for number in SEEDS[1:]:
        one = match(seeds[0], seeds[number], ("seed0", f"seed{number}"))
        one.write(out / "match" / f"seed{number}")
        found[f"seed{number}"] = one.summary()
    few = held_out(out).x[:8192]
    one = match(seeds[0], seeds[1], ("seed0", "seed1"), by="weights", rows=few)
    found["seed1 by weights"] = one.summary()
    one = match(seeds[0], seeds[1], ("seed0", "seed1"))
    parts: dict[str, SAE] = {"own": independent(seeds[0], few)}
    for name, least in (("all swapped", -1.0), ("swapped from 0.7 on", 0.7)):
        parts[name] = swapped(seeds[0], seeds[1], one, least, few)
    scores = measure(parts, TextEvaluation(SUBJECT, 4000), ["Reconstruction", "Downstream"], show=False)
    costs = {name: {key: scores[name].scores[key].value for key in ("fvu", "ce_delta")} for name in parts}
    widths = widths_of(out)
    for small, large in pairwise(widths):
        one = match(load(rung(out, small)), load(rung(out, large)), (str(small), str(large)))
        found[f"{small} to {large}"] = one.summary()
    write_json(out / "match" / "all.json", {"matches": found, "swaps": costs})


def manifolds_of_widest(out: Path) -> None:
    width, rows = widths_of(out)[-1], held_out(out)
    decode = SUBJECT.language_model().tokenizer.decode
    found = manifolds(load(rung(out, width)), rows, ManifoldSettings(clusters=10, points=300))
    found.write(out / "manifolds", str(width), rows, decode)


def world_questions(out: Path) -> None:
    """A ladder on a world of 128 directions: what is novel, what is found, and how many atoms the features need."""
    world = SparseWorld(64, 128, l0=5.0, alpha=-0.5, seed=0)
    saes, truth = {}, {}
    for width in WORLD_WIDTHS:
        sae = SAE(64, width, BatchTopK(k=5, momentum=0.99), [AuxK(dead_after=50_000, k_aux=32)])
        saes[str(width)] = Trainer(sae, lr=3e-3, batch=512, warmup=50).fit(world, 300_000, show=False)
        scores = compare(saes[str(width)], world, rows=16_384).scores
        truth[str(width)] = {key: score.value for key, score in scores.items()}
    rows = Rows.independent(torch.cat([world.draw(world.HELD_OUT + number)[0] for number in range(4)]))
    found = stitch(saes, rows, StitchSettings(points=21))
    found.write(out / "world" / "stitch")
    lines = []
    for pair in found.pairs:
        large, features = pair.large.dictionary.directions().detach(), world.directions()
        own = (large @ features.T).max(1)
        ours = (pair.small.dictionary.directions().detach() @ features.T).max(0).values
        new = (own.values >= 0.9) & (ours[own.indices] < 0.9)
        kind = pair.insertion.kind
        lines.append(
            {"pair": pair.names, "new_features": int(new.sum()), "new_and_novel": int((new & (kind == 0)).sum()),
             "new_and_double": int((new & (kind == 1)).sum()), "novel": int((kind == 0).sum())}
        )  # fmt: skip
    atoms = {}
    for name, rows_of in (("features", world.directions()), ("latents", saes["512"].dictionary.directions().detach())):
        for n_meta in (16, 32, 64, 128):
            settings = MetaSettings(ratio=len(rows_of) / n_meta, steps=600, lr=1e-2)
            meta = decompose(rows_of, torch.arange(len(rows_of)), settings, show=False)
            found_atoms = assign(meta.sae.dictionary.directions().detach(), world.directions())
            shares = {"held_out": meta.share(meta.held_out), "trained": meta.share(~meta.held_out)}
            atoms[f"{name} {n_meta}"] = shares | {"cosine": found_atoms.similarity.nanmean().item()}
    write_json(out / "world" / "world.json", {"truth": truth, "novel": lines, "atoms": atoms})


STEPS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "stitch": ("stitch/orders.json", stitch_ladder),
    "jump": ("jump-stitch/stitch.json", stitch_jumps),
    "thresholds": ("stitch/thresholds.json", thresholds),
    "meta": ("meta/sweep.json", meta_all),
    "match": ("match/all.json", match_all),
    "manifolds": ("manifolds/manifolds.json", manifolds_of_widest),
    "world": ("world/world.json", world_questions),
}


def numbers(out: Path) -> Iterator[tuple[str, Any]]:
    """Everything that was written, by file."""
    for path in sorted(out.glob("*/*.json")) + sorted(out.glob("world/stitch/*.json")):
        if path.parent.name not in ("acts", "ladder", "figures"):
            yield str(path.relative_to(out)), read_json(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows that each SAE sees")
    parser.add_argument("--steps", nargs="*", default=["harvest", "ladder", *STEPS, "report"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out: Path = options.out
    for step in options.steps:
        if step == "harvest":
            harvest(SUBJECT, out / "acts", TOKENS)
        elif step == "ladder":
            train_ladder(out, options.rows)
        elif step == "report":
            write_json(out / "numbers.json", dict(numbers(out)))
            draw(out)
        elif not (out / STEPS[step][0]).exists():
            print(f"{step} ...", flush=True)
            STEPS[step][1](out)


if __name__ == "__main__":
    main()
