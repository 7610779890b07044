"""Adam for GPUs, latent by latent, against Adam written out in float64 on the whole gradient."""

# Shape letters: B rows, D width, L latents, K entries per row.

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

from saelab.kernels.adam import AdamSettings
from saelab.kernels.gpu import sums
from saelab.kernels.gpu.sort import sort_by_latent
from saelab.kernels.gpu.update import Clock, SortedTerm, Whole, catch_up, fresh, tick, update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [torch.float32, torch.int16, torch.uint8]


class Written:
    """Adam in float64, every latent at every step."""

    def __init__(self, weight: Tensor, adam: AdamSettings):
        self.w, self.adam, self.t = weight.double(), adam, 0
        self.m, self.v = torch.zeros_like(self.w), torch.zeros_like(self.w)

    def step(self, gradient: Tensor, lr: float) -> None:
        adam, g = self.adam, gradient.double()
        self.t += 1
        if adam.unit:
            g = g - (g * self.w).sum(1, keepdim=True) * self.w
        self.m = adam.beta1 * self.m + (1 - adam.beta1) * g
        self.v = adam.beta2 * self.v + (1 - adam.beta2) * g * g
        root = (self.v / (1 - adam.beta2**self.t)).sqrt() + adam.epsilon
        self.w = self.w - lr * self.m / (1 - adam.beta1**self.t) / root
        if adam.unit:
            self.w = self.w / self.w.norm(dim=1, keepdim=True)


def batch(seed: int, rows: int, kept: int, n_latents: int, width: int) -> tuple[SortedTerm, Tensor]:
    """A term and the gradient that it stands for, as a whole in float64."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(n_latents, (rows, kept), generator=generator)
    values = torch.randn(rows, kept, generator=generator)
    x = torch.randn(rows, width, generator=generator)
    spread = torch.zeros(rows, n_latents, dtype=torch.float64).scatter_add(1, indices, values.double())
    gradient = spread.T @ x.double()
    term = SortedTerm(sort_by_latent(indices.to(DEVICE), n_latents), values.to(DEVICE), x.to(DEVICE))
    return term, gradient.to(DEVICE)


def start(n_latents: int, width: int, unit: bool) -> Tensor:
    weight = torch.randn(n_latents, width, generator=torch.Generator().manual_seed(9))
    return (weight / weight.norm(dim=1, keepdim=True) if unit else weight).to(DEVICE)


def narrow(weight: Tensor) -> Tensor:
    """A copy in bf16: rounded to the nearest on a GPU, cut off by the interpreter."""
    if weight.is_cuda:
        return weight.bfloat16()
    return (weight.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(("n_latents", "width"), [(9, 12), (5, 33), (1, 1)])
def test_steps_are_those_of_adam(unit, n_latents, width):
    if unit and width == 1:
        pytest.skip("a unit row of one column cannot move")
    adam = AdamSettings(beta1=0.8, beta2=0.95, epsilon=1e-6, unit=unit)
    weight = start(n_latents, width, unit)
    written, moments, clock = Written(weight, adam), fresh(weight), Clock.start(DEVICE)
    shadow = torch.empty_like(weight, dtype=torch.bfloat16)
    for number in range(4):
        term, gradient = batch(number, 6, 3, n_latents, width)
        lr = 0.01 * (number + 1)
        tick(clock, torch.tensor(lr, device=DEVICE) if number % 2 else lr, adam)
        update(weight, moments, [term], adam, clock, shadow=shadow)
        written.step(gradient, lr)
        close(weight, written.w)
        close(moments.first, written.m)
        close(moments.second, written.v)
        assert torch.equal(shadow, narrow(weight))
    assert int(clock.step) == 4


def test_several_terms_and_parts_that_are_there_already_add_up(monkeypatch):
    monkeypatch.setattr(sums, "CHUNK", 4)  # every latent is hot
    adam = AdamSettings(epsilon=1e-5)
    weight = start(6, 10, unit=False)
    written, moments, clock = Written(weight, adam), fresh(weight), Clock.start(DEVICE)
    (one, gradient), (other, more) = batch(1, 20, 3, 6, 10), batch(2, 9, 2, 6, 10)
    rows = torch.randn(2, 10, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    slots = torch.tensor([-1, 1, -1, -1, 0, -1], dtype=torch.int32, device=DEVICE)
    tick(clock, 0.01, adam)
    update(weight, moments, [one, other], adam, clock, whole=Whole(rows, slots))
    whole = gradient + more
    whole[1] += rows[1]
    whole[4] += rows[0]
    written.step(whole, 0.01)
    close(moments.first, written.m)
    close(weight, written.w)
    everything = torch.randn(6, 10, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    tick(clock, 0.01, adam)
    update(weight, moments, [], adam, clock, whole=Whole(everything))
    written.step(everything, 0.01)
    close(weight, written.w)


def test_a_hot_latent_gets_its_whole_gradient():
    adam = AdamSettings(epsilon=1e-5)
    weight = start(5, 7, unit=False)
    written, moments, clock = Written(weight, adam), fresh(weight), Clock.start(DEVICE)
    term, _ = batch(0, 150, 1, 5, 7)
    indices = torch.full((150, 1), 3, device=DEVICE)
    indices[::70] = 1
    term = SortedTerm(sort_by_latent(indices, 5), term.values, term.rows)
    gradient = torch.zeros(5, 7, dtype=torch.float64, device=DEVICE)
    for row, latent in enumerate(indices[:, 0].tolist()):
        gradient[latent] += term.values[row, 0].double() * term.rows[row].double()
    tick(clock, 0.01, adam)
    update(weight, moments, [term], adam, clock)
    written.step(gradient, 0.01)
    close(moments.first, written.m)
    close(weight, written.w)


@pytest.mark.parametrize("unit", [False, True])
def test_latents_left_alone_are_made_up_for(unit):
    """After a catch-up, weights are near those that had every step; between, no latent is visited for nothing."""
    adam = AdamSettings(beta1=0.7, beta2=0.99, epsilon=1e-12, unit=unit)
    n_latents, width = 12, 6
    weight = start(n_latents, width, unit)
    written, moments, clock = Written(weight, adam), fresh(weight), Clock.start(DEVICE)
    last = torch.zeros(n_latents, dtype=torch.int32, device=DEVICE)
    shadow = narrow(weight)
    for number in range(12):
        term, gradient = batch(number, 2, 2, n_latents, width)
        lr = 1e-3 * (1 + number % 3)
        before, touched = weight.clone(), gradient.abs().sum(1) > 0
        tick(clock, lr, adam)
        update(weight, moments, [term], adam, clock, last=last, shadow=shadow)
        written.step(gradient, lr)
        assert torch.equal(weight[~touched], before[~touched])
        assert (last[touched] == number + 1).all()
        # In the row of unit norm, the gradient was projected on where the row was, a little off.
        close(weight[touched], written.w[touched], 2e-4 if unit else 2e-5)
    assert not torch.allclose(weight.double(), written.w, atol=1e-4)
    catch_up(weight, moments, adam, clock, last, shadow)
    close(weight, written.w, 2e-4 if unit else 2e-5)
    close(moments.first, written.m, 3e-3 if unit else 2e-5)
    close(moments.second, written.v, 3e-3 if unit else 2e-5)
    assert torch.equal(shadow, narrow(weight))
    again = weight.clone()
    catch_up(weight, moments, adam, clock, last)
    close(weight, again, 1e-6)


def test_latents_in_slots_are_touched():
    adam = AdamSettings()
    weight = start(4, 5, unit=False)
    before, moments, clock = weight.clone(), fresh(weight), Clock.start(DEVICE)
    last = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([-1, -1, 0, -1], dtype=torch.int32, device=DEVICE)
    tick(clock, 0.01, adam)
    update(weight, moments, [], adam, clock, last=last, whole=Whole(torch.ones(1, 5, device=DEVICE), slots))
    assert last.tolist() == [0, 0, 1, 0]
    close(weight[2], before[2] - 0.01)
    assert torch.equal(weight[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("size", [1.0, 0.37, -0.0113, 3e-4])
def test_narrow_averages_are_right_in_the_mean(kind, size):
    """Columns with the same gradient are rounded each in its own way, and right on average, step after step."""
    adam, columns = AdamSettings(beta1=0.9, beta2=0.9), 4096
    weight = torch.zeros(2, columns, device=DEVICE)
    moments, clock = fresh(weight, kind), Clock.start(DEVICE)
    rows = torch.full((2, columns), size, device=DEVICE)
    rows[:, 0] = 1  # which sets the scale
    for _ in range(3):
        tick(clock, 0.01, adam)
        update(weight, moments, [], adam, clock, whole=Whole(rows))
    decay = 1 - 0.9**3
    kept = [(floats(moments.first, moments.scale), size * decay), (floats(moments.second, moments.scale_sq), None)]
    for found, wanted in kept:
        found = found[:, 1:]
        wanted = (abs(size) * decay**0.5 if kind == torch.uint8 else size**2 * decay) if wanted is None else wanted
        unit = abs(wanted) * 2**-7 if kind == torch.int16 else max(abs(wanted) / 8, 2**-9 / 448)
        assert (found - wanted).abs().max() < 3.1 * unit  # three roundings
        assert (found[0] != found[1]).any() or found.std() == 0
        # To the nearest, the mean would be off by up to half a unit. The root of a mean is more than the mean of roots.
        allowed = 5 * unit / math.sqrt(found.numel()) + (0.03 * unit if wanted > 0 and kind == torch.uint8 else 0)
        assert abs(found.mean() - wanted) < allowed


def floats(codes: Tensor, scale: Tensor | None) -> Tensor:
    """What narrow averages stand for, by torch's own types."""
    if codes.dtype == torch.int16:
        return codes.view(torch.bfloat16).double()
    return codes.view(torch.float8_e4m3fn).double() * scale.double()[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits(kind):
    adam, found = AdamSettings(seed=3), []
    for _ in range(2):
        weight = start(4, 8, unit=False)
        moments, clock = fresh(weight, kind), Clock.start(DEVICE)
        for number in range(2):
            tick(clock, 0.01, adam)
            update(weight, moments, [batch(number, 5, 2, 4, 8)[0]], adam, clock)
        found.append([weight, *(part for part in moments if part is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_narrow_averages_can_be_made_up_for(kind):
    adam = AdamSettings(beta1=0.7, beta2=0.99, epsilon=1e-12)
    weight = start(6, 8, unit=False)
    written, moments, clock = Written(weight, adam), fresh(weight, kind), Clock.start(DEVICE)
    last = torch.zeros(6, dtype=torch.int32, device=DEVICE)
    for number in range(6):
        term, gradient = batch(number, 2, 1, 6, 8)
        tick(clock, 1e-3, adam)
        update(weight, moments, [term], adam, clock, last=last)
        written.step(gradient, 1e-3)
    catch_up(weight, moments, adam, clock, last)
    close(weight, written.w, 1.5e-3 if kind == torch.uint8 else 1e-4)


def test_a_long_absence_is_made_up_for_with_the_rates_of_its_first_steps():
    adam = AdamSettings(epsilon=1e-12)
    weight = start(2, 4, unit=False)
    written, moments, clock = Written(weight, adam), fresh(weight), Clock.start(DEVICE)
    last = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    term, gradient = batch(0, 3, 1, 1, 4)  # latent 0 alone
    term = SortedTerm(sort_by_latent(torch.zeros(3, 1, dtype=torch.int64, device=DEVICE), 2), term.values, term.rows)
    gradient = torch.cat([gradient, torch.zeros_like(gradient)])
    for number in range(120):
        lr = 1e-3 * 0.97**number
        tick(clock, lr, adam)
        if number == 0:
            update(weight, moments, [term], adam, clock, last=last)
        written.step(gradient if number == 0 else torch.zeros_like(gradient), lr)
    catch_up(weight, moments, adam, clock, last)
    close(weight, written.w, 1e-5)
    close(moments.second, written.v, 1e-5)


def test_nan_in_a_gradient_reaches_the_weight():
    adam = AdamSettings(unit=True)
    for kind in KINDS:
        weight = start(3, 8, unit=True)
        moments, clock = fresh(weight, kind), Clock.start(DEVICE)
        tick(clock, 0.01, adam)
        rows = torch.zeros(3, 8, device=DEVICE)
        rows[1, 2] = torch.nan
        update(weight, moments, [], adam, clock, whole=Whole(rows))
        assert weight.isnan().any(1).tolist() == [False, True, False]
