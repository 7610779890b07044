"""Floor 2: what learns. An SAE is a dictionary, an activation and losses, each a component in its own file."""

from saelab.sae.sae import SAE, load

__all__ = ["SAE", "load"]
