"""Are latents canonical units?  python benchmarks/canonical_units.py --out canonical [--steps stitch meta ...]

Repeats the questions of Leask et al. 2025 (arXiv 2502.04878) on the bundled model and on a world with known features:
a ladder of SAEs trained on one stream of activations, stitched, matched and looked at by meta-SAEs. Writes everything
into a folder, one step after another; what is there is not made again:

    harvest   acts/              activations of the bundled model
    ladder    ladder/ and others SAEs of several widths on the same stream, and other seeds; see FAMILIES: TopK
                                 (`ladder`), BatchTopK (`batch`), both on a fifth of the rows (`ladder-short`,
                                 `batch-short`) and, at three widths on a quarter, JumpReLU (`jump`)
    stitch    stitch/            insertion test, cosine rule, the way from the narrowest to the widest; other orders
    batch, batch-short, ladder-short, jump
              batch-stitch/, ... the same of the other families: whether TopK read by one threshold or the length of
                                 training makes the difference
    as-trained stitch/           the insertion test of TopK with the k largest of each row
    seeds     seeds.json         the insertion test of the narrow widths over every two seeds, and seeds matched
    meta      meta/              meta-SAEs of the widest with controls at equal bits, and of other k, sizes and widths
    match     match/             seeds and neighbouring widths matched
    manifolds manifolds/         clusters of the widest SAE's directions
    world     world/             the same where the features are known
    report    numbers.json, figures/

`docs/canonical-units.md` tells what was found.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import torch
from canonical_figures import draw
from canonical_ladder import (
    FAMILIES,
    LADDER,
    OTHER_SEEDS,
    SEED_WIDTH,
    SEEDS,
    SUBJECT,
    rung,
    seeds_of,
    train_ladder,
    widths_of,
)

from saelab import load
from saelab.analysis.assembled import independent
from saelab.analysis.assignment import assign
from saelab.analysis.insertion import cosine_rule, insertion_test
from saelab.analysis.loss_along import loss_along
from saelab.analysis.manifolds import ManifoldSettings, manifolds
from saelab.analysis.match import match
from saelab.analysis.meta import MetaSettings, add_controls, decompose, similar_to, train_meta
from saelab.analysis.rows import Rows
from saelab.analysis.stitch import THRESHOLD_ROWS, StitchSettings, stitch
from saelab.analysis.unions import swapped
from saelab.core.files import write_json
from saelab.core.read import read_json
from saelab.data.synthetic.sparse import SparseWorld
from saelab.geometry import nearest
from saelab.metrics import TextEvaluation, measure
from saelab.metrics.truth import compare
from saelab.models.harvest import harvest
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.losses.auxk import AuxK
from saelab.train.trainer import Trainer

TOKENS, HELD_OUT = 2_000_000, 40_000
REPEATED_WIDTHS = 3
"""The narrowest, which are stitched for every two seeds."""
WORLD_WIDTHS = [32, 64, 128, 256, 512]


def held_out(out: Path) -> Rows:
    """Held-out rows, read through the model once."""
    path = out / "held-out.pt"
    if not path.exists():
        rows = Rows.of(TextEvaluation(SUBJECT, HELD_OUT))
        torch.save({"x": rows.x, "group": rows.group, "columns": rows.columns}, path)
    return Rows(**torch.load(path, weights_only=True))


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


def stitched_folder(out: Path, family: str) -> Path:
    return out / ("stitch" if family == "ladder" else f"{family}-stitch")


def stitch_family(family: str) -> Callable[[Path], None]:
    """What stitches another family's ladder."""

    def stitched(out: Path) -> None:
        saes = {str(width): load(rung(out, width, family=family)) for width in widths_of(out, family)}
        stitch(saes, held_out(out), StitchSettings(points=13)).write(stitched_folder(out, family))
        if family == "ladder-short":
            as_trained(out, family)

    return stitched


def as_trained(out: Path, family: str = "ladder") -> None:
    """The insertion test of a TopK ladder with the k largest of each row, not read by one threshold."""
    rows, widths = held_out(out), widths_of(out, family)
    saes = {width: load(rung(out, width, family=family)) for width in widths}
    lines = [
        {"small": small, "large": large} | tested_as_trained(saes[small], saes[large], rows)
        for small, large in pairwise(saes)
    ]
    write_json(stitched_folder(out, family) / "as-trained.json", {"pairs": lines})


def tested_as_trained(small: SAE, large: SAE, rows: Rows) -> dict[str, Any]:
    """What insertion test and cosine rule say of two SAEs, with directions of unit norm, read in their own way."""
    return tested(*(copy.deepcopy(sae).eval().fold() for sae in (small, large)), rows)


def tested_by_threshold(small: SAE, large: SAE, rows: Rows) -> dict[str, Any]:
    """The same of two SAEs that are read as in a stitch."""
    return tested(*(independent(sae, rows.x[:THRESHOLD_ROWS]) for sae in (small, large)), rows)


def tested(small: SAE, large: SAE, rows: Rows) -> dict[str, Any]:
    """What insertion test and cosine rule say of two SAEs in the data's units, with directions of unit norm."""
    test = insertion_test(small, large, rows)
    counts = test.counts()
    cosine = nearest(large.dictionary.directions(), small.dictionary.directions())[0].squeeze(1)
    share = counts["novel"] / (counts["novel"] + counts["reconstruction"])
    return {"counts": counts, "share_novel": share, "rule": cosine_rule(test.kind, cosine.detach())}


def over_seeds(out: Path) -> None:
    """Test neighbouring widths for every two seeds that are there and differ, and match all, and seeds of a width."""
    found: dict[str, Any] = {}
    rows = held_out(out)
    for family in OTHER_SEEDS:
        seeds = {width: seeds_of(out, family, width) for width in widths_of(out, family)[:REPEATED_WIDTHS]}
        saes = {width: {seed: load(rung(out, width, seed, family)) for seed in own} for width, own in seeds.items()}
        lines, same = [], []
        for small, large in pairwise(saes):
            for one, other in product(saes[small], saes[large]):
                if one != other:
                    a, b = saes[small][one], saes[large][other]
                    line = {"small": small, "large": large} | matched(a, b, one, other)
                    line["as_trained"] = tested_as_trained(a, b, rows)
                    lines.append(line | {"by_threshold": tested_by_threshold(a, b, rows)})
        for width, own in saes.items():
            same += [
                {"width": width} | matched(own[one], own[other], one, other) for one, other in combinations(own, 2)
            ]
        found[family] = {"pairs": lines, "same_width": same}
    write_json(out / "seeds.json", found)


def matched(a: SAE, b: SAE, one: int, other: int) -> dict[str, Any]:
    """How well two SAEs of two seeds match."""
    about = match(a, b).summary()
    return {"seeds": [one, other]} | {key: about[key] for key in ("mean_cosine", "share_matched", "random_cosine")}


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
    found = manifolds(load(rung(out, width)), rows, ManifoldSettings(clusters=10, points=300))
    found.write(out / "manifolds", str(width), rows, SUBJECT.language_model().token_text)


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
    **{family: (f"{family}-stitch/stitch.json", stitch_family(family)) for family in FAMILIES if family != "ladder"},
    "as-trained": ("stitch/as-trained.json", as_trained),
    "seeds": ("seeds.json", over_seeds),
    "thresholds": ("stitch/thresholds.json", thresholds),
    "meta": ("meta/sweep.json", meta_all),
    "match": ("match/all.json", match_all),
    "manifolds": ("manifolds/manifolds.json", manifolds_of_widest),
    "world": ("world/world.json", world_questions),
}


def numbers(out: Path) -> Iterator[tuple[str, Any]]:
    """Everything that was written, by file."""
    for path in sorted(out.glob("*.json")) + sorted(out.glob("*/*.json")) + sorted(out.glob("world/stitch/*.json")):
        if path.name != "numbers.json" and path.parent.name not in ("acts", "figures"):
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
