"""SAEs that compute together say, and learn, what each would alone: every activation, every term, every gradient."""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from sae.counted import counted
from torch import Tensor

from saelab.core.components import Component
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation, Forward, Loss
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.auxk import AuxK
from saelab.sae.losses.multi_topk import MultiTopK
from saelab.sae.stack import Stack

B, D, L = 32, 12, 96
LOUD = {"k": 4, "l1": 0.5}


def rows(seed: int = 0) -> Tensor:
    return 3 * torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def settled(sae: SAE) -> SAE:
    """In float64, fitted to rows, with half of the latents long dead."""
    sae.double().initialise(rows(seed=1))
    sae.firing.since[::2] = 1 << 40
    with torch.no_grad():
        sae.dictionary.b_dec += 0.1
    return sae


def alone(sae: SAE, x: Tensor) -> dict[str, Tensor]:
    terms, _ = counted(sae, x)
    torch.stack(list(terms.values())).sum().backward()
    return terms


def objectives(stack: Stack, x: Tensor) -> list[tuple[dict[str, Tensor], Forward]]:
    """Every member's terms and pass, counted."""
    steps = stack.forward_train(x)
    for step in steps:
        step.sae.observe(step)
    return [(step.sae.terms(step), step) for step in steps]


def assert_same(saes: list[SAE], twins: list[SAE]) -> None:
    """One set of SAEs learns together, the other one by one, from the same rows."""
    x, together = rows(), objectives(Stack(saes), rows())
    torch.stack([term for terms, _ in together for term in terms.values()]).sum().backward()
    for sae, twin, (terms, step) in zip(saes, twins, together, strict=True):
        expected = alone(twin, x)
        assert terms.keys() == expected.keys()
        for name, term in terms.items():
            torch.testing.assert_close(term, expected[name], rtol=1e-9, atol=1e-12)
        assert torch.equal(sae.firing.since, twin.firing.since)
        assert torch.equal(step.codes.dense() != 0, twin.objective(x)[1].codes.dense() != 0)
        for (name, own), (_, other) in zip(sae.named_parameters(), twin.named_parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-7, atol=1e-12, msg=name)


@pytest.mark.parametrize("variant", Activation.variants().values(), ids=lambda variant: variant.__name__)
def test_every_activation_learns_together_as_alone(variant: type[Component]):
    def members() -> list[SAE]:
        loud = {key: value for key, value in LOUD.items() if key in variant.options()}
        return [settled(SAE(D, L, variant(**loud), [AuxK(dead_after=1000)], seed=seed)) for seed in range(3)]

    assert_same(members(), members())


@pytest.mark.parametrize("wide", [False, True])
def test_settings_may_differ(wide):
    def members() -> list[SAE]:
        losses: list[list[Loss]] = [[AuxK(dead_after=1000, weight=0.1), MultiTopK(8 + k)] for k in (1, 3, 6)]
        n_latents = 16 * L if wide else L  # sparse decoding, and dense
        return [settled(SAE(D, n_latents, TopK(k), loss, seed=k)) for k, loss in zip((1, 3, 6), losses, strict=True)]

    assert_same(members(), members())


def test_members_are_ordinary_saes_over_common_storage(tmp_path):
    saes = [settled(SAE(D, L, TopK(2), seed=seed)) for seed in range(2)]
    before = [sae(rows()) for sae in saes]
    stack = Stack(saes)
    for sae, expected in zip(stack.saes, before, strict=True):
        assert torch.equal(sae(rows()), expected)
    with torch.no_grad():
        saes[1].dictionary.W_dec.mul_(2)
    _, step = stack.forward_train(rows())
    torch.testing.assert_close(step.x_hat, saes[1].objective(rows())[1].x_hat)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "at least one"),
        ([lambda: SAE(D, L, TopK(4)), lambda: SAE(D, L + 1, TopK(4))], "same d_in and n_latents"),
        ([lambda: SAE(D, L, TopK(4)), lambda: SAE(D, L, ReLU())], "same kind of activation: ReLU is not TopK"),
        ([lambda: SAE(D, L, TopK(4)), lambda: SAE(D, L, TopK(4), [AuxK()])], "same kinds of losses"),
        ([lambda: SAE(D, L, TopK(4), dictionary=Dense(tied=True))], "only untied Dense"),
        ([lambda: SAE(D, L, TopK(4), d_out=D)], "only untied Dense"),
    ],
)
def test_members_of_another_shape_or_kind_are_refused(others, message):
    with pytest.raises(ValueError, match=message):
        Stack([make() for make in others])


def test_members_need_the_same_scaling():
    saes = [settled(SAE(D, L, TopK(2), seed=seed)) for seed in range(2)]
    saes[1].scale.scale *= 2
    with pytest.raises(ValueError, match="same scaling"):
        Stack(saes).forward_train(rows())
