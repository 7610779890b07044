"""Activations, one a file; `from saelab.sae.activations import NAME` finds any of them by class name."""

from saelab.core.components import found_in

__getattr__ = found_in("saelab.sae.base", "Activation")
