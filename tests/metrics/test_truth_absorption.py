"""Absorption: the formula against loops, and planted cases."""

import pytest
import torch
from test_truth_matching import noise
from torch import Tensor

from saelab.core.codes import Codes
from saelab.metrics.truth.absorption import Absorption, absorbed

HALF = 0.5**0.5


def one_row(codes: list[float], cosine: list[float], main: set[int], a: float) -> tuple[float, bool]:
    """Fraction and full absorption of one row, as SAEBench's rules read, by loops."""
    along = [f * c for f, c in zip(codes, cosine, strict=True)]
    main_sum = sum(along[j] for j in main)
    others = [along[j] for j in range(len(codes)) if j not in main and cosine[j] >= 0.1 and along[j] > 0]
    total = sum(sorted(others, reverse=True)[:3])
    if main_sum >= a or total / a < 0.4:
        fraction = 0.0
    elif main_sum <= 0:
        fraction = 1.0
    else:
        taken = min(total, a - main_sum)
        fraction = taken / (taken + main_sum)
    top = max(range(len(codes)), key=lambda j: along[j])
    is_off = all(codes[j] == 0 for j in main)
    return fraction, is_off and cosine[top] >= 0.025 and along[top] / a >= 0.4


def test_fraction_and_full_absorption_follow_the_rules_row_by_row():
    n, k = 400, 6
    codes = 1.5 * noise(n, k).abs() * (noise(n, k, seed=1) > 0)
    cosine = 0.5 * noise(n, k, seed=2)
    is_main = noise(n, k, seed=3) > 0.8
    a = noise(n, seed=4).abs() + 0.1
    fraction, full = absorbed(codes.double(), cosine.double(), is_main, a.double())
    kinds = set()
    for p in range(n):
        main = set(is_main[p].nonzero()[:, 0].tolist())
        expected = one_row(codes[p].double().tolist(), cosine[p].double().tolist(), main, a[p].double().item())
        assert (fraction[p].item(), full[p].item()) == pytest.approx(expected)
        kinds.add("none" if expected[0] == 0 else "all" if expected[0] == 1 else "part")
        kinds.add(f"full {expected[1]}")
    assert kinds == {"none", "all", "part", "full True", "full False"}


@pytest.mark.parametrize(
    ("codes", "cosine", "is_main", "expected"),
    [
        ([0.0, 0.39], [1.0, 1.0], [1, 0], (0, False)),  # too small a share
        ([0.0, 0.41], [1.0, 1.0], [1, 0], (1, True)),
        ([0.0, 9.0], [1.0, 0.09], [1, 0], (0, True)),  # too far off for the fraction, not for full absorption
        ([0.0, 50.0], [1.0, 0.02], [1, 0], (0, False)),  # too far off for both
        ([0.5, 0.5], [1.0, 1.0], [1, 0], (0.5, False)),
        ([0.8, 0.8], [1.0, 1.0], [1, 0], (0.2, False)),  # no more than what is missing
        ([1.0, 0.8], [1.0, 1.0], [1, 0], (0, False)),  # nothing is missing
        ([0.25] * 4, [0.9] * 4, [0] * 4, (1, False)),  # a share of .675 from three latents
        ([0.14] * 4, [0.9] * 4, [0] * 4, (0, False)),  # three have a share of .378; all four would have .504
        ([-1.0, 1.0], [-1.0, 1.0], [1, 0], (0, False)),  # a main latent with a negative code contributes
    ],
)
def test_single_rows_with_intensity_one(codes, cosine, is_main, expected):
    fraction, full = absorbed(
        torch.tensor([codes]), torch.tensor([cosine]), torch.tensor([is_main]).bool(), torch.ones(1)
    )
    assert (fraction.item(), full.item()) == pytest.approx(expected)


def test_an_opposite_direction_absorbs_only_where_codes_are_signed():
    parts = (torch.tensor([[0.0, -1.0]]), torch.tensor([[1.0, -0.8]]), torch.tensor([[True, False]]), torch.ones(1))
    assert [part.item() for part in absorbed(*parts)] == [0, False]
    assert [part.item() for part in absorbed(*parts, signed=True)] == [1, True]


def planted(codes: Tensor, truth: Tensor, directions: Tensor, matched: int = 0) -> Absorption:
    """Absorption of parent 1 along the first axis, among 3 features, by latents with these directions [L, D]."""
    found = Absorption(torch.tensor([1]), directions[None, :, 0], torch.tensor([matched]), 3)
    for one, other in zip(codes.split(3), truth.split(3), strict=True):
        found.update(Codes.full(one).compact(), Codes.full(other).compact())
    return found


PARENT_AND_CHILD = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]]).float()


def test_a_child_that_absorbs_its_parent_on_half_of_the_rows():
    codes = torch.tensor([[1, 0], [0, 2**0.5], [1, 0], [0, 2**0.5], [0, 0]])
    found = planted(codes, PARENT_AND_CHILD, torch.tensor([[1, 0], [HALF, HALF]]))
    assert found.rows.tolist() == [4]
    assert found.fraction.item() == pytest.approx(0.5)
    assert found.full.item() == 0.5


def test_a_child_that_absorbs_half_of_its_parent_on_half_of_the_rows():
    child = torch.tensor([0.5, 1.0])
    codes = torch.tensor([[1, 0], [0.5, child.norm()], [1, 0], [0.5, child.norm()], [0, 0]])
    found = planted(codes, PARENT_AND_CHILD, torch.stack([torch.tensor([1.0, 0]), child / child.norm()]))
    assert found.fraction.item() == pytest.approx(0.25)
    assert found.full.item() == 0


def test_separate_latents_of_parent_and_child_absorb_nothing():
    codes = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1], [0, 0]]).float()
    found = planted(codes, PARENT_AND_CHILD, torch.eye(2))
    assert found.fraction.item() == 0
    assert found.full.item() == 0


def test_a_second_latent_of_the_parent_is_no_absorber():
    codes = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1], [0, 0]]).float()
    close = torch.tensor([[1.0, 0.0], [0.91, (1 - 0.91**2) ** 0.5]])
    found = planted(codes, PARENT_AND_CHILD, close)
    assert found.fraction.item() == 0
    assert found.full.item() == 0
    far = torch.tensor([[1.0, 0.0], [0.89, (1 - 0.89**2) ** 0.5]])
    assert planted(codes, PARENT_AND_CHILD, far).full.item() == 0.5


def test_the_matched_latent_is_main_however_far_off_it_is():
    directions = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    codes = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]]).float()
    assert planted(codes, PARENT_AND_CHILD, directions).full.item() == 0
    assert planted(codes, PARENT_AND_CHILD, directions, matched=1).full.item() == 1


def test_a_parent_that_was_never_active_has_no_value():
    found = planted(torch.ones(3, 2), torch.tensor([[1.0, 0, 1]] * 3), torch.eye(2))
    assert found.rows.item() == 0
    assert found.fraction.isnan().all()


def test_several_parents_are_kept_apart():
    """Parents 0 and 2 of four features, along the axes; only the second is absorbed."""
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, HALF, HALF]])
    found = Absorption(torch.tensor([0, 2]), directions[:, :2].T.contiguous(), torch.tensor([0, 1]), 4)
    truth = torch.tensor([[1.0, 0, 1, 1], [2, 0, 1, 0], [0, 1, 2, 2], [0, 0, 0, 0]])
    codes = torch.tensor([[1, 0, 2**0.5], [2, 1, 0], [0, 0, 8**0.5], [0, 0, 0]])
    found.update(Codes.full(codes).compact(), Codes.full(truth).compact())
    assert found.rows.tolist() == [2, 3]
    assert found.fraction.tolist() == pytest.approx([0, 2 / 3])
    assert found.full.tolist() == pytest.approx([0, 2 / 3])
