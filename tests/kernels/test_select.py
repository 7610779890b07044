"""The k largest pre-activations against a dense float64 computation: values, entries and all gradients."""

# Shape letters: B rows, D input width, L latents, K kept per row.

import pytest
import torch
from torch import Tensor

from saelab.core.codes import Entries
from saelab.kernels import select
from saelab.kernels.select import centred_linear, reference, topk_linear

D = 5
SHAPES = [(7, 13, 1), (7, 13, 4), (7, 13, 13), (1, 130, 8), (9, 1, 1)]  # B, L, k


def inputs(rows: int, n_latents: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, centre, weight and bias in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, D), (D,), (n_latents, D), (n_latents,)]
    x, centre, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
    )
    return x, centre, weight, bias


def by_hand(x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and latents [B, K], largest first, by sorting the dense product."""
    pre = (x[:, None, :] - centre) * weight
    pre = pre.sum(2) + bias
    order = pre.argsort(dim=1, descending=True, stable=True)[:, :k]
    return pre.gather(1, order), order


def gradients(values: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    upstream = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view_as(values)
    return list(torch.autograd.grad((values * upstream.to(values)).sum(), tensors))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "n_latents", "k"), SHAPES)
@pytest.mark.parametrize("function", [topk_linear, reference])
def test_values_entries_and_gradients_match_a_dense_computation(function, rows, n_latents, k):
    tensors = inputs(rows, n_latents)
    values, entries = function(*tensors, k)
    expected, order = by_hand(*tensors, k)
    assert_close(values, expected)
    assert torch.equal(entries.indices, order)
    assert entries.n_latents == n_latents
    for found, wanted in zip(gradients(values, tensors), gradients(expected, tensors), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("function", [topk_linear, reference])
@pytest.mark.parametrize("k", [1, 4, 13])
def test_the_largest_absolute_values_keep_their_signs(function, k):
    tensors = inputs(rows=7, n_latents=13)
    x, centre, weight, bias = tensors
    pre = (x - centre) @ weight.T + bias
    order = pre.detach().abs().argsort(dim=1, descending=True)[:, :k]
    expected = pre.gather(1, order)
    values, entries = function(*tensors, k, absolute=True)
    assert (values < 0).any()
    assert torch.equal(entries.indices, order)
    assert_close(values, expected)
    for found, wanted in zip(gradients(values, tensors), gradients(expected, tensors), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("function", [topk_linear, reference])
@pytest.mark.parametrize("absolute", [False, True])
def test_groups_of_latents_are_chosen_from_one_by_one(function, absolute):
    x, centre, weight, bias = tensors = inputs(rows=7, n_latents=12)
    values, entries = function(*tensors, 2, absolute=absolute, groups=3)
    parts = [
        function(x, centre, weight[part : part + 4], bias[part : part + 4], 2, absolute=absolute) for part in (0, 4, 8)
    ]
    assert torch.equal(entries.indices, torch.cat([part.indices + 4 * n for n, (_, part) in enumerate(parts)], 1))
    expected = torch.cat([part for part, _ in parts], 1)
    assert_close(values, expected)
    for found, wanted in zip(gradients(values, tensors), gradients(expected, tensors), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize(("block_entries", "block_rows"), [(1, 1), (26, 1), (40, 2), (1 << 20, 3), (1, 100)])
def test_blocks_change_nothing(monkeypatch, block_entries, block_rows):
    tensors = inputs(rows=7, n_latents=13)
    expected, order = by_hand(*tensors, 4)
    monkeypatch.setattr(select, "BLOCK_ENTRIES", block_entries)
    monkeypatch.setattr(select, "BLOCK_ROWS", block_rows)
    values, entries = topk_linear(*tensors, 4)
    assert_close(values, expected)
    assert torch.equal(entries.indices, order)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradcheck(k):
    tensors = inputs(rows=3, n_latents=6, seed=1)
    assert torch.autograd.gradcheck(lambda *tensors: topk_linear(*tensors, k)[0], tensors)


@pytest.mark.parametrize("wanted", range(4))
def test_only_the_gradients_asked_for_are_worked_out(wanted):
    tensors = tuple(tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(inputs(4, 9)))
    values, _ = topk_linear(*tensors, 2)
    expected, _ = by_hand(*tensors, 2)
    values.sum().backward()
    assert_close(tensors[wanted].grad, torch.autograd.grad(expected.sum(), tensors[wanted])[0])
    assert all(tensor.grad is None for i, tensor in enumerate(tensors) if i != wanted)


def test_rows_where_everything_is_negative():
    x, centre, weight, bias = inputs(4, 9)
    values, entries = topk_linear(x, centre, weight, bias - 100, 3)
    expected, order = by_hand(x, centre, weight, bias - 100, 3)
    assert (values < 0).all()
    assert_close(values, expected)
    assert torch.equal(entries.indices, order)


def test_ties_give_distinct_latents_and_fall_the_same_way_every_time():
    x = torch.ones(300, D)
    weight = torch.ones(40, D)
    weight[7] = 2
    results = [topk_linear(x, torch.zeros(D), weight, torch.zeros(40), 5) for _ in range(2)]
    (values, entries), (again, entries_again) = results
    assert torch.equal(values, again)
    assert torch.equal(entries.indices, entries_again.indices)
    assert torch.equal(values, torch.tensor([2.0 * D, D, D, D, D]).expand(300, 5))
    assert (entries.indices[:, 0] == 7).all()
    assert all(len(set(row)) == 5 for row in entries.indices.tolist())


def test_two_runs_are_equal_bit_for_bit():
    def once() -> list[Tensor]:
        tensors = tuple(tensor.detach().float().requires_grad_() for tensor in inputs(64, 200))
        values, entries = topk_linear(*tensors, 6)
        return [values.detach(), entries.indices, *gradients(values, tensors)]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


def test_no_rows():
    tensors = inputs(0, 9)
    values, entries = topk_linear(*tensors, 3)
    assert values.shape == entries.indices.shape == (0, 3)
    for tensor, grad in zip(tensors, gradients(values, tensors), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


def test_bf16_autocast_gives_float32_values_near():
    tensors = tuple(tensor.detach().float().requires_grad_() for tensor in inputs(16, 50))
    with torch.autocast("cpu", torch.bfloat16):
        values, entries = topk_linear(*tensors, 4)
    expected, _ = by_hand(*tensors, 4)
    assert values.dtype == torch.float32
    assert_close(values, expected, 3e-2)
    # Chosen by rounded values, the entries may differ from the exact ones: gradients are those of the chosen entries.
    x, centre, weight, bias = tensors
    chosen = ((x - centre)[:, None] * weight[entries.indices]).sum(2) + bias[entries.indices]
    for found, wanted in zip(gradients(values, tensors), gradients(chosen, tensors), strict=True):
        assert found.dtype == torch.float32
        assert_close(found, wanted, 1e-5)


def test_k_out_of_range_is_our_own_mistake():
    for k in (0, 10):
        with pytest.raises(AssertionError):
            topk_linear(*inputs(2, 9), k)


def test_sums_by_latent_match_a_loop():
    indices = torch.tensor([[0, 3], [3, 1], [0, 5]])
    values, rows = torch.randn(3, 2), torch.randn(3, D)
    expected = torch.zeros(6, D)
    for row in range(3):
        for slot in range(2):
            expected[indices[row, slot]] += values[row, slot] * rows[row]
    assert_close(select.sum_by_latent(Entries(indices, 6), values, rows), expected, 1e-6)


@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (1,), (2, 3), (0, 1)])
def test_a_centred_product_has_the_gradients_of_the_plain_one(wanted):
    x, centre, weight, bias = inputs(rows=7, n_latents=13)
    asked = [tensor for n, tensor in enumerate((x, centre, weight, bias)) if n in wanted]
    given = [tensor if n in wanted else tensor.detach() for n, tensor in enumerate((x, centre, weight, bias))]
    found, expected = centred_linear(*given), ((x[:, None, :] - centre) * weight).sum(2) + bias
    assert_close(found, expected)
    for one, other in zip(gradients(found, tuple(asked)), gradients(expected, tuple(asked)), strict=True):
        assert_close(one, other)
