"""Matryoshka: nested reconstructions against dense ones by plain autograd in float64."""

# Shape letters: B rows, D input width, L latents.

import math

import pytest
import torch
from sae.counted import counted
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.mesh import Mesh
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.matryoshka import Matryoshka, nested

B, D = 20, 6
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows(seed: int = 0, width: int = D) -> Tensor:
    return torch.randn(B, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(activation: Activation, loss: Matryoshka, n_latents: int = 96, seed: int = 0) -> SAE:
    """In float64, with biases that are nowhere special."""
    sae = SAE(D, n_latents, activation, [loss], seed=seed).double()
    sae.initialise(rows(1) + 0.5)
    with torch.no_grad():
        sae.dictionary.b_enc += 0.1 * torch.randn(n_latents, generator=torch.Generator().manual_seed(2))
    return sae


def by_hand(sae: SAE, x: Tensor, k: int, lengths: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Sum of the inner reconstructions' errors from dense codes, and its gradients."""
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES)
    x = sae.scale.apply_to(x)
    pre = (x - b_dec) @ W_enc.T + b_enc
    f = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    total = torch.zeros((), dtype=torch.float64)
    for m in lengths:
        total = total + (f[:, :m] @ W_dec[:m] + b_dec - x).square().mean() / sae.variance
    return total.detach(), list(torch.autograd.grad(total, [W_enc, b_enc, W_dec, b_dec]))


@pytest.mark.parametrize(
    ("activation", "k", "n_latents"),
    [(TopK(5), 5, 96), (TopK(5), 5, 40), (TopK(96), 96, 96), (ReLU(l1=0), 96, 96)],
    ids=["sparse", "dense", "all", "full"],
)
@pytest.mark.parametrize(
    ("prefixes", "shares"),
    [(None, [1 / 16, 1 / 8, 1 / 4, 1 / 2]), ([0.5], [0.5]), ([0, 0.3, 0.9], [0, 0.3, 0.9]), ([0], [0])],
)
def test_value_and_gradients_are_those_of_dense_prefixes(activation, k, n_latents, prefixes, shares):
    sae = fitted(activation, Matryoshka(prefixes, weight=0.3), n_latents)
    terms, step = sae.objective(rows())
    assert step.codes.is_full == isinstance(activation, ReLU)
    terms["Matryoshka"].backward()
    value, gradients = by_hand(sae, rows(), k, [round(share * n_latents) for share in shares])
    torch.testing.assert_close(terms["Matryoshka"].detach(), 0.3 * value, rtol=1e-10, atol=0)
    for name, gradient in zip(NAMES, gradients, strict=True):
        found = getattr(sae.dictionary, name).grad
        found = torch.zeros_like(gradient) if found is None else found
        torch.testing.assert_close(found, 0.3 * gradient, rtol=1e-8, atol=1e-12)


def test_the_mean_over_groups_is_the_sum_divided_by_their_number():
    sae = fitted(TopK(5), Matryoshka([0, 0.25, 0.5]))
    terms, _ = sae.objective(rows())
    total, _ = by_hand(sae, rows(), 5, [0, 24, 48, 96])
    theirs = total / 4  # three groups, the last of them all latents, and the bias alone
    torch.testing.assert_close((terms["reconstruction"] + terms["Matryoshka"]) / 4, theirs)


def test_every_entry_is_decoded_once(monkeypatch):
    sae = fitted(TopK(5), Matryoshka([0.25, 0.5, 0.75]))
    _, step = sae.objective(rows())
    decoded = []
    real = Dense.decode
    monkeypatch.setattr(Dense, "decode", lambda self, codes: (decoded.append(codes), real(self, codes))[1])
    list(nested(step, [24, 48, 72]))
    assert len(decoded) == 3
    found = torch.zeros(B, 96, dtype=torch.float64)
    for codes in decoded:
        assert codes.values.shape[1] <= 5
        found += (codes.dense() != 0).double()
    assert torch.equal(found, (step.codes.dense()[:, :96] != 0).double() * (torch.arange(96) < 72))


def test_a_stretch_without_active_latents_adds_nothing():
    sae = fitted(TopK(1), Matryoshka([0.1, 0.2]))
    with torch.no_grad():
        sae.dictionary.b_enc[:20] = -100
    _, step = sae.objective(rows())
    for x_hat in nested(step, [10, 20]):
        torch.testing.assert_close(x_hat, sae.dictionary.b_dec.expand(B, D))


def test_what_skips_the_latents_is_in_every_prefix():
    loss = Matryoshka([0, 0.5])
    sae = SAE(D, 32, TopK(3), [loss], dictionary=Dense(skip_connection=True), d_out=4).double()
    sae.initialise(rows(1), target=rows(2, 4))
    with torch.no_grad():
        sae.dictionary.W_skip += torch.randn(4, D, dtype=torch.float64)
    _, step = sae.objective(rows(), rows(3, 4))
    bare, half = nested(step, [0, 16])
    torch.testing.assert_close(bare, step.x @ sae.dictionary.W_skip.T + sae.dictionary.b_dec)
    f = step.codes.dense()[:, :16]
    torch.testing.assert_close(half, bare + f @ sae.dictionary.W_dec[:16])


def test_drawn_prefixes_are_those_that_the_loss_uses():
    sae = fitted(TopK(5), Matryoshka(sampled=6))
    terms, step = sae.objective(rows())
    lengths = sae.losses[0].lengths(step)
    assert len(lengths) == 6
    torch.testing.assert_close(terms["Matryoshka"].detach(), by_hand(sae, rows(), 5, lengths)[0])


def test_a_prefix_that_is_drawn_twice_counts_twice(monkeypatch):
    sae = fitted(TopK(5), Matryoshka(sampled=3))
    monkeypatch.setattr(Matryoshka, "lengths", lambda self, step: [7, 7, 30])
    terms, _ = sae.objective(rows())
    torch.testing.assert_close(terms["Matryoshka"].detach(), by_hand(sae, rows(), 5, [7, 7, 30])[0])


def test_prefixes_are_drawn_anew_for_every_batch_and_again_after_a_restart():
    def lengths(sae: SAE) -> list[int]:
        return sae.losses[0].lengths(counted(sae, rows())[1])

    sae = fitted(TopK(5), Matryoshka(sampled=4))
    first, second, third = (lengths(sae) for _ in range(3))
    assert first != second != third
    again = fitted(TopK(5), Matryoshka(sampled=4))
    assert [lengths(again), lengths(again)] == [first, second]
    resumed = fitted(TopK(5), Matryoshka(sampled=4))
    resumed.load_state_dict(again.state_dict())
    assert lengths(resumed) == third
    assert lengths(fitted(TopK(5), Matryoshka(sampled=4), seed=1)) != first


def test_drawn_lengths_are_log_uniform():
    sae = SAE(D, 4096, TopK(5), [Matryoshka(sampled=1)])
    _, step = sae.objective(rows().float())
    sae.losses[0].sampled = 20_000
    lengths = torch.tensor(sae.losses[0].lengths(step), dtype=torch.float64)
    assert 1 <= lengths.min() < lengths.max() <= 4095
    assert torch.equal(lengths, lengths.sort().values)
    for m in (2, 8, 64, 512):
        share = math.log(m) / math.log(4096)
        assert (lengths < m).double().mean().item() == pytest.approx(share, abs=0.01)


class Half(Mesh):
    """One of two shards, whose sums stay its own."""

    def __init__(self, shard: int):
        super().__init__(1, 2)
        self.shard = shard

    def _join(self) -> None:
        """There are no processes."""

    def sum_over_shards(self, value: Tensor) -> Tensor:
        return value


@pytest.mark.parametrize("full", [False, True])
def test_shards_hold_latents_one_after_the_other(full):
    sae = fitted(TopK(5), Matryoshka())
    _, step = sae.objective(rows())
    lengths, bias = [0, 10, 40, 50, 90], sae.dictionary.b_dec
    dense = step.codes.dense()
    wanted = [dense[:, :m] @ sae.dictionary.W_dec[:m] for m in lengths]
    found = [torch.zeros(B, D, dtype=torch.float64) for _ in lengths]
    for shard in (0, 1):
        part = SAE(D, 96, TopK(5), mesh=Half(shard)).double()
        with torch.no_grad():
            part.dictionary.W_dec.copy_(sae.dictionary.W_dec[48 * shard : 48 * (shard + 1)])
            part.dictionary.b_dec.copy_(bias)
        own = Codes.full(dense[:, 48 * shard : 48 * (shard + 1)].detach())
        step = type(step)(part, step.x, step.x, step.pre, own if full else own.compact(), step.x_hat)
        for number, x_hat in enumerate(nested(step, lengths)):
            found[number] += x_hat - bias
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixes": []}, "prefixes must be a list of shares"),
        ({"prefixes": "half"}, "prefixes must be a list of shares"),
        ({"prefixes": ["a"]}, "prefixes must be a list of shares"),
        ({"prefixes": [0.5, 1.0]}, "prefixes must be shares from 0 to below 1"),
        ({"prefixes": [-0.1]}, "prefixes must be shares from 0 to below 1"),
        ({"prefixes": [0.5, 0.25]}, r"prefixes must rise and stay below all 20 latents; .* \[10, 5\]"),
        ({"prefixes": [0.25, 0.26]}, r"prefixes must rise .* \[5, 5\]"),
        ({"prefixes": [0.99]}, r"prefixes .* stay below all 20 latents; \[0.99\] are the first \[20\]"),
        ({"sampled": -1}, "sampled must not be negative, got -1"),
        ({"sampled": 2, "prefixes": [0.5]}, "give prefixes or sampled, not both"),
        ({"weight": float("nan")}, "weight must not be negative, infinite or NaN"),
        ({"weight": -1.0}, "weight must not be negative"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=f"Matryoshka: {message}"):
        SAE(D, 20, TopK(2), [Matryoshka(**settings)])


def test_one_latent_has_no_inner_prefix_to_draw():
    with pytest.raises(ValueError, match="Matryoshka: sampled .*2 latents"):
        SAE(D, 1, TopK(1), [Matryoshka(sampled=1)])
