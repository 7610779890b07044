"""What every campaign shares: its options, seeds, progress, and folders that reproduce a failure.

A campaign is many random trials of one promise. A trial is a function of a random generator and an empty folder; it
returns None if the promise held, and one line on what broke if it did not. Trial i of seed s always does the same, so
`--seed s --first i --trials 1` repeats it alone.
"""

import argparse
import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

Trial = Callable[[random.Random, Path], str | None]


def run_campaign(name: str, promise: str, trial: Trial, trials: int, arguments: list[str] | None = None) -> int:
    """Run the trials, print what broke and how to repeat it; the exit status: 0 if nothing did, else 1.

    Args:
        name: of the module in this folder.
        promise: what is tried, one line, shown by `--help`.
        trial: one trial; an exception it raises counts as a failure.
        trials: how many by default.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m campaigns.{name}", description=promise)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no trial after this many (default 60)")
    parser.add_argument("--trials", type=int, default=trials, help=f"how many at most (default {trials})")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to repeat one (default 0)")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--out", type=Path, default=Path("campaign-failures"), help="where failures are kept")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"{name}: {promise} Seed {seed}, up to {options.trials} trials, {options.minutes:g} minutes.", flush=True)
    start, failures, done = time.monotonic(), 0, 0
    for number in range(options.first, options.first + options.trials):
        if time.monotonic() - start > 60 * options.minutes:
            break
        folder = options.out / f"{name}-{seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            broken = trial(random.Random(f"{seed} {number}"), folder)
        except Exception:  # whatever it is, it is what the campaign looks for
            broken = traceback.format_exc()
        done += 1
        if broken is None:
            shutil.rmtree(folder)
        else:
            failures += 1
            (folder / "failure.json").write_text(json.dumps({"broken": broken, "seed": seed, "trial": number}) + "\n")
            again = f"python -m campaigns.{name} --seed {seed} --first {number} --trials 1"
            print(f"FAILED trial {number}: {broken}\n  kept in {folder}; repeat: {again}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{name}: {done} of {options.trials}, {failures} failed", end="", file=sys.stderr, flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{name}: {done} trials, {failures} failures, seed {seed}, {minutes:.1f} minutes", flush=True)
    return 1 if failures else 0
