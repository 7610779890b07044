"""Gates: the joint distribution of small forests against all outcomes counted out, and invariants of large ones."""

from itertools import product

import pytest
import torch
from torch import Tensor

from saelab.data.source import generator_for
from saelab.data.synthetic.forest import Forest

ROWS = 60_000


def drawn(forest: Forest, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Which features are active; [rows, F] bool."""
    row, feature = forest.draw(rows, generator_for(seed))
    on = torch.zeros(rows, forest.n_features, dtype=torch.bool)
    on[row, feature] = True
    assert on.sum() == len(row)  # none twice
    key = row * forest.n_features + feature
    assert (key[1:] > key[:-1]).all()
    return on


def assert_outcomes(on: Tensor, expected: dict[tuple[bool, ...], float]) -> None:
    """Every outcome is as frequent as expected, within 5 standard errors."""
    assert sum(expected.values()) == pytest.approx(1)
    weights = 2 ** torch.arange(on.shape[1])
    counts = torch.bincount((on * weights).sum(1), minlength=2 ** on.shape[1])
    for outcome in product([False, True], repeat=on.shape[1]):
        p = expected.get(outcome, 0.0)
        count = int(counts[int((torch.tensor(outcome) * weights).sum())])
        error = (len(on) * p * (1 - p)) ** 0.5
        assert abs(count - len(on) * p) <= 5 * error, (outcome, count / len(on), p)


def firing(p: float, on: bool) -> float:
    return p if on else 1 - p


def test_roots_are_independent_with_exactly_their_probabilities():
    forest = Forest(4, 2.2, 0.0)
    p = forest.probability.tolist()
    assert p[0] == 0.9  # a frequent one too: most of its cells are hit more than once
    expected = {}
    for outcome in product([False, True], repeat=4):
        expected[outcome] = torch.tensor([firing(*pair) for pair in zip(p, outcome, strict=True)]).prod().item()
    assert_outcomes(drawn(forest), expected)


def test_rows_are_independent_of_each_other():
    forest = Forest(50, 5.0, 0.0)
    on = drawn(forest)
    p = forest.probability
    l0 = on.sum(1).double()
    # The number of active features would vary more if hits were spread over rows unevenly, less if dealt in turn.
    assert l0.var().item() == pytest.approx((p * (1 - p)).sum().item(), rel=5 * (2 / ROWS) ** 0.5 * 1.2)
    assert l0.mean().item() == pytest.approx(5.0, abs=5 * (l0.var() / ROWS).sqrt().item())
    centred = l0 - l0.mean()
    assert (centred[1:] * centred[:-1]).mean().abs() < 5 * l0.var() / ROWS**0.5
    halves = l0.view(2, -1).mean(1)
    assert (halves[0] - halves[1]).abs() < 5 * (l0.var() * 4 / ROWS).sqrt()


def test_windows_are_independent_of_each_other_too():
    forest, rows, windows = Forest(20, 2.0, 0.0), 3, 4000
    generator = generator_for(0)
    active = torch.tensor([len(forest.draw(rows, generator)[0]) for _ in range(windows)]).double()
    p = forest.probability
    # A number of hits that is always the same would make this variance far too small.
    assert active.var().item() == pytest.approx(rows * (p * (1 - p)).sum().item(), rel=5 * (2.5 / windows) ** 0.5)


def test_two_levels_of_children():
    # One root, 2 children, 1 grandchild each: features 0; 1, 2; 3 below 1, 4 below 2.
    forest, q = Forest(5, 1.0, 0.0, [2, 1], 0.6), 0.6
    p = 1.0 / (1 + 2 * q + 2 * q * q)
    torch.testing.assert_close(forest.probability, torch.tensor([p, p * q, p * q, p * q * q, p * q * q]).double())
    assert forest.parent.tolist() == [-1, 0, 0, 1, 2]
    expected: dict[tuple[bool, ...], float] = {}
    for r, a, b, c, d in product([False, True], repeat=5):
        chance = firing(p, r)
        for child, parent in ((a, r), (b, r), (c, a), (d, b)):
            chance *= firing(q, child) if parent else float(not child)
        expected[r, a, b, c, d] = chance
    assert_outcomes(drawn(forest), expected)


def test_exclusive_children():
    forest, q = Forest(4, 1.0, 0.0, [3], 0.25, exclusive=True), 0.25
    p = 1.0 / (1 + 3 * q)
    expected = {(False, False, False, False): 1 - p, (True, False, False, False): p * (1 - 3 * q)}
    for child in range(3):
        expected[True, child == 0, child == 1, child == 2] = p * q
    assert_outcomes(drawn(forest), expected)


def test_children_of_hidden_roots_are_correlated():
    forest, q = Forest(4, 1.2, 0.0, [2], 0.7, hidden=True), 0.7
    first, second = forest.roots.tolist()
    assert 2 * q * (first + second) == pytest.approx(1.2)
    assert first == pytest.approx(2 * second)
    torch.testing.assert_close(forest.probability, q * torch.tensor([first, first, second, second]).double())
    assert forest.parent.tolist() == [-1] * 4
    expected: dict[tuple[bool, ...], float] = {}
    for a, b, c, d in product([False, True], repeat=4):
        pairs = [
            p * firing(q, left) * firing(q, right) + (1 - p) * (not left and not right)
            for p, left, right in ((first, a, b), (second, c, d))
        ]
        expected[a, b, c, d] = pairs[0] * pairs[1]
    assert_outcomes(drawn(forest), expected)


def test_below_hidden_roots_there_may_be_more_levels():
    # 2 hidden roots; children 0, 1 and 2, 3; one grandchild each: 4, 5, 6, 7.
    forest = Forest(8, 1.0, 0.0, [2, 1], 0.5, hidden=True)
    assert forest.parent.tolist() == [-1, -1, -1, -1, 0, 1, 2, 3]
    assert forest.probability.sum().item() == pytest.approx(1.0)
    on = drawn(forest)
    assert not (on[:, 4:] & ~on[:, :4]).any()
    p = forest.probability
    error = (p * (1 - p) / ROWS).sqrt()
    assert ((on.double().mean(0) - p).abs() < 5 * error).all()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_large_forest_keeps_to_its_tree_and_its_frequencies(exclusive):
    forest = Forest(13 * 40, 12.0, 0.5, [3, 3], 0.3, exclusive)
    on, p, parent = drawn(forest, 16_384), forest.probability, forest.parent
    assert p.sum().item() == pytest.approx(12.0)
    children = (parent >= 0).nonzero().squeeze(1)
    assert len(children) == 12 * 40
    assert not (on[:, children] & ~on[:, parent[children]]).any()
    torch.testing.assert_close(p[children], 0.3 * p[parent[children]])
    score = (on.sum(0) - 16_384 * p) / (16_384 * p * (1 - p)).sqrt()
    frequent = 16_384 * p > 20
    assert frequent.sum() > 100
    assert (score[frequent].abs() < 5).all()
    assert score[frequent].std().item() == pytest.approx(1, abs=0.25)
    siblings = on[:, children].view(16_384, -1, 3).sum(2)
    assert (siblings.max() == 1) if exclusive else (siblings.max() == 3)


def test_a_child_may_always_fire():
    on = drawn(Forest(9, 3.0, 0.0, [2], 1.0), 5000)
    assert torch.equal(on[:, 3:], on[:, :3].repeat_interleave(2, dim=1))


def test_no_row_and_no_hit():
    row, feature = Forest(4, 1e-12, 0.0, [1]).draw(3, generator_for(0))
    assert len(row) == len(feature) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1.0, 0.0), "n_features must be at least 1; got 0"),
        ((10, 1.0, 0.0, [2]), "n_features must be a multiple of 3, the features of one tree; got 10"),
        ((10, 1.0, 0.0, [4], 0.5, False, True), "n_features must be a multiple of 4, .* got 10"),
        ((10, 0.0, 0.0), "l0 must be above 0 and at most 9 .* got 0.0"),
        ((10, 9.01, 0.0), "l0 must be above 0 and at most 9 .* got 9.01"),
        ((10, float("nan"), 0.0), "l0 must be above 0"),
        ((12, 5.0, 0.0, [4], 0.25, True, True), "l0 must be above 0 and at most 2.7 "),
        ((10, 1.0, -1.1), r"alpha must be from -1 \(all frequencies equal\) to 10, got -1.1"),
        ((10, 1.0, float("nan")), "alpha must be"),
        ((10, 1.0, 0.0, [0]), r"branching must be numbers of children of at least 1, got \[0\]"),
        ((10, 1.0, 0.0, [1.5]), "branching must be numbers"),
        ((6, 1.0, 0.0, [2], 0.0), "chance must be above 0 and at most 1, got 0.0"),
        ((6, 1.0, 0.0, [2], 1.1), "chance must be above 0 and at most 1, got 1.1"),
        ((6, 1.0, 0.0, [2], 0.6, True), "chance of each of 2 exclusive children must be at most 0.5"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Forest(*settings)
