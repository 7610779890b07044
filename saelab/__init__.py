"""saelab: train and measure sparse autoencoders on the activations of neural networks."""

from saelab.core.codes import Codes
from saelab.sae import SAE, load

__version__ = "0.1.0"
__all__ = ["SAE", "Codes", "load"]
