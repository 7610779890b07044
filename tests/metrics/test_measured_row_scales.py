"""Metrics of SAEs that scale every row by itself, against SAEs that reconstruct the same and do not.

Without biases TopK is homogeneous: whatever one number each row is divided by, the row's reconstruction and what every
latent adds to it are the same. Only the codes are in other units, row by row.
"""

from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import planted_task, random_sae

from saelab.metrics import Metric, TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.sae.scales import ConstantNorm, Identity

pytest_plugins = ["models.conftest", "recipes.small_world"]

METRICS = [name for name, kind in Metric.variants().items() if kind.__module__.startswith("saelab.")]
SHORT = {"AblationSparsity": {"positions": 12, "at_each": 3, "tokens": 4, "context": 12}}
OF_CODES = ("mdl", "n2g_", "refined_shift", "fvu_read_threshold_", "sparse_probing_")
"""Scores that look at the codes' own sizes, which differ: histograms, patterns, one threshold for all rows."""


@pytest.fixture(scope="module")
def pair() -> dict[str, SAE]:
    made = {}
    for name, scale in (("each", ConstantNorm()), ("none", Identity())):
        made[name] = SAE(16, 40, TopK(k=4), scale=scale)
        with torch.no_grad():
            made[name].dictionary.b_dec.zero_()
    return made


@pytest.fixture(scope="module")
def text(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=200)


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_what_is_reconstructed(pair, text, name):
    wanted = [{"name": name} | SHORT.get(name, {})]
    other = random_sae(n_latents=40, seed=5)
    found = measure(pair | {"other": other}, text, wanted, show=False, tasks=[planted_task()])
    each, none = found["each"], found["none"]
    assert each.skipped == none.skipped
    assert list(each.scores) == list(none.scores)
    for key, score in each.scores.items():
        if not key.startswith(OF_CODES):
            assert score.value == pytest.approx(none.scores[key].value, rel=1e-4, abs=1e-6), key
