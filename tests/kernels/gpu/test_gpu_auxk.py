"""AuxK for GPUs against autograd over dense formulas in float64."""

# Shape letters: B rows, D input width, E output width, L latents, N room for dead latents.

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

from saelab.kernels.gpu import auxk as module
from saelab.kernels.gpu.auxk import auxk, choose, keep_largest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, D, E, L = 7, 6, 5, 40


def case() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"x": (B, D), "error": (B, E), "encoder": (L, D), "bias": (L,), "decoder": (L, E), "offset": (E,)}
    tensors = {name: torch.randn(shape, generator=generator).to(DEVICE) for name, shape in shapes.items()}
    return tensors | {"dead": torch.rand(L, generator=generator).to(DEVICE) < 0.4}


def by_autograd(case: dict[str, Tensor], k_aux: int, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of sae/losses/auxk.py written out densely, and its gradients."""
    t = {name: part.double().requires_grad_() for name, part in case.items() if name != "dead"}
    pre = t["x"] @ t["encoder"].T + t["bias"]
    pre = pre.masked_fill(~case["dead"], -torch.inf)
    values, latents = pre.topk(k_aux, dim=1)
    codes = torch.zeros_like(pre).scatter(1, latents, values.relu())
    target = t["error"].detach() + t["offset"].detach()
    variance = (target - target.mean(0)).square().mean()
    loss = weight * (codes @ t["decoder"] + t["offset"] - target).square().mean() / variance
    names = ["encoder", "bias", "decoder", "offset"]
    return loss, dict(zip(names, torch.autograd.grad(loss, [t[name] for name in names]), strict=True))


def run(case: dict[str, Tensor], k_aux: int, room: int, weight: float = 0.7, **options):
    dead = choose(case["dead"], room)
    weights = (case["encoder"], case["bias"], case["decoder"])
    return auxk(case["x"], case["error"], dead, weights, k_aux, weight, case["offset"], **options)


def spread(pull, rows: Tensor) -> Tensor:
    """Gradients of all latents from those of the slots."""
    whole = rows.new_zeros(L, *rows.shape[1:])
    for latent, slot in enumerate(pull.slots.tolist()):
        if slot >= 0:
            whole[latent] = rows[slot]
    return whole.double()


@pytest.mark.parametrize("k_aux", [1, 3, 12])
@pytest.mark.parametrize("room", [20, 33])
def test_loss_and_gradients_are_those_of_the_dense_formula(k_aux, room, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 3)
    own = case()
    expected, gradients = by_autograd(own, k_aux, 0.7)
    pull = run(own, k_aux, room, precision=torch.float32)
    torch.testing.assert_close(pull.loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for name in ("encoder", "bias", "decoder"):
        found = spread(pull, getattr(pull, name))
        torch.testing.assert_close(found, gradients[name], rtol=1e-4, atol=1e-6)
        assert gradients[name].abs().sum() > 0
    torch.testing.assert_close(pull.output.double(), gradients["offset"], rtol=1e-4, atol=1e-6)


def test_products_of_bf16_are_near():
    own = case()
    expected, gradients = by_autograd(own, 3, 0.7)
    pull = run(own, 3, 20)
    assert abs(pull.loss / expected - 1) < 0.02
    cosine = torch.cosine_similarity(spread(pull, pull.encoder).flatten(), gradients["encoder"].flatten(), dim=0)
    assert cosine > 0.99


def test_nothing_dead_means_nothing():
    own = case() | {"dead": torch.zeros(L, dtype=torch.bool, device=DEVICE)}
    pull = run(own, 3, 8)
    assert all((part == 0).all() for part in (pull.loss, pull.encoder, pull.bias, pull.decoder, pull.output))
    assert (pull.slots == -1).all()


def test_an_error_that_does_not_vary_means_nothing():
    own = case() | {"error": torch.full((B, E), 0.5, device=DEVICE)}
    pull = run(own, 3, 20)
    assert pull.loss == 0
    assert (pull.encoder == 0).all()


def test_more_dead_than_room_take_turns():
    dead = case()["dead"]
    numbers = dead.nonzero()[:, 0].tolist()
    assert len(numbers) > 10
    seen = []
    for turn in range(4):
        chosen = choose(dead, 5, torch.tensor(turn, device=DEVICE))
        assert chosen.taken.all()
        seen += chosen.latents.tolist()
        assert [chosen.slots[latent].item() for latent in chosen.latents.tolist()] == list(range(5))
        assert (chosen.slots >= 0).sum() == 5
    assert seen[: len(numbers)] == numbers
    assert seen[len(numbers) : 20] == numbers[: 20 - len(numbers)]


def test_room_for_more_than_are_dead():
    dead = case()["dead"]
    chosen = choose(dead, L, torch.tensor(3, device=DEVICE))
    assert chosen.latents[chosen.taken].tolist() == dead.nonzero()[:, 0].tolist()
    assert int(chosen.taken.sum()) == int(dead.sum())


@pytest.mark.parametrize(("width", "kept"), [(20, 3), (64, 1), (5, 5), (7, 9), (33, 20)])
def test_the_largest_of_each_row_stay(width, kept):
    scores = torch.randn(4, width, generator=torch.Generator().manual_seed(width)).round(decimals=1).to(DEVICE)
    scores[1] = -1
    scores[2, :] = 0.5
    expected = torch.zeros_like(scores)
    for row in range(4):
        order = scores[row].argsort(descending=True, stable=True)[:kept]
        expected[row, order] = scores[row, order].relu()
    keep_largest(scores, kept)
    assert torch.equal(scores, expected)


def test_nan_stays_among_the_largest():
    scores = torch.arange(12.0, device=DEVICE)[None].clone()
    scores[0, 2] = torch.nan
    keep_largest(scores, 2)
    assert scores.nonzero()[:, 1].tolist() == [2, 11]
