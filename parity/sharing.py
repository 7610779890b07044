"""What the comparisons share: one set of weights in two SAEs, and what it means that they agree.

A `Link` names a parameter of ours and the peer's parameter for the same thing. Two tensors agree when they differ by at
most 1e-5 of the largest entry of the peer's. Our losses are means over rows and entries divided by `sae.variance`; each
test multiplies them by the constants that turn them into the peer's unit.
"""

# Shape letters: B rows, D input width, L latents.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from saelab.sae import SAE
from saelab.sae.base import Forward

TOLERANCE = 1e-5
WORST: dict[str, float] = {}
"""The largest difference that was found of each thing compared, as a share of its largest entry."""

B, D, L = 16, 12, 96
VARIANCE = 1.7
"""Our unit of losses; anything but 1, so that a forgotten conversion shows."""


@dataclass(frozen=True)
class Link:
    """One parameter on both sides.

    Attributes:
        ours: its name in our SAE.
        theirs: its name in the peer's module.
        flipped: whether the peer keeps it transposed.
        log: whether ours is the logarithm of theirs.
    """

    ours: str
    theirs: str
    flipped: bool = False
    log: bool = False

    def to_ours(self, tensor: Tensor) -> Tensor:
        """The peer's value in our form."""
        tensor = tensor.T if self.flipped else tensor
        return tensor.log() if self.log else tensor

    def to_theirs(self, tensor: Tensor) -> Tensor:
        """Our value in the peer's form."""
        tensor = tensor.exp() if self.log else tensor
        return tensor.T if self.flipped else tensor

    def gradient(self, tensor: Tensor, value: Tensor) -> Tensor:
        """The peer's gradient at the peer's value in our form: d/d log t = t d/dt."""
        tensor = tensor.T if self.flipped else tensor
        return tensor * value if self.log else tensor


def in_float32(module: nn.Module) -> nn.Module:
    """One that is kept in bfloat16 with the same weights in float32, so that no rounding of sums is compared."""
    return module.to(torch.float32) if next(module.parameters()).dtype == torch.bfloat16 else module


def needs_arithmetic(dtype: torch.dtype) -> None:
    """Skip what changes weights between two files, which both libraries round to bfloat16 in their own way."""
    if dtype == torch.bfloat16:
        pytest.skip("weights are changed, and rounded to bfloat16")


@torch.no_grad()
def give(sae: SAE, peer: nn.Module, links: Sequence[Link]) -> None:
    """Copy our weights into the peer."""
    ours, theirs = dict(sae.named_parameters()), dict(peer.named_parameters())
    assert ours.keys() == {link.ours for link in links}, "every parameter of ours has to be compared"
    assert theirs.keys() == {link.theirs for link in links}, "every parameter of theirs has to be compared"
    for link in links:
        theirs[link.theirs].copy_(link.to_theirs(ours[link.ours]))


@torch.no_grad()
def take(sae: SAE, peer: nn.Module, links: Sequence[Link]) -> None:
    """Copy the peer's weights into ours."""
    ours, theirs = dict(sae.named_parameters()), dict(peer.named_parameters())
    for link in links:
        ours[link.ours].copy_(link.to_ours(theirs[link.theirs]))


@torch.no_grad()
def shuffle(sae: SAE, dtype: torch.dtype, unit: bool = False) -> SAE:
    """Our SAE in a precision with weights that are nowhere special; `unit` asks for directions of unit norm."""
    sae.to(dtype)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sae.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name == "activation.log_threshold":
            parameter.copy_(parameter.double() + 0.2 * noise)
        else:
            parameter.copy_(0.3 * noise)
    weight = sae.dictionary.directions()
    size = 1.0 if unit else torch.rand(len(weight), 1, generator=generator, dtype=torch.float64) + 0.5
    weight.copy_(weight.double() / weight.double().norm(dim=1, keepdim=True) * size)
    sae.variance.fill_(VARIANCE)
    return sae


def rows(dtype: torch.dtype, norm: float | None = None, seed: int = 1, n: int = B, width: int = D) -> Tensor:
    """Random rows [n, width], all of one norm where it is given."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.linspace(0.5, 2.0, width, dtype=torch.float64) + 0.4
    return (x if norm is None else x / x.norm(dim=1, keepdim=True) * norm).to(dtype)


def same(ours: Tensor, theirs: Tensor, what: str) -> None:
    """The two agree, and are not zero."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    assert ours.shape == theirs.shape, f"{what}: shapes {list(ours.shape)} and {list(theirs.shape)}"
    size = theirs.abs().max()
    assert size > 0, f"{what}: there is nothing to compare"
    worst = ((ours - theirs).abs().max() / size).item()
    WORST[what] = max(WORST.get(what, 0.0), worst)
    assert worst <= TOLERANCE, f"{what}: differs by {worst:.3g} of the largest entry, {size.item():.3g}"


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """A loss's gradient for every parameter; zero for those that it does not reach."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {name: torch.zeros_like(value) if grad is None else grad for (name, value), grad in pairs}


def same_losses(
    pair: tuple[SAE, nn.Module],
    links: Sequence[Link],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    more: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Each loss and each of its gradients agree.

    Args:
        pair: our SAE and the peer's module.
        links: of all parameters.
        ours: our losses in the peer's unit, by a name of the test's choice.
        theirs: the peer's, by the same names.
        more: gradients that ours has and the peer's by its definition has not, by loss and name of our parameter.
    """
    assert ours.keys() == theirs.keys()
    sae, peer = pair
    values = dict(peer.named_parameters())
    for name, loss in theirs.items():
        same(ours[name], loss, name)
        mine, wanted = gradients(ours[name], sae), gradients(loss, peer)
        assert any(grad.any() for grad in wanted.values()), f"{name} has no gradient at all"
        for link in links:
            expected = link.gradient(wanted[link.theirs], values[link.theirs])
            grad = mine[link.ours]
            if more and link.ours in more.get(name, {}):
                grad = grad - more[name][link.ours]
            if grad.any() or expected.any():
                same(grad, expected, f"gradient of {name} for {link.ours}")


def counted(sae: SAE, x: Tensor, target: Tensor | None = None) -> tuple[dict[str, Tensor], Forward]:
    """Our terms and pass on a batch whose firing counts, as in a trainer's step."""
    step = sae.forward_train(x, target)
    sae.observe(step)
    return sae.terms(step), step


def set_dead(sae: SAE, after: int, dead: Tensor | None = None) -> None:
    """Make all latents, or those of a mask [L], silent for exactly so many rows that one more batch of B makes them
    dead, unless they are active in it."""
    sae.firing.since.fill_(after - B)
    if dead is not None:
        sae.firing.since[~dead] = 0


@torch.no_grad()
def auxk_to_bias(step: Forward, k_aux: int) -> Tensor:
    """The gradient [D] that our unweighted AuxK sends to b_dec through the decoder.

    Ours adds the bias to the target, without a gradient, and to the reconstruction of it, with one: the value is what
    it is without, and the bias learns from it. The peers leave it out of both.
    """
    sae = step.sae
    error = step.target - step.x_hat
    dead = sae.firing.dead(sae.losses[0].dead_after)
    values, indices = step.pre.dense().where(dead, -torch.inf).topk(min(k_aux, int(dead.sum())))
    f = torch.zeros_like(step.pre.dense()).scatter(1, indices, values.relu())
    rest = f @ sae.dictionary.directions() - error
    return 2 * rest.sum(0) / (error - error.mean(0)).square().sum()


def error_variance(step: Forward) -> Tensor:
    """What our AuxK divides by: the residual's mean squared deviation from its batch mean, a scalar."""
    error = (step.target - step.x_hat).detach()
    return (error - error.mean(0)).square().mean()
