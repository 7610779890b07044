"""What every activation says of itself is what it does, and latents taken out of an SAE read as they did in it."""

# Shape letters: B rows, D input width, L latents.

import copy
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sae.counted import counted
from torch import Tensor

import saelab
from saelab.analysis.assembled import independent
from saelab.core.codes import Codes
from saelab.interchange.plain import apart, built
from saelab.sae import SAE
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation, Dictionary, PlainActivation, PreActivations
from saelab.sae.combine import joined, mean_of
from saelab.sae.dictionaries.cross_layer import CrossLayer
from saelab.sae.dictionaries.dense import Dense

B, D, L = 40, 8, 24
SETTINGS = {"k": 4, "l1": 0.5, "threshold": 0.25}

every_activation = pytest.mark.parametrize("variant", Activation.variants().values(), ids=lambda one: one.__name__)
every_dictionary = pytest.mark.parametrize("variant", Dictionary.variants().values(), ids=lambda one: one.__name__)


def rows(seed: int = 5) -> Tensor:
    return 3 * torch.randn(B, D, generator=torch.Generator().manual_seed(seed)) + 1


@cache
def trained(variant: type[Activation], dictionary: type[Dictionary] = Dense) -> SAE:
    settings = {key: value for key, value in SETTINGS.items() if key in variant.options()}
    sae = SAE(D, L, variant(**settings), dictionary=dictionary())
    sae.initialise(rows(1))
    with torch.no_grad():
        for seed in range(3):
            counted(sae, rows(seed))
        for name, part in sae.named_parameters():
            if not name.endswith(("W_dec", "inputs")):  # whose rows have unit norm
                part += 0.1 * torch.rand(part.shape, generator=torch.Generator().manual_seed(3))
    return sae.eval()


def made(variant: type[Activation], dictionary: type[Dictionary] = Dense) -> SAE:
    return copy.deepcopy(trained(variant, dictionary))


def answered(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a function gives, and what it says where it refuses."""
    try:
        return function(*arguments), ""
    except ValueError as error:
        return None, str(error)


def pre_activations(sae: SAE) -> Tensor:
    return sae.dictionary.pre(sae.scale.apply_to(rows())).dense()


@torch.no_grad()
@every_activation
def test_thresholds_are_those_that_codes_are_made_by(variant):
    sae = made(variant)
    codes, pre = sae.encode(rows()).dense(), pre_activations(sae)
    thresholds, refused = answered(sae.thresholds)
    if refused:
        assert refused.startswith(f"latents of {variant.__name__} cannot be separated")
        assert answered(sae.select, torch.arange(3)) == (None, refused)
        return
    if thresholds is None:
        smallest = codes.where(codes > 0, torch.inf).amin(1)
        assert (pre.where(codes == 0, -torch.inf).amax(1) <= smallest).all(), "a row keeps its largest"
        assert (codes > 0).sum(1).eq(4).all()
        with pytest.raises(ValueError, match=f"latents of {variant.__name__} "):
            sae.select(torch.arange(3))
        return
    assert (thresholds.shape, thresholds.dtype) == ((L,), torch.float64)
    torch.testing.assert_close(codes, pre.where(pre > thresholds, 0))
    chosen = torch.tensor([17, 3, 9, 20, 4])
    torch.testing.assert_close(sae.select(chosen).encode(rows()).dense(), codes[:, chosen])


@torch.no_grad()
@every_activation
def test_what_an_activation_is_elsewhere_reads_as_it_does(variant):
    sae = made(variant)
    plain, refused = answered(sae.activation.plain)
    if refused:
        assert refused.startswith(f"{variant.__name__} cannot be exported")
        return
    assert isinstance(plain, PlainActivation)
    assert all(part.shape == (L,) and not part.requires_grad for part in plain.parts.values())
    again = built(apart(sae), Path("here"))
    factor = sae.scale.scale  # folded in, as codes are then in the units of the data
    torch.testing.assert_close(again.encode(rows()).dense(), sae.encode(rows()).dense() * factor, rtol=1e-4, atol=1e-5)


def test_the_known_ones_are_what_they_are():
    """A contract that is met by refusing everything would be met by nothing at all."""
    known = {"ReLU", "JumpReLU", "BatchTopK", "TopK"}
    for name in known:
        assert not answered(made(Activation.variants()[name]).thresholds)[1]
    assert made(TopK).thresholds() is None
    for name in (*known, "AbsTopK", "Gated"):
        assert made(Activation.variants()[name]).activation.plain().kind == name.lower()
    untrained = SAE(D, L, saelab.sae.activations.BatchTopK(3.4))
    assert untrained.thresholds() is None
    assert untrained.activation.plain() == PlainActivation("topk", 3)


@pytest.fixture
def forgotten():
    """Classes that a test makes are components that others find; they are gone after it."""
    yield
    gc.collect()


@torch.no_grad()
def test_an_activation_is_taken_apart_and_written_for_others_from_its_own_class(forgotten):
    class Fixed(Activation):
        """One threshold of .3 that is not trained."""

        def forward(self, pre: PreActivations) -> Codes:
            return Codes.full(pre.dense().where(pre.dense() > 0.3, 0))

        def thresholds(self) -> Tensor:
            return torch.tensor(0.3).double()

        def plain(self) -> PlainActivation:
            return PlainActivation("jumprelu", parts={"threshold": torch.full((L,), 0.3)})

    sae = SAE(D, L, Fixed())
    sae.initialise(rows(1))
    assert 0 < sae.encode(rows()).l0().float().mean() < L
    sae.scale.reset()
    torch.testing.assert_close(built(apart(sae), Path("here"))(rows()), sae(rows()))
    torch.testing.assert_close(independent(sae)(rows()), sae(rows()))


def test_a_parents_answers_do_not_hold_for_a_class_that_reads_otherwise(forgotten):
    class Halved(ReLU):
        def forward(self, pre: PreActivations) -> Codes:
            codes = super().forward(pre)
            return codes.with_values(codes.values / 2)

    activation = Halved()
    for answer in (activation.thresholds, activation.plain):
        with pytest.raises(ValueError, match=r"Halved cannot be (separated|exported)"):
            answer()


def test_a_parents_answers_hold_for_a_class_that_reads_as_it_does(forgotten):
    class Renamed(ReLU):
        pass

    assert Renamed().plain() == PlainActivation("relu")


@torch.no_grad()
@every_dictionary
def test_latents_of_any_dictionary_read_and_write_as_they_did_or_are_refused(variant):
    sae, chosen = made(JumpReLU, variant), torch.tensor([17, 3, 9, 20, 4, 0])
    sae.firing.since.copy_(torch.arange(L))
    part, refused = answered(sae.select, chosen)
    assert bool(refused) == (variant is CrossLayer)
    if refused:
        assert refused == "latents of the dictionary CrossLayer cannot be separated"
        return
    torch.testing.assert_close(part.encode(rows()).dense(), sae.encode(rows()).dense()[:, chosen])
    torch.testing.assert_close(part.data_directions(), sae.data_directions()[chosen])
    assert part.firing.since.tolist() == chosen.tolist()
    mask = torch.zeros(L, dtype=torch.bool)
    mask[chosen] = True
    assert sae.select(mask).firing.since.tolist() == sorted(chosen.tolist())


def test_what_cannot_be_selected_is_said():
    sae = made(ReLU)
    with pytest.raises(ValueError, match="at least one latent"):
        sae.select(torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="BatchTopK: k must be"):
        made(saelab.sae.activations.BatchTopK).select(torch.arange(3))


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"tied": True}, {"encoder_bias": False}, {"decoder_bias": False}], ids=str)
def test_another_bias_leaves_codes_as_they_are(settings):
    sae = SAE(D, L, JumpReLU(threshold=0.2), dictionary=Dense(**settings)).double()
    sae.initialise(rows(1).double())
    codes, bias = sae.encode(rows()).dense(), torch.linspace(-1, 1, D).double()
    moved = sae.decode(sae.encode(rows())) + sae.target_scale.scale * (bias - sae.dictionary.bias())
    sae.dictionary.set_bias(bias)
    torch.testing.assert_close(sae.encode(rows()).dense(), codes)
    torch.testing.assert_close(sae(rows()), moved)
    free = sae.dictionary.untied()
    sae.dictionary = free
    torch.testing.assert_close(sae(rows()), moved)
    assert {"W_enc", "W_dec", "b_enc", "b_dec"} == {name for name, _ in free.named_parameters()}


@torch.no_grad()
def test_joined_latents_are_those_of_all_and_means_are_of_each():
    one, other = made(JumpReLU), made(JumpReLU)
    for name, part in other.named_parameters():
        if name.startswith(("dictionary.W", "dictionary.b_enc", "activation")):
            part += 0.2
    one.firing.rows.fill_(70)
    other.firing.rows.fill_(50)
    both = joined([one, other.select(torch.tensor([2, 5]))])
    expected = torch.cat([one.encode(rows()).dense(), other.encode(rows()).dense()[:, [2, 5]]], 1)
    torch.testing.assert_close(both.encode(rows()).dense(), expected)
    assert both.firing.rows == 50
    mean = mean_of(one, other).state_dict()
    for name, part in one.state_dict().items():
        if name.startswith(("dictionary.W", "dictionary.b_enc", "activation")):
            torch.testing.assert_close(mean[name], part + 0.1)
        else:
            assert torch.equal(mean[name], part), name
    other.dictionary.set_bias(torch.ones(D))
    with pytest.raises(ValueError, match="one bias"):
        joined([one, other])
    with pytest.raises(ValueError, match="one has 24, the other 2"):
        mean_of(one, one.select(torch.arange(2)))
    with pytest.raises(ValueError, match="the same settings can be joined: activation"):
        joined([one, made(TopK)])
