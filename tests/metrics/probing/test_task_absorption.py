"""Absorption on tasks: a parent's latent that a child's latent stands in for, on half of the words or on none."""

import pytest
import torch
from planted_rows import made, sae_of, told

from saelab.metrics.probing.codes import TaskCodes
from saelab.metrics.probing.task_absorption import TaskAbsorption, main_latents, padded

N, D, WORDS = 1600, 64, 40
PARENT, CHILDREN = torch.eye(D)[0], torch.eye(D)[1 : WORDS + 1]


def words() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, which of them begin with the letter, and which word each of these is; -1 for no known one."""
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(N, generator=generator) < 0.5
    word = torch.randint(2 * WORDS, (N,), generator=generator)
    word = word.where(label & (word < WORDS), -1)
    x = torch.randn(N, D, generator=generator) * 0.01 + label[:, None] * PARENT
    x[word >= 0] += CHILDREN[word[word >= 0]]
    return x, label, word


def test_a_latent_of_its_own_absorbs_nothing():
    x, label, _ = words()
    scores = told(
        TaskAbsorption(), made({"letter: s": label}, x), sae_of(torch.cat([PARENT[None], CHILDREN]), bias=-0.1)
    )
    assert scores["absorption"].value == 0
    assert scores["absorption_full"].value == 0


def test_where_no_latent_fires_nothing_is_absorbed():
    x, label, _ = words()
    scores = told(TaskAbsorption(), made({"letter: s": label}, x), sae_of(PARENT[None].repeat(12, 1), bias=-1e6))
    assert scores["absorption"].value == 0
    assert scores["absorption_full"].value == 0


def test_half_of_the_words_absorbed_is_half():
    """The parent's latent stays off where a known word is; the word's own writes both."""
    x, label, word = words()
    directions = torch.cat([PARENT[None], torch.nn.functional.normalize(PARENT + CHILDREN, dim=1)])
    encoder = torch.cat([PARENT[None] - CHILDREN.sum(0), CHILDREN * 2**0.5])
    metric, rows = TaskAbsorption(), made({"letter: s": label}, x)
    scores = told(metric, rows, sae_of(directions, encoder, bias=-0.2))
    test = rows.examples[0].task.test
    share = ((word >= 0) & test).sum().item() / (label & test).sum().item()
    assert scores["absorption_full"].value == pytest.approx(share, abs=0.01)
    assert scores["absorption"].value == pytest.approx(share, abs=0.01)
    assert metric.tables()["absorption"]["main"] == [[0]]
    assert scores["absorption"].low < scores["absorption"].value < scores["absorption"].high


def test_an_sae_of_random_directions_absorbs_less_the_larger_the_cosine_that_counts():
    """In 64 dimensions many random directions have a cosine of .1 with the task's, few have one of .4."""
    x, label, _ = words()
    generator = torch.Generator().manual_seed(1)
    random = sae_of(torch.nn.functional.normalize(torch.randn(400, D, generator=generator), dim=1), bias=-0.1)
    rows = made({"letter: s": label}, x)
    found = [told(TaskAbsorption(least_cosine=one), rows, random)["absorption"].value for one in (0.1, 0.4)]
    assert found[0] > 0.3 > 0.1 > found[1]
    with pytest.raises(ValueError, match="least_cosine .*got 1.5"):
        told(TaskAbsorption(least_cosine=1.5), rows, random)


def test_tasks_without_a_good_probe_or_of_another_family_do_not_count():
    x, label, _ = words()
    sae = sae_of(torch.cat([PARENT[None], CHILDREN]), bias=-0.1)
    luck = torch.rand(N, generator=torch.Generator().manual_seed(9)) < 0.5
    with pytest.raises(ValueError, match=r"family 'letter' .*F1 .*0\.6"):
        told(TaskAbsorption(), made({"letter: q": luck & ~label}, torch.randn(N, D)), sae)
    with pytest.raises(ValueError, match="needs tasks of the family 'letter'"):
        told(TaskAbsorption(), made({"other: s": label}, x), sae)
    assert told(TaskAbsorption(family="other"), made({"other: s": label}, x), sae)["absorption"].value == 0
    both = told(TaskAbsorption(), made({"letter: s": label, "letter: q": luck}, x), sae)
    assert "mean of 1 tasks" in both["absorption"].unit


def test_a_second_main_latent_is_taken_where_it_helps():
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(N, generator=generator) < 0.5
    split = torch.rand(N, generator=generator) < 0.4
    x = torch.randn(N, D, generator=generator) * 0.01
    x[label & split, 0] += 1
    x[label & ~split, 1] += 1
    rows = made({"letter: s": label}, x)
    codes = TaskCodes(sae_of(torch.eye(D)[:4], bias=-0.1), rows)
    main = main_latents(codes, rows.examples[0], codes.entries(rows.examples[0]))
    assert sorted(main.tolist()) == [0, 1]


def test_entries_are_laid_out_by_example():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    rows = made({"letter: s": x[:, 0] > 0}, x)
    sae = sae_of(torch.randn(30, D, generator=generator))
    codes = TaskCodes(sae, rows)
    chosen = torch.tensor([5, 700, 3])
    value, latent = padded(codes.entries(rows.examples[0], chosen))
    dense = torch.zeros(3, 30).scatter_add(1, latent, value)
    torch.testing.assert_close(dense, sae.encode(x[chosen]).dense().detach())
