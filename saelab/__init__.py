"""saelab: train and measure sparse autoencoders on the activations of neural networks.

Names are imported when they are first used, so that `saelab --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelab.core.codes import Codes
    from saelab.sae import SAE, load

__version__ = "0.1.0"
__all__ = ["SAE", "Codes", "load"]

_HOMES = {"Codes": "saelab.core.codes", "SAE": "saelab.sae", "load": "saelab.sae"}


def __getattr__(name: str) -> Any:
    if name in ("core", "sae"):
        return importlib.import_module(f"saelab.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'saelab' has no attribute '{name}'")
    globals()[name] = found = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
