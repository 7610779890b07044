"""Where the time of `saelab measure` goes:  python benchmarks/measure.py [RUN] [--tokens 16384] [--n_latents 4096]

Measures a run, or an SAE of the bundled model that is scaled to its rows and not trained, with the default suite, and
prints seconds by metric, the largest first; "(tasks)" is the making of the labelled tasks, "(read tasks)" the model
reading them, "(model)" and "(encode and decode)" the sweeps. Memory is the largest the process had.
"""

import argparse
import resource
import time

import torch

from saelab.metrics import TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.recipes.task_choice import tasks_for
from saelab.runs import open_run
from saelab.sae.activations.topk import TopK
from saelab.sae.files import load_sae
from saelab.sae.sae import SAE
from saelab.tasks import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--n_latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--metrics", nargs="+", default=["default"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, float] = {}
    start = now = time.perf_counter()
    evaluation = TextEvaluation(subject(options.run), options.tokens)
    sae = load_sae(options.run) if options.run else untrained(evaluation, options)
    seconds["(load)"], now = time.perf_counter() - now, time.perf_counter()
    tasks, _ = tasks_for(None, evaluation)
    seconds["(tasks)"] = time.perf_counter() - now
    rows.collect = timed(rows.collect, seconds)
    found = measure({"sae": sae}, evaluation, options.metrics, tasks=tasks)["sae"]
    total = time.perf_counter() - start
    seconds |= found.seconds
    if "(read tasks)" in seconds:  # by the first metric that needed it
        first = next(
            name for name, value in found.seconds.items() if value >= seconds["(read tasks)"] and name[0] != "("
        )
        seconds[first] -= seconds["(read tasks)"]
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{name:<28}{value:8.1f} s {value / total:6.1%}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{'total':<28}{total:8.1f} s   {used.ru_utime + used.ru_stime:.1f} s of processors, "
        f"{len(found.scores)} scores, {options.tokens:,} tokens, {used.ru_maxrss / 1024:,.0f} MiB"
    )
    for name, why in found.skipped.items():
        print(f"skipped {name}: {why}")


def subject(run: str | None) -> Subject:

    return open_run(run).needed_subject() if run else Subject(piece=2000)


def untrained(evaluation: TextEvaluation, options: argparse.Namespace) -> SAE:
    sae = SAE(evaluation.d_in, options.n_latents, TopK(k=options.k))
    sae.initialise(next(iter(evaluation.chunks(False))).x)
    return sae


def timed(function, seconds: dict[str, float]):  # type: ignore[no-untyped-def]
    def call(tasks, model, show: bool = False):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        try:
            return function(tasks, model, show)
        finally:
            seconds["(read tasks)"] = time.perf_counter() - start

    return call


if __name__ == "__main__":
    main()
