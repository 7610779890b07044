"""What every comparison runs under: no network, one thread, and every precision.

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`dtype` is that of weights and rows; files are also written and read in bfloat16."""
    if "dtype" in metafunc.fixturenames:
        kinds = ["float32", "float64", *(["bfloat16"] if metafunc.module.__name__.endswith("_files") else [])]
        metafunc.parametrize("dtype", [getattr(torch, kind) for kind in kinds], ids=kinds)


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
