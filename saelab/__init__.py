"""saelab: train, scale, measure, compare and explore sparse autoencoders on the activations of neural networks.

What stands here is imported when it is first used, so that `import saelab` costs nothing and `saelab --help` does not
wait for torch.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import saelab.analysis
    import saelab.capacity
    import saelab.figures
    import saelab.geometry
    import saelab.interchange
    import saelab.scaling
    import saelab.tasks  # noqa: F401 - so that a type checker knows the folders
    from saelab.analysis.check import check
    from saelab.core.codes import Codes
    from saelab.data import ArraySource, Store, StoreSource
    from saelab.data.synthetic import CorrelatedWorld, ExclusiveWorld, HierarchicalWorld, ManifoldWorld, SparseWorld
    from saelab.metrics import StoreEvaluation, TextEvaluation, measure
    from saelab.models.harvest import harvest
    from saelab.models.language_model import LanguageModel
    from saelab.models.subject import Subject
    from saelab.runs import load, open_run, publish
    from saelab.sae import SAE, Ensemble
    from saelab.train import Trainer

__version__ = "0.1.0"
_HOMES = {
    "ArraySource": "data", "Codes": "core.codes", "CorrelatedWorld": "data.synthetic", "Ensemble": "sae",
    "ExclusiveWorld": "data.synthetic", "HierarchicalWorld": "data.synthetic", "LanguageModel": "models.language_model",
    "ManifoldWorld": "data.synthetic", "SAE": "sae", "SparseWorld": "data.synthetic", "Store": "data",
    "StoreEvaluation": "metrics", "StoreSource": "data", "Subject": "models.subject", "TextEvaluation": "metrics",
    "Trainer": "train", "check": "analysis.check", "harvest": "models.harvest", "load": "runs", "measure": "metrics",
    "open_run": "runs", "publish": "runs",
}  # fmt: skip
"""Where each name lives."""
__all__ = [
    "SAE",
    "ArraySource",
    "Codes",
    "CorrelatedWorld",
    "Ensemble",
    "ExclusiveWorld",
    "HierarchicalWorld",
    "LanguageModel",
    "ManifoldWorld",
    "SparseWorld",
    "Store",
    "StoreEvaluation",
    "StoreSource",
    "Subject",
    "TextEvaluation",
    "Trainer",
    "check",
    "harvest",
    "load",
    "measure",
    "open_run",
    "publish",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        globals()[name] = found = getattr(importlib.import_module(f"saelab.{_HOMES[name]}"), name)
        return found
    if not name.startswith("_") and importlib.util.find_spec(f"saelab.{name}"):
        return importlib.import_module(f"saelab.{name}")
    raise AttributeError(f"module 'saelab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
