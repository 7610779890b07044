"""What holds for every metric there is, and for the next one that is put into the folder."""

import json
import math
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import Rows, planted_task, random_sae

from saelab.metrics import Evaluation, Metric, TextEvaluation, measure
from saelab.metrics.base import View
from saelab.metrics.chunks import GROUPS
from saelab.metrics.measure import Measured
from saelab.models.subject import Subject
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]

METRICS = {name: kind for name, kind in Metric.variants().items() if kind.__module__.startswith("saelab.")}
WITHOUT_MODEL = [name for name, kind in METRICS.items() if not kind.needs_model and kind.needs_chunks()]


@pytest.fixture(scope="module")
def sae() -> SAE:
    """An SAE that has seen a few batches of training, so that it has a firing history."""
    sae = random_sae(n_latents=40)
    for seed in range(8):
        sae.objective(torch.randn(32, 16, generator=torch.Generator().manual_seed(seed)))
    return sae


@pytest.fixture(scope="module")
def text(tiny_llama: Path, text_folder: Path) -> TextEvaluation:
    return TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=200)


def measured(sae: SAE, data: Evaluation, name: str) -> Measured:
    """What a metric says of an SAE, with another SAE and a task at hand."""
    other = random_sae(n_latents=40, seed=5)
    return measure({"sae": sae, "other": other}, data, [name], show=False, tasks=[planted_task()])["sae"]


@pytest.fixture(scope="module")
def found_by(sae: SAE, text: TextEvaluation) -> Callable[[str], Measured]:
    """What a metric says of the trained SAE, measured once for all tests that look at it; not to be changed."""
    return cache(partial(measured, sae, text))


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_finite_numbers_with_a_unit_and_an_interval_around_them(found_by, name):
    found = found_by(name)
    assert found.scores or found.skipped
    assert all(why.strip() and "\n" not in why for why in found.skipped.values())
    for key, score in found.scores.items():
        assert math.isfinite(score.value), key
        assert (score.low is None) == (score.high is None), key
        if score.low is not None:
            assert score.low <= score.value <= score.high, key
        assert isinstance(score.n, int), key
        assert score.n > 0, key
        assert score.unit.strip(), key
        assert key == key.lower().strip(), key


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_json_with_the_same_fields(found_by, name):
    for score in found_by(name).scores.values():
        found = json.loads(json.dumps(score.as_json(), allow_nan=False))
        assert found == score.as_json()
        assert list(found)[:5] == ["value", "low", "high", "n", "unit"]
        assert list(found)[5:] in ([], ["documents"])


@pytest.mark.parametrize("name", METRICS)
def test_numbers_per_latent_are_one_for_each(found_by, name):
    for key, value in found_by(name).latents.items():
        assert value.shape == (40,), key
        assert value.device.type == "cpu", key
        assert torch.isfinite(value).all(), key


@pytest.mark.parametrize("name", METRICS)
def test_tables_are_plain_columns_of_one_length(found_by, name):
    for key, table in found_by(name).tables.items():
        json.dumps(table, allow_nan=False)
        assert len({len(column) for column in table.values()}) == 1, key


@pytest.mark.parametrize("silent", ["all", "one"])
@pytest.mark.parametrize("name", METRICS)
def test_where_no_latent_fires_or_one_never_does_there_is_a_value_or_a_reason(text, name, silent):
    sae = random_sae(n_latents=40)
    with torch.no_grad():
        sae.dictionary.b_enc[slice(None) if silent == "all" else 3] = -1e6
    found = measured(sae, text, name)
    assert found.scores or found.skipped
    assert all(why.strip() and "\n" not in why for why in found.skipped.values())
    assert not any("divides by zero" in why for why in found.skipped.values())
    assert all(math.isfinite(score.value) for score in found.scores.values())
    assert all(torch.isfinite(value).all() for value in found.latents.values())
    json.dumps(found.tables, allow_nan=False)


def test_no_two_metrics_give_a_score_of_the_same_name(found_by):
    names = [set(found_by(name).scores) for name in METRICS]
    assert sum(map(len, names)) == len(set().union(*names))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_described_and_needs_no_settings(name):
    config = METRICS[name]().config()
    assert json.loads(json.dumps(config)) == config
    assert Metric.build(config).config() == config
    assert METRICS[name].__doc__
    for option in METRICS[name].options():
        assert f"\n        {option}: " in METRICS[name].__doc__, option


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_scores_do_not_depend_on_where_chunks_end(sae, name):
    x = torch.randn(240, 16, generator=torch.Generator().manual_seed(0))
    document = torch.arange(240) // 8
    small, large = (
        measure({"sae": sae}, Rows(x, document, chunk), [name], show=False)["sae"].scores for chunk in (30, 240)
    )
    for key in large:
        if key != "fvu_per_batch":  # the one that is defined by chunks
            assert small[key].value == pytest.approx(large[key].value, rel=1e-6), key
            assert (small[key].low or 0) == pytest.approx(large[key].low or 0, rel=1e-6), key
            assert small[key].n == large[key].n, key


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_memory_does_not_grow_with_documents(sae, name):
    """Three times as many documents as there are groups: what a metric holds stays, but for a number per chunk."""
    metric, sizes = METRICS[name](), []
    for start in range(0, 3 * GROUPS, 100):
        x = torch.randn(100, 16, generator=torch.Generator().manual_seed(start))
        with torch.no_grad():
            codes = sae.encode(x)
            metric.update(View(sae, x, sae.decode(codes), codes, torch.arange(start, start + 100) % GROUPS, None))
        sizes.append(len(pickle.dumps(metric)))
    assert sizes[-1] - sizes[GROUPS // 100] <= 16 * len(sizes)
