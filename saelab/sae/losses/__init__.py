"""Losses, one a file; `from saelab.sae.losses import NAME` finds any of them by class name."""

from saelab.core.components import found_in

__getattr__ = found_in("saelab.sae.base", "Loss")
