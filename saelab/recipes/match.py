"""`saelab match`: which latent of one SAE is which of another; over several seeds, how many come back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.analysis.comparable import SAME
from saelab.analysis.match import CURVE, KINDS, Match, check_method, match, stability
from saelab.analysis.tables import write_result
from saelab.analysis.unions import swapped, union
from saelab.core.files import whole_folder
from saelab.metrics import measure
from saelab.recipes.compared import Data, keep_sae, opened, origin, print_fits, rows_of, sample_of
from saelab.sae.autoencoder import Autoencoder


@dataclass(frozen=True)
class MatchSettings:
    """How latents are matched.

    Args:
        by: what is compared: `directions`, or `weights` with thresholds folded in.
        threshold: cosine from which two latents count as the same.
        across: allow SAEs of different sites, such as layers.
        swap: tokens on which to measure the loss of replacing A's directions by B's; 0 leaves it out.
        keep_union: save A plus the latents unique to B as a run `union`.
    """

    by: str = "directions"
    threshold: float = 0.7
    across: bool = False
    swap: int = 0
    keep_union: bool = False

    def __post_init__(self) -> None:
        check_method(self.by, self.threshold)
        if self.swap < 0:
            raise ValueError(f"swap must be at least 0 tokens, got {self.swap}")


def match_runs(runs: list[str], out: str, settings: MatchSettings, data: Data) -> None:
    """Match the latents of an SAE with those of one or more others.

    Args:
        runs: folders of runs or saved SAEs, two or more; the first is matched with each of the others.
        out: folder for the results, new or empty; with several others, one folder in it for each.
        settings: of the matching.
        data: rows that thresholds are set on and swaps measured on, where those are asked for; with --store also to say
            how well the SAEs reconstruct.
    """
    if len(runs) < 2:
        raise ValueError(f"matching needs at least 2 SAEs: give 2 runs or more, got {len(runs)}")
    with whole_folder(out) as folder:
        saes = opened(runs, data.device, settings.across)
        first, *others = runs
        needs_rows = settings.by == "weights" or settings.swap or settings.keep_union
        seen = bool(data.store) and not saes[first].d_out
        read = rows_of(data.evaluation(first, min(8192, data.tokens)), first) if needs_rows or seen else None
        rows = sample_of(read) if read else None
        alike = {name: sae for name, sae in saes.items() if not settings.across or _same_site(first, name)}
        fits = print_fits(alike, read) if read else {}
        found = []
        for number, name in enumerate(others):
            one = match(saes[first], saes[name], (first, name), settings.by, settings.threshold, rows)
            if settings.swap:
                one.swap = _swap(saes[first], saes[name], one, settings, data, rows)
            one.fits = {key: fits[key] for key in (first, name) if key in fits}
            own = folder if len(others) == 1 else folder / f"{number + 1}"
            one.write(own)
            if settings.keep_union:
                about = {"a": first, "b": name, "latents": "A, and those that only B has"}
                keep_sae(union(saes[first], saes[name], one, rows), own / "union", "match", about, first)
            _print(one)
            found.append(one)
        if len(found) > 1:
            _write_stability(folder, found)
    print(f"{out}: {'match.json, a.parquet, b.parquet' if len(found) == 1 else 'stability.json and a folder for each'}")


def _same_site(first: str, name: str) -> bool:
    """Whether both SAEs say that they read the same rows."""
    a, b = origin(first), origin(name)
    return first == name or (bool(a) and bool(b) and all(a.get(key) == b.get(key) for key in SAME))


def _swap(
    a: Autoencoder, b: Autoencoder, found: Match, settings: MatchSettings, data: Data, rows: torch.Tensor | None
) -> dict[str, Any]:
    """Error and loss of A, and of A whose latents write along their partners' directions."""
    evaluation = data.evaluation(found.names[0], settings.swap)
    saes = {"a": a, "swapped": swapped(a, b, found, settings.threshold, rows)}
    wanted = ["Reconstruction", *([] if evaluation.why_no_model else ["Downstream"])]
    scores = measure(saes, evaluation, wanted, show=False)
    return {
        "least_cosine": settings.threshold,
        "tokens": settings.swap,
    } | {
        name: {key: scores[name].scores[key].value for key in ("fvu", "ce_delta") if key in scores[name].scores}
        for name in saes
    }


def _print(found: Match) -> None:
    line = found.summary()
    exact = "the best" if not found.bound else f"within {found.bound:.2g} of the best"
    print(f"{line['a']} and {line['b']}: mean cosine {line['mean_cosine']:.4f} of one-to-one pairs ({exact}), ", end="")
    print(f"{line['share_matched']:.3f} of them at least {line['threshold']}; random {line['random_cosine']:.3f}")
    for side in ("a", "b"):
        counts = ", ".join(f"{count:,} {kind}" for kind, count in line["counts"][side].items())
        print(f"  {line[side]}: {counts}")
    for name in ("a", "swapped") if found.swap else ():
        said = ", ".join(f"{key} {value:.4g}" for key, value in found.swap[name].items())
        print(f"  {line['a'] if name == 'a' else 'with directions of ' + line['b']}: {said}")


def _write_stability(folder: Path, found: list[Match]) -> None:
    """`stability.json`: the curve over all others, and of latents that come back in every one of them."""
    cosine = torch.stack([one.a.cosine.nan_to_num(-1) for one in found])
    living = found[0].a.kind != KINDS.index("dead")
    every, mean = stability(cosine[:, living].min(0).values), [sum(part) / len(found) for part in _columns(found)]
    about = {"base": found[0].names[0], "others": [one.names[1] for one in found], "cosine": CURVE}
    write_result(folder, "stability", about | {"share_mean": mean, "share_in_every": every})
    at = CURVE.index(0.7)
    print(f"partners of cosine 0.7 or more: {mean[at]:.3f} on average, {every[at]:.3f} in every other SAE")


def _columns(found: list[Match]) -> list[tuple[float, ...]]:
    return list(zip(*(one.curve() for one in found), strict=True))
