"""`saelab show`: a run as text."""

import yaml

from saelab.recipes.score_table import print_scores, wide_console
from saelab.runs import open_runs


def show(runs: list[str]) -> None:
    """Print the config and the scores of runs.

    Args:
        runs: folders of runs, or of sweeps of them.
    """
    console = wide_console()
    opened = {run.title: run for run in open_runs(runs)}
    for name, run in opened.items():
        console.print(f"[bold]{name}[/]\n", highlight=False)
        settings = run.config if run.is_run else run.sae_config
        console.print(yaml.safe_dump(settings, sort_keys=False).rstrip(), highlight=False, markup=False)
    print_scores({name: run.scores for name, run in opened.items() if run.scores}, console)
    for name, run in opened.items():
        if not run.scores:
            console.print(f"{name} has no scores yet: `saelab measure {name}` makes them", markup=False)
