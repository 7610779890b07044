"""So many latents that no table of all pairs of them, or of all tokens and them, may be made on the way."""

import sys
from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import planted_task, random_sae, values
from torch.utils._python_dispatch import TorchDispatchMode

from saelab.metrics import Metric, TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.sae.activations.relu import ReLU
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]

LATENTS, TOKENS, BLOCK = 12_000, 1500, 1 << 26
PLACES = {
    "measure": "ENTRIES", "n2g.last_token": "ENTRIES", "probing.codes": "BLOCK_ENTRIES", "sample": "BLOCK_ENTRIES"
}  # fmt: skip
N2G = {"name": "N2G", "most": 2000, "examples": 2, "context": 2}
ABLATION = {"name": "AblationSparsity", "positions": 4, "at_each": 2, "tokens": 4, "context": 12}
SLOW = {"NearestCosine", "TestTime"}  # their blocks have tests of their own


class Largest(TorchDispatchMode):
    """Remembers the most bytes that any tensor made meanwhile had."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return made


@pytest.fixture(scope="module")
def text(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=TOKENS, split="all")


def test_the_whole_suite_holds_blocks_only(text):
    sae, spy = random_sae(n_latents=LATENTS), Largest()
    names = [name for name, kind in Metric.variants().items() if kind.by_default and name not in SLOW]
    metrics = [*(name for name in names if name not in ("N2G", "AblationSparsity")), N2G, ABLATION]
    with spy:
        found = measure({"sae": sae}, text, metrics, show=False, tasks=[planted_task()])["sae"]
    assert 4 * min(LATENTS * TOKENS, LATENTS**2) > BLOCK
    assert 4 * LATENTS * 16 <= spy.bytes <= BLOCK
    assert {"n2g_recall", "ablation_sparsity", "probe_loss", "afa_ratio", "mdl", "fvu"} <= found.scores.keys()


def test_codes_of_every_latent_are_made_some_rows_at_a_time(text, monkeypatch):
    """A ReLU holds all latents of the rows it reads; how many rows that are changes nothing."""
    sae = SAE(16, 200, ReLU(l1=0.0))
    sae.initialise(torch.randn(256, 16, generator=torch.Generator().manual_seed(0)))
    metrics = ["L0", "Reconstruction", "AFA", "SparseProbing", N2G | {"most": 20}]
    rows = []
    encode = SAE.encode

    def noted(self: SAE, x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return encode(self, x)

    def found() -> dict[str, float]:
        rows.clear()
        return values(measure({"sae": sae}, text, metrics, show=False, tasks=[planted_task()])["sae"].scores)

    monkeypatch.setattr(SAE, "encode", noted)
    whole = found()
    assert max(rows) > 100
    for place, name in PLACES.items():
        monkeypatch.setattr(sys.modules[f"saelab.metrics.{place}"], name, 200 * 33)
    assert found() == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert max(rows) == 33
