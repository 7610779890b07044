"""Orthogonality: the penalty against loops over all pairs, in float64."""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from sae.counted import counted
from torch import Tensor

from saelab.core.mesh import ALONE, Mesh
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Forward
from saelab.sae.losses.orthogonality import Orthogonality, all_directions

D, L = 5, 24


def rows() -> Tensor:
    return torch.randn(7, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(loss: Orthogonality, n_latents: int = L, seed: int = 0) -> SAE:
    return SAE(D, n_latents, TopK(1), [loss], seed=seed).double()


def by_hand(directions: Tensor, chunks: list[list[int]]) -> Tensor:
    total = torch.zeros((), dtype=directions.dtype)
    for chunk in chunks:
        for i in chunk:
            squares = [torch.cosine_similarity(directions[i], directions[j], dim=0) ** 2 for j in chunk if j != i]
            if squares:
                total = total + max(squares)
    return total / len(directions)


@pytest.mark.parametrize(("chunk", "n_latents"), [(6, L), (7, L), (2, 5), (1000, L), (1000, 1)])
def test_value_and_gradient_are_those_of_all_pairs_in_a_chunk(chunk, n_latents):
    sae = made(Orthogonality(chunk, weight=0.7), n_latents)
    with torch.no_grad():  # nowhere special, and not of unit norm
        sae.dictionary.W_dec += 0.5 * torch.randn(n_latents, D, generator=torch.Generator().manual_seed(1))
    terms, step = sae.objective(rows())
    chunks = [part.tolist() for part in sae.losses[0].chunks(step, n_latents)]
    directions = sae.dictionary.W_dec.detach().clone().requires_grad_()
    expected = 0.7 * by_hand(directions, chunks)
    torch.testing.assert_close(terms["Orthogonality"], expected, rtol=1e-12, atol=0)
    terms["Orthogonality"].backward()
    if n_latents == 1:
        assert expected == 0
        assert torch.equal(sae.dictionary.W_dec.grad, torch.zeros(1, D))
        return
    expected.backward()
    torch.testing.assert_close(sae.dictionary.W_dec.grad, directions.grad, rtol=1e-9, atol=1e-14)
    assert (directions.grad != 0).any(1).all() == (n_latents != 5)  # of 5 one is alone


def test_the_opposite_direction_is_a_twin():
    sae = made(Orthogonality(weight=1))
    with torch.no_grad():
        sae.dictionary.W_dec[1::2] = -sae.dictionary.W_dec[::2]
    torch.testing.assert_close(sae.objective(rows())[0]["Orthogonality"], torch.tensor(1.0, dtype=torch.float64))


def test_orthogonal_directions_cost_nothing():
    sae = made(Orthogonality(), n_latents=D)
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.eye(D))
    sae.objective(rows())[0]["Orthogonality"].backward()
    assert torch.equal(sae.dictionary.W_dec.grad, torch.zeros(D, D))


def test_a_direction_of_zero_has_a_finite_gradient():
    sae = made(Orthogonality())
    with torch.no_grad():
        sae.dictionary.W_dec[3] = 0
    sae.objective(rows())[0]["Orthogonality"].backward()
    assert torch.isfinite(sae.dictionary.W_dec.grad).all()


def partition(sae: SAE) -> list[list[int]]:
    return [part.tolist() for part in sae.losses[0].chunks(counted(sae, rows())[1], sae.n_latents)]


@pytest.mark.parametrize(("chunk", "sizes"), [(6, [6] * 4), (7, [6] * 4), (10, [8] * 3), (24, [24]), (1 << 20, [24])])
def test_chunks_are_a_partition_in_nearly_equal_parts(chunk, sizes):
    parts = partition(made(Orthogonality(chunk)))
    assert [len(part) for part in parts] == sizes
    assert sorted(latent for part in parts for latent in part) == list(range(L))


def test_the_partition_is_new_in_every_step_and_the_same_after_a_restart():
    sae = made(Orthogonality(6))
    first, second, third = (partition(sae) for _ in range(3))
    assert first != second != third
    resumed = made(Orthogonality(6))
    assert [partition(resumed), partition(resumed)] == [first, second]
    again = made(Orthogonality(6))
    again.load_state_dict(resumed.state_dict())
    assert partition(again) == third
    assert partition(made(Orthogonality(6), seed=1)) != first


def test_descending_on_it_drives_directions_apart():
    sae = made(Orthogonality(weight=1), n_latents=8)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.3)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        term = sae.objective(rows())[0]["Orthogonality"]
        term.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
        values.append(term.item())
    assert values[-1] < 0.5 * values[0]


class Half(Mesh):
    """One of two shards that knows what the other holds."""

    def __init__(self, shard: int, full: Tensor):
        super().__init__(1, 2)
        self.shard, self.full = shard, full

    def _join(self) -> None:
        """There are no processes."""

    def gather_latents(self, part: Tensor) -> Tensor:
        return self.full


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_has_the_same_value_and_its_part_of_the_gradient(shard):
    sae = made(Orthogonality(6))
    term, step = sae.objective(rows())
    term["Orthogonality"].backward()
    full = sae.dictionary.W_dec.detach()
    own = full.chunk(2)[shard].clone().requires_grad_()
    torch.testing.assert_close(all_directions(own, Half(shard, full)), full)
    assert all_directions(own, ALONE) is own
    part = made(Orthogonality(6))
    part.mesh, part.dictionary.W_dec = Half(shard, full), torch.nn.Parameter(own)
    part.firing.rows.copy_(sae.firing.rows)
    found = part.losses[0](Forward(part, step.x, step.x, step.pre, step.codes, step.x_hat))
    torch.testing.assert_close(found, term["Orthogonality"])
    found.backward()
    torch.testing.assert_close(part.dictionary.W_dec.grad, sae.dictionary.W_dec.grad.chunk(2)[shard])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 1}, "chunk must be at least 2 latents, got 1"),
        ({"weight": -0.1}, "weight must not be negative, infinite or NaN"),
        ({"weight": float("inf")}, "weight must not be negative, infinite or NaN"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=f"Orthogonality: {message}"):
        made(Orthogonality(**settings))
