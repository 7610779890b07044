"""Dead latents that start anew: which, along which rows, how large, and that nothing else changes."""

# Shape letters: B rows of a batch, D input width, L latents.

import pytest
import torch
from torch import Tensor

from saelab.data import Batch
from saelab.data.source import generator_for
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Dictionary
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander
from saelab.train import Trainer
from saelab.train.algorithms.resampling import Resampling, draw

B, D, L = 16, 6, 40
DEAD = torch.tensor([2, 3, 17, 39])


def rows(seed: int = 0, n: int = B, width: int = D) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def make(resampling: Resampling | None, dictionary: Dictionary | None = None, d_out: int | None = None) -> Trainer:
    """A trainer that has taken two steps, in which four latents can never fire; a round ends with the third."""
    sae = SAE(D, L, ReLU(0.0), dictionary=dictionary, d_out=d_out)
    sae.initialise(rows(9, 64).float(), target=rows(8, 64, d_out).float() if d_out else None)
    with torch.no_grad():
        sae.dictionary.b_enc[DEAD] = -100.0
    trainer = Trainer(sae.double(), lr=1e-3, batch=B, warmup=0, algorithms=[resampling] if resampling else [])
    for step in range(2):
        trainer.step(batch(step, d_out))
    return trainer


def batch(seed: int, d_out: int | None = None) -> Batch:
    return Batch(rows(seed), target=rows(seed + 50, B, d_out) if d_out else None)


THIRD = {"every": 3 * B, "dead_after": 2 * B}


def test_a_dead_latent_starts_along_a_row_and_all_others_are_left_alone():
    trainer, twin = make(Resampling(**THIRD, size=0.3)), make(None)
    trainer.step(batch(2))
    twin.step(batch(2))
    found, expected = trainer.sae.dictionary, twin.sae.dictionary
    alive = torch.tensor([latent not in DEAD for latent in range(L)])
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(getattr(found, name)[alive], getattr(expected, name)[alive]), name
        assert not torch.equal(getattr(found, name)[DEAD], getattr(expected, name)[DEAD]), name
    assert torch.equal(found.b_dec, expected.b_dec)
    wanted = (rows(2) - trainer.sae.scale.mean) / trainer.sae.scale.scale - found.b_dec.detach()
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    which = []
    for latent in DEAD:
        same = (wanted - found.W_dec[latent]).abs().amax(1) < 1e-6  # the trainer reads rows in float32
        assert same.sum() == 1
        which.append(int(same.nonzero()))
    assert len(set(which)) == len(DEAD)
    size = 0.3 * found.W_enc[alive].norm(dim=1).mean()
    torch.testing.assert_close(found.W_enc[DEAD].detach(), (size * wanted[which]).detach(), rtol=1e-5, atol=1e-6)
    assert (found.b_enc[DEAD] == 0).all()


def stepper_of(trainer, parameter):
    """The one of the trainer's optimizers that keeps something of a parameter."""
    return next(stepper for stepper in trainer.steppers if parameter in stepper.state)


def test_what_the_optimizer_knew_of_them_is_forgotten():
    trainer = make(Resampling(**THIRD))
    with torch.no_grad():
        for p in trainer.sae.dictionary.parameters():  # as if they had learnt before they died
            for key in ("exp_avg", "exp_avg_sq"):
                stepper_of(trainer, p).state[p][key] += 1
    trainer.step(batch(2))
    for name in ("W_enc", "W_dec", "b_enc"):
        parameter = getattr(trainer.sae.dictionary, name)
        state = stepper_of(trainer, parameter).state[parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            zero = (state[key].reshape(L, -1) == 0).all(1)
            assert zero.nonzero().squeeze(1).tolist() == DEAD.tolist(), (name, key)
        assert state["step"] == 3


def test_they_fire_again_and_count_as_alive():
    trainer = make(Resampling(**THIRD))
    _, forward = trainer.step(batch(2))
    assert (forward.codes.counts()[DEAD] == 0).all()
    assert (trainer.sae.firing.since[DEAD] == 0).all()
    _, forward = trainer.step(batch(2))
    assert (forward.codes.counts()[DEAD] > 0).all()


def test_the_choice_depends_on_seed_and_step_alone():
    weights = []
    for noise in (1, 2):
        trainer = make(Resampling(**THIRD))
        torch.manual_seed(noise)
        trainer.step(batch(2))
        weights.append(trainer.sae.dictionary.W_dec.detach().clone())
    assert torch.equal(*weights)


def test_rows_are_drawn_by_their_squared_loss():
    trainer = make(None)
    _, forward = trainer.step(batch(2))
    pairs = zip(forward.target, forward.x_hat.detach(), strict=True)
    loss = [float(((target - x_hat) ** 2).sum()) for target, x_hat in pairs]
    expected = torch.tensor([one**2 for one in loss]) / sum(one**2 for one in loss)
    n = 3000
    with torch.no_grad():
        drawn = torch.cat([draw(forward, 1, generator_for(0, number))[0] for number in range(n)])
    shares = torch.bincount(drawn, minlength=B) / n
    sigma = (expected * (1 - expected) / n).sqrt()
    assert ((shares - expected).abs() < 4 * sigma + 1e-3).all()
    assert (expected.max() / expected.clamp_min(1e-9).min()) > 10  # or it would prove nothing


def test_no_row_is_drawn_twice_and_latents_without_a_row_wait():
    trainer = make(Resampling(**THIRD))
    trainer.sae.firing.since.fill_(1000)
    with torch.no_grad():
        trainer.sae.dictionary.b_enc.fill_(-100.0)
    trainer.step(batch(2))
    alive = trainer.sae.firing.since == 0
    assert alive.sum() == B  # of 40 dead latents
    directions = trainer.sae.dictionary.W_dec[alive]
    assert ((directions @ directions.T).triu(1).abs() < 1 - 1e-6).all()


def resampled(trainer: Trainer, step: int, since: int = 1000) -> bool:
    """Whether latents that are dead before a step are not any more after it."""
    with torch.no_grad():
        trainer.sae.dictionary.b_enc[DEAD] = -100.0
    trainer.sae.firing.since[DEAD] = since
    trainer.step(batch(step))
    revived = trainer.sae.dictionary.b_enc[DEAD] == 0
    assert revived.all() or not revived.any()
    return bool(revived.all())


def test_only_so_many_rounds():
    trainer = make(Resampling(every=B, times=4, dead_after=1))
    assert [resampled(trainer, step) for step in range(2, 7)] == [True, True, False, False, False]


def test_a_round_is_complete_when_its_rows_were_seen():
    trainer = make(Resampling(every=3 * B + 1, dead_after=1))
    assert [resampled(trainer, step) for step in range(2, 8)] == [False, True, False, False, True, False]


def test_dead_is_silent_for_half_a_round_by_default():
    for since in (2 * B, 2 * B - 1):
        trainer = make(Resampling(every=3 * B * 2))
        for step in range(2, 5):
            assert not resampled(trainer, step)
        assert resampled(trainer, 5, since) == (since + B >= 3 * B)


def test_a_perfect_reconstruction_has_no_row_to_start_along():
    trainer = make(Resampling(**THIRD))
    x = rows(2)
    _, forward = trainer.step(Batch(x))
    exact = type(forward)(forward.sae, forward.x, forward.x, forward.pre, forward.codes, forward.x)
    with torch.no_grad():
        assert len(draw(exact, 3, generator_for(0))[0]) == 0


def test_a_transcoder_reads_one_row_and_writes_another():
    trainer = make(Resampling(**THIRD), Dense(skip_connection=True), d_out=5)
    with torch.no_grad():
        trainer.sae.dictionary.W_skip.copy_(rows(33, 5, D))
    trainer.step(batch(2, 5))
    sae, dictionary = trainer.sae, trainer.sae.dictionary
    read = (rows(2) - sae.scale.mean) / sae.scale.scale
    target = (batch(2, 5).target - sae.target_scale.mean) / sae.target_scale.scale
    written = target - dictionary.b_dec - read @ dictionary.W_skip.T
    for latent in DEAD:
        row = int((read @ dictionary.W_enc[latent] / read.norm(dim=1)).argmax())
        cosine = torch.nn.functional.cosine_similarity
        assert cosine(dictionary.W_enc[latent], read[row], dim=0) > 1 - 1e-9
        assert cosine(dictionary.W_dec[latent], written[row], dim=0) > 1 - 1e-9


def test_tied_weights_start_at_unit_norm():
    trainer = make(Resampling(**THIRD), Dense(tied=True))
    trainer.step(batch(2))
    assert (trainer.sae.firing.since[DEAD] == 0).all()
    torch.testing.assert_close(trainer.sae.dictionary.W_dec[DEAD].norm(dim=1).detach(), torch.ones(4).double())


def test_it_says_when_it_has_no_effect():
    assert Resampling(every=100).no_effect_warning(100) is None
    assert "1,000 rows are less than one round of every = 2,000 rows" in Resampling(every=2000).no_effect_warning(1000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "Resampling: every must be at least 1 row, got 0"),
        ({"times": 0}, "Resampling: times must be at least 1, got 0"),
        ({"dead_after": 0}, "Resampling: dead_after must be at least 1 row, got 0"),
        ({"size": 0.0}, "Resampling: size must be positive and finite, got 0.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(Resampling(**settings))


@pytest.mark.parametrize("degree", [3, D])
def test_a_dictionary_that_cannot_is_named(degree):
    with pytest.raises(ValueError, match="Expander .*latents that can be reset"):
        Trainer(SAE(D, L, TopK(3), dictionary=Expander(degree)), algorithms=[Resampling()])
