"""Probe loss: against scikit-free regressions one by one, on planted latents, on noise, and in blocks."""

import math

import pytest
import torch
from metrics.sweeps import Rows, planted_task, random_sae, with_weights

from saelab.metrics import measure
from saelab.metrics.base import Setting
from saelab.metrics.probing import probe_loss as module
from saelab.metrics.probing.logistic import one_each
from saelab.metrics.probing.probe_loss import ProbeLoss, permuted_labels, pooled, rows_behind
from saelab.metrics.probing.score import mean_over_tasks
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.tasks.rows import Examples, TaskRows
from saelab.tasks.task import WHOLE, Task, Texts

LN2 = math.log(2)


def task_of(label: torch.Tensor, name: str = "t") -> Task:
    n = len(label)
    numbers = torch.arange(n)
    texts = Texts(tuple(map(str, range(n))), "here")
    return Task(name, texts, numbers, torch.full((n,), WHOLE), label, numbers % 2 == 0, numbers // 2)


def told(x: torch.Tensor, labels: list[torch.Tensor], sae: SAE, metric: ProbeLoss | None = None) -> dict[str, float]:
    """Scores of an SAE on rows [n, D] with labels, one row an example."""
    metric = metric or ProbeLoss()
    first = torch.arange(len(x))
    examples = [Examples(task_of(label, f"t{n}"), first, torch.ones_like(first)) for n, label in enumerate(labels)]
    tasks = [one.task for one in examples]
    rows = Rows(x, first)
    rows.model, rows.why_no_model = object(), None
    shared = {TaskRows: TaskRows(x, examples, {})}
    metric.begin(Setting("sae", {"sae": sae}, rows, tasks, shared))
    with torch.no_grad():
        return {name: score.value for name, score in metric.scores(sae).items()}


def reading(d_in: int, encoder: torch.Tensor) -> SAE:
    """An SAE with these encoder rows [L, D], that reads rows as they are."""
    sae = SAE(d_in, len(encoder), TopK(k=1))
    return with_weights(sae, encoder, torch.eye(len(encoder), d_in), torch.zeros(d_in))


def test_the_best_latent_is_chosen_on_one_part_and_scored_on_the_other():
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(400, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels = [(x @ encoder[3] + torch.randn(400, generator=generator)) > 0, x[:, 0] > 0.2]
    sae, metric = reading(8, encoder), ProbeLoss()
    scores = told(x, labels, sae, metric)
    z, expected, trained = x @ encoder.T, [], []
    test = torch.arange(400) % 2 == 0
    for label in labels:
        fits = [one_each(z[~test, i : i + 1], label[~test]) for i in range(30)]
        best = min(range(30), key=lambda i: fits[i].loss.item())
        expected.append(fits[best].losses(z[test, best : best + 1], label[test]).mean().item())
        trained.append(fits[best].loss.item())
    assert scores["probe_loss"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert scores["probe_loss_train"] == pytest.approx(sum(trained) / 2, rel=1e-4)
    table = metric.tables()["probes"]
    assert table["latent"][0] == 3
    assert table["channel"][1] == 0
    assert table["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_planted_latent_has_no_loss_and_the_channels_have_chance():
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(400, generator=generator) < 0.5
    hidden = torch.randn(64, generator=generator) * 0.3
    x = torch.randn(400, 64, generator=generator)
    x = x + (label.float() * 2 - 1)[:, None] * hidden
    scores = told(x, [label], reading(64, torch.cat([torch.randn(20, 64, generator=generator), hidden[None]])))
    assert scores["probe_loss"] < 0.1
    assert scores["probe_accuracy"] > 0.97
    assert scores["probe_loss_channels"] > 0.25
    assert abs(scores["probe_loss_null"] - LN2) < 0.05


def test_noise_is_at_chance_and_the_choice_alone_goes_below_it():
    """ln 2 less the selection bias on the part the latent is chosen on, and no less than ln 2 on the other."""
    generator = torch.Generator().manual_seed(1)
    x, encoder = torch.randn(600, 32, generator=generator), torch.randn(500, 32, generator=generator)
    labels = [torch.rand(600, generator=generator) < 0.5 for _ in range(6)]
    scores = told(x, labels, reading(32, encoder))
    for name in ("probe_loss", "probe_loss_null"):
        assert LN2 - 0.005 < scores[name] < LN2 + 0.03, name
        assert scores[name + "_train"] < LN2 - 0.005
    # The best of many gains about the largest of that many chi-squares of one degree, over two and the examples.
    assert scores["probe_loss_train"] == pytest.approx(scores["probe_loss_null_train"], abs=0.01)
    fewer = told(x, labels, reading(32, encoder[:5]))
    assert fewer["probe_loss_null_train"] > scores["probe_loss_null_train"]


def test_blocks_of_latents_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(200, 6, generator=generator), torch.randn(23, 6, generator=generator)
    labels = [x[:, 0] + x[:, 1] > 0, x[:, 2] > 0]
    whole = told(x, labels, reading(6, encoder))
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 200 * 4)
    assert told(x, labels, reading(6, encoder)) == pytest.approx(whole, rel=1e-5)


def test_a_latent_that_is_constant_is_at_chance():
    scores = told(torch.randn(100, 4), [torch.arange(100) % 4 < 2], reading(4, torch.cat([torch.zeros(3, 4)])))
    assert scores["probe_loss"] == pytest.approx(LN2, abs=1e-4)


def test_permuted_labels_are_as_many_in_each_part():
    first = torch.arange(200)
    label = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.3
    one = Examples(task_of(label), first, torch.ones_like(first))
    found = permuted_labels(one, 3)
    for part in (one.task.test, ~one.task.test):
        assert found[part].sum() == label[part].sum()
    assert not torch.equal(found, label)
    assert torch.equal(found, permuted_labels(one, 3))
    assert not torch.equal(found, permuted_labels(one, 4))


def test_rows_of_a_text_are_pooled():
    values = torch.randn(12, 3)
    some = torch.tensor([0, 4, 5]), torch.tensor([4, 1, 7])
    spans = [values[0:4], values[4:5], values[5:12]]
    for pool, reduce in (
        ("last", lambda span: span[-1]),
        ("mean", lambda span: span.mean(0)),
        ("max", lambda span: span.amax(0)),
    ):
        torch.testing.assert_close(pooled(values, some, pool), torch.stack([reduce(span) for span in spans]))


def test_rows_behind_spans_are_taken_once():
    first, count = torch.tensor([7, 0, 2, 7]), torch.tensor([2, 1, 3, 1])
    rows, (one, other) = rows_behind([(first, count), (torch.tensor([3, 8]), torch.tensor([2, 1]))])
    assert rows.tolist() == [0, 2, 3, 4, 7, 8]
    assert one[0].tolist() == [4, 0, 1, 4]
    assert one[1] is count
    assert other[0].tolist() == [2, 5]


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
def test_whole_texts_are_read_as_their_pooled_rows(pool):
    """Rows that no example needs are in between; the same scores as with one pooled row an example."""
    generator = torch.Generator().manual_seed(0)
    x, count = torch.randn(900, 6, generator=generator), torch.arange(200) % 3 + 1
    first = (count + 1).cumsum(0) - count
    label = x[first + count - 1, 0] + torch.randn(200, generator=generator) * 0.3 > 0
    encoder = torch.randn(12, 6, generator=generator)
    spans = [x[start : start + size] @ encoder.T for start, size in zip(first.tolist(), count.tolist(), strict=True)]
    z = torch.stack([{"last": span[-1], "mean": span.mean(0), "max": span.amax(0)}[pool] for span in spans])
    expected = told(z, [label], reading(12, torch.eye(12)))
    examples = [Examples(task_of(label, "t0"), first, count)]
    metric, rows = ProbeLoss(pool=pool), Rows(x, torch.arange(900))
    rows.model, rows.why_no_model = object(), None
    sae = reading(6, encoder)
    metric.begin(Setting("sae", {"sae": sae}, rows, [examples[0].task], {TaskRows: TaskRows(x, examples, {})}))
    with torch.no_grad():
        scores = metric.scores(sae)
    for name in ("probe_loss", "probe_loss_train", "probe_loss_null", "probe_accuracy"):
        assert scores[name].value == pytest.approx(expected[name], rel=1e-4), name


def test_no_latent_that_is_passed_over_would_have_been_better(monkeypatch):
    """Latents with outliers, rare ones and skewed ones, against fits of all; few are fitted."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(600, 300, generator=generator)
    x[:, ::3] = x[:, ::3].pow(3)
    x[:, 1::3] = (x[:, 1::3] - 1.5).relu()
    x[::50, ::7] *= 30
    labels = [x[:, 4] + x[:, 3] + torch.randn(600, generator=generator) > 0.5, x[:, 6] > 0.3]
    fits = []
    monkeypatch.setattr(module, "one_each", lambda z, *rest: fits.append(z.shape[1]) or one_each(z, *rest))
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 300 * 100)
    scores = told(x, labels, reading(300, torch.eye(300)))
    train = torch.arange(600) % 2 == 1
    best = [one_each(x[train], label[train]).loss.min().item() for label in labels]
    assert scores["probe_loss_train"] == pytest.approx(sum(best) / 2, abs=1e-5)
    assert sum(fits) < 0.4 * 300 * 6


def test_a_bound_just_below_the_best_loss_so_far_is_looked_into():
    """The best input's bound is its loss itself, and all others', which are fitted first, say nothing."""
    generator = torch.Generator().manual_seed(4)
    label = torch.rand(200, generator=generator) < 0.5
    z = label.float()[:, None] + torch.randn(200, 40, generator=generator)
    z[:, 0] += label
    z[:, 7] = z[:, 0] + 0.002 * label
    losses = one_each(z, label).loss
    least = torch.zeros(40)
    least[7] = losses[7]
    best = module.Best()
    module._improve(best, z, label, least, 100, 1e-6)
    assert losses.topk(2, largest=False).values.diff() < 0.01 * losses.min()
    assert best.input == 107
    assert best.train == pytest.approx(losses[7].item(), rel=1e-5)


def test_wrong_settings_and_missing_tasks_are_said():
    x, label = torch.randn(100, 4), torch.arange(100) % 4 < 2
    for metric, says in (
        (ProbeLoss(pool="sum"), "pool must be one of last, mean, max, got 'sum'"),
        (ProbeLoss(ridge=-1.0), "ridge must be at least 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=says):
            told(x, [label], reading(4, torch.eye(4)), metric)
    sae, rows = random_sae(), Rows(torch.randn(20, 16), torch.arange(20))
    found = measure({"sae": sae}, rows, ["ProbeLoss", "L0"], show=False, tasks=[planted_task()])["sae"]
    assert found.skipped == {"ProbeLoss": "needs a model, and this data is activations only"}
    rows.why_no_model = None
    found = measure({"sae": sae}, rows, ["ProbeLoss", "L0"], show=False)["sae"]
    assert found.skipped == {"ProbeLoss": "needs labelled tasks: give --tasks"}


def test_intervals_are_over_documents():
    """Examples of one document again and again: as wide as with one of each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator)
    label = x[:, 0] + torch.randn(300, generator=generator) > 0
    one = Examples(task_of(label), torch.arange(300), torch.ones(300, dtype=torch.int64))
    value = torch.randn(150, generator=generator)
    score = mean_over_tasks([one], [value], "nats")
    assert score.value == pytest.approx(value.mean().item())
    assert score.high - score.low == pytest.approx(2 * 1.96 * value.std().item() / math.sqrt(150), rel=0.15)
    assert (score.n, score.unit) == (150, "nats, mean of 1 tasks")
