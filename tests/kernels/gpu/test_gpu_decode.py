"""Sparse decoding for GPUs against loops in float64."""

# Shape letters: B rows, D width, L latents, K entries per row.

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

from saelab.kernels.gpu.decode import bag, decode_residual, dot_at

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(5, 33, 40, 3), (1, 1, 1, 1), (3, 200, 9, 9), (2, 16, 30, 1), (4, 7, 100, 70)]  # B, D, L, K


def case(rows: int, width: int, n_latents: int, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """indices, values, weight and rows."""
    generator = torch.Generator().manual_seed(rows)
    indices = torch.stack([torch.randperm(n_latents, generator=generator)[:kept] for _ in range(rows)])
    shapes = [(rows, kept), (n_latents, width), (rows, width)]
    values, weight, x = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    values[0, 0] = 0  # an unused entry
    return indices.to(DEVICE), values, weight, x


def sums(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros(len(indices), weight.shape[1], dtype=torch.float64, device=weight.device)
    for row, entries in enumerate(indices.tolist()):
        for slot, latent in enumerate(entries):
            out[row] += values[row, slot].double() * weight[latent].double()
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_directions_are_those_of_a_loop(shape):
    indices, values, weight, _ = case(*shape)
    found = bag(indices, weight, values).double()
    torch.testing.assert_close(found, sums(indices, values, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_dot_products_are_those_of_a_loop(shape):
    indices, _, weight, x = case(*shape)
    expected = [[weight[i].double() @ x[row].double() for i in entries] for row, entries in enumerate(indices.tolist())]
    expected = torch.tensor(expected, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(dot_at(indices, x, weight).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_residual_and_its_squares(shape):
    indices, values, weight, target = case(*shape)
    bias = torch.linspace(-2, 3, weight.shape[1], device=DEVICE)
    residual, squares = decode_residual(indices, values, weight, bias, target)
    expected = sums(indices, values, weight) + bias - target
    torch.testing.assert_close(residual.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares.double(), expected.square().sum(), rtol=1e-5, atol=1e-5)


def test_a_narrow_copy_of_the_weight_is_summed_in_full_precision():
    indices, values, weight, target = case(3, 24, 20, 5)
    narrow = weight.bfloat16()
    residual, _ = decode_residual(indices, values, narrow, torch.zeros(24, device=DEVICE), target.bfloat16())
    expected = sums(indices, values, narrow) - target.bfloat16()
    torch.testing.assert_close(residual.double(), expected, rtol=1e-5, atol=1e-5)
    assert bag(indices, narrow, values).dtype == torch.bfloat16


def test_nothing_to_decode():
    weight = torch.ones(4, 3, device=DEVICE)
    none = torch.zeros(0, 2, dtype=torch.int64, device=DEVICE)
    assert bag(none, weight, none.float()).shape == (0, 3)
    assert dot_at(none, none.float().new_zeros(0, 3), weight).shape == (0, 2)
    residual, squares = decode_residual(none, none.float(), weight, weight[0], weight[:0])
    assert residual.shape == (0, 3)
    assert squares == 0
    empty = torch.zeros(2, 0, dtype=torch.int64, device=DEVICE)
    assert torch.equal(bag(empty, weight, empty.float()), torch.zeros(2, 3, device=DEVICE))


def test_nan_is_passed_on():
    indices, values, weight, _ = case(3, 8, 20, 4)
    values[1, 2] = torch.nan
    assert bag(indices, weight, values).isnan().any(1).tolist() == [False, True, False]
