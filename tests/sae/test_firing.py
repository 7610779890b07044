"""Latents age by rows, not by batches, and are dead after a number of rows."""

import torch

from saelab.core.codes import Codes
from saelab.sae.firing import Firing


def batch(rows: int, *latents: int) -> Codes:
    """Rows of which the last has these latents active, the others nothing."""
    values = torch.zeros(rows, 5)
    values[-1:, list(latents)] = 1.0
    return Codes.full(values)


def test_age_is_counted_in_rows():
    firing = Firing(5)
    firing.update(batch(3, 0, 1))
    assert firing.since.tolist() == [0, 0, 3, 3, 3]
    firing.update(batch(4, 1, 4))
    assert firing.since.tolist() == [4, 0, 7, 7, 0]
    firing.update(batch(0))
    assert firing.since.tolist() == [4, 0, 7, 7, 0]
    assert firing.rows == 7


def test_dead_after_so_many_rows():
    firing = Firing(5)
    firing.since.copy_(torch.tensor([0, 9, 10, 11, 1 << 40]))
    assert firing.dead(10).tolist() == [False, False, True, True, True]


def test_signed_and_unused_entries():
    firing = Firing(5)
    codes = Codes(torch.tensor([[-1.0, 0.0]]), torch.tensor([[2, 4]]), 5)
    firing.update(codes)
    assert firing.since.tolist() == [1, 1, 0, 1, 1]


def test_ages_are_saved_and_are_whole_numbers_in_any_precision():
    firing = Firing(5).double()
    firing.update(batch(2, 0))
    assert firing.state_dict()["since"].tolist() == [0, 2, 2, 2, 2]
    assert firing.since.dtype == torch.int64


def test_the_default_window_is_an_eighth_of_the_run_and_at_most_ten_million_rows():
    firing = Firing(4)
    assert firing.window == 10_000_000
    for planned, window in ((3, 1), (2_000_000, 250_000), (80_000_000, 10_000_000), (10**9, 10_000_000)):
        firing.planned = planned
        assert firing.window == window
    firing.planned = 80
    firing.since += torch.tensor([0, 9, 10, 11])
    assert firing.dead(None).tolist() == [False, False, True, True]
    assert firing.dead(11).tolist() == [False, False, False, True]
