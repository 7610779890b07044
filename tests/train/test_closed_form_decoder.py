"""The decoder in closed form against a least-squares solver, and what happens to the encoder in between."""

# Shape letters: B rows of a batch, N rows kept, D input width, L latents.

import pytest
import torch
from torch import Tensor

from saelab.data import Batch
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation, Dictionary
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander
from saelab.train import Trainer
from saelab.train.algorithms.closed_form_decoder import MOST_LATENTS, ClosedFormDecoder, refit

B, D, L = 16, 6, 20
UNUSED = torch.tensor([4, 13])


def rows(seed: int = 0, n: int = B, width: int = D) -> Tensor:
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    return rows.float().double()  # the trainer reads rows in float32


def make_sae(activation: Activation | None = None, dictionary: Dictionary | None = None, d_out: int = 0) -> SAE:
    sae = SAE(D, L, activation or ReLU(0.0), dictionary=dictionary, d_out=d_out or None)
    sae.initialise(rows(9, 64).float(), target=rows(8, 64, d_out).float() if d_out else None)
    with torch.no_grad():
        sae.dictionary.b_enc.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
        sae.dictionary.b_enc[UNUSED] = -100.0
    sae.double().dictionary.after_step()  # directions of unit norm to the precision of float64
    return sae


def make(algorithm: ClosedFormDecoder, sae: SAE | None = None) -> Trainer:
    return Trainer(sae or make_sae(), lr=1e-3, batch=B, warmup=0, algorithms=[algorithm])


def ridge(codes: Tensor, wanted: Tensor, weight: float) -> Tensor:
    """argmin |codes W - wanted|^2 + weight |W|^2, as ordinary least squares with further rows."""
    n_latents = codes.shape[1]
    tall = torch.cat([codes, weight**0.5 * torch.eye(n_latents, dtype=torch.float64)])
    return torch.linalg.lstsq(tall, torch.cat([wanted, wanted.new_zeros(n_latents, wanted.shape[1])])).solution


def codes_by_hand(sae: SAE, x: Tensor) -> Tensor:
    centre = 0 if sae.d_out else sae.dictionary.b_dec
    pre = (x - centre) @ sae.dictionary.W_enc.T + sae.dictionary.b_enc
    if isinstance(sae.activation, TopK):
        pre = pre * (pre >= pre.sort(dim=1, descending=True).values[:, sae.activation.k - 1][:, None])
    return pre.relu().detach()


@pytest.mark.parametrize("weight", [1e-5, 1.0])
@pytest.mark.parametrize("activation", [ReLU(0.0), TopK(4)], ids=["ReLU", "TopK"])
@pytest.mark.parametrize("d_out", [0, 5])
def test_a_refit_is_ridge_regression(weight, activation, d_out):
    sae = make_sae(activation, Dense(skip_connection=bool(d_out)), d_out)
    x, target = rows(1, 5000), rows(2, 5000, d_out or D)  # more rows than are encoded at once
    wanted = target - sae.dictionary.b_dec.detach()
    if d_out:
        with torch.no_grad():
            sae.dictionary.W_skip.copy_(rows(3, d_out))
        wanted = wanted - x @ sae.dictionary.W_skip.detach().T
    before = {name: value.clone() for name, value in sae.dictionary.state_dict().items()}
    codes = codes_by_hand(sae, x)
    expected = ridge(codes, wanted, weight)
    refit(sae, x, target, weight)
    used = torch.tensor([latent not in UNUSED for latent in range(L)])
    assert (codes.sum(0) > 0).tolist() == used.tolist()
    norms = expected.norm(dim=1, keepdim=True)
    found = sae.dictionary.state_dict()
    torch.testing.assert_close(found["W_dec"][used], (expected / norms)[used], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["W_enc"][used], (before["W_enc"] * norms)[used], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["b_enc"][used], (before["b_enc"] * norms[:, 0])[used], rtol=1e-6, atol=1e-8)
    for name in ("W_dec", "W_enc", "b_enc"):
        torch.testing.assert_close(found[name][UNUSED], before[name][UNUSED], rtol=0, atol=1e-9)
    assert torch.equal(found["b_dec"], before["b_dec"])
    if not isinstance(activation, TopK):  # which scales with its input, so the reconstruction is the solution's
        with torch.no_grad():
            x_hat = sae.dictionary.decode(activation(sae.dictionary.pre(x)))
        torch.testing.assert_close(x_hat, codes @ expected + before["b_dec"], rtol=1e-6, atol=1e-8)


def test_a_refit_in_float32_is_close_to_the_solution():
    exact, single = make_sae(), make_sae().float()
    refit(exact, rows(1, 400), rows(1, 400), 1e-3)
    refit(single, rows(1, 400).float(), rows(1, 400).float(), 1e-3)
    torch.testing.assert_close(single.dictionary.W_dec.double(), exact.dictionary.W_dec, rtol=0, atol=1e-3)
    assert single.dictionary.W_dec.dtype == torch.float32


def test_no_other_decoder_fits_better():
    sae, x = make_sae(), rows(1, 300)
    refit(sae, x, x, 1e-9)
    with torch.no_grad():
        best = (sae.dictionary.decode(sae.activation(sae.dictionary.pre(x))) - x).square().sum()
        for seed in range(5):
            sae.dictionary.W_dec += 1e-3 * rows(seed, L)
            other = (sae.dictionary.decode(sae.activation(sae.dictionary.pre(x))) - x).square().sum()
            assert other > best
            sae.dictionary.W_dec -= 1e-3 * rows(seed, L)


def test_it_refits_from_the_latest_rows_with_the_encoder_as_it_is_then():
    trainer = make(ClosedFormDecoder(every=5 * B, rows=2 * B + 3, ridge=0.1))
    for step in range(5):
        fixed = trainer.sae.dictionary.W_dec.detach().clone()
        trainer.step(Batch(rows(step)))
        same = torch.allclose(trainer.sae.dictionary.W_dec, fixed, rtol=0, atol=1e-12)
        assert same == (step < 4)  # no gradient in between
    twin = make(ClosedFormDecoder(every=10**9))
    for step in range(5):
        twin.step(Batch(rows(step)))
    x = (torch.cat([rows(2)[-3:], rows(3), rows(4)]) - twin.sae.scale.mean) / twin.sae.scale.scale
    expected = ridge(codes_by_hand(twin.sae, x), x - twin.sae.dictionary.b_dec.detach(), 0.1)
    norms = expected.norm(dim=1)
    found = trainer.sae.dictionary
    used = norms > 0.01
    assert used.sum() > L / 2
    torch.testing.assert_close(found.W_dec[used].detach(), (expected / norms[:, None])[used], rtol=1e-6, atol=1e-7)
    scaled = (twin.sae.dictionary.W_enc * norms[:, None])[used].detach()
    torch.testing.assert_close(found.W_enc[used].detach(), scaled, rtol=1e-6, atol=1e-7)


def test_fewer_rows_than_are_kept_is_all_there_are():
    trainer, twin = (make(ClosedFormDecoder(every=B, rows=kept, ridge=0.1)) for kept in (100 * B, B))
    for one in (trainer, twin):
        one.step(Batch(rows()))
    assert int(trainer.algorithms[0].seen) == B
    for name, value in twin.sae.dictionary.state_dict().items():
        assert torch.equal(trainer.sae.dictionary.state_dict()[name], value), name


def test_one_batch_may_hold_more_rows_than_are_kept():
    trainer, twin = make(ClosedFormDecoder(every=B, rows=5)), make(ClosedFormDecoder(every=B, rows=5))
    trainer.step(Batch(rows()))
    twin.algorithms[0].seen += 3  # where they are kept does not matter
    twin.step(Batch(rows()))
    kept = trainer.algorithms[0].kept.sort(0).values
    assert torch.equal(kept, twin.algorithms[0].kept.sort(0).values)
    x = (rows()[-5:] - trainer.sae.scale.mean) / trainer.sae.scale.scale
    torch.testing.assert_close(kept, x.sort(0).values)


@pytest.mark.parametrize(("mu", "nu"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2), (0.0, 0.0)])
def test_the_encoder_is_held_to_where_it_was_at_the_last_refit(mu, nu):
    trainer = make(ClosedFormDecoder(every=2 * B, rows=B, ridge=0.1, mu=mu, nu=nu))
    dictionary = trainer.sae.dictionary
    start: dict[str, Tensor] = {}
    for step in range(5):
        now = {name: getattr(dictionary, name).detach().clone() for name in ("W_enc", "b_enc", "b_dec")}
        if step in (0, 2, 4):
            start = now
        twin = SAE.from_config(trainer.sae.config()).double()
        twin.load_state_dict(trainer.sae.state_dict())
        sum(twin.objective(rows(step))[0].values()).backward()
        trainer.step(Batch(rows(step)))
        for name, strength in (("W_enc", mu), ("b_enc", nu), ("b_dec", 0.0)):
            expected = getattr(twin.dictionary, name).grad + 2 * strength * (now[name] - start[name])
            torch.testing.assert_close(getattr(dictionary, name).grad, expected, rtol=1e-9, atol=1e-12)
        assert dictionary.W_dec.grad is None
        if step in (1, 3) and mu:
            assert not torch.equal(now["W_enc"], start["W_enc"])  # or it would prove nothing


def test_the_encoder_is_held_to_where_training_found_it():
    trainer = make(ClosedFormDecoder(mu=0.3, nu=0.2))
    with torch.no_grad():
        for parameter in (trainer.sae.dictionary.W_enc, trainer.sae.dictionary.b_enc):
            parameter += 1.0  # fitted to the data after the trainer was made
    wanted = {name: value.clone() for name, value in trainer.sae.dictionary.state_dict().items()}
    for step in range(2):
        trainer.step(Batch(rows(step)))
    algorithm = trainer.algorithms[0]
    assert torch.equal(algorithm.start_weight, wanted["W_enc"])
    assert torch.equal(algorithm.start_bias, wanted["b_enc"])


def test_it_learns():
    trainer = make(ClosedFormDecoder(every=8 * B, rows=8 * B), make_sae(TopK(3)))
    losses = [trainer.step(Batch(rows(step % 8)))[0]["reconstruction"].item() for step in range(40)]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])


def test_a_skip_connection_learns_along():
    sae = make_sae(None, Dense(skip_connection=True), 5)
    trainer = make(ClosedFormDecoder(every=2 * B, rows=2 * B), sae)
    for step in range(4):
        trainer.step(Batch(rows(step), target=rows(step + 9, B, 5)))
    assert all(torch.isfinite(value).all() for value in sae.state_dict().values())
    assert (sae.dictionary.W_skip != 0).any()


def test_it_says_when_it_has_no_effect():
    assert ClosedFormDecoder(every=100).no_effect_warning(100) is None
    assert "1,000 rows are less than one round of every = 2,000 rows" in ClosedFormDecoder(
        every=2000
    ).no_effect_warning(1000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "ClosedFormDecoder: every must be at least 1 row, got 0"),
        ({"rows": 0}, "ClosedFormDecoder: rows must be at least 1, got 0"),
        ({"ridge": 0.0}, "ClosedFormDecoder: ridge must be positive and finite, got 0.0"),
        ({"mu": -1.0}, "ClosedFormDecoder: mu must not be negative, infinite or NaN, got -1.0"),
        ({"nu": float("nan")}, "ClosedFormDecoder: nu must not be negative, infinite or NaN, got nan"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(ClosedFormDecoder(**settings))


@pytest.mark.parametrize("dictionary", [Dense(tied=True), Expander(3)], ids=["tied", "Expander"])
def test_a_dictionary_that_cannot_is_named(dictionary):
    with pytest.raises(ValueError, match="directions that can be set freely"):
        Trainer(SAE(D, L, TopK(3), dictionary=dictionary), algorithms=[ClosedFormDecoder()])


def test_too_many_latents_are_refused():
    sae = SAE(1, MOST_LATENTS + 1, TopK(3))
    with pytest.raises(ValueError, match="at most 8192 latents, .*8193"):
        Trainer(sae, algorithms=[ClosedFormDecoder()])
