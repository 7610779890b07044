"""What folders hold: runs, sweeps, saved SAEs and ensembles, opened by one function, published ones by their names."""

from saelab.runs.publish import publish
from saelab.runs.published import load, place_of
from saelab.runs.saved import SavedRun, is_run, kind_of, open_run, open_runs

__all__ = ["SavedRun", "is_run", "kind_of", "load", "open_run", "open_runs", "place_of", "publish"]
