"""N2G on latents whose behaviour is known, the documented failure included, and many latents at once as one by one."""

import random

import pytest
import torch

from saelab.metrics.n2g.n2g import ANY, Example, Pattern, find_patterns, predict, tree_of
from saelab.metrics.n2g.patterns import Patterns

A, B, C, D, E, PAD = range(6)


def explained(fires, texts, pad=PAD):
    """The tree for a latent that is 1 where `fires(tokens, place)`; each text is one example, at its last token."""
    examples = [Example(text, 1.0) for text in texts]

    def activations(asked):
        return [float(fires(tokens, len(tokens) - 1)) for _, tokens in asked]

    return tree_of(find_patterns(examples, activations, pad))


def test_a_latent_of_the_first_position():
    tree = explained(lambda tokens, place: place == 0, [[A], [B]])
    assert predict(tree, [A, B, C]) == [1, 0, 0]
    assert predict(tree, [C, B, A]) == [1, 0, 0]


def test_a_latent_of_one_token():
    tree = explained(lambda tokens, place: tokens[place] == C, [[A, B, C], [B, C]])
    assert predict(tree, [B, C]) == [0, 1]
    assert predict(tree, [A, A, A]) == [0, 0, 0]
    assert predict(tree, [C, B, C]) == [1, 0, 1]


def test_a_latent_of_one_token_after_another_and_the_documented_failure():
    tree = explained(lambda tokens, place: tokens[place] == C and A in tokens[:place], [[A, B, C], [B, A, C], [A, C]])
    assert predict(tree, [B, C]) == [0, 0]
    assert predict(tree, [A, C]) == [0, 1]
    assert predict(tree, [A, E, C, A, C]) == [0, 0, 1, 0, 1]
    assert predict(tree, [A, B, B, C]) == [0, 0, 0, 0]  # the latent is 1 at the end: no pattern reaches that far


def test_no_examples_predict_nothing():
    tree = explained(lambda tokens, place: False, [])
    assert predict(tree, [B, C]) == [0, 0]
    assert predict(tree, [A, E, C, A, C]) == [0] * 5
    assert predict(tree, []) == []


def test_an_exact_token_hides_what_stands_under_any_token():
    tree = tree_of([Pattern((A, ANY, C), False, 1.0), Pattern((D, B, C), False, 2.0)])
    assert predict(tree, [A, E, C])[2] == 1
    assert predict(tree, [D, B, C])[2] == 2
    assert predict(tree, [A, B, C])[2] == 0  # goes into B, where only D follows, and does not turn back


def test_the_shorter_pattern_answers_first_and_the_later_activation_counts():
    tree = tree_of([Pattern((A, C), False, 1.0), Pattern((C,), False, 2.0), Pattern((C,), False, 3.0)])
    assert predict(tree, [A, C]) == [0, 3]


def test_activation_of_the_suffix_is_kept_and_half_of_it_is_enough():
    def activations(asked):
        return [{(C,): 1.9, (B, C): 2.0}.get(tuple(tokens), 4.0 if len(tokens) == 3 else 0.0) for _, tokens in asked]

    (pattern,) = find_patterns([Example([A, B, C], 4.0)], activations, PAD)
    assert pattern == Pattern((B, C), False, 2.0)


def test_padding_is_held_against_the_whole_text_and_saliency_against_the_suffix():
    said = {(B, C): 2.0, (PAD, B, C): 1.5, (PAD, C): 1.1, (B, PAD): 0.9}
    (pattern,) = find_patterns(
        [Example([A, B, C], 4.0)], lambda asked: [said.get(tuple(tokens), 0.0) for _, tokens in asked], PAD
    )
    assert pattern == Pattern((ANY, C), True, 2.0)


def test_where_no_suffix_fires_the_whole_text_is_the_pattern_with_its_own_activation():
    (pattern,) = find_patterns([Example([A, B], 4.0)], lambda asked: [1.0] * len(asked), PAD)
    assert pattern == Pattern((A, B), True, 4.0)  # 1 - 1/4 of it goes when a token is replaced


def test_a_token_whose_replacement_costs_less_than_half_may_be_any():
    kept = {(PAD, B, C): 0.51, (A, PAD, C): 0.5, (A, B, PAD): 0.0, (A, B, C): 1.0}
    (pattern,) = find_patterns(
        [Example([A, B, C], 1.0)], lambda asked: [kept.get(tuple(tokens), 0.0) for _, tokens in asked], PAD
    )
    assert pattern == Pattern((ANY, B, C), True, 1.0)


def test_examples_side_by_side_are_as_one_by_one():
    draw = random.Random(0)
    weights = {token: draw.random() for token in range(8)}
    texts = [[draw.randrange(5) for _ in range(draw.randint(1, 7))] for _ in range(40)]

    def strength(tokens):
        return 0.1 + sum(weights[token] / (1 + distance) for distance, token in enumerate(reversed(tokens)))

    examples = [Example(text, strength(text)) for text in texts]

    def activations(asked):
        assert all(tokens for _, tokens in asked)
        return [strength(tokens) for _, tokens in asked]

    seen = []
    together = find_patterns(examples, activations, PAD, seen.append)
    assert together == [find_patterns([one], activations, PAD)[0] for one in examples]
    assert sum(seen) == 40


@pytest.mark.parametrize("seed", range(8))
def test_many_latents_at_once_predict_as_one_by_one(seed):
    draw = random.Random(seed)

    def pattern():
        tokens = tuple(draw.choice([ANY, 0, 1, 2]) for _ in range(draw.randint(1, 4)))
        return Pattern(tokens, draw.random() < 0.3, round(draw.random() + 0.1, 3))

    of = [[pattern() for _ in range(draw.randint(0, 4))] for _ in range(12)]
    texts = [[draw.randrange(4) for _ in range(draw.randint(1, 9))] for _ in range(6)]
    tokens = torch.tensor([token for text in texts for token in text])
    before = torch.tensor([place for text in texts for place in range(len(text))])
    found = Patterns(of, 4).match(tokens, before)
    table = torch.zeros(len(of), len(tokens)).index_put((found.slot, found.position), found.value, accumulate=True)
    expected = [[value for text in texts for value in predict(tree_of(patterns), text)] for patterns in of]
    torch.testing.assert_close(table, torch.tensor(expected))
    assert expected != [[0] * len(tokens)] * len(of)


def test_positions_that_are_not_wanted_have_no_match():
    patterns = Patterns([[Pattern((ANY,), False, 1.0)], [Pattern((A,), False, 2.0)]], 4)
    found = patterns.match(torch.tensor([A, A, B]), torch.tensor([-1, 0, 1]))
    assert sorted(zip(found.position.tolist(), found.slot.tolist(), strict=True)) == [(1, 0), (1, 1), (2, 0)]
    assert not len(patterns.match(torch.tensor([A]), torch.tensor([-1])).value)
    assert not len(Patterns([[], []], 4).match(torch.tensor([A]), torch.tensor([0])).value)
    assert not len(Patterns([], 4).match(torch.tensor([A]), torch.tensor([0])).value)


def test_blocks_of_positions_change_nothing(monkeypatch):
    of = [[Pattern((ANY,), False, 1.0)], [Pattern((A, ANY), False, 2.0)], [Pattern((B,), True, 3.0)]]
    tokens, before = torch.tensor([A, B, B, A, B]), torch.tensor([0, 1, 2, 0, 1])
    whole = Patterns(of, 4).match(tokens, before)
    monkeypatch.setattr("saelab.metrics.n2g.patterns.AT_ONCE", 2)
    parts = Patterns(of, 4).match(tokens, before)

    def pairs(found):
        return sorted(zip(found.position.tolist(), found.slot.tolist(), found.value.tolist(), strict=True))

    assert pairs(parts) == pairs(whole)
    assert (1, 1, 2.0) in pairs(whole)
