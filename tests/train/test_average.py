"""The exponential average of weights, corrected for its start at zero."""

import pytest
import torch
from torch.nn import Parameter

from saelab.train.average import WeightAverage


def parameters() -> list[Parameter]:
    return [Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)), Parameter(torch.ones(2, 3, dtype=torch.float64))]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
def test_constant_weights_are_read_out_at_every_step(momentum):
    weights = parameters()
    average = WeightAverage(weights, momentum)
    for _ in range(50):
        average.update()
        for found, weight in zip(average.values(), weights, strict=True):
            torch.testing.assert_close(found, weight.detach(), rtol=1e-9, atol=0)


def test_recent_weights_count_most():
    weights = parameters()
    average = WeightAverage(weights, 0.9)
    history = torch.randn(20, dtype=torch.float64)
    for value in history:
        weights[0].data.fill_(value)
        average.update()
    shares = 0.9 ** torch.arange(19, -1, -1, dtype=torch.float64)
    expected = (history * shares).sum() / shares.sum()
    torch.testing.assert_close(average.values()[0], expected.expand(2))


def test_before_the_first_step_it_is_the_weights():
    weights = parameters()
    values = WeightAverage(weights, 0.9).values()
    assert all(torch.equal(value, weight) for value, weight in zip(values, weights, strict=True))


def test_swapping_in_gives_the_weights_back():
    weights = parameters()
    average = WeightAverage(weights, 0.5)
    average.update()
    weights[0].data.fill_(3.0)
    average.update()
    kept = [weight.detach().clone() for weight in weights]
    with average.swapped_in():
        torch.testing.assert_close(weights[0].data, (torch.tensor([1.0, -2.0]).double() * 0.5 + 3.0) / 1.5)
        weights[1].data.zero_()  # what is done to the average does not last
    assert all(torch.equal(weight, before) for weight, before in zip(weights, kept, strict=True))


def failing(average: WeightAverage) -> None:
    with average.swapped_in():
        raise RuntimeError("no")


def test_swapping_in_gives_the_weights_back_after_an_error():
    weights = parameters()
    average = WeightAverage(weights, 0.5)
    average.update()
    weights[0].data.fill_(7.0)
    with pytest.raises(RuntimeError, match="no"):
        failing(average)
    assert (weights[0] == 7.0).all()


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="average's momentum"):
        WeightAverage(parameters(), momentum)
