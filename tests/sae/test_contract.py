"""What every component must do, tested over every one that is found: a new file is tested without being named here.

Each activation meets each dictionary with every loss switched on, on a batch so small that much of it is dead.
"""

# Shape letters: B rows, D input width, L latents.

import copy
import json
from functools import cache

import pytest
import torch
from sae.counted import counted
from torch import Tensor

import saelab
from saelab.core.codes import Codes
from saelab.core.components import Component
from saelab.sae import SAE
from saelab.sae.base import Activation, Dictionary, Forward, Loss

B, D, L = 3, 12, 96
LOUD = {"k": 4, "l1": 0.5, "dead_after": 1, "bandwidth": 2.0, "threshold": 0.25}
"""Settings, by their names, that make a component act on a batch of this size; the others keep their defaults."""

LOSSES = list(Loss.variants().values())
ALL = [(kind, variant) for kind in (Activation, Dictionary, Loss) for variant in kind.variants().values()]


def loud(variant: type[Component]) -> Component:
    return variant(**{key: value for key, value in LOUD.items() if key in variant.options()})


def name(variant: type[Component]) -> str:
    return variant.__name__


every_component = pytest.mark.parametrize(("kind", "variant"), ALL, ids=[name(variant) for _, variant in ALL])


def rows(seed: int = 0, n: int = B) -> Tensor:
    """Rows with a mean and a scale of their own."""
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1


def objective(sae: SAE, x: Tensor) -> tuple[dict[str, Tensor], Forward]:
    """The objective on rows that bring all that a live model can bring."""
    gradient = rows(seed=9, n=len(x)).to(sae.device, sae.dtype)
    return counted(sae, x, gradient=gradient, downstream=lambda x_hat: x_hat.square().mean())


@pytest.fixture(params=Activation.variants().values(), ids=name)
def activation(request: pytest.FixtureRequest) -> type[Activation]:
    return request.param


@pytest.fixture(params=Dictionary.variants().values(), ids=name)
def dictionary(request: pytest.FixtureRequest) -> type[Dictionary]:
    return request.param


def made(activation: type[Activation], dictionary: type[Dictionary], seed: int = 0) -> SAE:
    """An SAE of this activation and dictionary with every loss, initialised, and everything long dead."""
    sae = SAE(D, L, loud(activation), [loud(loss) for loss in LOSSES], loud(dictionary), seed=seed)
    sae.initialise(rows(seed=1, n=64))
    sae.firing.since.fill_(1 << 40)
    return sae


def trained(sae: SAE, steps: int = 3) -> SAE:
    optimizer = torch.optim.SGD(sae.parameters(), lr=1e-2)
    for step in range(steps):
        terms, _ = objective(sae, rows(seed=step))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
    return sae


@cache
def made_once(activation: type[Activation], dictionary: type[Dictionary]) -> SAE:
    return made(activation, dictionary)


@cache
def trained_once(activation: type[Activation], dictionary: type[Dictionary]) -> SAE:
    return trained(made(activation, dictionary))


@pytest.fixture
def fresh(activation, dictionary) -> SAE:
    """A copy of the SAE as it is made, for each test."""
    return copy.deepcopy(made_once(activation, dictionary))


@pytest.fixture
def learnt(activation, dictionary) -> SAE:
    """A copy of the SAE after three steps, for each test."""
    return copy.deepcopy(trained_once(activation, dictionary))


def test_codes_and_reconstructions_have_their_shapes(fresh):
    sae, x = fresh, rows()
    for codes in (sae.encode(x), torch.no_grad()(sae.encode)(x)):
        assert isinstance(codes, Codes)
        assert codes.n_latents == L
        assert codes.dense().shape == (B, L)
        assert torch.isfinite(codes.values).all()
        assert codes.l0().sum() > 0
        assert sae.decode(codes).shape == (B, D)
    assert sae(x).shape == (B, D)
    assert torch.isfinite(sae(x)).all()


def test_no_rows_are_no_trouble(fresh):
    sae = fresh
    assert len(sae.encode(rows()[:0])) == 0
    assert sae(rows()[:0]).shape == (0, D)


def test_codes_are_the_same_with_gradients_on_and_off(learnt):
    sae, x = learnt, rows(seed=5)
    on = sae.encode(x)
    with torch.no_grad():
        off = sae.encode(x)
    assert torch.equal(on.values, off.values)
    assert torch.equal(on.indices, off.indices)
    assert not on.is_full
    assert not off.is_full
    assert torch.equal(sae(x), sae.decode(off))


def test_codes_have_the_leading_dimensions_of_their_rows(learnt):
    sae, x = learnt, rows(seed=5, n=6)
    codes, flat = sae.encode(x.view(2, 3, D)), sae.encode(x)
    assert torch.equal(codes.values, flat.values.view(2, 3, -1))
    assert torch.equal(codes.indices, flat.indices.view(2, 3, -1))
    assert torch.equal(sae.decode(codes), sae.decode(flat).view(2, 3, D))
    assert torch.equal(sae.encode(x[0]).dense(), sae.encode(x[:1]).dense()[0])


def test_the_gradient_of_reading_is_that_of_the_codes_as_a_function(learnt):
    sae = learnt.double()
    x, along = rows(seed=5).double(), [rows(seed=6).double()]
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(B, L, generator=generator, dtype=torch.float64)
    weights = [weight for name, weight in sae.named_parameters() if name.startswith("dictionary.")]
    along += [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in weights]

    def moved(size: float) -> float:
        with torch.no_grad():
            for part, step in zip(weights, along[1:], strict=True):
                part += size * step
            value = (weight * sae.encode(x + size * along[0]).dense()).sum()
            for part, step in zip(weights, along[1:], strict=True):
                part -= size * step
        return value.item()

    read = x.clone().requires_grad_()
    value = (weight * sae.encode(read).dense()).sum()
    # Codes on a jump, as those of a binary latent, need not follow the weights at all.
    grads = torch.autograd.grad(value, [read, *weights], allow_unused=True) if value.requires_grad else []
    found = sum((grad * step).sum().item() for grad, step in zip(grads, along, strict=False) if grad is not None)
    expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7 * value.abs().item())


def test_only_what_is_observed_counts(learnt):
    sae, x = learnt, rows(seed=5)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    sae(x)
    terms, step = sae.objective(x, gradient=rows(seed=9), downstream=lambda x_hat: x_hat.square().mean())
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())
    sae.observe(step)
    assert sae.firing.rows == before["firing.rows"] + B
    assert (sae.firing.since[step.codes.counts() > 0] == 0).all()


def test_what_is_estimated_while_training_is_set_exactly_by_calibration(learnt):
    sae, x = learnt, rows(seed=5, n=40)
    before = {key: value.clone() for key, value in sae.activation.state_dict().items()}
    sae.calibrate(x)
    calibrated = sae.encode(x)
    sae.observe(sae.forward_train(100 * x))
    estimates = any(not torch.equal(value, before[key]) for key, value in sae.activation.state_dict().items())
    assert estimates == bool(sae.activation.calibration_rows)
    sae.calibrate(x)
    assert torch.equal(sae.encode(x).dense(), calibrated.dense())  # nothing of what was observed is left


def test_the_objectives_terms_are_finite_scalars(fresh):
    terms, step = objective(fresh, rows())
    assert {"reconstruction", *map(name, LOSSES)} <= set(terms)
    assert all(term.shape == () and torch.isfinite(term) for term in terms.values())
    assert step.x_hat.shape == (B, D)


def test_every_loss_speaks_up(fresh):
    terms, _ = objective(fresh, rows())
    assert all(terms[name(loss)] != 0 for loss in LOSSES)


def test_every_parameter_is_reached(fresh):
    sae = fresh
    terms, _ = objective(sae, rows())
    torch.stack(list(terms.values())).sum().backward()
    for key, parameter in sae.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert (parameter.grad != 0).any(), key


def test_parameters_are_contiguous(activation, dictionary):
    # PyTorch's fused Adam writes to the wrong entries of a parameter whose strides are not those of its gradient.
    assert all(parameter.is_contiguous() for parameter in made(activation, dictionary).parameters())


def test_hooks_keep_everything_finite(learnt):
    sae = learnt
    assert all(torch.isfinite(value).all() for value in sae.state_dict().values())


def test_the_dictionary_says_its_directions_and_its_bias(fresh):
    sae = fresh
    assert sae.dictionary.directions().shape == (L, D)
    nothing = Codes(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), L)
    torch.testing.assert_close(sae.dictionary.decode(nothing)[0], sae.dictionary.bias())


def test_a_codes_value_weighs_its_direction(fresh):
    sae = fresh
    one = Codes(torch.tensor([[2.0]]), torch.tensor([[5]]), L)
    found = sae.dictionary.decode(one)[0] - sae.dictionary.bias()
    torch.testing.assert_close(found, 2 * sae.dictionary.directions()[5])


def test_the_seed_decides_the_start(activation, dictionary):
    first, again, other = (made(activation, dictionary, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_two_runs_are_equal_bit_for_bit(activation, dictionary, learnt):
    first, again = learnt.state_dict(), trained(made(activation, dictionary)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_config_rebuilds_the_sae(fresh):
    config = json.loads(json.dumps(fresh.config()))
    assert SAE.from_config(config).config() == config


def test_a_saved_sae_comes_back_bit_for_bit(learnt, tmp_path):
    sae, x = learnt, rows(seed=5)
    sae.save(tmp_path / "sae")
    again = saelab.load(tmp_path / "sae")
    assert again.config() == sae.config()
    assert repr(again) == repr(sae)
    for key, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(again(x), sae(x))


def test_folding_keeps_reconstructions(learnt):
    sae, x = learnt, rows(seed=5)
    with torch.no_grad():
        before, codes, scale = sae(x), sae.encode(x).dense(), sae.scale.scale.clone()
        factor = scale.square().mean().sqrt()
        sae.fold()
        assert (scale > 1).all()
        assert torch.equal(sae.scale.mean, torch.zeros(D))
        assert (sae.scale.scale == 1).all()
        torch.testing.assert_close(sae(x), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
        torch.testing.assert_close(sae.encode(x).dense(), codes * factor, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.fold()(x), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())


def test_a_folded_sae_can_be_saved(fresh, tmp_path):
    sae, x = fresh.fold(), rows(seed=5)
    sae.save(tmp_path / "sae")
    with torch.no_grad():
        assert torch.equal(saelab.load(tmp_path / "sae")(x), sae(x))


def test_everything_runs_in_double_precision(fresh):
    sae = fresh.double()
    terms, step = objective(sae, rows())
    assert all(term.dtype == torch.float64 for term in terms.values())
    assert step.codes.values.dtype == step.x_hat.dtype == torch.float64


def test_bf16_autocast_is_near(fresh):
    sae, x = fresh, rows()
    with torch.no_grad():
        expected = sae(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = sae(x)
    assert ((found - expected).norm(dim=1) < 0.1 * expected.norm(dim=1)).float().mean() > 0.5
    assert torch.isfinite(found).all()


@every_component
def test_a_component_keeps_its_constructors_arguments(kind, variant):
    component = loud(variant)
    config = json.loads(json.dumps(component.config()))
    assert config["name"] == variant.__name__
    assert kind.named(config["name"]) is variant
    assert kind.build(config).config() == config


@every_component
def test_a_component_documents_every_setting(kind, variant):
    assert variant.__doc__
    for option in variant.options():
        assert f"\n        {option}: " in variant.__doc__, f"{variant.__name__} does not say what {option} is"


@every_component
def test_a_component_lives_in_the_folder_of_its_kind(kind, variant):
    assert variant.__module__.startswith(tuple(f"{home}." for home in kind.homes()))
