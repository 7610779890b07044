"""Floor 2: what learns. An SAE is a dictionary, an activation and losses, each a component in its own file."""

from saelab.sae.autoencoder import Autoencoder
from saelab.sae.ensemble import Ensemble
from saelab.sae.files import load, load_ensemble, load_sae
from saelab.sae.reading import reread, threshold_for
from saelab.sae.refine import refine
from saelab.sae.sae import SAE

__all__ = ["SAE", "Autoencoder", "Ensemble", "load", "load_ensemble", "load_sae", "refine", "reread", "threshold_for"]
