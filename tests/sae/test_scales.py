"""Every scaling of rows: against formulas in float64, on rows of no size, in files, and with other parts."""

# Shape letters: B rows, D input width, L latents.

import json
import math
from collections.abc import Callable

import pytest
import torch
from sae.counted import counted
from torch import Tensor

import saelab
from saelab.core.codes import Codes
from saelab.sae import SAE, Ensemble, refine, reread
from saelab.sae.activations import BatchTopK, JumpReLU, ReLU, TopK
from saelab.sae.dictionaries import Crosscoder, Dense
from saelab.sae.losses import AuxK, EndToEnd, Matryoshka
from saelab.sae.scale import Scale
from saelab.sae.scales import ConstantNorm, DataScale, Identity, LayerNorm, UnitNorm
from saelab.sae.stack import Stack

B, D, L = 5, 12, 32
SCALES = list(Scale.variants().values())
OWN = [scale for scale in SCALES if scale.per_row]
every_scale = pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.__name__)
own_scale = pytest.mark.parametrize("scale", OWN, ids=lambda scale: scale.__name__)


def rows(n: int = B, d: int = D, seed: int = 0) -> Tensor:
    """Rows whose sizes differ by far, with means of their own; float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.logspace(-1, 2, n, dtype=torch.float64)[:, None] + torch.arange(n)[:, None] - 1


def layer_norm(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    variance, mean = torch.var_mean(x, 1, correction=1, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-5), lambda x_hat: x_hat * variance.sqrt() + mean


def unit_norm(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    mean = x.sum(1, keepdim=True) / x.shape[1]
    norm = ((x - mean) ** 2).sum(1, keepdim=True) ** 0.5
    return (x - mean) / norm, lambda x_hat: x_hat * norm + mean


def constant_norm(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    size = ((x**2).sum(1, keepdim=True) / x.shape[1]) ** 0.5
    return x / size, lambda x_hat: x_hat * size


BY_HAND = {
    LayerNorm: layer_norm,
    UnitNorm: unit_norm,
    ConstantNorm: constant_norm,
    Identity: lambda x: (x, lambda x_hat: x_hat),
    DataScale: lambda x: ((x - 0.5) / 3, lambda x_hat: x_hat * 3 + 0.5),
}


def made(scale: type[Scale], activation=None, dictionary=None, d_in: int = D, seed: int = 0, **settings) -> SAE:
    """In float64, with weights and biases that are not zero."""
    sae = SAE(d_in, L, activation or TopK(k=4), dictionary=dictionary, scale=scale(), seed=seed, **settings).double()
    with torch.no_grad():
        for parameter in sae.dictionary.parameters():
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
            parameter.copy_(drawn / 3)
    if scale is DataScale:
        sae.scale.set(torch.full((d_in,), 0.5), 3.0)
    return sae


@every_scale
def test_an_sae_computes_the_formula(scale):
    sae, x = made(scale), rows()
    scaled, undone = BY_HAND[scale](x)
    weights = sae.dictionary
    pre = (scaled - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    f = pre.where(pre >= pre.topk(4, dim=1).values[:, -1:], 0).relu()
    codes = sae.encode(x)
    torch.testing.assert_close(codes.dense(), f)
    torch.testing.assert_close(sae.decode(codes), undone(f @ weights.W_dec + weights.b_dec))
    torch.testing.assert_close(sae(x), sae.decode(codes), rtol=0, atol=0)
    terms = sae.objective(x)[0]
    error = (f @ weights.W_dec + weights.b_dec - scaled).square().mean()
    torch.testing.assert_close(terms["reconstruction"], error)


@every_scale
def test_gradients_are_those_of_the_formula(scale):
    sae, x = made(scale, ReLU(l1=0.0)), rows()
    by_sae = x.clone().requires_grad_()
    sae(by_sae).pow(3).sum().backward()
    by_hand, weights = x.clone().requires_grad_(), sae.dictionary
    scaled, undone = BY_HAND[scale](by_hand)
    f = ((scaled - weights.b_dec) @ weights.W_enc.T + weights.b_enc).relu()
    expected = torch.autograd.grad(undone(f @ weights.W_dec + weights.b_dec).pow(3).sum(), [by_hand, weights.W_enc])
    torch.testing.assert_close(by_sae.grad, expected[0])
    torch.testing.assert_close(weights.W_enc.grad, expected[1])
    assert torch.autograd.gradcheck(lambda rows: sae.scale.apply_to(rows), (rows(3).requires_grad_(),))


@own_scale
def test_rows_of_no_size_give_finite_codes_gradients_and_themselves_back(scale):
    sae = made(scale, ReLU(l1=0.0)).float()
    x = torch.stack([torch.zeros(D), torch.full((D,), 1000.1), torch.full((D,), -3.0), torch.full((D,), 1e-30)])
    x.requires_grad_()
    x_hat = sae(x)
    x_hat.sum().backward()
    terms = torch.stack(list(sae.objective(x.detach())[0].values())).sum()
    terms.backward()
    for part in (x_hat, sae.encode(x).values, x.grad, terms, *(p.grad for p in sae.dictionary.parameters())):
        assert torch.isfinite(part).all()
    if scale is not ConstantNorm:  # there is nothing but the mean
        torch.testing.assert_close(x_hat[1:3].detach(), x[1:3].detach(), rtol=1e-3, atol=1e-3)
    assert (x_hat[0] == 0).all()


@own_scale
def test_scaled_rows_have_the_size_that_is_said(scale):
    scaled = made(scale).scale.apply_to(rows())
    wanted = {LayerNorm: D - 1, UnitNorm: 1, ConstantNorm: D}[scale]
    torch.testing.assert_close(scaled.square().sum(1), torch.full((B,), float(wanted)).double(), rtol=1e-3, atol=0)
    assert made(scale).scale.norm ** 2 == pytest.approx(wanted, rel=0.1)
    if scale is not ConstantNorm:
        torch.testing.assert_close(scaled.mean(1), torch.zeros(B).double())


@every_scale
def test_codes_carry_what_decoding_needs_through_all_that_is_done_to_them(scale):
    sae, x = made(scale), rows(6)
    codes = sae.encode(x.view(2, 3, D))
    whole = sae(x)
    assert (codes.row_scale is not None) == scale.per_row
    again = codes.with_values(codes.values.clone()).compact().flat().unflatten((3, 2)).to("cpu")
    torch.testing.assert_close(sae.decode(again), whole.view(3, 2, D))
    torch.testing.assert_close(sae.decode(sae.encode(x).rows(torch.tensor([4, 1]))), whole[[4, 1]])
    for row, own in zip(whole, codes, strict=True):
        torch.testing.assert_close(sae.decode(own), row)
    assert ("a scale of its own" in repr(codes)) == scale.per_row
    refined = sae.decode(refine(sae, x, sae.encode(x)))
    assert ((x - refined).square().sum(1) <= (x - whole).square().sum(1) * (1 + 1e-9)).all()


@own_scale
def test_codes_without_the_rows_numbers_are_refused_in_one_line(scale):
    sae = made(scale)
    codes = sae.encode(rows())
    bare = Codes(codes.values, codes.indices, L)
    for wrong in (bare, bare.with_row_scale(torch.ones(B, 1))):
        for use in (sae.decode, sae.data_values):
            with pytest.raises(ValueError, match=rf"^{scale.__name__} .* row_scale \[5, 2\].*codes that encode gave$"):
                use(wrong)


@every_scale
def test_what_codes_add_is_values_times_directions(scale):
    sae, x = made(scale), rows()
    codes = sae.encode(x)
    dense = codes.with_values(sae.data_values(codes)).dense()
    without = sae.decode(codes.with_values(torch.zeros_like(codes.values)))
    torch.testing.assert_close(without + dense @ sae.data_directions(), sae(x))
    if scale.per_row:
        torch.testing.assert_close(sae.data_bias(), sae.dictionary.bias())
    else:
        torch.testing.assert_close(sae.data_bias(), without[0])


@every_scale
def test_saved_it_opens_bit_for_bit(scale, tmp_path):
    sae, x = made(scale), rows()
    sae.save(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "config.json").read_text())
    assert config.get("scale") == (None if scale is DataScale else {"name": scale.__name__})
    again = saelab.load(tmp_path / "sae")
    assert type(again.scale) is scale
    assert again.dtype == torch.float64
    assert torch.equal(again(x), sae(x))
    own = {name for name in again.state_dict() if "scale" in name}
    assert own == ({"scale.mean", "scale.scale"} if scale is DataScale else set())


def test_a_config_without_a_scale_has_the_datas():
    config = made(DataScale).config()
    assert "scale" not in config
    assert type(SAE.from_config(config).scale) is DataScale
    with pytest.raises(ValueError, match="'LayerNrm'; did you mean 'LayerNorm'"):
        SAE.from_config(config | {"scale": {"name": "LayerNrm"}})


@every_scale
def test_folding_is_the_same_map_or_is_refused(scale):
    sae, x = made(scale), rows()
    if scale.per_row:
        with pytest.raises(ValueError, match=rf"^{scale.__name__} scales every row by its own size, which no weights"):
            sae.fold()
        return
    whole = sae(x)
    torch.testing.assert_close(sae.fold()(x), whole)
    assert sae.scale.is_identity


@every_scale
@pytest.mark.parametrize("activation", [TopK(k=4), BatchTopK(k=4), JumpReLU(threshold=0.1)], ids=lambda a: a.sentence())
def test_it_trains(scale, activation):
    """With losses that look at scaled rows, at the latents' bias and at rows in the data's units."""
    losses = [AuxK(dead_after=1), Matryoshka(), EndToEnd()]
    sae = SAE(D, L, activation, losses, scale=scale())
    x = rows(256, seed=3).float()
    sae.initialise(x)
    optimizer, errors = torch.optim.Adam(sae.parameters(), lr=1e-2), []
    seen = []
    for _ in range(20):
        terms, step = counted(sae, x, downstream=lambda x_hat: seen.append(x_hat) or x_hat.mean() * 1e-3)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
        errors.append(terms["reconstruction"].item())
    assert errors[-1] < 0.8 * errors[0]
    torch.testing.assert_close(seen[-1], sae.scale.undo(step.x_hat, sae.scale.numbers(x)))  # in the data's units


@own_scale
def test_a_transcoders_target_has_one_scale(scale):
    sae = SAE(D, L, TopK(k=4), scale=scale(), d_out=3)
    x, target = rows(64).float(), rows(64, 3, seed=1).float()
    sae.initialise(x, target=target)
    assert type(sae.target_scale) is DataScale
    torch.testing.assert_close(sae.target_scale.mean, target.mean(0))
    codes = sae.encode(x)
    assert sae(x).shape == (64, 3)
    torch.testing.assert_close(sae.data_values(codes), codes.values, rtol=0, atol=0)
    bare = Codes(codes.values, codes.indices, L)
    torch.testing.assert_close(sae.decode(bare), sae(x), rtol=0, atol=0)


@own_scale
def test_sites_have_numbers_of_their_own(scale):
    sae, x = made(scale, dictionary=Crosscoder(sites=2)), rows()
    first, second = (BY_HAND[scale](part) for part in x.chunk(2, 1))
    torch.testing.assert_close(sae.scale.apply_to(x), torch.cat([first[0], second[0]], 1))
    codes = sae.encode(x)
    assert codes.row_scale.shape == (B, 4)
    x_hat = sae.dictionary.decode(codes).chunk(2, 1)
    torch.testing.assert_close(sae.decode(codes), torch.cat([first[1](x_hat[0]), second[1](x_hat[1])], 1))
    with pytest.raises(ValueError, match="every site of a row a size of its own"):
        sae.data_values(codes)


@own_scale
def test_low_precision_keeps_the_rows_numbers_in_single(scale):
    sae, x = made(scale), rows()
    low = made(scale).bfloat16()
    codes = low.encode(x)
    assert codes.row_scale.dtype == torch.float32
    assert codes.values.dtype == low(x).dtype == torch.bfloat16
    torch.testing.assert_close(codes.row_scale.double(), sae.encode(x).row_scale, rtol=1e-4, atol=1e-4)


@every_scale
def test_members_of_a_sweep_compute_what_they_would_alone(scale):
    x = rows(64).float()
    saes = [SAE(D, L, TopK(k), scale=scale(), seed=0) for k in (2, 5)]
    for sae in saes:
        sae.initialise(x)
    alone = [sae.forward_train(x).x_hat for sae in saes]
    for together, single in zip(Stack(saes).forward_train(x), alone, strict=True):
        torch.testing.assert_close(together.x_hat, single, rtol=1e-4, atol=1e-5)
        assert (together.codes.row_scale is not None) == scale.per_row


def test_members_of_a_sweep_need_one_scaling():
    with pytest.raises(ValueError, match="need the same scaling"):
        Stack([made(LayerNorm), made(UnitNorm)]).forward_train(rows())


@every_scale
def test_bagging_averages_reconstructions(scale):
    saes, x = [made(scale, seed=seed) for seed in (0, 5)], rows()
    together = Ensemble(saes, "bagging")
    mean = (saes[0](x) + saes[1](x)) / 2
    torch.testing.assert_close(together(x), mean)
    codes = together.encode(x.view(1, B, D))
    torch.testing.assert_close(together.decode(codes), mean[None])
    assert together.scale.per_row == scale.per_row


def test_ensembles_whose_rows_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"in one way .* member 1 has DataScale\(\), member 0 LayerNorm\(\)"):
        Ensemble([made(LayerNorm), made(DataScale)])
    with pytest.raises(ValueError, match=r"boosting .* member 0 has UnitNorm\(\)"):
        Ensemble([made(UnitNorm)], "boosting")


@every_scale
def test_another_activation_reads_with_the_same_scale(scale):
    sae, x = made(scale), rows()
    again = reread(sae, TopK(k=4))
    assert torch.equal(again(x), sae(x))


@pytest.mark.parametrize("scale", [LayerNorm, UnitNorm])
def test_they_differ_by_a_factor_alone(scale):
    factor = math.sqrt(D - 1)
    torch.testing.assert_close(
        made(LayerNorm).scale.apply_to(rows()), made(UnitNorm).scale.apply_to(rows()) * factor, rtol=1e-3, atol=0
    )


def test_a_scale_of_an_sae_is_copied_for_another():
    scale = DataScale()
    first, second = SAE(D, L, TopK(4), scale=scale), SAE(D, L, TopK(4), scale=scale)
    assert first.scale is scale
    assert second.scale is not scale
    with pytest.raises(ValueError, match=r"class; write LayerNorm\(\)"):
        SAE(D, L, TopK(4), scale=LayerNorm)
    assert isinstance(SAE(D, L, TopK(4), dictionary=Dense()).scale, DataScale)


@every_scale
def test_a_target_is_scaled_as_the_row_that_it_is_reconstructed_from(scale):
    """Because that is how the reconstruction is undone."""
    sae, x, target = made(scale), rows(), rows(seed=7)
    step = sae.forward_train(x, target)
    torch.testing.assert_close(step.undone(step.x_hat), sae(x))
    if scale is LayerNorm:
        deviation, mean = torch.std_mean(x, 1, correction=1, keepdim=True)
        torch.testing.assert_close(step.target, (target - mean) / (deviation + 1e-5))
    else:
        torch.testing.assert_close(step.undone(step.target), target)
