"""Error bars: what is resampled, against normal theory; totals by document; how little memory they take."""

import math

import pytest
import torch

from saelab.metrics.base import Score, Totals, interval, score_of_latents
from saelab.metrics.chunks import GROUPS


def mean_of(values: torch.Tensor, document: torch.Tensor) -> Score:
    totals = Totals()
    totals.add(document % GROUPS, value=values, rows=torch.ones_like(values))
    return totals.score(lambda value, rows: value / rows, "units")


def test_the_interval_of_a_mean_is_close_to_normal_theory():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
    score = mean_of(values, torch.arange(500))
    half = 1.96 * values.std(correction=0).item() / math.sqrt(500)
    assert score.value == pytest.approx(values.mean().item(), rel=1e-12)
    assert score.low == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert score.high == pytest.approx(values.mean().item() + half, abs=0.1 * half)
    assert (score.n, score.unit) == (500, "units")


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    values = torch.randn(200, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = [mean_of(row, torch.arange(60)) for row in values]
    assert 0.88 <= sum(score.low < 0 < score.high for score in scores) / 200 <= 0.99


def test_repeating_a_documents_tokens_does_not_narrow_the_interval():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = mean_of(values, torch.arange(100))
    often = mean_of(values.repeat_interleave(30), torch.arange(100).repeat_interleave(30))
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_one_document_has_no_interval():
    score = mean_of(torch.arange(50.0), torch.full((50,), 7))
    assert (score.low, score.high) == (None, None)
    assert score.value == 24.5


def test_an_interval_needs_twenty_documents_and_the_score_says_how_many_there_are():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0))
    few, enough = (mean_of(values, torch.arange(60) % count) for count in (19, 20))
    assert (few.low, few.high, few.documents) == (None, None, 19)
    assert enough.low < enough.value < enough.high
    assert few.as_json() == {"value": few.value, "low": None, "high": None, "n": 60, "unit": "units", "documents": 19}
    assert Score(0.5, 0.4, 0.6, 3, "share", 19) == Score(0.5, None, None, 3, "share", 19)


def test_the_same_rows_have_the_same_interval():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = mean_of(values, torch.arange(100))
    torch.manual_seed(2)
    assert mean_of(values, torch.arange(100)) == first


def test_the_order_and_size_of_chunks_do_not_matter():
    values, document = torch.randn(90, generator=torch.Generator().manual_seed(0)), torch.arange(90) // 3
    totals = Totals()
    for place in torch.randperm(90, generator=torch.Generator().manual_seed(1)).split(7):
        totals.add(document[place], value=values[place], rows=torch.ones(len(place)))
    score, once = totals.score(lambda value, rows: value / rows, "units"), mean_of(values, document)
    assert [score.value, score.low, score.high] == pytest.approx([once.value, once.low, once.high])


def test_resamples_that_have_no_value_are_left_out():
    """A ratio whose denominator is zero in some draws: in one of four, both draws are the document without it."""
    low, high = interval(lambda up, down: up / down, torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    assert (low, high) == (0.5, 1.0)
    assert interval(lambda up, down: up / down, torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == (None, None)


def test_a_vector_is_totalled_entry_by_entry():
    totals = Totals()
    totals.add(torch.tensor([4, 4, 9]), vector=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert totals.total("vector").tolist() == [9, 12]
    assert totals.by_group("vector")[[4, 9]].tolist() == [[4, 6], [5, 6]]
    assert totals.by_group("vector").dtype == torch.float64


def test_sums_do_not_lose_small_numbers():
    totals = Totals()
    for _ in range(10):
        totals.add(torch.zeros(1000, dtype=torch.int64), value=torch.full((1000,), 0.1), rows=torch.ones(1000))
    expected = torch.tensor(0.1).double().item()
    assert totals.score(lambda value, rows: value / rows, "").value == pytest.approx(expected, rel=1e-12)


def test_a_number_per_latent_is_resampled_over_latents():
    values = (torch.arange(5000) % 4 == 0).float()
    score = score_of_latents(values, "share")
    assert (score.value, score.n) == (0.25, 5000)
    few = score_of_latents((torch.arange(400) % 4 == 0).float(), "share")
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert [few.low, few.high] == pytest.approx([0.25 - half, 0.25 + half], abs=0.15 * half)
    assert score_of_latents(torch.ones(1), "share").low is None


def test_a_score_becomes_the_json_that_the_readme_promises():
    assert Score(0.5, 0.4, 0.6, 12, "share").as_json() == {
        "value": 0.5, "low": 0.4, "high": 0.6, "n": 12, "unit": "share"
    }  # fmt: skip
