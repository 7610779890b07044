"""How well an SAE's latents match the known features of a synthetic world. `compare` runs everything.

Not among `saelab measure`'s metrics, which work on any activations: these need the world's own features.
"""

from saelab.metrics.truth.hedging import hedging_rate
from saelab.metrics.truth.score import GroundTruth, compare

__all__ = ["GroundTruth", "compare", "hedging_rate"]
