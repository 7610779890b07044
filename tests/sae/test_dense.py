"""The ordinary dictionary: its start, its hooks and its folding."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.sae import SAE
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense, geometric_median
from saelab.sae.scales import DataScale

D, L = 16, 64


def rows(n: int = 200, seed: int = 0) -> Tensor:
    """Skewed rows, whose geometric median is not their mean."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).exp()


def initialised(activation: Activation | None = None, seed: int = 0, decoder_bias: bool = True) -> SAE:
    sae = SAE(D, L, activation or TopK(4), dictionary=Dense(decoder_bias=decoder_bias), seed=seed)
    sae.initialise(rows())
    return sae


def with_gradient(sae: SAE) -> Dense:
    terms, _ = sae.objective(rows(32, seed=1))
    terms["reconstruction"].backward()
    return sae.dictionary


def test_pre_activations_and_decoding_are_the_two_maps():
    dictionary = initialised().dictionary
    with torch.no_grad():
        dictionary.b_enc.copy_(torch.randn(L))
    x, f = rows(5), torch.randn(5, L)
    pre = (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    torch.testing.assert_close(dictionary.pre(x).dense(), pre)
    torch.testing.assert_close(dictionary.pre(x).for_latents(torch.tensor([3, 60, 1])), pre[:, [3, 60, 1]])
    torch.testing.assert_close(dictionary.pre(x).topk(3).values, pre.sort(descending=True).values[:, :3])
    torch.testing.assert_close(dictionary.decode(Codes.full(f)), f @ dictionary.W_dec + dictionary.b_dec)


def test_encoder_and_decoder_start_parallel_but_free():
    dictionary = initialised().dictionary
    cosines = torch.cosine_similarity(dictionary.W_enc, dictionary.W_dec)
    torch.testing.assert_close(cosines, torch.ones(L))
    assert dictionary.W_enc.data_ptr() != dictionary.W_dec.data_ptr()
    assert torch.equal(dictionary.b_enc, torch.zeros(L))


def test_directions_start_with_unit_norm():
    for dictionary in (SAE(D, L, TopK(4)).dictionary, initialised().dictionary):
        torch.testing.assert_close(dictionary.directions().norm(dim=1), torch.ones(L), rtol=0, atol=1e-6)


def test_the_encoder_starts_as_a_random_linear_map():
    weight = SAE(D, 4000, TopK(4)).dictionary.W_enc
    bound = 1 / D**0.5
    assert weight.abs().max() <= bound
    torch.testing.assert_close(weight.std().item(), bound / 3**0.5, rtol=0.02, atol=0)


@pytest.mark.parametrize("activation", [TopK(4), TopK(1), ReLU()], ids=["4", "1", "relu"])
@pytest.mark.parametrize("decoder_bias", [True, False])
def test_without_rows_to_fit_reconstructions_of_unit_probes_start_with_unit_norm(activation, decoder_bias, monkeypatch):
    monkeypatch.setattr(Dense, "_fit_encoder", lambda *given: None)
    sae = initialised(activation, seed=3, decoder_bias=decoder_bias)
    probes = torch.randn(4000, D)
    probes /= probes.norm(dim=1, keepdim=True)
    with torch.no_grad():
        bias = sae.dictionary.bias()
        out = sae.dictionary.decode(sae.activation(sae.dictionary.pre(probes + bias))) - bias
    assert out.norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)


@torch.no_grad()
def error_at(sae: SAE, x: Tensor, factor: float = 1.0) -> float:
    """Squared error in float64 if the encoder were so many times as large."""
    sae.dictionary.W_enc.mul_(factor)
    codes = sae.encode(x).dense().double()
    sae.dictionary.W_enc.div_(factor)
    x_hat = codes @ sae.dictionary.W_dec.double() + sae.dictionary.b_dec.double()
    return (x_hat - sae.scale.apply_to(x).double()).square().sum().item()


@pytest.mark.parametrize("activation", [TopK(4), TopK(1), ReLU()], ids=["4", "1", "relu"])
def test_no_other_size_of_the_encoder_starts_with_a_smaller_error(activation):
    sae = initialised(activation, seed=3)
    least = error_at(sae, rows())
    assert least < 0.999 * error_at(sae, rows(), 0.9)
    assert least < 0.999 * error_at(sae, rows(), 1.1)
    assert least < sae.scale.apply_to(rows()).square().sum()


def test_a_transcoder_starts_with_the_targets_norm():
    sae = SAE(D, L, TopK(4), d_out=D + 5, seed=3)
    target = torch.cat([rows().flip(1), rows()[:, :5]], 1)
    sae.initialise(rows(), target=target)
    with torch.no_grad():
        out = sae.dictionary.decode(sae.encode(rows())) - sae.dictionary.b_dec
    wanted = sae.target_scale.apply_to(target) - sae.dictionary.b_dec
    torch.testing.assert_close(out.norm(dim=1).mean(), wanted.norm(dim=1).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("threshold", "moves"), [(0.1, True), (0.5, False), (2.0, True), (3.0, False)])
def test_where_codes_jump_the_size_is_kept_if_the_other_is_worse(threshold, moves, monkeypatch):
    def start() -> tuple[float, Tensor]:
        sae = initialised(JumpReLU(threshold=threshold), seed=3)
        return error_at(sae, rows()), sae.dictionary.W_enc.detach().clone()

    fitted, weight = start()
    monkeypatch.setattr(Dense, "_fit_encoder", lambda *given: None)
    matched, before = start()
    assert fitted <= matched * (1 + 1e-6)
    assert torch.allclose(weight, before) != moves


def test_the_decoder_bias_starts_at_the_geometric_median_of_the_scaled_sample():
    sae = initialised()
    scaled = sae.scale.apply_to(rows())
    torch.testing.assert_close(sae.dictionary.b_dec.detach(), geometric_median(scaled))


def test_without_a_decoder_bias_there_is_none_to_learn():
    sae = initialised(decoder_bias=False)
    assert torch.equal(sae.dictionary.bias(), torch.zeros(D))
    assert "b_dec" not in dict(sae.dictionary.named_parameters())


def test_gradients_lose_their_part_along_the_direction():
    dictionary = with_gradient(initialised())
    before = dictionary.W_dec.grad.clone()
    dictionary.before_step()
    along = (dictionary.W_dec.grad * dictionary.W_dec).sum(1)
    assert (before * dictionary.W_dec).sum(1).abs().max() > 1e-3
    torch.testing.assert_close(along, torch.zeros(L), rtol=0, atol=1e-7)
    across = before - (before * dictionary.W_dec).sum(1, keepdim=True) * dictionary.W_dec
    torch.testing.assert_close(dictionary.W_dec.grad, across)


def test_directions_have_unit_norm_after_a_step():
    sae = initialised()
    dictionary = with_gradient(sae)
    optimizer = torch.optim.SGD(sae.parameters(), lr=100.0)
    optimizer.step()
    stepped = dictionary.W_dec.detach().clone()
    assert (stepped.norm(dim=1) - 1).abs().max() > 0.1
    sae.after_step()
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(L), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cosine_similarity(dictionary.W_dec, stepped), torch.ones(L))


def test_a_direction_of_zero_stays_finite():
    dictionary = initialised().dictionary
    with torch.no_grad():
        dictionary.W_dec[3] = 0
    dictionary.after_step()
    assert torch.equal(dictionary.W_dec[3], torch.zeros(D))


def test_hooks_before_any_gradient_do_nothing():
    dictionary = initialised().dictionary
    before = dictionary.W_dec.clone()
    dictionary.before_step()
    torch.testing.assert_close(dictionary.W_dec, before)


def test_folding_is_the_same_map_of_unscaled_rows():
    sae = initialised(ReLU())
    mean, scale, x = torch.randn(D), torch.tensor(2.5), rows(9)
    dictionary = sae.dictionary
    with torch.no_grad():
        dictionary.b_enc.copy_(torch.randn(L))
        f = dictionary.pre((x - mean) / scale).dense().relu()
        x_hat = dictionary.decode(Codes.full(f)) * scale + mean
        known = DataScale().setup(D)
        known.set(mean, scale)
        torch.testing.assert_close(dictionary.fold(known, known), torch.full((L,), 2.5))
        torch.testing.assert_close(dictionary.pre(x).dense().relu(), f * scale, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dictionary.decode(Codes.full(f * scale)), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("points", "median"),
    [
        ([[0, 0], [4, 0], [5, 3], [0, 2]], None),  # a convex quadrilateral: where its diagonals cross
        ([[0, 0], [4, 0], [0, 4], [1, 1]], [1, 1]),  # a point inside a triangle
        ([[1, 1], [2, 2], [9, 9]], [2, 2]),  # on a line: the middle one
        ([[3, 4]], [3, 4]),
    ],
)
def test_geometric_median_in_closed_form(points, median):
    if median is None:
        (a, b, c, d) = (np.array(point, float) for point in points)
        along = np.linalg.solve(np.stack([c - a, b - d], 1), b - a)[0]
        median = a + along * (c - a)
    found = geometric_median(torch.tensor(points, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(np.asarray(median, float)), rtol=1e-4, atol=1e-4)


def test_geometric_median_against_a_minimiser():
    sample = rows(50).double()
    cost = lambda point: np.linalg.norm(sample.numpy() - point, axis=1).sum()  # noqa: E731
    expected = scipy.optimize.minimize(cost, sample.mean(0).numpy(), method="BFGS", tol=1e-10).x
    found = geometric_median(sample)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    assert cost(found.numpy()) < cost(sample.mean(0).numpy())
