"""The time of a training step against the number of latents, ours and other libraries', as a figure on log-log axes.

    python benchmarks/step_times.py --out docs/performance --latents 1536 6144 24576 98304

Each size is one run of `saelab bench`, whose result is kept beside the picture; one that is there is not run again.
"""

import argparse
import json
from pathlib import Path

from saelab.figures.theme import colour, write_figures
from saelab.recipes.bench import bench

WIDTH_K_BATCH = {"d_in": 768, "k": 32, "batch": 2048}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latents", type=int, nargs="+", default=[1536, 6144, 24_576, 98_304])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for n_latents in options.latents:
        file = options.out / f"step-{n_latents}.json"
        if not file.exists():
            bench(n_latents=n_latents, threads=options.threads, rounds=options.rounds, out=str(file), **WIDTH_K_BATCH)
        found[n_latents] = json.loads(file.read_text())
    write_figures({"step-times": figure(found)}, options.out)
    names = list(times(found))
    print("| latents | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for n_latents in found:
        cells = [f"{times(found)[name][n_latents]:.3g}" if n_latents in times(found)[name] else "" for name in names]
        print(f"| {n_latents:,} | " + " | ".join(cells) + " |")


def times(found: dict[int, dict]) -> dict[str, dict[int, float]]:
    """Seconds a step by contestant and size; quickest at the largest size first."""
    by_name: dict[str, dict[int, float]] = {}
    for n_latents, result in found.items():
        for one in result["results"]:
            if "step" in one:
                by_name.setdefault(one["name"], {})[n_latents] = WIDTH_K_BATCH["batch"] / one["step"]["median"]
    return dict(sorted(by_name.items(), key=lambda pair: pair[1][max(pair[1])] / max(pair[1])))


def figure(found: dict[int, dict]):
    from plotly.graph_objects import Figure, Scatter

    drawn = Figure()
    for number, (name, seconds) in enumerate(times(found).items()):
        line = {"color": colour(number), "dash": "dot" if name.startswith("one ") else "solid"}
        short = name.replace("one ", "").replace(" reference", "").replace(" encoder", "")
        drawn.add_trace(Scatter(x=list(seconds), y=list(seconds.values()), name=short, mode="lines+markers", line=line))
    title = "A training step: width {d_in}, k {k}, batch {batch:,}".format(**WIDTH_K_BATCH)
    drawn.update_xaxes(type="log", title="latents", tickvals=list(found), ticktext=[f"{n:,}" for n in found])
    drawn.update_yaxes(type="log", title="CPU seconds a step")
    return drawn.update_layout(title=title, template="plotly_white", width=760, height=480)


if __name__ == "__main__":
    main(arguments())
