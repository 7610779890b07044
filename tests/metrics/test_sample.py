"""A sample of rows: the same however the data are cut, fair, and no larger than asked for."""

import pytest
import torch
from sweeps import mirror, random_sae

from saelab.metrics.sample import Sample, codes_of


def taken(n: int, chunk: int, most: int) -> Sample:
    sample, number = Sample(most), torch.arange(n)
    for part in number.split(chunk):
        sample.update(number=part, pair=torch.stack([part, -part], 1).float())
    return sample


@pytest.mark.parametrize("chunk", [1, 7, 50, 400])
def test_the_same_rows_however_the_data_are_cut(chunk):
    whole = taken(400, 400, 50)
    cut = taken(400, chunk, 50)
    assert torch.equal(cut.column("number"), whole.column("number"))
    assert torch.equal(cut.column("pair")[:, 1], -whole.column("number").float())
    assert len(cut) == 50
    assert cut.seen == 400


def test_all_rows_while_they_are_few_and_in_the_order_of_the_data():
    sample = taken(30, 7, 50)
    assert sample.column("number").tolist() == list(range(30))
    assert len(sample) == 30


def test_codes_read_in_parts_are_those_read_at_once(monkeypatch):
    for sae in (random_sae(k=3), mirror(16)):
        rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
        rows[:7] = 0  # a part that needs fewer entries
        monkeypatch.setattr("saelab.metrics.sample.BLOCK_ENTRIES", 7 * sae.n_latents)
        found = codes_of(sae, rows)
        assert not found.is_full
        torch.testing.assert_close(found.dense(), sae.encode(rows).dense())


def test_rows_are_kept_from_the_whole_of_the_data_alike():
    kept = taken(20_000, 500, 2000).column("number").double()
    assert (kept.diff() > 0).all()
    assert kept.mean().item() == pytest.approx(10_000, rel=0.05)
    assert (kept < 5000).double().mean().item() == pytest.approx(0.25, abs=0.04)
