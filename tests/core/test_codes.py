"""Codes of both layouts against naive loops over their entries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.core.codes import Codes, Entries

quick = settings(deadline=None, max_examples=40, derandomize=True)
numbers = st.sampled_from([0.0, 1.0, -2.0, 0.5])


@st.composite
def sparse_codes(draw: st.DrawFn) -> Codes:
    """Distinct latents in a row, signed values, and unused entries that may name any latent."""
    n_latents = draw(st.integers(1, 6))
    rows, kept = draw(st.integers(0, 4)), draw(st.integers(1, n_latents))
    values, indices = torch.zeros(rows, kept), torch.zeros(rows, kept, dtype=torch.int64)
    for row in range(rows):
        latents = draw(st.permutations(range(n_latents)))
        for slot in range(kept):
            values[row, slot] = draw(numbers)
            used = values[row, slot] != 0
            indices[row, slot] = latents[slot] if used else draw(st.integers(0, n_latents - 1))
    return Codes(values, indices, n_latents)


@st.composite
def full_codes(draw: st.DrawFn) -> Codes:
    rows, n_latents = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    values = draw(st.lists(numbers, min_size=rows * n_latents, max_size=rows * n_latents))
    return Codes.full(torch.tensor(values).reshape(rows, n_latents))


any_codes = st.one_of(sparse_codes(), full_codes())


def read_out(codes: Codes) -> list[dict[int, float]]:
    """The active latents of each row and their values, entry by entry."""
    rows: list[dict[int, float]] = []
    for values, indices in zip(codes.values.tolist(), codes.indices.tolist(), strict=True):
        rows.append({latent: value for value, latent in zip(values, indices, strict=True) if value != 0})
    return rows


@quick
@given(any_codes)
def test_dense_writes_every_entry_at_its_latent(codes):
    expected = torch.zeros(len(codes), codes.n_latents)
    for row, entries in enumerate(read_out(codes)):
        for latent, value in entries.items():
            expected[row, latent] = value
    assert torch.equal(codes.dense(), expected)


@quick
@given(any_codes)
def test_active_means_not_zero(codes):
    rows = read_out(codes)
    assert codes.l0().tolist() == [len(row) for row in rows]
    assert codes.counts().tolist() == [sum(latent in row for row in rows) for latent in range(codes.n_latents)]


@quick
@given(any_codes)
def test_compact_keeps_the_codes_in_as_few_columns_as_they_need(codes):
    compact = codes.compact()
    assert torch.equal(compact.dense(), codes.dense())
    assert compact.values.shape == (len(codes), max([1, *map(len, read_out(codes))]))
    assert not compact.is_full


@quick
@given(any_codes)
def test_compact_orders_latents(codes):
    for row in read_out(codes.compact()):
        assert list(row) == sorted(row)


@quick
@given(any_codes)
def test_entries_are_listed_latent_by_latent_rows_ascending(codes):
    entries, kept = codes.entries, codes.indices.shape[1]
    flat = codes.indices.flatten().tolist()
    expected = [number for latent in range(codes.n_latents) for number, at in enumerate(flat) if at == latent]
    assert entries.order.tolist() == expected
    assert entries.rows.tolist() == [number // kept for number in expected]
    assert entries.offsets.tolist() == [sum(at < latent for at in flat) for latent in range(codes.n_latents)]


@pytest.mark.parametrize("layout", ["sparse", "full"])
def test_gradient_passes_through_dense(layout):
    values = torch.randn(3, 4, requires_grad=True)
    indices = torch.stack([torch.randperm(4), torch.randperm(4), torch.randperm(4)])
    codes = Codes.full(values) if layout == "full" else Codes(values, indices, 4)
    upstream = torch.randn(3, 4)
    (codes.dense() * upstream).sum().backward()
    assert torch.equal(values.grad, upstream.gather(1, codes.indices))


def test_full_codes_copy_nothing():
    values = torch.randn(2, 5)
    codes = Codes.full(values)
    assert codes.is_full
    assert codes.dense() is codes.values is values
    assert codes.indices.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_other_values_share_the_entries():
    codes = Codes(torch.ones(2, 2), torch.tensor([[0, 2], [1, 0]]), 3)
    other = codes.with_values(torch.zeros(2, 2))
    assert other.entries is codes.entries
    assert other.l0().tolist() == [0, 0]


def test_entries_can_be_given_ready_made():
    entries = Entries(torch.tensor([[1], [1]]), 3)
    assert Codes(torch.ones(2, 1), entries, 3).entries is entries


def test_length_and_text():
    codes = Codes(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64), 7)
    assert len(codes) == 2
    assert repr(codes) == "Codes(2 rows, 3 of 7 latents kept, torch.float32)"


def test_codes_become_a_data_frame_and_a_table_of_active_entries():
    pandas = pytest.importorskip("pandas")
    codes = Codes(torch.tensor([[2.0, 0.0], [3.0, -1.0]]), torch.tensor([[1, 0], [2, 0]]), 4)
    frame = pandas.DataFrame(codes)
    assert frame.to_numpy().tolist() == [[0, 2, 0, 0], [-1, 0, 3, 0]]
    table = codes.table()
    assert sorted(zip(*(table[name].tolist() for name in ("row", "latent", "value")), strict=True)) == [
        (0, 1, 2.0), (1, 0, -1.0), (1, 2, 3.0)
    ]  # fmt: skip
