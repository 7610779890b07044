"""What folders hold: runs, sweeps, saved SAEs and ensembles, opened by one function."""

from saelab.runs.saved import SavedRun, is_run, kind_of, open_run, open_runs

__all__ = ["SavedRun", "is_run", "kind_of", "open_run", "open_runs"]
