"""saelab: train, scale, measure, compare and explore sparse autoencoders."""

from saelab.core.codes import Codes
from saelab.sae import SAE, load

__version__ = "0.1.0"
__all__ = ["SAE", "Codes", "load"]
