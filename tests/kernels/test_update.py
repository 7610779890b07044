"""Adam latent by latent, against torch.optim.Adam on the dense gradient in float64; narrow moments; touched rows."""

# Shape letters: B rows, D width, L latents, K entries per row.

import copy
import ctypes
import math

import pytest
import torch
from torch import Tensor

from saelab.core.codes import Entries
from saelab.kernels import native, tier
from saelab.kernels.adam import AdamSettings
from saelab.kernels.gradient import LatentGradients, Term
from saelab.kernels.select import topk_linear
from saelab.kernels.update import catch_up, fresh, read, rounded, update

B, D, L, K = 24, 19, 30, 3


@pytest.fixture(params=["torch", "native", "portable"])
def kernels(request, monkeypatch, tmp_path_factory):
    """Each implementation: plain PyTorch, compiled for this processor, compiled for any."""
    if request.param == "torch":
        with tier.using("torch"):
            yield "torch"
        return
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    if request.param == "portable":
        library = ctypes.CDLL(str(native._built(native._compiler(), [*native.FLAGS, "-fopenmp"])))
        monkeypatch.setattr(native, "_found", lambda: (library, ""))
    with tier.using("native"):
        yield "native"


def batch(seed: int, hot: bool = False) -> Term:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(L // 2, generator=generator)[:K] for _ in range(B)])
    if hot:
        indices[:, 0] = L - 1
    values = torch.randn(B, K, generator=generator)
    return Term(Entries(indices, L), values, torch.randn(B, D, generator=generator))


def dense_of(term: Term) -> Tensor:
    whole = torch.zeros(L, D, dtype=torch.float64)
    for b in range(B):
        for j in range(K):
            whole[term.entries.indices[b, j]] += term.values[b, j].double() * term.rows[b].double()
    return whole


def start(seed: int = 9) -> Tensor:
    weight = torch.randn(L, D, generator=torch.Generator().manual_seed(seed))
    return weight / weight.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_steps_match_torchs_adam_on_the_dense_gradient(kernels, unit, hot):
    weight, adam = start(), AdamSettings(lr=0.01, epsilon=1e-6, unit=unit)
    state = fresh(weight, adam)
    expected = weight.double().requires_grad_()
    by_torch = torch.optim.Adam([expected], lr=0.01, eps=1e-6)
    for step in range(5):
        terms, extra = [batch(step, hot), batch(100 + step)], torch.randn(L, D) / 10 if step % 2 else None
        update(weight, state, terms, extra, adam)
        gradient = dense_of(terms[0]) + dense_of(terms[1]) + (0 if extra is None else extra.double())
        with torch.no_grad():
            if unit:
                gradient -= (gradient * expected).sum(1, keepdim=True) * expected
            expected.grad = gradient
            by_torch.step()
            if unit:
                expected /= expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(weight.double(), expected.detach(), rtol=2e-5, atol=2e-6)
    assert int(state["step"]) == 5


def test_a_latent_without_entries_still_follows_its_momentum(kernels):
    weight, adam = start(), AdamSettings(lr=0.01)
    state = fresh(weight, adam)
    update(weight, state, [batch(0, hot=True)], None, adam)
    before = weight[L - 1].clone()
    update(weight, state, [batch(1)], None, adam)
    assert not torch.equal(weight[L - 1], before)


@pytest.mark.parametrize("moments", ["bfloat16", "float8"])
def test_narrow_moments_follow_the_wide_ones(kernels, moments):
    wide, narrow = start(), start()
    plain, adam = AdamSettings(lr=0.003, epsilon=1e-6), AdamSettings(lr=0.003, epsilon=1e-6, moments=moments, seed=3)
    states = fresh(wide, plain), fresh(narrow, adam)
    for step in range(40):
        update(wide, states[0], [batch(step)], None, plain)
        update(narrow, states[1], [batch(step)], None, adam)
    moved = (wide - start()).norm()
    assert (narrow - wide).norm() < (0.02 if moments == "bfloat16" else 0.15) * moved
    assert states[1]["exp_avg"].element_size() == {"bfloat16": 2, "float8": 1}[moments]


@pytest.mark.parametrize("moments", ["bfloat16", "float8"])
def test_narrow_moments_are_rounded_without_bias(kernels, moments):
    """A v of 0.3 that moves by a ten-thousandth a step is lost to the nearest and kept on average at random."""
    weight = torch.zeros(200, 64)
    adam = AdamSettings(lr=0.0, beta2=0.9999, moments=moments)
    state = fresh(weight, adam)
    wide = torch.zeros(200, 64, dtype=torch.float64)
    for step in range(60):
        gradient = torch.full((200, 64), 1.0)
        update(weight, state, [], gradient, adam)
        wide = 0.9999 * wide + 0.0001
        assert step < 60
    found = read(state, "exp_avg_sq", torch.arange(200), moments).double().mean()
    assert found.item() == pytest.approx(wide.mean().item(), rel=0.02)
    assert read(state, "exp_avg", torch.arange(200), moments).mean() == pytest.approx(1 - 0.9**60, rel=0.01)


def test_the_same_random_numbers_for_the_same_seed_only(kernels):
    def after(seed: int) -> Tensor:
        weight, adam = start(), AdamSettings(lr=0.01, moments="bfloat16", seed=seed)
        state = fresh(weight, adam)
        for step in range(3):
            update(weight, state, [batch(step)], None, adam)
        return weight

    assert torch.equal(after(1), after(1))
    assert not torch.equal(after(1), after(2))


@pytest.mark.parametrize("mantissa", [3, 7])
def test_rounding_gives_a_neighbour_and_the_value_on_average(mantissa):
    value = torch.logspace(-3, 2, 50).repeat(2000, 1)
    found = rounded(value, mantissa, -126, torch.Generator().manual_seed(0))
    unit = 2.0 ** (value.log2().floor() - mantissa)
    assert ((found - value).abs() < unit).all()
    assert torch.equal(found, (found / unit).round() * unit)
    error = (found.double().mean(0) - value[0].double()) / unit[0]
    assert error.abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_missed_steps_are_made_up_as_if_none_had_been_missed(kernels):
    """Every latent meanwhile gets a gradient of zero: dense Adam with a negligible epsilon ends at the same place."""
    adam = AdamSettings(lr=0.01, epsilon=1e-12, touched=True)
    weight, dense = start(), start()
    state, everything = fresh(weight, adam), fresh(dense, plain := AdamSettings(lr=0.01, epsilon=1e-12))
    for step in range(30):
        own = AdamSettings(lr=0.01 * (1 + step / 10), epsilon=1e-12, touched=True)
        terms = [batch(step, hot=step in (0, 1, 17))]
        update(weight, state, terms, None, own)
        update(dense, everything, terms, None, AdamSettings(lr=own.lr, epsilon=plain.epsilon))
    never = torch.arange(L // 2, L - 1)
    assert torch.equal(weight[never], start()[never])  # no entry ever
    assert not torch.allclose(weight[L - 1], dense[L - 1], atol=1e-4)
    catch_up(weight, state, own)
    torch.testing.assert_close(weight, dense, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(state["exp_avg"], everything["exp_avg"], rtol=1e-4, atol=1e-6)
    before = weight.clone()
    catch_up(weight, state, own)  # nothing is left to make up
    torch.testing.assert_close(weight, before, rtol=0, atol=1e-7)


def test_gradients_come_in_terms_where_asked_for_and_settle_into_the_dense_one():
    x, centre, gradients = torch.randn(B, D), torch.randn(D, requires_grad=True), LatentGradients()
    weight, bias = torch.nn.Parameter(start()), torch.nn.Parameter(torch.randn(L))

    def gradient() -> None:
        values, _ = topk_linear(x, centre, weight, bias, K, terms=gradients.terms(weight))
        values.square().sum().backward()

    gradient()
    wanted, weight.grad = weight.grad, None
    gradients.collect([weight])
    gradient()
    gradient()
    assert weight.grad is None
    assert len(gradients.terms(weight)) == 2
    gradients.settle(weight)
    torch.testing.assert_close(weight.grad, 2 * wanted)
    assert gradients.terms(weight) == []
    gradients.settle(weight)
    torch.testing.assert_close(weight.grad, 2 * wanted)
    gradients.stop()
    weight.grad = None
    gradient()
    torch.testing.assert_close(weight.grad, wanted)


def test_unit_norm_is_said_once_and_forgotten_when_the_weight_changes():
    weight, gradients = torch.nn.Parameter(start()), LatentGradients()
    assert not gradients.is_unit(weight)
    gradients.mark_unit(weight)
    assert gradients.is_unit(weight)
    assert not gradients.is_unit(weight)
    gradients.mark_unit(weight)
    with torch.no_grad():
        weight[3] *= 2
    assert not gradients.is_unit(weight)


def test_a_copy_collects_nothing():
    weight, gradients = torch.nn.Parameter(start()), LatentGradients()
    gradients.collect([weight])
    assert copy.deepcopy(gradients).terms(weight) is None
