"""Floor 2: what learns. An SAE is a dictionary, an activation and losses, each a component in its own file."""

from saelab.sae.ensemble import Ensemble, load_ensemble
from saelab.sae.reading import reread, threshold_for
from saelab.sae.refine import refine
from saelab.sae.sae import SAE, load

__all__ = ["SAE", "Ensemble", "load", "load_ensemble", "refine", "reread", "threshold_for"]
