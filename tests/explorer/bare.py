"""An SAE collected on rows that stand for no text, for tests of the explorer."""

from pathlib import Path

from explorer.planted import rows, sae
from torch import Tensor

from saelab.data.store import StoreWriter
from saelab.explorer.collect import collect
from saelab.explorer.corpus import StoreCorpus
from saelab.explorer.workspace import Workspace


def bare_store(folder: Path, **columns: Tensor) -> Path:
    writer = StoreWriter(folder / "rows", 8, "fp32", {"made": "here"})
    writer.append(rows(), 1, {}, [(0, "series")] if columns else [], **columns)
    writer.finish()
    return folder / "rows"


def bare(folder: Path, **columns: Tensor) -> Workspace:
    sae().save(folder / "bare")
    store = StoreCorpus(bare_store(folder, **columns))
    collect(sae(), folder / "bare" / "weights.safetensors", store, None, folder / "bare", show=False)
    return Workspace([folder / "bare"])
