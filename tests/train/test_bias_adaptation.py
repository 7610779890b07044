"""Biases that follow how often latents fire: one round by hand, and frequencies that reach their targets."""

# Shape letters: B rows of a batch, D input width, L latents.

import math

import pytest
import torch
from torch import Tensor

from saelab.data import Batch
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense
from saelab.train import Trainer
from saelab.train.algorithms.bias_adaptation import BiasAdaptation

B, D, L = 40, 5, 12


def rows(seed: int = 0, n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(activation: Activation | None = None, lr: float = 1e-3, **settings: float) -> Trainer:
    sae = SAE(D, L, activation or ReLU(0.0))
    sae.initialise(rows(9, 64).float())
    algorithm = BiasAdaptation(**{"every": 3 * B, "groups": 3, "highest": 0.4, "lowest": 0.1, **settings})  # type: ignore[arg-type]
    return Trainer(sae.double(), lr=lr, batch=B, warmup=0, algorithms=[algorithm])


def scaled(sae: SAE, seed: int) -> Tensor:
    return (rows(seed).float().double() - sae.scale.mean) / sae.scale.scale


@pytest.mark.parametrize("activation", [ReLU(0.0), TopK(4)], ids=["ReLU", "TopK"])
def test_one_round_by_hand(activation):
    trainer = make(activation, rate=0.05)
    sae, dictionary, algorithm = trainer.sae, trainer.sae.dictionary, trainer.algorithms[0]
    with torch.no_grad():  # one latent of each group is dead, the others fire often or seldom
        dictionary.b_enc.copy_(torch.tensor([-9.0, -0.5, 0, 0, -9.0, -2.0, -1.0, 0, -0.02, -9.0, -2.5, -0.5]))
        dictionary.b_enc[9] = -30.0
    before = dictionary.b_enc.detach().clone()
    fired, largest = [0] * L, [0.0] * L
    for step in range(3):
        assert torch.equal(dictionary.b_enc, before)
        with torch.no_grad():
            pre = (scaled(sae, step) - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
        active = pre > 0
        if isinstance(activation, TopK):
            active &= pre >= pre.sort(dim=1, descending=True).values[:, 3:4]
        for latent in range(L):
            fired[latent] += int(active[:, latent].sum())
            largest[latent] = max(largest[latent], float(pre[:, latent].max()))
        trainer.step(Batch(rows(step)))
        if step == 1:
            assert algorithm.counts.tolist() == fired
            assert (int(algorithm.rows), algorithm.largest.tolist()) == (2 * B, pytest.approx(largest))
    expected = before.clone()
    moved = {"down": 0, "up": 0}
    for latent in range(L):
        group = latent // 4
        frequency = fired[latent] / (3 * B)
        if frequency > [0.4, 0.2, 0.1][group]:
            least = -math.sqrt(D) * float(dictionary.W_enc[latent].detach().norm())
            expected[latent] = max(float(before[latent]) - 0.05 * largest[latent], least)
            moved["down"] += 1
        elif frequency == 0:
            mean = sum(largest[4 * group : 4 * group + 4]) / 4
            expected[latent] = min(float(before[latent]) + 0.05 * mean, 0.0)
            moved["up"] += 1
    assert moved["down"] >= 3
    assert moved["up"] >= 2
    torch.testing.assert_close(dictionary.b_enc.detach(), expected, rtol=1e-9, atol=1e-9)
    assert all((buffer == 0).all() for buffer in algorithm.buffers())


def test_a_bias_stays_between_floor_and_zero():
    trainer = make(every=B, rate=1000.0, floor=-0.5, epsilon=0.09)
    dictionary = trainer.sae.dictionary
    with torch.no_grad():
        dictionary.b_enc[:3] = -9.0  # dead
    trainer.step(Batch(rows()))
    bias, norms = dictionary.b_enc.detach(), dictionary.W_enc.detach().norm(dim=1)
    assert (bias[:3] == 0).all()
    lowest = -0.5 * math.sqrt(D) * norms
    assert ((bias - lowest).abs() < 1e-9).sum() >= 3
    assert (bias >= lowest - 1e-9).all()


def test_no_gradient_moves_the_bias_and_none_is_kept_for_later():
    trainer = make(every=1000 * B)
    for step in range(4):
        trainer.step(Batch(rows(step)))
    dictionary = trainer.sae.dictionary
    assert (dictionary.b_enc == 0).all()
    assert dictionary.b_enc not in trainer.steppers[0].state
    assert dictionary.W_enc in trainer.steppers[0].state


def test_targets_fall_in_equal_ratios():
    algorithm = make(groups=4, highest=0.8, lowest=0.1).algorithms[0]
    expected = torch.tensor([0.8, 0.4, 0.2, 0.1]).double().repeat_interleave(3)
    torch.testing.assert_close(algorithm.targets, expected, rtol=1e-6, atol=0)
    single = make(groups=1, highest=0.25, lowest=0.1).algorithms[0].targets
    torch.testing.assert_close(single, torch.full((L,), 0.25).double())
    assert torch.bincount(make(groups=5).algorithms[0].group_of).tolist() == [3, 2, 3, 2, 2]


def test_frequencies_reach_their_targets():
    """Rows are sparse sums of known features: 24 features in 8 dimensions, each in a tenth of the rows."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(24, 8, generator=generator), dim=1)

    def world(n: int) -> Tensor:
        present = torch.rand(n, 24, generator=generator) < 0.1
        return (torch.rand(n, 24, generator=generator) * present) @ features

    n, steps = 10_000, 100
    sae = SAE(8, 20, ReLU(0.0))
    sae.initialise(world(n))
    adapting = BiasAdaptation(every=n, groups=2, highest=0.1, lowest=0.02, rate=0.02)
    trainer = Trainer(sae, lr=1e-3, batch=n, warmup=0, algorithms=[adapting])
    trainer.rows_planned, trainer.decay = steps * n, 0.5
    seen = [Batch(world(n)) for _ in range(5)]
    for step in range(steps):
        trainer.step(seen[step % 5])
    with torch.no_grad():
        frequency = (sae.encode(world(5 * n)).dense() > 0).double().mean(0).view(2, 10)
    targets = torch.tensor([0.1, 0.02]).double()
    assert ((frequency.mean(1) / targets - 1).abs() < 0.2).all()
    assert ((frequency / targets[:, None] - 1).abs() < 0.6).all()


def test_it_says_when_it_has_no_effect():
    assert BiasAdaptation(every=100).no_effect_warning(100) is None
    assert "1,000 rows are less than one round of every = 2,000 rows" in BiasAdaptation(every=2000).no_effect_warning(
        1000
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "BiasAdaptation: every must be at least 1 row, got 0"),
        ({"groups": 0}, "BiasAdaptation: groups must be from 1 to the number of latents, 12; got 0"),
        ({"groups": 13}, "BiasAdaptation: groups must be from 1 to the number of latents, 12; got 13"),
        ({"lowest": 0.0}, "need 0 < lowest <= highest <= 1, got lowest=0.0 and highest=0.4"),
        ({"lowest": 0.5}, "need 0 < lowest <= highest <= 1, got lowest=0.5 and highest=0.4"),
        ({"highest": 1.5}, "need 0 < lowest <= highest <= 1"),
        ({"rate": 0.0}, "BiasAdaptation: rate must be positive and finite, got 0.0"),
        ({"epsilon": 0.1}, "BiasAdaptation: epsilon must be at least 0 and below lowest=0.1, got 0.1"),
        ({"epsilon": -0.1}, "BiasAdaptation: epsilon must be at least 0"),
        ({"floor": 0.0}, "BiasAdaptation: floor must be negative and finite, got 0.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_dictionary_without_latent_bias_is_named():
    sae = SAE(D, L, ReLU(), dictionary=Dense(encoder_bias=False))
    with pytest.raises(ValueError, match="Dense .*a trained latent bias"):
        Trainer(sae, algorithms=[BiasAdaptation()])
