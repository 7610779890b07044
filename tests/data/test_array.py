"""An array as a source: every row once a pass, in another order each time."""

from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from saelab.data import ArraySource

ROWS = torch.arange(12.0).reshape(6, 2)


def read(source: ArraySource, rows: int, batches: int) -> Tensor:
    with closing(source.batches(rows)) as stream:  # type: ignore[type-var]
        return torch.cat([batch.x for batch in islice(stream, batches)])


def test_every_row_comes_once_a_pass():
    read_rows = read(ArraySource(ROWS), 4, 6)
    passes = read_rows.reshape(4, 6, 2)
    for rows in passes:
        assert torch.equal(rows[rows[:, 0].argsort()], ROWS)
    assert not all(torch.equal(passes[0], rows) for rows in passes[1:])


def test_a_batch_may_be_larger_than_the_array():
    assert read(ArraySource(ROWS), 15, 2).shape == (30, 2)


def test_another_seed_is_another_order():
    rows = torch.randn(50, 2)
    first, same, other = (read(ArraySource(rows, seed), 50, 1) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_it_goes_on_from_a_saved_place():
    source = ArraySource(ROWS)
    read(source, 4, 3)
    state = source.state()
    expected = read(source, 4, 3)
    again = ArraySource(ROWS)
    again.restore(state)
    assert torch.equal(read(again, 4, 3), expected)


def test_a_sample_is_of_different_rows():
    sample = ArraySource(ROWS).sample(4)
    assert len(sample.unique(dim=0)) == 4
    assert torch.equal(ArraySource(ROWS).sample(100).sort(0).values, ROWS)


def test_mean_and_scale_are_those_of_all_rows():
    rows = torch.randn(40, 3) * 5 + 100
    mean, scale = ArraySource(rows).statistics()
    exact = rows.double().numpy()
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(((exact - exact.mean(0)) ** 2).mean()), rtol=1e-6)


@pytest.mark.timeout(5)  # a place beyond the end was once looked for without end
def test_a_place_in_another_array_is_refused():
    source = ArraySource(ROWS)
    read(source, 5, 1)
    other = ArraySource(ROWS[:3])
    with pytest.raises(ValueError, match="the saved position is for (window_rows|block_rows|rows) "):
        other.restore(source.state())
        read(other, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_keep_their_precision(dtype):
    source = ArraySource(ROWS.to(dtype))
    assert read(source, 4, 1).dtype == dtype
    assert source.statistics()[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3), r"expected floating-point rows \[n, D\] with n >= 1, got torch.float32 \[3\]"),
        (torch.zeros(0, 2), r"got torch.float32 \[0, 2\]"),
        (torch.zeros(3, 2, dtype=torch.int64), r"got torch.int64 \[3, 2\]"),
        (torch.tensor([[0.0], [float("nan")], [float("inf")]]), "row 1 holds NaN or infinity; leave such rows out"),
    ],
)
def test_what_is_no_array_of_rows_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(rows)


def test_targets_stay_with_their_rows():
    source = ArraySource(ROWS, target=2 * ROWS[:, :1])
    batch = next(source.batches(4))
    assert source.d_out == 1
    assert batch.x.shape == (4, ROWS.shape[1])
    assert torch.equal(batch.target, 2 * batch.x[:, :1])
    assert source.sample(3).shape == (3, ROWS.shape[1] + 1)
    assert torch.equal(source.statistics()[0], ArraySource(ROWS).statistics()[0])


@pytest.mark.parametrize("target", [torch.zeros(1, 2), torch.zeros(3)])
def test_a_target_for_every_row_or_none(target):
    with pytest.raises(ValueError, match="one target for each"):
        ArraySource(ROWS, target=target)


def test_rows_may_be_an_array_of_numpy():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    ours, theirs = ArraySource(torch.from_numpy(rows.copy())), ArraySource(rows)
    assert torch.equal(next(ours.batches(8)).x, next(theirs.batches(8)).x)
    fixed = rows[::-1, ::2]
    fixed.flags.writeable = False
    assert torch.equal(ArraySource(fixed, target=rows).rows, torch.from_numpy(np.concatenate([fixed, rows], 1)))
    for wrong, words in (
        (np.array([["a"]]), "array of <U1"),
        (rows.astype(int), "torch.int64"),
        (rows[0], "float32 .4"),
    ):
        with pytest.raises(ValueError, match=words):
            ArraySource(wrong)


def test_a_source_says_what_it_holds():
    assert repr(ArraySource(torch.zeros(3000, 4))) == "ArraySource(3,000 rows 4 wide)"
    assert (
        repr(ArraySource(torch.zeros(3, 4), target=torch.zeros(3, 2))) == "ArraySource(3 rows 4 wide, targets 2 wide)"
    )
    assert ArraySource(torch.zeros(3, 4)).distinct_rows(4) == 3
    assert ArraySource(torch.zeros(3, 4)).distinct_rows(3) is None
