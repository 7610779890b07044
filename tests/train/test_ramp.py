"""Settings that move over the first steps: their values by hand, where they act and that they are put back."""

# Shape letters: B rows of a batch, D input width, L latents.

import pytest
import torch
from torch import Tensor

from saelab.core.log import read_log
from saelab.core.run import Run
from saelab.data import ArraySource, Batch
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.losses.auxk import AuxK
from saelab.train import Trainer
from saelab.train.ramp import Ramp

B, D, L = 16, 6, 32


def rows(seed: int = 0, n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def make(activation: Activation, *ramps: Ramp) -> Trainer:
    sae = SAE(D, L, activation, [AuxK(dead_after=1)])
    sae.initialise(rows(9, 64))
    return Trainer(sae, lr=1e-3, batch=B, warmup=0, ramps=ramps)


def values(ramp: Ramp, activation: Activation, steps: int) -> list[float]:
    make(activation, ramp)
    return [ramp.value_at(step) for step in range(steps)]


def test_it_moves_linearly_and_stays():
    assert values(Ramp("activation.l1", 0.0, 4), ReLU(0.2), 7) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    assert values(Ramp("activation.l1", 0.4, 2), ReLU(0.2), 4) == pytest.approx([0.4, 0.3, 0.2, 0.2])
    assert values(Ramp("activation.l1", 0.4, 1), ReLU(0.2), 2) == pytest.approx([0.4, 0.2])


def test_a_whole_number_stays_whole():
    found = values(Ramp("activation.k", 16, 5), TopK(4), 7)
    assert found == [16, 14, 11, 9, 6, 4, 4]
    assert all(isinstance(value, int) for value in found)
    assert values(Ramp("activation.k", 8, 4), BatchTopK(2.5), 3) == pytest.approx([8, 6.625, 5.25])


def test_k_is_what_each_step_selects_by():
    trainer = make(TopK(3), Ramp("activation.k", 9, 3))
    kept = [trainer.step(Batch(rows(step)))[1].codes.values.shape[1] for step in range(5)]
    assert kept == [9, 7, 5, 3, 3]


def test_a_penalty_is_weighed_by_each_steps_value():
    trainer = make(ReLU(0.5), Ramp("activation.l1", 0.1, 4))
    for step in range(6):
        terms, forward = trainer.step(Batch(rows(step)))
        norms = torch.ones(L)
        plain = ((forward.codes.dense() * norms).sum(1) / forward.x.norm(dim=1)).mean()
        weight = 0.1 + 0.4 * min(1, step / 4)
        torch.testing.assert_close(terms["sparsity"], (weight * plain).detach(), rtol=1e-4, atol=1e-6)


def test_a_loss_is_found_by_its_name():
    trainer = make(TopK(3), Ramp("losses.AuxK.weight", 0.0, 2))
    trainer.sae.firing.since.fill_(10)
    terms = [trainer.step(Batch(rows(step)))[0]["AuxK"].item() for step in range(3)]
    assert terms[0] == 0
    assert min(terms[1:]) > 0


def test_between_steps_the_setting_has_its_own_value():
    trainer = make(TopK(3), Ramp("activation.k", 9, 30))
    before = trainer.sae.config()
    trainer.step(Batch(rows()))
    assert trainer.sae.activation.k == 3
    assert trainer.sae.config() == before
    with pytest.raises(ValueError, match="not finite"):
        trainer.step(Batch(rows() * 1e30))
    assert trainer.sae.activation.k == 3


def test_the_log_says_the_value(tmp_path):
    trainer = make(TopK(3), Ramp("activation.k", 9, 3))
    run = Run.create(tmp_path, {})
    trainer.fit(ArraySource(rows(0, 64)), 5 * B, run, log_every=1, show=False)
    assert [record["activation.k"] for record in read_log(run.log_file)] == [9, 7, 5, 3, 3]


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (Ramp("activation.kk", 9, 3), "no setting 'activation.kk' that is a number; did you mean 'activation.k'?"),
        (Ramp("k", 9, 3), "no setting 'k' that is a number; there are: activation.k, losses.AuxK.dead_after, "),
        (Ramp("losses.AuxK.wait", 9, 3), "did you mean 'losses.AuxK.weight'?"),
        (Ramp("activation.k", 9, 0), "Ramp: steps must be at least 1, got 0"),
        (Ramp("activation.k", float("nan"), 3), "Ramp: start must be finite, got nan"),
        (
            Ramp("activation.k", 33, 3),
            "Ramp: activation.k cannot start at 33: TopK: k must be from 1 to .* 32; got k=33",
        ),
        (Ramp("losses.AuxK.weight", -1, 3), "losses.AuxK.weight cannot start at -1: AuxK: weight must not be negative"),
    ],
)
def test_a_ramp_that_does_not_fit_is_named(ramp, message):
    with pytest.raises(ValueError, match=message):
        make(TopK(3), ramp)


def test_one_setting_has_one_ramp():
    with pytest.raises(ValueError, match="activation.k is given 2 times"):
        make(TopK(3), Ramp("activation.k", 9, 3), Ramp("activation.k", 8, 3))
