"""`saelab manifolds`: clusters of an SAE's directions, and whether they tile, absorb or repeat each other."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saelab.analysis.comparable import check_reads, check_width, error_and_l0
from saelab.analysis.manifolds import KINDS, PAIRS, Manifolds, ManifoldSettings, manifolds, read_manifolds
from saelab.core.files import whole_folder
from saelab.geometry import nearest
from saelab.recipes.compared import Data, check_show, opened, rows_of, token_text_of, warn_of_poor_fits
from saelab.sae.autoencoder import Autoencoder


def manifolds_of(
    run: str, out: str, settings: ManifoldSettings, data: Data, figures: bool = True, show: int = 10
) -> None:
    """Find clusters of close directions, classify their pairs, and save the points that each cluster reconstructs.

    Args:
        run: folder of a run or a saved SAE.
        out: folder for the results, new or empty.
        settings: of the clustering.
        data: rows to evaluate on.
        figures: whether to draw manifolds.html there.
        show: number of clusters to print.
    """
    check_show(show)
    with whole_folder(out) as folder:
        sae = opened([run], data.device)[run]
        evaluation = data.evaluation(run)
        rows = rows_of(evaluation, run)
        check_width(run, sae, rows)
        mse, l0 = error_and_l0(sae, rows)
        fvu = {run: mse / rows.variance}
        check_reads(fvu)
        found = manifolds(sae, rows, settings)
        found.write(folder, run, rows, token_text_of(evaluation))
        written = read_manifolds(folder)
        if figures:
            _draw(written, folder, Path(run).name)
        print(f"{run}: FVU {fvu[run]:.4g}, L0 {l0:.4g} on {len(rows):,} rows")
        warn_of_poor_fits(fvu)
        _print(found, written, sae, show)
    files = "manifolds.json, latents.parquet, pairs.parquet, points.parquet"
    print(f"{out}: {files}{', manifolds.html' if figures else ''}")


def _draw(written: dict[str, Any], folder: Path, name: str) -> None:
    from saelab.figures.comparisons import clouds_figure, kinds_figure
    from saelab.figures.theme import write_page

    drawn = [kinds_figure(written["pairs"], written["settings"]["threshold"], f"Close pairs of {name}")]
    if len(written["points"]["cluster"]):
        drawn.append(clouds_figure(written["points"], written["clusters"], f"Clusters of {name}"))
    write_page(drawn, folder / "manifolds.html", f"Manifolds of {name}")


def _print(found: Manifolds, written: dict[str, Any], sae: Autoencoder, show: int) -> None:
    pairs, sizes = written["pairs"]["kind"], dict.fromkeys(KINDS, 0)
    for line in written["clusters"]:
        sizes[line["kind"]] += 1
    print(
        f"{len(found.clusters):,} clusters of {int((found.of_latent() >= 0).sum()):,} of {found.living:,} alive "
        f"latents ({found.n_latents - found.living:,} dead are left out), cosine {found.settings.threshold} or more: "
        + ", ".join(f"{count:,} {kind}" for kind, count in sizes.items())
    )
    if not found.clusters:
        _say_how_close(sae)
        return
    counts = Counter(pairs)
    print("pairs: " + ", ".join(f"{counts[kind]:,} {kind}" for kind in PAIRS))
    words = _words(written["points"])
    console = Console()
    console = console if console.is_terminal else Console(width=10_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ["cluster", "latents", "kind", "cosine", "Jaccard", "overlap", "rows", "dimensions", "TwoNN", "in 3-D"]
    for head in [*heads, *(["tokens"] if words else [])]:
        left = head in ("kind", "tokens")
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for line in written["clusters"][:show]:
        own = [str(line["cluster"]), f"{line['size']:,}", line["kind"]]
        own += [f"{line[key]:.3f}" for key in ("cosine", "jaccard", "overlap")]
        own += [f"{line['rows']:,}" if "rows" in line else ""]
        own += [_number(line.get(key)) for key in ("participation", "two_nearest", "explained")]
        table.add_row(*own, *([Text(words.get(line["cluster"], ""))] if words else []))  # not markup
    console.print(table)
    if len(written["clusters"]) > show:
        print(f"and {len(written['clusters']) - show:,} smaller ones")


def _say_how_close(sae: Autoencoder) -> None:
    """What threshold would find something."""
    living = sae.data_directions(normalised=True).detach()[sae.alive()]
    if len(living) > 1:
        cosine = nearest(living, living, skip_self=True)[0]
        middle, high = cosine.quantile(0.5).item(), cosine.max().item()
        print(f"nearest directions have a cosine of {middle:.3f} (median), {high:.3f} at most: try a lower --threshold")


def _words(points: dict[str, Any], count: int = 4) -> dict[int, str]:
    """The most frequent tokens of each cluster's points, where texts are known."""
    if "at" not in points:
        return {}
    found: dict[int, Counter[str]] = {}
    for cluster, text in zip(points["cluster"].tolist(), points["at"], strict=True):
        found.setdefault(cluster, Counter())[text] += 1
    return {cluster: " ".join(repr(text) for text, _ in own.most_common(count)) for cluster, own in found.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
