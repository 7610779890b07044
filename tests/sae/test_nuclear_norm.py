"""NuclearNorm against torch's singular values and their gradient in float64, closed forms and rank deficiency."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.block_topk import BlockTopK
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.nuclear_norm import NuclearNorm, nuclear_norms

D, L = 7, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 12])
def test_value_and_gradient_are_those_of_the_singular_values(rank):
    """Also where a group has more directions than the space dimensions, so that some singular values are zero."""
    sae = SAE(D, L, TopK(3), [NuclearNorm(rank, weight=0.3)]).double()
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(random(L, D))
    terms, _ = sae.objective(random(5, D))
    terms["NuclearNorm"].backward()
    groups = sae.dictionary.W_dec.detach().view(L // rank, rank, D)
    left, values, right = torch.linalg.svd(groups, full_matrices=False)
    torch.testing.assert_close(terms["NuclearNorm"], 0.3 * values.sum() * rank / L, rtol=1e-10, atol=0)
    expected = 0.3 * (left @ right).view(L, D) * rank / L
    torch.testing.assert_close(sae.dictionary.W_dec.grad, expected, rtol=1e-8, atol=1e-10)
    by_torch = groups.clone().requires_grad_()
    (0.3 * torch.linalg.matrix_norm(by_torch, ord="nuc").mean()).backward()
    torch.testing.assert_close(sae.dictionary.W_dec.grad, by_torch.grad.view(L, D), rtol=1e-8, atol=1e-10)


def test_orthonormal_groups_cost_their_rank_and_parallel_ones_its_root():
    orthonormal = torch.linalg.qr(random(D, 4))[0].T
    parallel = orthonormal[:1].expand(4, D) * torch.tensor([[1.0], [-1.0], [1.0], [1.0]]).double()
    planar = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, -1]]).double() @ orthonormal[:2]  # singular values 2^.5, 2^.5
    found = nuclear_norms(torch.stack([orthonormal, parallel, planar]))
    torch.testing.assert_close(found, torch.tensor([4.0, 2.0, 2 * 2**0.5], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_deficient_group_is_the_least_subgradient(dtype):
    """Of all parallel directions: u v^T and nothing in any other direction; of zeros: zero."""
    direction = random(1, D)
    direction /= direction.norm()
    parallel = torch.stack([direction.expand(4, D), torch.zeros(4, D)]).to(dtype).requires_grad_()
    nuclear_norms(parallel).sum().backward()
    expected = torch.stack([direction.expand(4, D) / 2, torch.zeros(4, D)]).to(dtype)
    torch.testing.assert_close(parallel.grad, expected)


def test_equal_singular_values_have_a_finite_gradient():
    identity = torch.eye(4, D).double()[None].requires_grad_()
    nuclear_norms(identity).sum().backward()
    torch.testing.assert_close(identity.grad, identity.detach())


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_it_scales_with_the_directions(scale):
    groups = random(3, 4, D).float()
    torch.testing.assert_close(nuclear_norms(scale * groups), scale * nuclear_norms(groups), rtol=1e-4, atol=0)


def test_single_precision_is_near_where_a_group_nearly_lacks_a_dimension():
    groups = random(6, 4, D)
    groups[:, 3] = groups[:, 2] + 5e-2 * groups[:, 3]
    groups /= groups.norm(dim=2, keepdim=True)
    single, double = groups.float().requires_grad_(), groups.clone().requires_grad_()
    for each in (single, double):
        nuclear_norms(each).sum().backward()
    torch.testing.assert_close(nuclear_norms(single).double(), nuclear_norms(double), rtol=1e-4, atol=0)
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=0, atol=0.02)


def test_autocast_does_not_reach_it():
    groups = random(3, 4, D).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = nuclear_norms(groups)
    assert torch.equal(found, nuclear_norms(groups))


def test_descending_it_lowers_the_rank():
    """Planted: a plane with a little noise across; the noise goes, the plane stays."""
    plane = random(4, 2) @ torch.linalg.qr(random(D, 2, seed=1))[0].T
    group = (plane + 0.05 * random(4, D, seed=2))[None].requires_grad_()
    before = torch.linalg.svdvals(group.detach())[0]
    for _ in range(12):
        (grad,) = torch.autograd.grad(nuclear_norms(group).sum(), group)
        group = (group - 0.02 * grad).detach().requires_grad_()
    after = torch.linalg.svdvals(group.detach())[0]
    assert before[2] > 0.05
    assert (after[2:] < 0.021).all()  # within a step of zero
    torch.testing.assert_close(after[:2], before[:2] - 12 * 0.02, rtol=0, atol=0.005)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must divide the number of latents, 24; got rank=0"),
        ({"rank": 5}, "rank must divide the number of latents, 24; got rank=5"),
        ({"weight": -1.0}, "weight must not be negative, infinite or NaN, got -1.0"),
        ({"weight": float("inf")}, "weight"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=f"NuclearNorm: {message}"):
        SAE(D, L, TopK(3), [NuclearNorm(**settings)])


def test_groups_of_another_rank_than_the_activations_are_refused():
    sae = SAE(D, L, BlockTopK(k=2, rank=3), [NuclearNorm(rank=4)])
    with pytest.raises(ValueError, match="BlockTopK, 3; got rank=4"):
        sae.objective(random(5, D).float())
