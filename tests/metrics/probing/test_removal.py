"""TPP and SCR: latents that are the labels, latents that mix them, and accuracies against rows that are decoded."""

from dataclasses import replace

import pytest
import torch
from planted_rows import Data, made, sae_of, told, values

from saelab.metrics.base import Setting
from saelab.metrics.probing import scr
from saelab.metrics.probing.codes import TaskCodes, mean_bias, output_directions
from saelab.metrics.probing.logistic import together
from saelab.metrics.probing.removal import along, ranks, right_without
from saelab.metrics.probing.scr import SCR, joined
from saelab.metrics.probing.tpp import TPP
from saelab.sae import SAE
from saelab.sae.activations import TopK
from saelab.sae.scales import ConstantNorm, Identity, LayerNorm
from saelab.tasks.rows import TaskRows

N, D = 800, 16


def concepts(count: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rows in which each of some concepts has a direction of its own, and its labels."""
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(N, count, generator=generator) < 0.5
    x = torch.randn(N, D, generator=generator) * 0.05
    x[:, :count] += on.float() * 2
    return x, {f"kind: {number}": on[:, number] for number in range(count)}


def test_latents_that_are_the_labels_lose_their_own_concept_and_no_other():
    """Two latents for each concept: both are the first to go."""
    x, labels = concepts()
    metric = TPP()
    told(metric, made(labels, x), sae_of(torch.eye(D)[:3].repeat(2, 1), bias=-0.3))
    score = metric.all[2]
    assert score.value == pytest.approx(0.5, abs=0.06)
    assert score.low <= score.value <= score.high
    assert metric.tables()["tpp"]["removed"] == [2, 5, 10, 20, 50, 100, 500]


def test_a_latent_of_all_concepts_loses_all_alike():
    x, labels = concepts()
    mixed = torch.zeros(1, D)
    mixed[0, :3] = 1
    assert abs(values(TPP(), made(labels, x), sae_of(mixed))["tpp_10"]) < 0.1


def test_dead_latents_lose_nothing():
    x, labels = concepts()
    assert values(TPP(), made(labels, x), sae_of(torch.eye(D), bias=-100.0))["tpp_50"] == 0


def test_a_family_of_one_has_no_others():
    x, labels = concepts(1)
    with pytest.raises(ValueError, match="a family of two tasks .*0.7"):
        told(TPP(), made(labels, x), sae_of(torch.eye(D)))


def test_taking_latents_out_is_what_decoding_without_them_gives():
    x, labels = concepts()
    generator = torch.Generator().manual_seed(3)
    sae, rows = sae_of(torch.randn(40, D, generator=generator)), made(labels, x)
    one = rows.examples[0]
    probe = together(x, one.task.label)
    effects = torch.randn(40, generator=generator)
    place = ranks(effects)
    codes = TaskCodes(sae, rows)
    adds = along(output_directions(sae), probe)
    for removed in (0, 3, 11, 100):
        out = set(effects.argsort(descending=True)[:removed].tolist()) & set((effects > 0).nonzero().flatten().tolist())
        dense = sae.encode(x).dense().detach()
        dense[:, [latent for latent in range(40) if latent not in out]] = 0
        left = x - dense @ sae.dictionary.W_dec.detach()
        expected = ((probe.logits(left) > 0) == one.task.label).float()
        found = right_without(probe.logits(x).float(), one.task.label, codes.entries(one), adds, place, removed)
        assert (found != expected).sum() <= 1, removed


def biased() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A weak wanted concept and a strong bias, on all four pairs of labels."""
    generator = torch.Generator().manual_seed(0)
    cell = torch.arange(N) % 4 * 0 + torch.randint(4, (N,), generator=generator)
    wanted, bias = cell >= 2, cell % 2 == 1
    x = torch.randn(N, D, generator=generator) * 0.3
    x[:, 0] += wanted.float() * 2
    x[:, 1] += bias.float() * 6 - 3
    return x, {"bias 1: wanted": wanted, "bias 1: spurious": bias}


def test_taking_the_bias_out_mends_the_probe():
    x, labels = biased()
    both_ways = torch.stack([torch.eye(D)[1], -torch.eye(D)[1]])
    scores = told(SCR(), made(labels, x), sae_of(both_ways))
    assert scores["scr_10"].value > 0.9
    assert scores["scr_10"].low <= scores["scr_10"].value <= scores["scr_10"].high


def test_probes_are_fitted_once_for_several_saes_and_for_each_pair_its_own(monkeypatch):
    """A family of three tasks has two pairs, of two ways each, with three probes."""
    x, labels = biased()
    labels["bias 1: third"] = x[:, 2] > 0
    rows, calls = made(labels, x), []
    both = [sae_of(torch.eye(D)), sae_of(torch.eye(D)[:4] - 0.1)]
    alone = [told(SCR(), rows, sae) for sae in both]
    monkeypatch.setattr(scr, "together", lambda x, label: calls.append(len(x)) or together(x, label))
    saes, tasks = dict(zip("ab", both, strict=True)), [one.task for one in rows.examples]
    shared = {TaskRows: rows}
    for name, expected in zip(saes, alone, strict=True):
        metric = SCR()
        metric.begin(Setting(name, saes, Data(), tasks, shared))
        assert metric.scores(saes[name]) == expected
    assert len(calls) == 2 * 2 * 3


def test_a_dictionary_that_knows_nothing_of_it_mends_nothing():
    x, labels = biased()
    assert abs(values(SCR(), made(labels, x), sae_of(torch.eye(D)[8:]))["scr_10"]) < 0.1


def test_pairs_need_all_four_labels_on_the_same_places():
    x, labels = biased()
    rows = made(labels, x)
    pair = joined(*rows.examples)
    cell = pair.labels[0].long() * 2 + pair.labels[1].long()
    for part in (pair.examples.task.test, ~pair.examples.task.test):
        counts = torch.bincount(cell[part & pair.even], minlength=4)
        assert (counts == counts[0]).all()
        assert counts[0] > 50
    same = made(dict.fromkeys(labels, labels["bias 1: wanted"]), x)
    assert joined(*same.examples) is None
    with pytest.raises(ValueError, match="all four pairs of labels"):
        told(SCR(), same, sae_of(torch.eye(D)))


@torch.no_grad()
def test_rows_that_are_each_scaled_by_themselves_lose_what_is_decoded():
    """An example's code is a mean over rows; what latents add to it is the mean of what they add to each."""
    x, labels = concepts()
    x = x * torch.linspace(0.5, 4, N)[:, None] + 1
    sae = SAE(D, 40, TopK(k=6), scale=LayerNorm())
    sae.dictionary.b_dec.copy_(torch.randn(D, generator=torch.Generator().manual_seed(1)))
    rows = made(labels, x)
    one = rows.examples[0]
    pairs = replace(one, first=one.first[::2], count=one.count[::2] + 1)
    codes, directions = TaskCodes(sae, rows), output_directions(sae)
    probe = torch.randn(D, generator=torch.Generator().manual_seed(2))
    added = codes.entries(pairs, added=True)
    found = mean_bias(sae, rows, pairs) @ probe + added.total((directions @ probe)[added.latent])
    torch.testing.assert_close(found, sae(x).view(-1, 2, D).mean(1) @ probe, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codes.entries(one).value, codes.value)
    assert not torch.equal(codes.added, codes.value)
    homogeneous = {scale: SAE(D, 40, TopK(k=6), scale=scale()) for scale in (ConstantNorm, Identity)}
    each, none = (values(TPP(), rows, sae) for sae in homogeneous.values())
    assert each == pytest.approx(none, abs=0.01)
