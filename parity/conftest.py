"""What every comparison runs under: no network, one thread, and both precisions.

The largest differences that a whole file of comparisons of files found are kept in `measured.json`.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are for GPUs

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of weights and rows."""
    return request.param


MEASURED = Path(__file__).parent / "measured.json"
PEERS = {"sae_lens": "sae-lens", "dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}


@pytest.fixture(scope="module", autouse=True)
def kept(request: pytest.FixtureRequest):
    """Keep what a file of comparisons measured once all of it has passed."""
    from sharing import WORST

    WORST.clear()
    failed = request.session.testsfailed
    yield
    peer = Path(request.module.__file__).stem.removeprefix("test_").removesuffix("_files")
    chosen = request.config.getoption("keyword") or any("::" in word for word in request.config.args)
    if (
        peer in PEERS
        and request.module.__name__.endswith("_files")
        and not chosen
        and request.session.testsfailed == failed
    ):
        table = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
        found = {what: float(f"{WORST[what]:.1e}") for what in ("codes", "reconstruction")}
        table[peer] = {"version": version(PEERS[peer])} | found
        MEASURED.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
