"""Each optimizer against its formula in float64, written by hand; and what it refuses."""

# Shape letters: B rows of a batch, D input width, L latents.

import math

import pytest
import torch
from torch import Tensor

from saelab.core.mesh import ALONE
from saelab.data import Batch
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.sae.dictionaries.dense import Dense
from saelab.train import Trainer
from saelab.train.optimizer import Optimizer
from saelab.train.optimizers.adam import Adam
from saelab.train.optimizers.muon import Muon, orthogonal
from saelab.train.optimizers.signum import Signum

B, D, L, LR = 8, 6, 20, 1e-2


def rows(seed: int, n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(optimizer: Optimizer | None) -> Trainer:
    sae = SAE(D, L, TopK(4))
    sae.initialise(rows(99, 64).float())
    return Trainer(sae.double(), lr=LR, batch=B, warmup=0, optimizer=optimizer)


class Dimensional(Dense):
    """Leaves gradients and weights as they are, so that only the optimizer moves weights."""

    def before_step(self):
        pass

    def after_step(self):
        pass


def moved(optimizer: Optimizer, gradients: list[dict[str, Tensor]], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights after steps with given gradients; a parameter that a step names no gradient for has none."""
    sae = SAE(D, L, TopK(4), dictionary=Dimensional()).double()
    sae.load_state_dict(sae.state_dict() | {f"dictionary.{name}": value for name, value in start.items()})
    steppers = optimizer.make(sae, LR)
    named = dict(sae.dictionary.named_parameters())
    for step in gradients:
        for name, parameter in named.items():
            parameter.grad = step[name].clone() if name in step else None
        for stepper in steppers:
            stepper.step()
    return {name: parameter.detach() for name, parameter in named.items()}


SHAPES = {"W_enc": (L, D), "W_dec": (L, D), "b_enc": (L,), "b_dec": (D,)}
START = {name: normal(*shape, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}
GRADIENTS = [
    {name: normal(*shape, seed=100 * step + number) * 10**-step for number, (name, shape) in enumerate(SHAPES.items())}
    for step in range(5)
]


def adam_by_hand(w: Tensor, gradients: list[Tensor], beta1: float, beta2: float, epsilon: float) -> Tensor:
    w, m, v = w.clone(), 0.0, 0.0
    for t, grad in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        w -= LR * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + epsilon)
    return w


@pytest.mark.parametrize("settings", [(0.9, 0.999, 6.25e-10), (0.0, 0.9, 0.1)])
def test_adam(settings):
    found = moved(Adam(*settings), GRADIENTS, START)
    for name, value in found.items():
        expected = adam_by_hand(START[name], [step[name] for step in GRADIENTS], *settings)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)


def test_adam_is_the_default_to_the_bit():
    trainers = [make(None), make(Adam()), make(Adam(0.9, 0.999, 6.25e-10))]
    for trainer in trainers:
        for step in range(4):
            trainer.step(Batch(rows(step)))
    first, *others = (trainer.sae.state_dict() for trainer in trainers)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    assert trainers[0].settings() == trainers[2].settings()


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
def test_signum(momentum):
    found = moved(Signum(momentum), GRADIENTS, START)
    for name, start in START.items():
        expected, mean = start.clone().flatten(), [0.0] * start.numel()
        for step in GRADIENTS:
            for number, grad in enumerate(step[name].flatten().tolist()):
                mean[number] = momentum * mean[number] + (1 - momentum) * grad
                expected[number] -= LR * (mean[number] > 0) - LR * (mean[number] < 0)
        torch.testing.assert_close(found[name].flatten(), expected, rtol=0, atol=1e-12)


def test_signum_leaves_what_never_had_a_gradient():
    zero = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    found = moved(Signum(), [zero, {"W_dec": zero["W_dec"] - 1}, {}], START)
    for name in ("W_enc", "b_enc", "b_dec"):
        assert torch.equal(found[name], START[name])
    torch.testing.assert_close(found["W_dec"], START["W_dec"] + LR)


def quintic(matrix: Tensor, steps: int) -> Tensor:
    """Newton-Schulz as what it does to singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (7, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalising_acts_on_singular_values(shape, steps):
    matrix = normal(*shape)
    torch.testing.assert_close(orthogonal(matrix, steps, ALONE), quintic(matrix, steps), rtol=1e-9, atol=1e-9)
    if steps == 5:
        values = torch.linalg.svdvals(orthogonal(matrix, steps, ALONE))
        assert ((values > 0.4) & (values < 1.3)).all()


def test_orthogonalising_nothing_gives_nothing():
    assert torch.equal(orthogonal(torch.zeros(5, 3), 5, ALONE), torch.zeros(5, 3))
    partly = torch.zeros(8, 3)
    partly[2] = torch.tensor([1.0, 2.0, 3.0])
    assert (orthogonal(partly, 5, ALONE)[torch.arange(8) != 2] == 0).all()


@pytest.mark.parametrize(("momentum", "steps"), [(0.95, 5), (0.0, 2)])
def test_muon_orthogonalises_matrices_and_leaves_biases_to_adam(momentum, steps):
    found = moved(Muon(momentum, steps), GRADIENTS, START)
    for name in ("W_enc", "W_dec"):
        expected, mean = START[name].clone(), torch.zeros(L, D, dtype=torch.float64)
        for step in GRADIENTS:
            mean = momentum * mean + (1 - momentum) * step[name]
            update = quintic((1 - momentum) * step[name] + momentum * mean, steps)
            expected -= LR * 0.2 * math.sqrt(L) * update
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-8)
    for name in ("b_enc", "b_dec"):
        expected = adam_by_hand(START[name], [step[name] for step in GRADIENTS], 0.9, 0.999, 6.25e-10)
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_torchs_to_the_precision_of_bfloat16():
    weight = torch.nn.Parameter(START["W_enc"].clone())
    torchs = torch.optim.Muon([weight], lr=LR, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in GRADIENTS:
        weight.grad = step["W_enc"].clone()
        torchs.step()
    found = moved(Muon(), GRADIENTS, START)["W_enc"]
    size = (weight.detach() - START["W_enc"]).abs().max()
    torch.testing.assert_close(found, weight.detach(), rtol=0, atol=0.03 * size.item())


def test_an_update_of_muon_is_as_large_as_one_of_adam():
    start = {name: torch.zeros_like(value) for name, value in START.items()}
    update = moved(Muon(), GRADIENTS[:1], start)["W_enc"] / LR
    assert 0.1 < update.square().mean().sqrt() < 0.3


@pytest.mark.parametrize("dictionary", [Dense(), Dense(tied=True), Crosscoder(2)], ids=["Dense", "tied", "Crosscoder"])
@pytest.mark.parametrize("optimizer", [Adam(), Signum(), Muon()], ids=lambda one: type(one).__name__)
def test_every_parameter_belongs_to_one_optimizer_and_learns(dictionary, optimizer):
    sae = SAE(D, L, TopK(4), dictionary=dictionary)
    sae.initialise(rows(99, 64).float())
    before = {name: value.clone() for name, value in sae.named_parameters()}
    trainer = Trainer(sae, lr=3e-3, batch=64, warmup=0, optimizer=optimizer)
    held = [p for stepper in trainer.steppers for group in stepper.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, sae.parameters()))
    losses = [trainer.step(Batch(rows(99, 64)))[0]["loss"].item() for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in sae.named_parameters())


def test_the_rate_reaches_every_group():
    trainer = make(Muon())
    trainer.rows_planned, trainer.decay = 4 * B, 1.0
    for expected in (1.0, 0.75, 0.5):
        trainer.step(Batch(rows(0)))
        rates = [group["lr"] for stepper in trainer.steppers for group in stepper.param_groups]
        assert rates == pytest.approx([expected * LR] * len(rates))
    assert len(rates) == 2


def test_what_is_kept_of_latents_can_be_forgotten():
    for optimizer in (Adam(), Signum(), Muon()):
        trainer = make(optimizer)
        trainer.step(Batch(rows(0, 64)))
        before = {
            name: {key: value.clone() for key, value in state[p].items()}
            for name, p in trainer.sae.named_parameters()
            for state in [stepper.state for stepper in trainer.steppers]
            if p in state
        }
        trainer.forget(torch.tensor([3, 7]))
        for name, p in trainer.sae.named_parameters():
            for stepper in trainer.steppers:
                for key, value in stepper.state.get(p, {}).items():
                    expected = before[name][key].clone()
                    if len(p) == L and value.shape == p.shape:
                        expected[[3, 7]] = 0
                    assert torch.equal(value, expected), (name, key)
        assert any((kept != 0).any() for state in before.values() for kept in state.values())


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Adam(beta1=1.0), "Adam: beta1 must be at least 0 and below 1, got 1.0"),
        (Adam(beta2=-0.1), "Adam: beta2 must be at least 0 and below 1, got -0.1"),
        (Adam(epsilon=-1.0), "Adam: epsilon must not be negative, infinite or NaN, got -1.0"),
        (Signum(momentum=1.5), "Signum: momentum must be at least 0 and below 1, got 1.5"),
        (Muon(momentum=1.0), "Muon: momentum must be at least 0 and below 1, got 1.0"),
        (Muon(steps=0), "Muon: steps must be at least 1, got 0"),
        (Muon(beta2=2.0), "Muon: beta2 must be at least 0 and below 1, got 2.0"),
        (Muon(epsilon=float("nan")), "Muon: epsilon must not be negative, infinite or NaN, got nan"),
    ],
)
def test_a_setting_out_of_range_is_named(optimizer, message):
    with pytest.raises(ValueError, match=message):
        make(optimizer)


def test_after_a_step_gradients_are_dense_again_and_another_trainer_finds_no_trace():
    sae = SAE(12, 64, TopK(4))
    rows = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    Trainer(sae, batch=16).step(Batch(rows))
    sae.zero_grad()
    sum(sae.objective(rows)[0].values()).backward()
    assert sae.dictionary.W_enc.grad.abs().sum() > 0
    before = sae.dictionary.W_dec.detach().clone()
    Trainer(sae, optimizer=Signum(), batch=16).step(Batch(rows))
    assert sae.dictionary.gradients is None
    assert not torch.equal(sae.dictionary.W_dec, before)
