"""BatchTopK keeps exactly k * B of a batch; its threshold reads alone. Values and gradients against dense float64."""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from sae.counted import counted
from torch import Tensor

from saelab import SAE, load
from saelab.core.mesh import ALONE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense

B, D, L = 16, 6, 240
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def rows(n: int = B, seed: int = 0) -> Tensor:
    """Rows of very different size, so that the number of latents kept varies."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.02, 3, n, dtype=torch.float64)[torch.randperm(n, generator=generator), None]


def make(k: float, momentum: float = 0.999, n_latents: int = L) -> SAE:
    sae = SAE(D, n_latents, BatchTopK(k, momentum)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


def dense_pre(sae: SAE, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
    own = weights or {name: getattr(sae.dictionary, name).detach() for name in NAMES}
    return (x - own["b_dec"]) @ own["W_enc"].T + own["b_enc"]


def kept_of(pre: Tensor, count: int) -> Tensor:
    """Which entries are kept, from a sorted list of all."""
    cut = sorted(pre.flatten().tolist(), reverse=True)[count - 1]
    return (pre >= cut) & (pre > 0)


@pytest.mark.parametrize("k", [0.5, 1, 2.34, 8, 40, L])
def test_codes_and_gradients_are_those_of_the_dense_definition(k):
    sae, x = make(k), rows()
    terms, step = sae.objective(x)
    terms["reconstruction"].backward()
    weights = {name: getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in NAMES}
    pre = dense_pre(sae, x, weights)
    f = pre * kept_of(pre.detach(), round(k * B))
    expected = (f @ weights["W_dec"] + weights["b_dec"] - x).square().mean()
    expected.backward()
    torch.testing.assert_close(step.codes.dense(), f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms["reconstruction"], expected, rtol=1e-12, atol=1e-12)
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [0.5, 1, 2.34, 8, 40])
def test_exactly_k_times_b_are_kept(k):
    _, step = make(k).objective(rows())
    l0 = step.codes.l0()
    assert l0.sum() == round(k * B)
    assert l0.max() > 2 * k  # the budget goes where it is needed
    assert step.codes.values.shape[1] == max(1, l0.max())  # and no wider than the widest row


def test_one_row_may_take_the_whole_budget():
    sae, x = make(2), rows()
    x[3] *= 1e6
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(0)
        sae.dictionary.b_dec.fill_(0)
    _, step = sae.objective(x)
    assert step.codes.l0()[3] == 2 * B > 4 * 2  # more than the candidates looked at first
    assert step.codes.l0().sum() == 2 * B


def test_only_positive_pre_activations_are_kept():
    sae, x = make(40), rows()
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1.0)
    positive = (dense_pre(sae, x) > 0).sum()
    assert 0 < positive < 40 * B
    assert sae.objective(x)[1].codes.l0().sum() == positive


def test_ties_do_not_add_to_the_number_kept():
    sae = SAE(D, L, BatchTopK(2.5))
    with torch.no_grad():
        sae.dictionary.W_enc.fill_(0.5)
    _, step = sae.objective(torch.ones(B, D))
    assert step.codes.l0().sum() == 40
    _, again = sae.objective(torch.ones(B, D))
    assert torch.equal(step.codes.dense(), again.codes.dense())


def test_with_one_row_it_is_topk():
    sae, x = make(5), rows(1)
    _, step = sae.objective(x)
    values, indices = dense_pre(sae, x).topk(5)
    expected = torch.zeros(1, L, dtype=torch.float64).scatter(1, indices, values.relu())
    torch.testing.assert_close(step.codes.dense(), expected)


def smallest(sae: SAE, x: Tensor, k: float) -> float:
    pre = dense_pre(sae, x)
    return pre[kept_of(pre, round(k * len(x)))].min().item()


@pytest.mark.parametrize("momentum", [0.0, 0.7, 0.999])
def test_the_threshold_is_the_corrected_average_of_the_smallest_kept(momentum):
    sae, found = make(4, momentum), []
    average = 0.0
    for step in range(5):
        x = rows(seed=step)
        found.append(smallest(sae, x, 4))
        counted(sae, x)
        average = momentum * average + (1 - momentum) * found[-1]
        expected = average / (1 - momentum ** (step + 1))
        assert sae.activation.threshold.shape == (L,)
        torch.testing.assert_close(
            sae.activation.threshold, torch.full((L,), expected, dtype=torch.float64), rtol=1e-6, atol=0
        )
    assert len(set(found)) == 5


def test_early_steps_count_alike():
    sae = make(4)
    found = []
    for step in range(4):
        found.append(smallest(sae, rows(seed=step), 4))
        counted(sae, rows(seed=step))
    assert sae.activation.threshold[0].item() == pytest.approx(sum(found) / 4, rel=2e-3)


def test_only_training_moves_the_threshold():
    sae, x = make(4), rows()
    counted(sae, x)
    before = sae.activation.threshold.clone()
    sae.encode(2 * x)
    sae.objective(2 * x)
    sae.after_step()
    assert torch.equal(sae.activation.threshold, before)
    assert sae.activation.updates == 1


def test_a_batch_that_keeps_nothing_leaves_the_threshold_alone():
    sae, x = make(4), rows()
    counted(sae, x)
    before = sae.activation.threshold.clone()
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1e6)
    terms, step = counted(sae, x)
    terms["reconstruction"].backward()
    assert step.codes.l0().sum() == 0
    assert torch.equal(sae.activation.threshold, before)
    assert sae.activation.updates == 1


def test_nothing_kept_at_all_leaves_it_unset():
    sae = make(4)
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1e6)
    counted(sae, rows())
    assert sae.activation.updates == 0
    assert torch.equal(sae.activation.threshold, torch.zeros(L, dtype=torch.float64))


def test_reading_keeps_what_is_over_the_threshold():
    sae, x = make(4), rows(seed=9)
    counted(sae, rows())
    pre, threshold = dense_pre(sae, x), smallest(sae, rows(), 4)
    expected = torch.where(pre > threshold, pre, 0)
    assert (expected != 0).any(1).sum() > 1
    torch.testing.assert_close(sae.encode(x).dense().detach(), expected)
    with torch.no_grad():
        codes = sae.encode(x)
    torch.testing.assert_close(codes.dense(), expected)
    assert codes.values.shape[1] == codes.l0().max()


def test_a_pre_activation_on_the_threshold_is_not_active():
    sae = SAE(2, 2, BatchTopK(1, momentum=0.0), dictionary=Dense(tied=True))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.eye(2))
    counted(sae, torch.tensor([[0.5, 0.0], [0.0, 3.0]]))
    assert sae.encode(torch.tensor([[0.5, 0.75]])).dense().tolist() == [[0.0, 0.75]]


@pytest.mark.parametrize("steps", [0, 1])
def test_reading_a_row_does_not_depend_on_the_batch(steps):
    sae, x = make(4), rows(seed=9)
    for _ in range(steps):
        counted(sae, rows())
    together = sae.encode(x).dense()
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.encode(x[order]).dense(), together[order])
    for row in range(B):
        torch.testing.assert_close(sae.encode(x[row : row + 1]).dense(), together[row : row + 1])


@pytest.mark.parametrize(("k", "whole"), [(3.6, 4), (0.2, 1)])
def test_before_the_first_step_each_row_keeps_its_own_largest(k, whole):
    sae, x = make(k), rows()
    pre = dense_pre(sae, x)
    expected = torch.zeros_like(pre).scatter(1, pre.topk(whole).indices, 1) * pre.relu()
    torch.testing.assert_close(sae.encode(x).dense().detach(), expected)


def test_read_by_the_threshold_l0_is_k_on_new_rows():
    generator = torch.Generator().manual_seed(0)
    sae = SAE(D, L, BatchTopK(8))
    for _ in range(30):
        counted(sae, torch.randn(500, D, generator=generator))
    with torch.no_grad():
        l0 = sae.encode(torch.randn(4000, D, generator=generator)).l0().float().mean()
    assert l0.item() == pytest.approx(8, rel=0.02)


def test_thresholds_are_rescaled_latent_by_latent():
    sae = make(4)
    counted(sae, rows())
    before, factor = sae.activation.threshold.clone(), torch.linspace(0.5, 2, L, dtype=torch.float64)
    sae.activation.rescale(factor)
    torch.testing.assert_close(sae.activation.threshold, before * factor)
    assert "activation.threshold" in sae.sharded_names()


def test_the_threshold_is_saved(tmp_path):
    sae = make(4)
    counted(sae, rows())
    sae.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.activation.threshold, sae.activation.threshold)
    assert torch.equal(again.encode(rows()).dense(), sae.encode(rows()).dense())


def test_no_rows_are_learnt_from_without_trouble():
    sae = make(4)
    _, step = counted(sae, rows()[:0])
    assert len(step.codes) == 0
    assert sae.activation.updates == 0


def test_the_mesh_alone_chooses_the_largest_of_the_batch():
    values = torch.tensor([[3.0, 1.0], [2.0, 2.0], [2.0, -1.0]])
    for count, expected in (
        (0, [[0, 0], [0, 0], [0, 0]]),
        (1, [[1, 0], [0, 0], [0, 0]]),
        (3, [[1, 0], [1, 1], [0, 0]]),  # of three ties the first two
        (9, [[1, 1], [1, 1], [1, 1]]),
    ):
        assert torch.equal(ALONE.largest_of_batch(values, count), torch.tensor(expected, dtype=torch.bool))


def test_the_published_defaults():
    assert BatchTopK().config() == {"name": "BatchTopK", "k": 32, "momentum": 0.999}
    assert TopK().k == BatchTopK().k


@pytest.mark.parametrize("k", [0, -1.0, L + 0.5, float("nan")])
def test_a_k_that_does_not_fit_is_named(k):
    with pytest.raises(ValueError, match=f"BatchTopK: k must be above 0 .*{L}"):
        SAE(D, L, BatchTopK(k))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ValueError, match="BatchTopK: momentum"):
        SAE(D, L, BatchTopK(4, momentum))
