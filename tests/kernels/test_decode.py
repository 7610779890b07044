"""Sparse decoding against a dense float64 computation: values and all gradients, by either way through the code."""

# Shape letters: B rows, D input width, L latents, K kept per row.

import pytest
import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.kernels import decode as module
from saelab.kernels import tier
from saelab.kernels.decode import DENSE_SHARE, decode, dot_at, reference
from saelab.kernels.select import topk_linear

D = 5
SPARSE = [(6, 2, 40), (1, 1, 17), (8, 3, 61)]  # B, K, L with K * DENSE_SHARE <= L
DENSE = [(6, 2, 31), (1, 1, 1), (4, 7, 7)]


def pieces(rows: int, kept: int, n_latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signed values with unused entries, latents distinct where used, and a weight; float64."""
    generator = torch.Generator().manual_seed(rows * kept)
    values = torch.randn(rows, kept, generator=generator, dtype=torch.float64)
    indices = torch.stack([torch.randperm(n_latents, generator=generator)[:kept] for _ in range(rows)])
    if kept > 1:
        values[0, 1], indices[0, 1] = 0.0, indices[0, 0]  # an unused entry that names the latent of a used one
    weight = torch.randn(n_latents, D, generator=generator, dtype=torch.float64)
    return values.requires_grad_(), indices, weight.requires_grad_()


def by_hand(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    one_hot = torch.nn.functional.one_hot(indices, len(weight)).to(weight)
    return torch.einsum("bk,bkl,ld->bd", values, one_hot, weight)


def gradients(out: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    upstream = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)
    return list(torch.autograd.grad((out * upstream.to(out)).sum(), tensors))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "kept", "n_latents"), SPARSE + DENSE)
@pytest.mark.parametrize("function", [decode, reference])
def test_values_and_gradients_match_a_dense_computation(function, rows, kept, n_latents):
    values, indices, weight = pieces(rows, kept, n_latents)
    found = function(Codes(values, indices, n_latents), weight)
    expected = by_hand(values, indices, weight)
    assert_close(found, expected)
    for grad, wanted in zip(gradients(found, (values, weight)), gradients(expected, (values, weight)), strict=True):
        assert_close(grad, wanted)


def test_full_codes_match_a_dense_computation():
    weight = torch.randn(40, D, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, 40, dtype=torch.float64).relu().requires_grad_()
    found, expected = decode(Codes.full(values), weight), torch.einsum("bl,ld->bd", values, weight)
    assert_close(found, expected)
    for grad, wanted in zip(gradients(found, (values, weight)), gradients(expected, (values, weight)), strict=True):
        assert_close(grad, wanted)


def test_only_dense_codes_take_the_dense_way(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "reference", lambda codes, weight: taken.append(codes) or reference(codes, weight))
    for rows, kept, n_latents in SPARSE:
        values, indices, weight = pieces(rows, kept, n_latents)
        assert kept * DENSE_SHARE <= n_latents
        decode(Codes(values, indices, n_latents), weight)
    assert taken == []
    values, indices, weight = pieces(*DENSE[0])
    decode(Codes(values, indices, len(weight)), weight)
    decode(Codes.full(torch.zeros(2, 40)), torch.zeros(40, D))
    assert len(taken) == 2


@pytest.mark.parametrize(("rows", "kept", "n_latents"), [(3, 2, 33), (2, 2, 5)])
def test_gradcheck(rows, kept, n_latents):
    values, indices, weight = pieces(rows, kept, n_latents)
    assert torch.autograd.gradcheck(lambda v, w: decode(Codes(v, indices, n_latents), w), (values, weight))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_gradients_asked_for_are_worked_out(wanted):
    values, indices, weight = pieces(*SPARSE[0])
    tensors = (values.detach().requires_grad_(wanted == 0), weight.detach().requires_grad_(wanted == 1))
    decode(Codes(tensors[0], indices, len(weight)), tensors[1]).sum().backward()
    expected = torch.autograd.grad(by_hand(tensors[0], indices, tensors[1]).sum(), tensors[wanted])[0]
    assert_close(tensors[wanted].grad, expected)
    assert tensors[1 - wanted].grad is None


def test_a_latent_that_no_row_names_gets_no_gradient():
    values, indices, weight = pieces(*SPARSE[0])
    decode(Codes(values, indices, len(weight)), weight).sum().backward()
    idle = sorted(set(range(len(weight))) - set(indices.flatten().tolist()))
    assert idle
    assert (weight.grad[idle] == 0).all()


def test_no_rows():
    values = torch.zeros(0, 2, requires_grad=True)
    weight = torch.randn(40, D, requires_grad=True)
    out = decode(Codes(values, torch.zeros(0, 2, dtype=torch.int64), 40), weight)
    out.sum().backward()
    assert out.shape == (0, D)
    assert torch.equal(weight.grad, torch.zeros(40, D))


def test_two_runs_are_equal_bit_for_bit():
    def once() -> list[Tensor]:
        values, indices, weight = (tensor.detach() for tensor in pieces(64, 4, 200))
        values, weight = values.float().requires_grad_(), weight.float().requires_grad_()
        out = decode(Codes(values, indices, 200), weight)
        return [out.detach(), *gradients(out, (values, weight))]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


def test_encoder_and_decoder_share_one_sort_by_latent(monkeypatch):
    sorts = []
    monkeypatch.setattr(torch, "sort", lambda *a, real=torch.sort, **k: sorts.append(1) or real(*a, **k))
    x, weight = torch.randn(6, D), torch.randn(40, D, requires_grad=True)
    with tier.using("torch"):
        values, entries = topk_linear(x, torch.zeros(D), weight, torch.zeros(40), 2)
        decode(Codes(values, entries, 40).with_values(values.relu()), weight).sum().backward()
    assert len(sorts) == 1


def test_selected_and_decoded_codes_have_the_gradient_of_the_dense_way():
    x, centre, bias = torch.randn(6, D), torch.randn(D), torch.randn(40)
    encoder, decoder = torch.randn(40, D), torch.randn(40, D)
    tensors = tuple(tensor.double().requires_grad_() for tensor in (x, centre, encoder, bias, decoder))
    x, centre, encoder, bias, decoder = tensors
    values, entries = topk_linear(x, centre, encoder, bias, 2)
    found = decode(Codes(values.relu(), entries, 40), decoder)
    pre = (x - centre) @ encoder.T + bias
    second = pre.sort(dim=1, descending=True).values[:, 1:2]
    expected = torch.where(pre >= second, pre, 0).relu() @ decoder
    assert_close(found, expected)
    for grad, wanted in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert_close(grad, wanted)


@pytest.mark.parametrize("shape", [SPARSE[0], DENSE[0]])
def test_bf16_autocast_is_near(shape):
    values, indices, weight = (tensor.detach() for tensor in pieces(*shape))
    values, weight = values.float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = decode(Codes(values, indices, len(weight)), weight)
    expected = by_hand(values, indices, weight)
    assert_close(found.float(), expected, 3e-2)
    for grad, wanted in zip(gradients(found, (values, weight)), gradients(expected, (values, weight)), strict=True):
        assert grad.dtype == torch.float32
        assert_close(grad, wanted, 3e-2)


def test_dot_at_matches_a_loop():
    _, indices, weight = pieces(*SPARSE[0])
    rows = torch.randn(len(indices), D, dtype=torch.float64)
    found = dot_at(indices, rows, weight)
    for row in range(len(indices)):
        for slot, latent in enumerate(indices[row].tolist()):
            assert_close(found[row, slot], rows[row] @ weight[latent])
