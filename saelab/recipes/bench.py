"""`saelab bench`: how fast a training step and encoding are on this machine, beside other libraries that are installed.

Each contestant has a process of its own; all take their turns in every round, in another order each time, so that what
else the machine does falls on all alike. With one thread the clock is the process's own CPU time, which does not count
the time others take; with more it is the wall clock. Figures are medians over rounds.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saelab.core.components import near_miss
from saelab.core.files import write_json
from saelab.core.progress import progress
from saelab.kernels import native
from saelab.recipes.contestants import CONTESTANTS, HELD_OUT

TURN = 1e11
"""About how many operations of dense encoder products a turn is worth; small steps are taken several at a time."""


def bench(
    d_in: int = 768,
    n_latents: int = 24_576,
    k: int = 32,
    batch: int = 2048,
    threads: int = 1,
    rounds: int = 5,
    only: list[str] | None = None,
    out: str | None = None,
) -> None:
    """Time a training step and encoding, beside other SAE libraries that are installed.

    Args:
        d_in: width of the rows.
        n_latents: number of latents.
        k: latents kept per row.
        batch: rows of a step.
        threads: CPU threads of each process; with one, CPU time is measured.
        rounds: number of rounds; each contestant runs once a round.
        only: names of contestants, as in the table; by default all.
        out: a JSON file for every figure of every round.
    """
    for name, value in {
        "d_in": d_in,
        "n_latents": n_latents,
        "k": k,
        "batch": batch,
        "threads": threads,
        "rounds": rounds,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if k > n_latents:
        raise ValueError(f"k must be at most n_latents, got {k} and {n_latents}")
    names, missing = _chosen(only)
    steps = min(20, max(1, round(TURN / (2 * batch * d_in * n_latents))))
    job = {"d_in": d_in, "n_latents": n_latents, "k": k, "batch": batch, "threads": threads, "batches": 8}
    native.library()  # built before anyone is timed
    workers = [Worker(name, job) for name in names]
    try:
        _rounds(workers, rounds, steps)
    finally:
        for worker in workers:
            worker.stop()
    results = [worker.result("cpu" if threads == 1 else "wall", steps * batch, batch) for worker in workers]
    _print(results, job, missing)
    if out:
        write_json(Path(out), {"job": job, "rounds": rounds, "steps": steps, "results": results})


def _chosen(only: list[str] | None) -> tuple[list[str], list[str]]:
    """Contestants that can run here, and a line about each that cannot."""
    for name in only or ():
        if name not in CONTESTANTS:
            raise ValueError(f"unknown contestant '{name}'{near_miss(name, CONTESTANTS)}")
    names, missing = [], []
    for name in only or CONTESTANTS:
        library = CONTESTANTS[name][1]
        if library is None or importlib.util.find_spec(library):
            names.append(name)
        else:
            missing.append(f"{name}: {library} is not installed here")
    if native.library() is None:
        missing.append(f"saelab runs without compiled kernels: {native.why_not()}")
    return names, missing


class Worker:
    """A contestant in its process."""

    def __init__(self, name: str, job: dict[str, Any]):
        self.name, self.steps, self.encodes = name, [], []  # type: ignore[var-annotated]
        self.error, self.held_out = "", {}  # type: ignore[var-annotated]
        words = [sys.executable, "-m", "saelab.recipes.contestants", json.dumps(job | {"name": name})]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if line:
            return json.loads(line)
        said = self.process.stderr.read().strip().splitlines()  # type: ignore[union-attr]
        self.error = said[-1] if said else f"it ended with status {self.process.wait()}"
        return {}

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to one command; empty once the process has failed."""
        if self.error:
            return {}
        self.process.stdin.write(json.dumps(command) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def result(self, clock: str, rows: int, batch: int) -> dict[str, Any]:
        """Medians, and what they are made of."""
        found: dict[str, Any] = {"name": self.name, "error": self.error, **self.held_out}
        for key, turns, size in (("step", self.steps, rows), ("encode", self.encodes, batch)):
            rates = sorted(size / turn[clock] for turn in turns if clock in turn)
            if rates:
                found[key] = {"median": statistics.median(rates), "least": rates[0], "most": rates[-1]}
        stages = [turn["stages"] for turn in self.steps if turn.get("stages")]
        names = {name for one in stages for name in one}
        if stages:
            total = statistics.median(turn["cpu"] for turn in self.steps)
            shares = {name: statistics.median(one.get(name, 0.0) for one in stages) / total for name in names}
            found["stages"] = dict(sorted(shares.items(), key=lambda pair: -pair[1]))
        return found | {"turns": self.steps}


def _rounds(workers: list[Worker], rounds: int, steps: int) -> None:
    for worker in workers:
        worker.ask(do="step", count=1)  # not counted: first allocations
    with progress("bench", rounds, "rounds") as bar:
        for number in range(rounds):
            turn = number % max(1, len(workers))
            for worker in workers[turn:] + workers[:turn]:
                worker.steps.append(worker.ask(do="step", count=steps))
                worker.encodes.append(worker.ask(do="encode"))
            bar.advance(1)
    for worker in workers:
        worker.held_out = worker.ask(do="error")


def _print(results: list[dict[str, Any]], job: dict[str, Any], missing: list[str]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    clock = "CPU second" if job["threads"] == 1 else "second"
    base = next((one["step"]["median"] for one in results if one["name"] == "saelab" and "step" in one), None)
    title = "width {d_in}, {n_latents:,} latents, k {k}, batch {batch}, {threads} thread(s)".format(**job)
    table = Table(title=title, title_justify="left")
    for heading in ("", f"rows / {clock}", "least .. most", "saelab is faster by", "encode", "by", "peak MiB", "FVU"):
        table.add_column(heading, justify="left" if not heading else "right")
    read = next((one["encode"]["median"] for one in results if one["name"] == "saelab" and "encode" in one), None)
    for one in sorted(results, key=lambda one: -one.get("step", {}).get("median", 0)):
        if "step" not in one:
            missing.append(f"{one['name']}: {one['error']}")
            continue
        step, encode = one["step"], one.get("encode")
        table.add_row(
            *(one["name"], f"{step['median']:,.0f}", f"{step['least']:,.0f} .. {step['most']:,.0f}"),
            f"{base / step['median']:.2f}" if base else "",
            f"{encode['median']:,.0f}" if encode else "",
            f"{read / encode['median']:.2f}" if encode and read else "",
            f"{one['mib']:,.0f}" if one.get("mib") else "",
            f"{one['fvu']:.4f}" if one.get("fvu") is not None else "",
        )
    console.print(table)
    console.print(f"FVU: on {HELD_OUT:,} other rows after the steps of this table, a check of equal work and no more.")
    for one in results:
        if one.get("stages"):
            shares = ", ".join(f"{name} {share:.0%}" for name, share in one["stages"].items())
            console.print(
                f"{one['name']}: where a step's time goes: {shares}, other {1 - sum(one['stages'].values()):.0%}"
            )
    for line in missing:
        console.print(f"left out {line}" if not line.startswith("saelab runs") else line)
