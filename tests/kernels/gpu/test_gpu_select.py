"""The encoder for GPUs against a dense float64 computation: values, latents, ties, rows that are done again."""

# Shape letters: B rows, D input width, L latents, K kept per row.

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

from saelab.kernels.gpu import rescore
from saelab.kernels.gpu.keys import packed, unpacked
from saelab.kernels.gpu.screen import Tiles
from saelab.kernels.gpu.select import Plan, by_blocks, topk_linear_forward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = Tiles(rows=16, latents=16, depth=16, group=2, capacity=64)


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    """Fewer programs share a row that is done again: the interpreter runs them one after another."""
    monkeypatch.setattr(rescore, "PARTS", 2)


def inputs(rows: int, width: int, n_latents: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, width), (n_latents, width), (n_latents,)]
    x, weight, bias = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    return x, weight / width**0.5, bias / 4


def by_hand(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and latents [B, K] by sorting the dense product in float64; of equal values the lower latent is first."""
    pre = x.double() @ weight.double().T + bias.double()
    order = pre.argsort(dim=1, descending=True, stable=True)[:, :k]
    return pre.gather(1, order), order


def select(x: Tensor, weight: Tensor, bias: Tensor, k: int, margin: int = 3, tiles: Tiles = TILES):
    """Values, latents and how many rows were done again."""
    redone = torch.zeros((), dtype=torch.int64, device=x.device)
    plan = Plan.of(len(weight), k, tiles, margin)
    values, indices = topk_linear_forward(x, weight, bias, k, plan=plan, redone=redone)
    return values, indices, int(redone)


def assert_chosen(found, expected) -> None:
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "width", "n_latents", "k"),
    [(5, 24, 300, 3), (1, 7, 65, 1), (17, 16, 129, 4), (3, 33, 64, 4), (2, 40, 257, 1), (3, 5, 17, 1)],
)
def test_values_and_latents_are_those_of_a_dense_product(rows, width, n_latents, k):
    tensors = inputs(rows, width, n_latents)
    assert_chosen(select(*tensors, k), by_hand(*tensors, k))


def test_every_stage_of_a_long_plan_counts():
    x, weight, bias = inputs(3, 8, 700)
    plan = Plan.of(700, 2, TILES, margin=2)
    assert len(plan.stages) >= 3
    taken = [(n * s.stride) % s.all for s in plan.stages for n in range(s.first, s.first + s.tiles)]
    assert sorted(taken) == list(range(44))
    assert_chosen(select(x, weight, bias, 2, margin=2), by_hand(x, weight, bias, 2))


@pytest.mark.parametrize(("n_latents", "k"), [(13, 13), (40, 3), (1, 1), (90, 6)])
def test_a_large_share_of_the_latents_goes_through_blocks(n_latents, k):
    tensors = inputs(6, 9, n_latents)
    assert_chosen(topk_linear_forward(*tensors, k), by_hand(*tensors, k))
    assert_chosen(by_blocks(*tensors, k), by_hand(*tensors, k))


def test_no_rows():
    values, indices, redone = select(*inputs(0, 8, 100), 2)
    assert values.shape == indices.shape == (0, 2)
    assert redone == 0


def test_negative_pre_activations_are_chosen_like_others():
    x, weight, bias = inputs(4, 12, 150)
    bias = bias - 50
    bias[7] = 50.0  # a single positive one
    expected = by_hand(x, weight, bias, 3)
    assert (expected[0] > 0).sum() == 4
    assert_chosen(select(x, weight, bias, 3), expected)


def test_outlier_columns_do_not_mislead_the_screen():
    x, weight, bias = inputs(2, 32, 400)
    x[:, 3] = 300.0  # times what rounding costs a weight near 1 is more than the values differ
    weight[:, 3] = 1 + 0.002 * torch.randn(400, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    expected = by_hand(x, weight, bias, 4)
    screened = (x.bfloat16().double() @ weight.bfloat16().double().T + bias).topk(4, dim=1).indices
    assert not torch.equal(screened, expected[1])
    values, indices, _ = select(x, weight, bias, 4)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(values.double(), expected[0], rtol=1e-6, atol=1e-3)


def test_of_equal_values_the_lower_latent_is_chosen():
    x, weight, bias = inputs(3, 8, 200)
    weight[100:] = weight[:100].clone()
    bias[100:] = bias[:100].clone()
    weight[[31, 32, 33, 140]] = weight[5].clone()
    bias[[5, 31, 32, 33, 105, 140]] = 3.0
    x[0] = 0  # every pre-activation is its bias
    expected = by_hand(x.round(decimals=1), weight, bias, 5)
    found = select(x.round(decimals=1), weight, bias, 5)
    assert_chosen(found, expected)
    assert_chosen(by_blocks(x.round(decimals=1), weight, bias, 5), expected)


def test_rows_that_are_zero_with_biases_that_are_zero():
    weight = inputs(2, 8, 120)[1]
    values, indices, redone = select(torch.zeros(2, 8, device=DEVICE), weight, torch.zeros(120, device=DEVICE), 3)
    assert torch.equal(values, torch.zeros_like(values))
    assert indices.tolist() == [[0, 1, 2]] * 2
    assert redone == 2  # nothing tells the candidates from the others


def late(plan: Plan, n_latents: int) -> Tensor:
    """The latents that the stages after the first look at, by the plan's order of tiles."""
    numbers = [n for span in plan.stages[1:] for n in range(span.first, span.first + span.tiles)]
    stride, count = plan.stages[0].stride, plan.stages[0].all
    tiles = torch.tensor([n * stride % count for n in numbers])
    return torch.isin(torch.arange(n_latents) % count, tiles).nonzero()[:, 0].to(DEVICE)


def test_more_survivors_than_room_are_done_again_exactly():
    x, weight, bias = inputs(2, 8, 480)
    bias[late(Plan.of(480, 3, TILES, 3), 480)] += 100.0  # the first bound lets all of these through
    values, indices, redone = select(x, weight, bias, 3)
    assert redone == 2
    assert_chosen((values, indices), by_hand(x, weight, bias, 3))


def test_rows_that_are_done_again_see_every_latent():
    x, weight, bias = inputs(1, 8, 480)
    bias[late(Plan.of(480, 3, TILES, 3), 480)] += 100.0
    bias[[239, 240, 479]] = 1000.0  # the ends of the parts in which they are looked at
    values, indices, redone = select(x, weight, bias, 3)
    assert redone == 1
    assert sorted(indices[0].tolist()) == [239, 240, 479]
    assert_chosen((values, indices), by_hand(x, weight, bias, 3))


def test_only_rows_with_too_many_survivors_are_done_again():
    x, weight, bias = inputs(3, 8, 480)
    x[:, 0], weight[:, 0] = 0, 0
    x[2, 0], weight[late(Plan.of(480, 3, TILES, 3), 480), 0] = 10, 10
    values, indices, redone = select(x, weight, bias, 3)
    assert redone == 1
    assert_chosen((values, indices), by_hand(x, weight, bias, 3))


@pytest.mark.parametrize("descending", [False, True])
def test_latents_sorted_by_how_often_they_fire_need_no_second_pass(descending):
    x, weight, bias = inputs(4, 16, 640)
    bias = torch.linspace(-6, 3, 640, device=DEVICE)
    bias = bias.flip(0) if descending else bias
    values, indices, redone = select(x, weight, bias, 2, margin=2)
    assert redone == 0
    assert_chosen((values, indices), by_hand(x, weight, bias, 2))


def test_candidates_too_close_to_the_others_are_widened():
    x, weight, bias = inputs(1, 16, 60)  # one stage: all latents are survivors
    weight = weight[:1] + 1e-5 * torch.randn(60, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    bias = torch.zeros(60, device=DEVICE)
    values, indices, redone = select(x, weight, bias, 3)
    assert redone == 0
    assert_chosen((values, indices), by_hand(x, weight, bias, 3))


def test_nan_is_not_lost():
    x, weight, bias = inputs(4, 8, 300)
    expected = by_hand(x, weight, bias, 2)
    x[1, 3] = torch.nan
    values, indices, _ = select(x, weight, bias, 2)
    assert values[1].isnan().all()
    others = torch.tensor([0, 2, 3], device=DEVICE)
    assert_chosen((values[others], indices[others]), tuple(part[others] for part in expected))
    assert by_blocks(x, weight, bias, 2)[0][1].isnan().all()


def test_nan_in_one_latent_shows_in_every_row():
    x, weight, bias = inputs(3, 8, 300)
    weight[222, 0] = torch.nan
    values, indices, _ = select(x, weight, bias, 2)
    assert values[:, 0].isnan().all()
    assert indices[:, 0].tolist() == [222] * 3
    assert not values[:, 1].isnan().any()


def test_keys_sort_as_latents_are_chosen():
    values = torch.tensor([[0.0, -0.0, 1.5, -2.5, torch.nan, torch.inf, -torch.inf, -torch.nan, 1e-45, -1e-45]])
    found, latents = unpacked(packed(values).sort(dim=1, descending=True).values)
    assert latents.tolist() == [[4, 7, 5, 2, 8, 0, 1, 9, 3, 6]]
    assert torch.equal(found[0, 2:], values[0, latents[0, 2:]])
    assert found[0, :2].isnan().all()


def test_a_given_shadow_is_what_screens():
    x, weight, bias = inputs(2, 8, 200)
    plan = Plan.of(200, 2, TILES, 3)
    values, indices = topk_linear_forward(x, weight, bias, 2, shadow=weight.bfloat16(), plan=plan)
    assert_chosen((values, indices), by_hand(x, weight, bias, 2))
    hidden = weight.bfloat16()
    hidden[indices[0, 0]] = -100 * x[0].bfloat16()  # the screen cannot see it any more
    assert indices[0, 0] not in topk_linear_forward(x, weight, bias, 2, shadow=hidden, plan=plan)[1][0]
