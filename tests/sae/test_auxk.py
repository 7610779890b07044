"""AuxK and the whole TopK objective against the published definition, written out densely in float64.

`Published` is methods.md B.1.2 to B.1.4 by autograd alone, with the mask over all pre-activations that the authors use;
saelab computes the same from the dead latents only.
"""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from sae.counted import counted
from torch import Tensor

from saelab.kernels.gradient import LatentGradients
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Sizes
from saelab.sae.losses.auxk import AuxK, normalised_error

B, D = 6, 10
NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def keep_largest(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row through a ReLU, zero elsewhere."""
    order = pre.argsort(dim=1, descending=True, stable=True)[:, :k]
    return (pre * torch.zeros_like(pre).scatter(1, order, 1.0)).relu()


class Published:
    """The autoencoder and its loss, in tensors of its own."""

    def __init__(self, sae: SAE):
        state = sae.dictionary.state_dict()
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (state[name].clone().requires_grad_() for name in NAMES)

    def terms(self, x: Tensor, since: Tensor, k: int, auxk: AuxK, k_aux: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean squared error, the weighted AuxK term and which latents are dead."""
        pre = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        f = keep_largest(pre, k)
        x_hat = f @ self.W_dec + self.b_dec
        dead = torch.where((f > 0).any(0), 0, since + len(x)) >= auxk.dead_after
        e = (x - x_hat).detach()
        f_aux = keep_largest(pre * dead, k_aux)
        e_hat, target = f_aux @ self.W_dec + self.b_dec, e + self.b_dec.detach()
        error = (e_hat - target).square().mean() / (target - target.mean(0)).square().mean()
        return (x_hat - x).square().mean(), auxk.weight * error.nan_to_num(0.0), dead

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        return dict(zip(NAMES, torch.autograd.grad(loss, [getattr(self, name) for name in NAMES]), strict=True))


def make(n_latents: int, k: int, auxk: AuxK, decoder_noise: float = 0.3) -> SAE:
    """An SAE in float64 whose weights, biases included, are nowhere special; the input is not scaled."""
    sae = SAE(D, n_latents, TopK(k), [auxk]).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += decoder_noise * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sae.after_step()
    sae.variance.fill_(1.7)
    return sae


def rows(seed: int = 0, n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n_latents", "k"), [(200, 4), (24, 4)])
@pytest.mark.parametrize(("k_aux", "width"), [(None, 4), (3, 3), (1, 1), (500, 200)])
@pytest.mark.parametrize("dead_after", [1, 50])
def test_terms_and_gradients_are_the_published_ones(n_latents, k, k_aux, width, dead_after):
    auxk = AuxK(k_aux=k_aux, weight=0.5, dead_after=dead_after)
    sae, x = make(n_latents, k, auxk), rows()
    since = 37 * torch.arange(n_latents) % 90  # some dead already, some on the way, some alive
    sae.firing.since.copy_(since)
    published = Published(sae)
    error, extra, dead = published.terms(x, since, k, auxk, min(width, n_latents))
    assert dead.any()
    assert not dead.all()
    terms, _ = counted(sae, x)
    assert_close(terms["reconstruction"], error / 1.7)
    assert_close(terms["AuxK"], extra)
    assert torch.equal(sae.firing.dead(dead_after), dead)
    (terms["reconstruction"] + terms["AuxK"]).backward()
    for name, wanted in published.gradients(error / 1.7 + extra).items():
        assert_close(getattr(sae.dictionary, name).grad, wanted)


def test_the_gradient_of_auxk_alone_is_the_published_one():
    auxk = AuxK(k_aux=3, dead_after=50)
    sae, x = make(40, 4, auxk), rows()
    sae.firing.since.copy_(37 * torch.arange(40) % 90)
    published = Published(sae)
    _, extra, dead = published.terms(x, sae.firing.since.clone(), 4, auxk, 3)
    terms, _ = counted(sae, x)
    terms["AuxK"].backward()
    wanted = published.gradients(extra)
    for name in NAMES:
        assert_close(getattr(sae.dictionary, name).grad, wanted[name])
    assert (wanted["W_enc"][dead] != 0).any()
    assert (wanted["b_dec"] != 0).all()


@pytest.mark.parametrize(("share", "used"), [(1.0, 1000), (0.5, 500), (0.1, 200)])
def test_it_is_taken_on_the_first_rows_of_a_large_batch(share, used):
    found = []
    for auxk, n in ((AuxK(k_aux=3, dead_after=50, share=share), 1000), (AuxK(k_aux=3, dead_after=50, share=1.0), used)):
        sae = make(40, 4, auxk)
        sae.dictionary.b_enc.data[::3] = -100.0  # these are dead in either batch
        sae.firing.since.fill_(0)
        sae.firing.since[::3] = 90
        terms, _ = counted(sae, rows(n=1000)[:n])
        terms["AuxK"].backward()
        found.append((terms["AuxK"], sae.dictionary.W_enc.grad, sae.dictionary.W_dec.grad))
    assert found[0][0] > 0
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_gradients_handed_over_latent_by_latent_are_the_same():
    found = []
    for defers in (False, True):
        sae = make(200, 4, AuxK(k_aux=3, dead_after=50))
        sae.firing.since.copy_(37 * torch.arange(200) % 90)
        weights = [sae.dictionary.W_enc, sae.dictionary.W_dec]
        if defers:
            sae.dictionary.gradients = LatentGradients()
            sae.dictionary.gradients.collect(weights)
        terms, _ = counted(sae, rows())
        torch.stack(list(terms.values())).sum().backward()
        if defers:
            for weight in weights:
                assert weight.grad is None
                sae.dictionary.gradients.settle(weight)
        found.append([weight.grad for weight in weights])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_living_latents_get_no_gradient_from_it():
    auxk = AuxK(k_aux=3, dead_after=50)
    sae = make(200, 4, auxk)
    sae.firing.since.copy_(37 * torch.arange(200) % 90)
    terms, _ = counted(sae, rows())
    alive = ~sae.firing.dead(50)
    terms["AuxK"].backward()
    for name in ("W_enc", "b_enc", "W_dec"):
        grad = getattr(sae.dictionary, name).grad
        assert (grad[alive] == 0).all()
        assert (grad[~alive] != 0).any()


def test_it_is_zero_with_a_finite_gradient_when_nothing_is_dead():
    sae = make(40, 4, AuxK())
    terms, _ = counted(sae, rows())
    assert terms["AuxK"].item() == 0
    alone, _ = make(40, 4, AuxK()).objective(rows())
    torch.stack(list(terms.values())).sum().backward()
    with_it = [parameter.grad.clone() for parameter in sae.parameters()]
    sae.zero_grad()
    terms, _ = counted(sae, rows())
    terms["reconstruction"].backward()
    for found, parameter in zip(with_it, sae.parameters(), strict=True):
        assert torch.isfinite(found).all()
        assert torch.equal(found, parameter.grad)
    assert alone["AuxK"].dtype == torch.float64


def test_a_latent_that_fires_in_this_batch_is_not_dead():
    auxk = AuxK(dead_after=1)
    sae = make(40, 4, auxk)
    sae.firing.since.fill_(1 << 40)
    _, step = counted(sae, rows())
    active = step.codes.counts() > 0
    assert torch.equal(sae.firing.dead(1), ~active)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 10])
def test_a_residual_that_does_not_vary_costs_nothing(n):
    target = torch.linspace(0.1, 2, 4).expand(n, 4)
    x_hat = torch.zeros(n, 4, requires_grad=True)
    error = normalised_error(x_hat, target)
    error.backward()
    assert error.item() == 0
    assert torch.equal(x_hat.grad, torch.zeros(n, 4))


def test_predicting_the_batch_mean_costs_one():
    target = rows(n=20)
    assert_close(normalised_error(target.mean(0).expand(20, D), target), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(("d_in", "width"), [(1, 1), (2, 1), (4, 2), (64, 32), (512, 256), (768, 512), (1024, 512)])
def test_k_aux_is_the_power_of_two_near_half_the_width(d_in, width):
    auxk = AuxK()
    auxk.setup(Sizes(d_in, d_in, 10_000))
    assert auxk.width == width
    assert auxk.config()["k_aux"] is None


def test_the_published_defaults():
    defaults = {"k_aux": None, "weight": 1 / 32, "dead_after": None, "share": 0.1}
    assert AuxK().config() == {"name": "AuxK"} | defaults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k_aux": 0}, "AuxK: k_aux must be at least 1, got 0"),
        ({"share": 0.0}, "AuxK: share must be above 0 and at most 1, got 0.0"),
        ({"share": 1.5}, "AuxK: share must be above 0 and at most 1, got 1.5"),
        ({"dead_after": 0}, "AuxK: dead_after must be at least 1 row, got 0"),
        ({"weight": -1.0}, "AuxK: weight"),
        ({"weight": float("nan")}, "AuxK: weight"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SAE(D, 40, TopK(4), [AuxK(**settings)])
