"""Windows cut into batches: every row once, and the same continuation from any place, whatever was prefetched."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelab.data.array import ArraySource
from saelab.data.source import WindowSource, generator_for

quick = settings(deadline=None, max_examples=40, derandomize=True)
sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


class Windows(WindowSource):
    """Windows of these sizes, over and over; each row is its own number."""

    def __init__(self, sizes: list[int], seed: int = 0, prefetch: int = 0, fail_at: int | None = None):
        super().__init__(1, seed, prefetch)
        self.sizes, self.fail_at = sizes, fail_at
        self.made = 0

    def window(self, number: int) -> Tensor:
        if number == self.fail_at:
            raise ValueError(f"window {number} is broken")
        self.made += 1
        passes, place = divmod(number, len(self.sizes))
        first = passes * sum(self.sizes) + sum(self.sizes[:place])
        return torch.arange(first, first + self.sizes[place], dtype=torch.float32)[:, None]


def read(source: WindowSource, rows: int, batches: int) -> list[list[int]]:
    """The row numbers of some batches."""
    with closing(source.batches(rows)) as stream:  # type: ignore[type-var]
        return [batch.x.flatten().int().tolist() for batch in islice(stream, batches)]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    """Threads that were not there before; asserts that none is left."""
    before = set(threading.enumerate())
    found: list[threading.Thread] = []
    yield found
    assert set(threading.enumerate()) <= before


@quick
@given(sizes, st.integers(1, 20))
def test_every_row_comes_once_and_batches_straddle_windows(sizes, rows):
    passes = 3
    batches = read(Windows(sizes), rows, -(-passes * sum(sizes) // rows))
    assert all(len(batch) == rows for batch in batches)
    order = flat(batches)[: passes * sum(sizes)]
    start = 0
    for size in sizes * passes:
        assert sorted(order[start : start + size]) == list(range(start, start + size))
        start += size


@quick
@given(sizes, st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_a_restored_source_goes_on_the_same(sizes, rows, before, rows_after):
    source = Windows(sizes, seed=3)
    read(source, rows, before)
    state = json.loads(json.dumps(source.state()))
    expected = read(source, rows_after, 6)
    again = Windows(sizes, seed=3)
    again.restore(state)
    assert read(again, rows_after, 6) == expected


@quick
@given(sizes, st.integers(1, 9))
def test_each_batch_says_where_the_next_begins(sizes, rows):
    source = Windows(sizes)
    with closing(source.batches(rows)) as stream:
        batches = list(islice(stream, 8))
    expected = [batch.x.flatten().int().tolist() for batch in batches]
    for number, batch in enumerate(batches[:-1]):
        again = Windows(sizes)
        again.restore(batch.place)
        assert read(again, rows, 7 - number) == expected[number + 1 :]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetching_changes_nothing_not_even_the_place(prefetch, threads):
    plain, ahead = Windows([5, 1, 4]), Windows([5, 1, 4], prefetch=prefetch)
    for _ in range(3):  # each time from where the last reader stopped
        assert read(ahead, 3, 5) == read(plain, 3, 5)
        assert ahead.state() == plain.state()


def test_prefetching_is_only_so_far_ahead(threads):
    source = Windows([4], prefetch=2)
    with closing(source.batches(4)) as stream:
        next(stream)
        # One in the reader's hand, two ready, one that waits for room.
        assert source.made <= 4


def test_the_thread_ends_with_its_reader(threads):
    stream = Windows([4], prefetch=1).batches(3)
    next(stream)
    assert any(thread.name == "saelab-prefetch" for thread in threading.enumerate())
    stream.close()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_an_error_reaches_the_reader_after_the_rows_before_it(prefetch, threads):
    source = Windows([4, 4, 4, 4], prefetch=prefetch, fail_at=2)
    stream = source.batches(4)
    assert len(next(stream).x) == len(next(stream).x) == 4
    with pytest.raises(ValueError, match="window 2 is broken"):
        next(stream)
    assert (source.state()["window"], source.state()["offset"]) == (1, 4)


def test_an_error_in_the_first_window_reaches_the_reader(threads):
    with pytest.raises(ValueError, match="window 0 is broken"):
        next(Windows([4], prefetch=1, fail_at=0).batches(4))


def test_another_seed_is_another_order():
    first, same, other = (read(Windows([30], seed=seed), 30, 2) for seed in (1, 1, 2))
    assert first == same
    assert first != other
    assert sorted(first[0]) == sorted(other[0])


def test_every_window_has_an_order_of_its_own():
    first, second = read(Windows([30]), 30, 2)
    assert [number + 30 for number in first] != second


def test_a_place_of_another_seed_is_refused():
    state = Windows([4], seed=1).state()
    with pytest.raises(ValueError, match="for seed 1, .* 2"):
        Windows([4], seed=2).restore(state)


def test_a_batch_has_at_least_one_row():
    with pytest.raises(ValueError, match="a batch needs at least 1 row, got 0"):
        next(Windows([4]).batches(0))


def test_a_sample_moves_nothing():
    source = Windows([5, 3])
    read(source, 2, 1)
    before = source.state()
    sample = source.sample(7)
    assert sample.shape == (7, 1)
    assert len(set(sample.flatten().tolist())) == 7
    assert source.state() == before
    assert torch.equal(Windows([5, 3]).sample(7), sample)


def test_generators_of_neighbouring_numbers_are_unrelated():
    numbers = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0,), (0, 0), (1,)]
    draws = [tuple(torch.rand(4, generator=generator_for(*number)).tolist()) for number in numbers]
    assert len(set(draws)) == len(draws)
    assert torch.rand(1, generator=generator_for(5, 2)) == torch.rand(1, generator=generator_for(5, 2))


def test_a_place_in_data_that_changed_since_is_refused():
    source = ArraySource(torch.randn(20, 3))
    next(source.batches(7))
    state = source.state()
    shorter = ArraySource(torch.randn(5, 3))
    shorter.identity = source.identity  # the same name, other content
    shorter.restore(state)
    with pytest.raises(ValueError, match="changed.*window 0 has 5 rows, it had 20"):
        next(shorter.batches(7))
