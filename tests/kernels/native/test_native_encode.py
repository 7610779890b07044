"""Screening with small integers against float64: the same latents and values, whatever rows and weights are like."""

# Shape letters: B rows, D columns, L latents, K kept per row.

import pytest
import torch
from torch import Tensor

from saelab.kernels import tier
from saelab.kernels.native import encode
from saelab.kernels.select import _largest, above_threshold

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Small problems go through the screen as well."""
    for name in ("LEAST_ROWS", "LEAST_LATENTS", "LEAST_COLUMNS"):
        monkeypatch.setattr(encode, name, 1)
    monkeypatch.setattr(encode, "is_worth_screening", lambda centred, weight, k: True)


@pytest.fixture
def tally(monkeypatch):
    monkeypatch.setattr(encode, "tally", encode.Tally())
    return encode.tally


def problem(rows: int, n_latents: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(n_latents, width, generator=generator) / width**0.5
    return x, weight, torch.randn(n_latents, generator=generator) / 10


def check(x: Tensor, weight: Tensor, bias: Tensor, k: int, absolute: bool = False) -> None:
    """The result is the k largest of the float64 product: same values, each at the latent it is said to be at."""
    values, indices = _largest(x, weight, bias, k, absolute, 1)
    exact = x.double() @ weight.double().T + bias.double()
    size = exact.abs() if absolute else exact
    wanted = size.sort(dim=1, descending=True, stable=True).values[:, :k]
    tolerance = 2e-6 * (x.double().norm(dim=1).max() * weight.double().norm(dim=1).max() + 1).item()
    found = values.double().abs() if absolute else values.double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=tolerance)
    torch.testing.assert_close(values.double(), exact.gather(1, indices), rtol=1e-5, atol=tolerance)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    ("rows", "n_latents", "width", "k"),
    [(1, 1, 1, 1), (1, 17, 3, 1), (7, 100, 33, 5), (300, 1000, 65, 8), (145, 2049, 128, 32), (13, 40, 20, 40)],
)
def test_sizes_that_are_multiples_of_nothing(rows, n_latents, width, k, absolute):
    check(*problem(rows, n_latents, width), k, absolute)


def test_most_latents_are_ruled_out_and_no_row_is_left_open(tally):
    check(*problem(300, 4096, 256), 16)
    assert tally.rows == 300
    assert tally.open == 0
    assert tally.candidates < 300 * 16 * 6


@pytest.mark.parametrize("size", [30.0, 1000.0])
@pytest.mark.parametrize("columns", [1, 5])
def test_columns_far_larger_than_the_others(size, columns, tally):
    x, weight, bias = problem(200, 2048, 128)
    x[:, :columns] *= size
    check(x, weight, bias, 16)
    assert tally.open == 0


def test_more_large_columns_than_are_kept_apart():
    x, weight, bias = problem(100, 1500, 128)
    x[:, :40] *= 100
    weight[:, 20:60] *= 50
    check(x, weight, bias, 8)


def test_rows_and_latents_of_very_different_size(tally):
    x, weight, bias = problem(200, 2048, 96)
    x *= torch.logspace(-4, 3, 200)[:, None]
    weight *= torch.logspace(-2, 1, 2048)[:, None]
    check(x, weight, bias, 16)
    assert tally.open < 200


def test_latents_sorted_by_how_often_they_win():
    x, weight, bias = problem(150, 3000, 64)
    x += 3
    order = (x.mean(0) @ weight.T).argsort()
    check(x, weight[order].contiguous(), bias[order].contiguous(), 16)
    check(x, weight[order.flip(0)].contiguous(), bias[order.flip(0)].contiguous(), 16)


def test_rows_where_fewer_than_k_or_none_are_positive():
    x, weight, bias = problem(60, 500, 48)
    check(x, weight, bias - 2, 32)
    check(x, weight, bias - 100, 32)


def test_ties_by_the_thousand_are_left_open_and_then_computed(tally):
    x, weight, bias = problem(20, 3000, 32)
    check(torch.zeros_like(x), weight, torch.zeros_like(bias), 4)
    assert tally.open == 20
    check(x, weight[:1].expand(3000, -1).contiguous(), torch.zeros_like(bias), 4)


def test_rows_on_few_levels_whose_rounding_errors_are_not_independent():
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (100, 64), generator=generator).float() * 0.123
    weight = torch.randint(-1, 2, (1000, 64), generator=generator).float() * 0.377
    check(x, weight, torch.linspace(0, 1e-3, 1000), 8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_does_not_spoil_the_others(bad, tally):
    x, weight, bias = problem(50, 600, 40)
    x[7, 3] = bad
    values, _ = _largest(x, weight, bias, 4, False, 1)
    assert not torch.isfinite(values[7]).all()
    keep = torch.arange(50) != 7
    torch.testing.assert_close(values[keep], (x @ weight.T + bias)[keep].topk(4).values, rtol=1e-5, atol=1e-5)
    assert tally.open == 1


def test_a_weight_that_is_not_a_number_comes_to_light():
    x, weight, bias = problem(50, 600, 40)
    weight[300, 5] = float("nan")
    values, _ = _largest(x, weight, bias, 4, False, 1)
    assert values.isnan().any(1).all()


def test_groups_of_latents_each_have_their_own_largest():
    x, weight, bias = problem(90, 1200, 64)
    with tier.using("native"):
        values, indices = _largest(x, weight, bias, 5, False, 3)
    exact = (x @ weight.T + bias).view(90, 3, 400).topk(5).values.flatten(1)
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(indices // 400, torch.arange(3).repeat_interleave(5).expand(90, -1))


def test_equal_values_come_in_the_order_of_their_latents():
    x, weight, bias = problem(30, 400, 32)
    weight[200:] = weight[:200]
    bias[200:] = bias[:200]
    values, indices = _largest(x, weight, bias, 6, False, 1)
    same = values[:, :-1] == values[:, 1:]
    assert same.any()
    assert (indices[:, :-1] < indices[:, 1:])[same].all()


def test_the_same_bits_every_time_and_with_every_number_of_threads():
    x, weight, bias = problem(500, 2000, 100)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            results.append(_largest(x, weight, bias, 16, False, 1))
    finally:
        torch.set_num_threads(threads)
    for values, indices in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(indices, results[0][1])


@pytest.mark.parametrize("level", [0.5, 1.5, 2.5, 100.0])
def test_all_above_a_threshold_of_their_latents(level):
    x, weight, bias = problem(200, 1500, 64)
    threshold = level + torch.rand(1500, generator=torch.Generator().manual_seed(5))
    exact = x.double() @ weight.double().T + bias.double()
    near = ((exact - threshold).abs() < 1e-5).any(1)
    codes = above_threshold(x, torch.zeros(64), weight, bias, threshold)
    wanted = exact.where(exact > threshold, 0)
    torch.testing.assert_close(codes.dense()[~near].double(), wanted[~near], rtol=1e-5, atol=1e-5)
    assert (codes.indices[:, 1:] > codes.indices[:, :-1])[codes.active[:, 1:]].all()


def test_rows_with_far_more_above_the_threshold_than_others(tally):
    x, weight, bias = problem(160, 1500, 64)
    x[7] *= 50
    x[3] = float("nan")
    codes = above_threshold(x, torch.zeros(64), weight, bias, torch.full((1500,), 3.0))
    exact = x @ weight.T + bias
    keep = torch.arange(160) != 3
    assert (codes.l0()[7] > 400) & (codes.l0()[keep].median() < 10)
    assert torch.equal(codes.l0()[keep], (exact > 3).sum(1)[keep])
    assert tally.open == 2


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_rows_far_below_those_before_them_keep_all_of_their_k_largest(share):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 64, generator=generator)
    weight[:64] = weight[0] + 0.5 * weight[:64]  # rows along the first one have many large pre-activations
    x = weight[0] + 0.5 * torch.randn(2000, 64, generator=generator)
    across = torch.rand(2000, generator=generator) < share
    rest = torch.randn(2000, 64, generator=generator)
    rest -= (rest @ weight[0])[:, None] * weight[0] / weight[0].square().sum()
    x[across] = 8 * torch.nn.functional.normalize(rest[across], dim=1)
    check(x, weight, torch.zeros(512), 8)
