"""The crosscoder: its start, its norms by site, its scales, and which latents it finds to be shared."""

# Shape letters: D width of all sites together, L latents, S sites.

import pytest
import torch
from torch import Tensor

import saelab
from saelab.data import ArraySource
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.train import Trainer

S, WIDTH, L = 3, 4, 60
D = S * WIDTH


def rows(n: int = 50, seed: int = 0) -> Tensor:
    """Sites of very different size."""
    x = torch.randn(n, S, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * torch.tensor([[0.1], [1.0], [20.0]]) + torch.arange(S)[:, None]).flatten(1)


def made(activation: TopK | ReLU) -> SAE:
    sae = SAE(D, L, activation, dictionary=Crosscoder(S)).double()
    sae.initialise(rows())
    with torch.no_grad():  # nowhere special
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    sae.after_step()
    return sae


def test_a_latent_starts_with_the_same_random_direction_in_every_site():
    dictionary = SAE(D, L, TopK(4), dictionary=Crosscoder(S)).dictionary
    for weight in (dictionary.W_enc, dictionary.W_dec):
        first, *others = weight.chunk(S, 1)
        assert all(torch.equal(first, other) for other in others)
        assert len(first.unique()) > 100
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(L))
    torch.testing.assert_close(dictionary.relative_norms(), torch.full((L, S), 1 / S))
    torch.testing.assert_close(dictionary.norms(), torch.full((L,), S**0.5))


def test_norms_add_up_over_sites():
    dictionary = SAE(4, 3, TopK(1), dictionary=Crosscoder(2)).dictionary
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.tensor([[0.6, 0, 0, 0.8], [1, 0, 0, 0], [0.1, 0.7, 0.5, 0.5]]))
    torch.testing.assert_close(dictionary.site_norms(), torch.tensor([[0.6, 0.8], [1, 0], [0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(dictionary.norms(), torch.tensor([1.4, 1, 2**0.5]))
    torch.testing.assert_close(dictionary.relative_norms(), torch.tensor([[3 / 7, 4 / 7], [1, 0], [0.5, 0.5]]))


def test_the_l1_penalty_weighs_a_code_by_its_norms_in_all_sites():
    sae, x = made(ReLU(l1=0.7)), rows(seed=1)
    terms, step = sae.objective(x)
    weight = sae.dictionary.W_dec.detach().clone().requires_grad_()
    f, size = step.codes.values.detach(), torch.zeros(len(x), dtype=torch.float64)
    for site in range(S):
        size = size + (f * weight[:, site * WIDTH : (site + 1) * WIDTH].norm(dim=1)).sum(1)
    expected = 0.7 * (size / step.x.norm(dim=1)).mean()
    torch.testing.assert_close(terms["sparsity"], expected)
    terms["sparsity"].backward()
    expected.backward()
    torch.testing.assert_close(sae.dictionary.W_dec.grad, weight.grad)


def test_a_direction_that_is_not_in_a_site_has_a_finite_gradient():
    sae = made(ReLU(l1=0.7))
    with torch.no_grad():
        sae.dictionary.W_dec[:, :WIDTH] = 0
    sae.objective(rows())[0]["sparsity"].backward()
    assert torch.isfinite(sae.dictionary.W_dec.grad).all()


def test_each_site_has_a_scale_of_its_own():
    sae = made(TopK(4))
    scaled = sae.scale.apply_to(rows()).unflatten(1, (S, WIDTH))
    torch.testing.assert_close(scaled.square().mean((0, 2)), torch.ones(S, dtype=torch.float64))
    assert sae.scale.scale.shape == (S,)


@pytest.mark.parametrize("activation", [TopK(4), ReLU()], ids=["topk", "relu"])
def test_folding_keeps_what_is_chosen_and_reconstructed(activation):
    sae, x = made(activation), rows(seed=1)
    before, codes = sae(x), sae.encode(x).dense()
    size = sae.scale.scale.square().mean().sqrt()
    sae.fold()
    assert torch.equal(sae.scale.scale, torch.ones(S, dtype=torch.float64))
    torch.testing.assert_close(sae(x), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.encode(x).dense(), codes * size, rtol=1e-9, atol=1e-9)


def test_it_comes_back_from_a_file(tmp_path):
    sae = made(TopK(4))
    sae.save(tmp_path)
    again = saelab.load(tmp_path)
    assert again.dictionary.config() == {
        "name": "Crosscoder", "sites": S, "decoder_bias": True, "encoder_bias": True
    }  # fmt: skip
    assert torch.equal(again(rows()), sae(rows()))


def test_it_can_read_sites_and_write_other_ones():
    sae = SAE(D, L, TopK(4), dictionary=Crosscoder(S), d_out=6).double()
    sae.initialise(rows(), target=rows(seed=2)[:, ::2])
    first, *others = sae.dictionary.W_dec.chunk(S, 1)
    assert all(torch.equal(first, other) for other in others)
    x = rows(seed=1)
    before = sae(x)
    torch.testing.assert_close(sae.fold()(x), before, rtol=1e-9, atol=1e-9)


def planted(n: int) -> tuple[Tensor, Tensor]:
    """Rows of two sites from 12 sparse features, and each feature's directions [12, 2, 8]; 4 are in both sites."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(12, 2, 8, generator=generator), dim=2)
    directions[4:8, 1] = 0
    directions[8:, 0] = 0
    f = torch.rand(n, 12, generator=generator) * (torch.rand(n, 12, generator=generator) < 0.12)
    return torch.einsum("bf,fsd->bsd", f, directions).flatten(1), directions


def test_relative_norms_tell_shared_latents_from_those_of_one_site():
    x, directions = planted(4096)
    sae = SAE(16, 24, ReLU(l1=0.05), dictionary=Crosscoder(2), seed=1)
    Trainer(sae, lr=1e-2, batch=256).fit(ArraySource(x), 256 * 250, show=False)
    truth = torch.nn.functional.normalize(directions.flatten(1), dim=1)
    similar, found = (truth @ sae.dictionary.W_dec.detach().T).max(1)
    assert similar.mean() > 0.95
    shares = sae.dictionary.relative_norms()[found, 0]
    assert (shares[:4] - 0.5).abs().max() < 0.2
    assert shares[4:8].min() > 0.8
    assert shares[8:].max() < 0.2


@pytest.mark.parametrize(
    ("sites", "d_in", "d_out", "message"),
    [
        (0, 12, None, "sites must be at least 1, got 0"),
        (5, 12, None, "d_in=12 cannot be cut into sites=5 of equal width"),
        (2, 12, 7, "d_out=7 cannot be cut into sites=2 of equal width"),
    ],
)
def test_a_number_of_sites_that_does_not_fit_is_named(sites, d_in, d_out, message):
    with pytest.raises(ValueError, match=f"Crosscoder: {message}"):
        SAE(d_in, L, TopK(4), dictionary=Crosscoder(sites), d_out=d_out)
