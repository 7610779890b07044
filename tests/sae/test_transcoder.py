"""Transcoders: an SAE that reads rows of one place and reconstructs those of another."""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from torch import Tensor

import saelab
from saelab.data import ArraySource
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense, geometric_median
from saelab.sae.losses.auxk import AuxK
from saelab.sae.losses.multi_topk import MultiTopK
from saelab.train import Trainer

B, D, OUT, L = 30, 6, 4, 80


def rows(width: int = D, seed: int = 0, n: int = B) -> Tensor:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 3 * x + torch.arange(width)


def made(activation: Activation, skip: bool = False, losses: tuple = ()) -> SAE:
    sae = SAE(D, L, activation, losses, Dense(skip_connection=skip), d_out=OUT).double()
    sae.initialise(rows(), target=20 * rows(OUT, 1))
    with torch.no_grad():  # nowhere special
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    sae.after_step()
    return sae


def with_skip(test):
    return pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])(test)


@with_skip
@pytest.mark.parametrize("activation", [TopK(3), ReLU(l1=0)], ids=["topk", "relu"])
def test_values_and_gradients_are_those_of_two_affine_maps(activation, skip):
    sae = made(activation, skip)
    weights = {name: value.detach().clone().requires_grad_() for name, value in sae.dictionary.named_parameters()}
    x, target = sae.scale.apply_to(rows(seed=4)), sae.target_scale.apply_to(rows(OUT, 5))
    pre = x @ weights["W_enc"].T + weights["b_enc"]
    f = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(getattr(activation, "k", L)).indices, 1.0)
    x_hat = f @ weights["W_dec"] + weights["b_dec"]
    if skip:
        x_hat = x_hat + x @ weights["W_skip"].T
    error = (x_hat - target).square().mean() / sae.variance
    error.backward()
    terms, step = sae.objective(rows(seed=4), rows(OUT, 5))
    terms["reconstruction"].backward()
    torch.testing.assert_close(step.x_hat, x_hat)
    torch.testing.assert_close(terms["reconstruction"], error)
    for name, value in weights.items():
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, value.grad)
        assert (value.grad != 0).any()


def test_input_and_target_have_scales_of_their_own():
    sae = SAE(D, L, TopK(3), d_out=OUT).double()
    x, target = rows(), 20 * rows(OUT, 1)
    sae.initialise(x, target=target)
    for scale, data in ((sae.scale, x), (sae.target_scale, target)):
        torch.testing.assert_close(scale.mean, data.mean(0))
        torch.testing.assert_close(scale.scale, (data - data.mean(0)).square().mean().sqrt())
    assert sae.target_scale is not sae.scale
    assert SAE(D, L, TopK(3)).target_scale is not None
    scaled = (target - target.mean(0)) / sae.target_scale.scale
    torch.testing.assert_close(sae.variance, scaled.square().mean())
    torch.testing.assert_close(sae.dictionary.b_dec.detach(), geometric_median(scaled))
    assert sae(x).shape == (B, OUT)


def test_its_start_has_the_targets_norm_and_directions_of_its_own():
    sae = SAE(D, 4000, TopK(8), d_out=OUT)
    x, target = rows(n=256).float(), rows(OUT, 1, 256).float()
    sae.initialise(x, target=target)
    dictionary = sae.dictionary
    out = dictionary.decode(sae.encode(x)) - dictionary.b_dec
    wanted = sae.target_scale.apply_to(target) - dictionary.b_dec
    torch.testing.assert_close(out.norm(dim=1).mean(), wanted.norm(dim=1).mean(), rtol=0.02, atol=0)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(4000))
    assert dictionary.W_enc.shape == (4000, D)
    assert dictionary.W_dec.shape == (4000, OUT)
    assert dictionary.W_dec.mean(0).abs().max() < 0.05


def test_the_skip_connection_starts_at_zero_and_needs_the_rows():
    sae = SAE(D, L, TopK(3), dictionary=Dense(skip_connection=True), d_out=OUT).double()
    assert torch.equal(sae.dictionary.W_skip, torch.zeros(OUT, D, dtype=torch.float64))
    sae = made(TopK(3), skip=True)
    codes = sae.encode(rows())
    with pytest.raises(ValueError, match=r"decode\(codes, x\) needs the rows x too"):
        sae.decode(codes)
    torch.testing.assert_close(sae.decode(codes, rows()), sae(rows()))
    bare = sae.target_scale.undo(sae.dictionary.decode(codes))
    torch.testing.assert_close(
        sae(rows()) - bare, sae.scale.apply_to(rows()) @ sae.dictionary.W_skip.T * sae.target_scale.scale
    )


def test_without_one_the_rows_are_not_needed():
    sae = made(TopK(3))
    torch.testing.assert_close(sae.decode(sae.encode(rows())), sae(rows()))


@with_skip
@pytest.mark.parametrize("activation", [TopK(3), ReLU()], ids=["topk", "relu"])
@pytest.mark.parametrize("biases", [True, False])
def test_folding_keeps_reconstructions(activation, skip, biases):
    dictionary = Dense(skip_connection=skip, decoder_bias=biases, encoder_bias=biases)
    sae = SAE(D, L, activation, dictionary=dictionary, d_out=OUT).double()
    sae.initialise(rows(), target=20 * rows(OUT, 1))
    if skip:
        with torch.no_grad():
            dictionary.W_skip += 0.3
    x = rows(seed=6)
    before, codes, size = sae(x), sae.encode(x).dense(), sae.target_scale.scale.clone()
    sae.fold()
    torch.testing.assert_close(sae(x), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.encode(x).dense(), codes * size, rtol=1e-9, atol=1e-9)
    for scale in (sae.scale, sae.target_scale):
        assert scale.scale == 1
        assert (scale.mean == 0).all()


@with_skip
def test_it_comes_back_from_a_file(tmp_path, skip):
    sae = made(TopK(3), skip)
    sae.save(tmp_path)
    again = saelab.load(tmp_path)
    assert again.d_out == OUT
    assert again.config() == sae.config()
    for key, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert torch.equal(again(rows()), sae(rows()))


@with_skip
def test_losses_reconstruct_the_target(skip):
    sae = made(TopK(3), skip, (MultiTopK(9, weight=0.5), AuxK(k_aux=4, dead_after=50, weight=0.25)))
    sae.firing.since[::2] = 1000
    terms, step = sae.objective(rows(seed=4), rows(OUT, 5))
    W_enc, W_dec, b_enc, b_dec = (getattr(sae.dictionary, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    pre = step.x @ W_enc.T + b_enc
    skipped = step.x @ sae.dictionary.W_skip.T if skip else 0

    def largest(values: Tensor, k: int) -> Tensor:
        return values.relu() * torch.zeros_like(values).scatter(1, values.topk(k).indices, 1.0)

    wider = largest(pre, 9) @ W_dec + b_dec + skipped
    torch.testing.assert_close(terms["MultiTopK"], 0.5 * (wider - step.target).square().mean() / sae.variance)
    left = (step.target - largest(pre, 3) @ W_dec - b_dec - skipped).detach()
    dead = sae.firing.dead(50)
    assert dead.any()
    guess = largest(pre.masked_fill(~dead, -torch.inf).clamp_min(-1e9), 4) @ W_dec
    error = (guess - left).square().mean() / (left - left.mean(0)).square().mean()
    torch.testing.assert_close(terms["AuxK"], 0.25 * error)


def test_training_finds_a_planted_sparse_map():
    generator = torch.Generator().manual_seed(0)
    f = (0.5 + 0.5 * torch.rand(4096, 8, generator=generator)) * (torch.rand(4096, 8, generator=generator) < 0.15)
    read = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    written = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    x, target = f @ read + 1, 5 * f @ written - 2
    sae = SAE(16, 16, TopK(3), [AuxK(dead_after=2000)], d_out=8)
    Trainer(sae, lr=2e-2, batch=256).fit(ArraySource(x, target=target), 256 * 150, show=False)
    assert (sae(x) - target).square().sum() < 0.05 * (target - target.mean(0)).square().sum()
    similar, found = (written @ sae.dictionary.W_dec.T).max(1)
    assert similar.mean() > 0.95
    activity = sae.encode(x).dense()[:, found]
    agreement = [torch.corrcoef(torch.stack([activity[:, i], f[:, i]]))[0, 1].item() for i in range(8)]
    assert sum(agreement) / 8 > 0.95


def test_it_says_what_is_missing():
    sae = made(TopK(3))
    with pytest.raises(ValueError, match="transcoder needs .*give target"):
        sae.objective(rows())
    with pytest.raises(ValueError, match="give target"):
        sae.initialise(rows())
    with pytest.raises(ValueError, match=r"\[B, 4\], got \[30, 6\]"):
        sae.objective(rows(), rows())
    with pytest.raises(ValueError, match="d_out must be at least 1, got 0"):
        SAE(D, L, TopK(3), d_out=0)
    with pytest.raises(ValueError, match="tied weights are for SAEs"):
        SAE(D, L, TopK(3), dictionary=Dense(tied=True), d_out=OUT)
    with pytest.raises(ValueError, match="skip_connection is for transcoders"):
        SAE(D, L, TopK(3), dictionary=Dense(skip_connection=True))


@pytest.mark.parametrize("d_out", [None, 5])
def test_the_trainer_wants_the_targets_width(d_out):
    source = ArraySource(rows().float(), target=rows(OUT).float())
    with pytest.raises(ValueError, match=f"targets .*4 wide, .*d_out={d_out}"):
        Trainer(SAE(D, L, TopK(3), d_out=d_out), batch=8).fit(source, 16, show=False)
