"""Floor 2: what an SAE learns from. Everything here is a `Source` of rows; nobody knows a language model exists."""

from saelab.data.array import ArraySource
from saelab.data.source import Batch, Source
from saelab.data.store import Store, StoreSource

__all__ = ["ArraySource", "Batch", "Source", "Store", "StoreSource"]
