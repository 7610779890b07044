"""The cross-layer dictionary against dense matrices with masks in float64: what reads what, and what writes where."""

# Shape letters: B rows, D width of all sites together, L latents, S sites.

import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.mesh import Mesh
from saelab.data import ArraySource
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.cross_layer import CrossLayer
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.auxk import AuxK
from saelab.train import Trainer

B, S, L = 30, 3, 60
READ, WRITTEN = 4, 2  # width of a site
D, OUT = S * READ, S * WRITTEN
SITE = torch.arange(L) // (L // S)  # that a latent reads


def rows(width: int = D, seed: int = 0) -> Tensor:
    """Sites of different size."""
    x = torch.randn(B, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.linspace(0.5, 9, width).double() + 1


def made(activation: Activation, d_out: int | None = OUT) -> SAE:
    sae = SAE(D, L, activation, dictionary=CrossLayer(S), d_out=d_out).double()
    sae.initialise(rows(), target=None if d_out is None else rows(d_out, 1))
    with torch.no_grad():  # nowhere special
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    sae.after_step()
    return sae


def read_mask() -> Tensor:
    return (torch.arange(D) // READ == SITE[:, None]).double()


def written_mask(width: int) -> Tensor:
    return (torch.arange(width) // (width // S) >= SITE[:, None]).double()


def matrices(dictionary: CrossLayer) -> tuple[Tensor, Tensor]:
    """Encoder [L, D] and decoder [L, D] with their zeros."""
    return dictionary.W_enc.detach().repeat(1, S) * read_mask(), dictionary.W_dec.detach().clone()


@pytest.mark.parametrize("activation", [TopK(3), TopK(25), ReLU(l1=0)], ids=["sparse", "more than a site", "full"])
@pytest.mark.parametrize("d_out", [OUT, None], ids=["transcoder", "autoencoder"])
def test_values_and_gradients_are_those_of_masked_dense_matrices(activation, d_out):
    sae, width = made(activation, d_out), d_out or D
    dictionary, x, target = sae.dictionary, rows(seed=4), rows(width, seed=4)
    W_enc, W_dec = (part.requires_grad_() for part in matrices(dictionary))
    b_enc, b_dec = (part.detach().clone().requires_grad_() for part in (dictionary.b_enc, dictionary.b_dec))
    scaled, wanted = sae.scale.apply_to(x), sae.target_scale.apply_to(target)
    pre = (scaled if d_out else scaled - b_dec) @ (W_enc * read_mask()).T + b_enc
    f = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(getattr(activation, "k", L)).indices, 1.0)
    x_hat = f @ (W_dec * written_mask(width)) + b_dec
    error = (x_hat - wanted).square().mean() / sae.variance
    error.backward()
    terms, step = sae.objective(x, target if d_out else None)
    torch.testing.assert_close(step.codes.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step.x_hat, x_hat, rtol=1e-10, atol=1e-12)
    terms["reconstruction"].backward()
    torch.testing.assert_close(terms["reconstruction"], error)
    sae.before_step()
    across = W_dec.grad - (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
    torch.testing.assert_close(dictionary.W_dec.grad, (across * written_mask(width)).detach())
    torch.testing.assert_close(dictionary.W_enc.grad, W_enc.grad[read_mask() > 0].view(L, READ))
    torch.testing.assert_close(dictionary.b_enc.grad, b_enc.grad)
    torch.testing.assert_close(dictionary.b_dec.grad, b_dec.grad)


def test_pre_activations_of_some_latents_and_of_other_rows():
    dictionary = made(TopK(3)).dictionary
    pre, weight = dictionary.pre(rows()), matrices(dictionary)[0]
    dense = rows() @ weight.T + dictionary.b_enc
    torch.testing.assert_close(pre.dense(), dense)
    some = torch.tensor([59, 3, 21, 3, 20, 19, 40])
    torch.testing.assert_close(pre.for_latents(some), dense[:, some])
    assert pre.for_latents(some[:0]).shape == (B, 0)
    torch.testing.assert_close(pre.for_rows(rows(seed=7)).dense(), rows(seed=7) @ weight.T + dictionary.b_enc)
    for absolute in (False, True):
        for k in (1, 5, 30, L):
            codes = pre.topk(k, absolute)
            assert torch.equal(codes.indices, (dense.abs() if absolute else dense).topk(k).indices)
            torch.testing.assert_close(codes.values, dense.gather(1, codes.indices))


def test_nothing_of_a_site_reaches_an_earlier_one():
    sae, x = made(ReLU()), rows()
    changed = x.clone()
    changed[:, READ : 2 * READ] += 5
    moved = (sae(changed) - sae(x)).unflatten(1, (S, WRITTEN)).abs().amax((0, 2))
    assert moved[0] == 0
    assert (moved[1:] > 0.1).all()


def test_earlier_sites_stay_at_zero_while_training():
    sae = made(TopK(3))
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        sae.objective(rows(seed=step), rows(OUT, seed=step))[0]["reconstruction"].backward()
        sae.before_step()
        optimizer.step()
        assert (sae.dictionary.W_dec[written_mask(OUT) == 0] == 0).all()  # the optimizer's moments are zero as well
        sae.after_step()
    assert (sae.dictionary.W_dec != 0).sum() == written_mask(OUT).sum()
    torch.testing.assert_close(sae.dictionary.W_dec.norm(dim=1), torch.ones(L, dtype=torch.float64))


def test_it_starts_triangular_with_unit_norm():
    for d_out in (OUT, None):
        dictionary = SAE(D, L, TopK(3), dictionary=CrossLayer(S), d_out=d_out).dictionary
        assert dictionary.W_enc.shape == (L, READ)
        assert torch.equal(dictionary.directions() != 0, written_mask(d_out or D) != 0)
        torch.testing.assert_close(dictionary.norms(), torch.ones(L))
    for site in range(S):  # an autoencoder's latents start parallel to what they read
        own = dictionary.W_dec[site == SITE, site * READ : (site + 1) * READ]
        torch.testing.assert_close(torch.cosine_similarity(own, dictionary.W_enc[site == SITE]), torch.ones(L // S))


def test_one_site_is_the_dense_dictionary():
    one = SAE(D, L, TopK(3), dictionary=CrossLayer(1), d_out=OUT)
    dense = SAE(D, L, TopK(3), dictionary=Dense(), d_out=OUT)
    for sae in (one, dense):
        sae.initialise(rows().float(), target=rows(OUT).float())
    for key, value in dense.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value)
    torch.testing.assert_close(one(rows()), dense(rows()))


@pytest.mark.parametrize("activation", [TopK(3), ReLU()], ids=["topk", "relu"])
@pytest.mark.parametrize("d_out", [OUT, None], ids=["transcoder", "autoencoder"])
def test_folding_keeps_what_is_chosen_and_reconstructed(activation, d_out):
    sae, x = made(activation, d_out), rows(seed=5)
    before, codes = sae(x), sae.encode(x).dense()
    size = sae.target_scale.scale.square().mean().sqrt()
    assert len(sae.scale.scale.unique()) == S
    sae.fold()
    assert (sae.scale.scale == 1).all()
    torch.testing.assert_close(sae(x), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.encode(x).dense(), codes * size, rtol=1e-9, atol=1e-9)


def test_it_comes_back_from_a_file(tmp_path):
    sae = made(TopK(3))
    sae.save(tmp_path)
    again = saelab.load(tmp_path)
    assert again.config() == sae.config()
    assert torch.equal(again(rows()), sae(rows()))


@pytest.mark.parametrize("shards", [2, 4])  # with 3 sites, shards begin and end within sites
def test_shards_hold_latents_one_after_the_other(shards):
    class Part(Mesh):
        def __init__(self, shard: int):
            super().__init__(1, shards)
            self.shard = shard

        def _join(self) -> None:
            """There are no processes."""

        def sum_over_shards(self, value: Tensor) -> Tensor:
            return value

    whole = SAE(D, L, ReLU(), dictionary=CrossLayer(S), d_out=OUT).double()
    pre, own = whole.dictionary.pre(rows()).dense(), L // shards
    total = torch.zeros(B, OUT, dtype=torch.float64)
    for shard in range(shards):
        part = SAE(D, L, ReLU(), dictionary=CrossLayer(S), d_out=OUT, mesh=Part(shard)).double()
        codes = part.activation(part.dictionary.pre(rows()))
        torch.testing.assert_close(part.dictionary.pre(rows()).dense(), pre[:, shard * own : (shard + 1) * own])
        torch.testing.assert_close(part.dictionary.pre(rows()).for_latents(torch.tensor([own - 1, 0])),
                                   pre[:, [(shard + 1) * own - 1, shard * own]])  # fmt: skip
        total += part.dictionary.decode(codes)
    torch.testing.assert_close(total, whole.dictionary.decode(whole.encode(rows())))


def test_it_learns_a_planted_map_across_layers():
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(4096, 2, 8, generator=generator) < 0.1
    f = (0.5 + 0.5 * torch.rand(4096, 2, 8, generator=generator)) * on
    read, written = (torch.linalg.qr(torch.randn(8, 8, generator=generator))[0] for _ in range(2))
    x = torch.cat([f[:, 0] @ read, f[:, 1] @ read], 1)
    target = torch.cat([f[:, 0] @ written, (f[:, 0] + f[:, 1]) @ written], 1)  # the second layer adds to the first
    sae = SAE(16, 32, TopK(4), [AuxK(dead_after=2000)], dictionary=CrossLayer(2), d_out=16)
    Trainer(sae, lr=2e-2, batch=256).fit(ArraySource(x, target=target), 256 * 200, show=False)
    assert (sae(x) - target).square().sum() < 0.05 * (target - target.mean(0)).square().sum()
    first, second = written / sae.target_scale.scale[:, None, None]
    both = torch.nn.functional.normalize(torch.cat([first, second], 1), dim=1)
    assert (both @ sae.dictionary.W_dec[:16].T).max(1).values.mean() > 0.95
    assert (written @ sae.dictionary.W_dec[16:, 8:].T).max(1).values.mean() > 0.95


@pytest.mark.parametrize(
    ("sites", "n_latents", "d_out", "message"),
    [
        (0, 12, 12, "sites must be at least 1, got 0"),
        (5, 60, 10, "d_in=12 cannot be cut into sites=5 of equal width"),
        (3, 60, 10, "d_out=10 cannot be cut into sites=3 of equal width"),
        (3, 61, 12, "61 latents cannot be split evenly over sites=3"),
    ],
)
def test_a_number_of_sites_that_does_not_fit_is_named(sites, n_latents, d_out, message):
    with pytest.raises(ValueError, match=f"CrossLayer: {message}"):
        SAE(D, n_latents, TopK(3), dictionary=CrossLayer(sites), d_out=d_out)
