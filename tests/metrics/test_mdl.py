"""Description length: published sanity value, closed forms, the order of values, and code lengths by hand."""

import math

import pytest
import torch
from sweeps import Rows, constant, mirror, random_sae, values, with_weights

from saelab.core.codes import Codes
from saelab.metrics import measure
from saelab.metrics.mdl import CHOICES, MDL, Histograms, coin
from saelab.sae.activations.relu import ReLU
from saelab.sae.sae import SAE


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mdl(sae: SAE, x: torch.Tensor, **setting):
    rows = Rows(x, torch.arange(len(x)))
    return measure({"sae": sae}, rows, [{"name": "MDL"} | setting], show=False)["sae"]


def test_the_fixed_form_of_the_paper_s_example():
    metric = MDL()
    active = torch.full((10,), 65)
    metric.totals.add(torch.arange(10), active=active, rows=torch.ones(10))
    sae = random_sae(2, 4, 1)
    sae.n_latents = 25_000
    assert metric.fixed(sae).value == pytest.approx(1404.6, abs=0.05)


def test_histograms_do_not_depend_on_the_order_and_join_exactly():
    value = gaussian(3000).abs() * torch.logspace(-3, 2, 3000)
    tables = []
    for order in (torch.arange(3000), torch.arange(3000).flip(0)):
        histogram = Histograms()
        for part in order.split(97):
            histogram.update(Codes(value[part][:, None], torch.zeros(len(part), 1, dtype=torch.int64), 2))
        tables.append(histogram)
    one, other = tables
    assert torch.equal(one.bins, other.bins)
    assert torch.equal(one.range, other.range)
    top = 2 ** one.range[0].item()
    assert top / 2 <= value.max() < top
    expected = torch.histc(value.double(), bins=64, min=0, max=top).long()
    assert torch.equal(one.bins[0, 0], expected)
    assert torch.equal(one.joined(8)[0, 0], torch.histc(value.double(), bins=8, min=0, max=top).long())
    assert one.counts().tolist() == [3000, 0]


def test_entropy_of_evenly_spread_values_is_that_of_the_bins_and_signs_are_told_apart():
    value = (torch.arange(4096) + 0.5) / 4096
    histogram = Histograms()
    histogram.update(Codes(torch.cat([value, -value])[:, None], torch.zeros(8192, 1, dtype=torch.int64), 1))
    for bins in CHOICES:
        assert histogram.entropy(bins).item() == pytest.approx(math.log2(bins) + 1)
    positive = Histograms()
    positive.update(Codes(value[:, None], torch.zeros(4096, 1, dtype=torch.int64), 1))
    assert [positive.entropy(bins).item() for bins in CHOICES] == pytest.approx([2, 3, 4, 5])


def test_rounded_values_are_the_middles_of_their_bins():
    codes = Codes(torch.tensor([[0.1, -0.9, 0.0]]), torch.tensor([[0, 1, 2]]), 3)
    histogram = Histograms()
    histogram.update(codes)
    # The ranges end at 1/8 and 1: 0.1 lies in the last quarter of the one, 0.9 in that of the other.
    torch.testing.assert_close(histogram.rounded(codes, 4), torch.tensor([[0.875 / 8, -0.875, 0.0]]))


def test_bits_of_independent_latents_by_hand():
    """Latents on independently with chance 1/4, each with one of two values far apart: 2 (H(1/4) + 1/4) bits."""
    sae = with_weights(SAE(3, 2, ReLU(l1=0.0)), torch.eye(2, 3), torch.eye(2, 3), torch.zeros(3))
    on = torch.cartesian_prod(*[torch.tensor([0.0, 0, 0, 0, 0, 0, 1.1, 1.9])] * 2).repeat(4, 1)
    noise = gaussian(len(on), 1)  # which no latent reconstructs: the error that may grow
    found = mdl(sae, torch.cat([on, noise], 1), tolerance=9.0)
    expected = 2 * (coin(torch.tensor(0.25, dtype=torch.float64)).item() + 0.25)
    assert found.scores["mdl"].value == pytest.approx(expected)
    assert found.scores["mdl"].low < expected < found.scores["mdl"].high
    assert found.scores["mdl_bins"].value == 4
    assert found.scores["mdl_fixed"].value == pytest.approx(0.5 * (7 + 1))


def test_the_mean_code_length_of_rows_is_the_description_length(monkeypatch):
    monkeypatch.setattr("saelab.metrics.base.LEAST_DOCUMENTS", 2)
    sae, x = random_sae(k=4), gaussian(300, 16, seed=1)
    metric = MDL(rows=300)
    rows = Rows(x, torch.arange(300))
    measure({"sae": sae}, rows, [], show=False)
    with torch.no_grad():
        codes = sae.encode(x)
    metric.values.update(codes)
    metric.totals.add(torch.arange(300), active=codes.l0(), rows=torch.ones(300))
    metric.sample.update(x=x, read=x, group=torch.arange(300))
    with torch.no_grad():
        value = metric.scores(sae)["mdl"].value
        low, high, _ = metric._spread(sae, int(metric.scores(sae)["mdl_bins"].value), value)
    frequency = (codes.counts().double() / 300).clamp(1e-12, 1 - 1e-12)
    bins = int(metric.scores(sae)["mdl_bins"].value)
    dense, total = codes.dense().double(), 0.0
    for row in dense:
        for latent in range(24):
            if row[latent] == 0:
                total -= math.log2(1 - frequency[latent].item())
            else:
                top = 2.0 ** metric.values.range[latent].item()
                place = int(row[latent].item() / top * bins)
                same = ((dense[:, latent] > 0) & ((dense[:, latent] / top * bins).floor() == place)).sum().item()
                total -= math.log2(frequency[latent].item() * same / (dense[:, latent] > 0).sum().item())
    assert value == pytest.approx(total / 300, rel=1e-6)
    assert low < value < high


def test_more_precision_takes_more_bins_and_more_bits():
    sae, x = random_sae(k=4), gaussian(300, 16, seed=1)
    found = [values(mdl(sae, x, tolerance=tolerance).scores) for tolerance in (1.0, 0.05, 0.01, 1e-9)]
    bins, bits = [one["mdl_bins"] for one in found], [one["mdl"] for one in found]
    assert bins == sorted(bins)
    assert bits == sorted(bits)
    assert bins[0] < bins[-1]
    assert found[0]["mdl_error_kept"] == 1


def test_an_error_of_zero_cannot_be_kept():
    found = values(mdl(mirror(4), gaussian(50, 4)).scores)
    assert (found["mdl_error_kept"], found["mdl_bins"]) == (0, 32)


def test_what_cannot_be_told_is_said():
    found = mdl(constant(torch.zeros(16)), gaussian(20, 16))
    assert found.scores == {}
    assert found.skipped == {"MDL": "no latent fires in these rows"}
    for setting in ({"bits": 0}, {"tolerance": 0.0}, {"rows": 0}):
        assert next(iter(setting)) in mdl(random_sae(), gaussian(20, 16), **setting).skipped["MDL"]
