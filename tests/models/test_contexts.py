"""Batches of whole contexts: the rows, the model's loss on reconstructions and its gradient, places gone back to."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from saelab.models import harvest as harvest_module
from saelab.models.contexts import ContextSource
from saelab.models.subject import Subject
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.end_to_end import EndToEnd
from saelab.sae.sae import SAE
from saelab.train.trainer import Trainer

pytest_plugins = ["recipes.small_world"]

SITE, LAYER, D = "transformer.h.1", 1, 12
ROWS = 100


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Four contexts a pass: a batch needs several."""
    monkeypatch.setattr(harvest_module, "TOKENS_AT_ONCE", 64)


@pytest.fixture(scope="module")
def subject(tiny_gpt2, text_folder) -> Subject:
    """In float64: this model computes in it throughout."""
    return Subject(str(tiny_gpt2), SITE, str(text_folder), seq_len=16, precision="float64")


@pytest.fixture(scope="module")
def short(subject, text_folder) -> Subject:
    """Text of a few batches, read over and over."""
    return replace(subject, text=str(text_folder / "00*.txt"))


@pytest.fixture(scope="module")
def model(subject):
    return subject.language_model()


@pytest.fixture(scope="module")
def reference(tiny_gpt2):
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float64).eval()


def source(subject, model, brings="kl", window_rows=16 * 10, **options) -> ContextSource:
    return ContextSource(subject, brings, window_rows=window_rows, model=model, **options)


def some(data: ContextSource, count: int, rows: int = ROWS) -> list:
    return list(islice(data.batches(rows), count))


def expected_contexts(subject, model, data: ContextSource, count: int):
    """ids, documents and kept positions of the first `count` contexts in the order of the source."""
    taken = data._taken(0, 0, 10**3)[1].tokens
    return taken.ids[:count], taken.document[:count], taken.keep[:count]


def by_hand(reference, ids, rows, places, counts, kind, layer=LAYER):
    """The loss from two plain passes over all contexts at once, rows put at places [n, 2] by a hook."""
    with torch.no_grad():
        clean = reference(ids).logits.log_softmax(2)

    def put(module, args, output):
        output = output.clone()
        for row, (context, position) in zip(rows, places, strict=True):
            output[context, position] = row
        return output

    handle = reference.transformer.h[layer].register_forward_hook(put)
    changed = reference(ids).logits.log_softmax(2)
    handle.remove()
    terms = []
    for context, position in counts:
        if kind == "kl":
            p, q = clean[context, position], changed[context, position]
            terms.append((p.exp() * (p - q)).sum())
        else:
            terms.append(-changed[context, position, ids[context, position + 1]])
    return torch.stack(terms).mean()


def places_of(keep, rows):
    return keep.nonzero()[:rows].tolist()


def predicting(places, document):
    """Places whose next token, in the same context, is no padding."""
    return [(r, t) for r, t in places if t + 1 < document.shape[1] and document[r, t + 1] >= 0]


# ---- the rows ----


def test_rows_are_the_models_at_the_kept_positions_of_whole_contexts(subject, model, reference):
    data = source(subject, model)
    batch = some(data, 1)[0]
    ids, _, keep = expected_contexts(subject, model, data, 12)
    with torch.no_grad():
        hidden = reference(ids, output_hidden_states=True).hidden_states[LAYER + 1]
    assert batch.x.shape == (ROWS, D)
    assert batch.target is None
    assert torch.allclose(batch.x, hidden[keep][:ROWS], atol=1e-9)


def test_the_rest_of_the_last_context_is_left_out(subject, model):
    data = source(subject, model)
    first, second = some(data, 2, rows=40)
    ids, _, keep = expected_contexts(subject, model, data, 12)
    used = int((keep.sum(1).cumsum(0) < 40).sum()) + 1
    assert int(keep[:used].sum()) > 40  # or nothing was left out
    rest = model.activations(ids[used:])[keep[used:]]
    assert torch.allclose(second.x, rest[:40], atol=1e-9)
    assert first.place["offset"] == used


def test_a_window_holds_every_context_once_in_an_order_of_its_own(short, model):
    data = source(short, model)
    for number in (0, 3):
        text = data._stream.rows(number * 10, 10).ids
        found = data._contexts(number).ids
        assert not torch.equal(found, text)
        assert sorted(found.tolist()) == sorted(text.tolist())
    orders = [[data._stream.rows(n * 10, 10).ids.tolist().index(row.tolist()) for row in data._contexts(n).ids]
              for n in (0, 1)]  # fmt: skip
    assert orders[0] != orders[1]
    assert not torch.equal(source(replace(short, seed=1), model)._contexts(0).ids, data._contexts(0).ids)


def test_windows_follow_one_another(short, model):
    """Batches of one row take one context each: two windows have the first twenty contexts of the text."""
    batches = some(source(short, model), 20, rows=1)
    (text,) = islice(short.token_rows(model, "train", 20), 1)
    expected = torch.stack([rows[keep][0] for rows, keep in zip(model.activations(text.ids), text.keep, strict=True)])
    found = torch.cat([batch.x for batch in batches])
    assert [batch.place["window"] for batch in batches] == [0] * 10 + [1] * 10
    torch.testing.assert_close(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()], rtol=1e-9, atol=1e-9)


def test_outliers_are_left_out_and_made_up_for(subject, model, monkeypatch):
    """A limit in the middle of the norms: every batch is full nonetheless, and what is left out stays clean."""
    data = source(subject, model)
    limit = data.sample(200).norm(dim=1).median().item()
    monkeypatch.setattr(data._stream, "limit", lambda: limit)
    batches = some(data, 3)
    for batch in batches:
        assert batch.x.shape == (ROWS, D)
        assert batch.x.norm(dim=1).max() <= limit
        assert batch.downstream(batch.x).item() == 0
    _, contexts, _, _ = data._taken(0, 0, ROWS)
    norms = model.activations(contexts.tokens.ids).norm(dim=2)
    assert torch.equal(contexts.keep.nonzero(), (contexts.tokens.keep & (norms <= limit)).nonzero()[:ROWS])
    assert torch.equal(model.activations(contexts.tokens.ids)[contexts.keep], batches[0].x)


def test_a_target_stands_beside_the_rows(subject):
    here = replace(subject, site=f"{SITE}.mlp:in", target=f"{SITE}.mlp")
    model = here.language_model()
    data = source(here, model)
    batch = some(data, 1)[0]
    assert (data.d_in, data.d_out) == (D, D)
    with torch.no_grad():
        assert torch.allclose(model.model.transformer.h[1].mlp(batch.x), batch.target, atol=1e-9)
    assert data.sample(30).shape == (30, 2 * D)
    assert batch.downstream(batch.target).item() == 0
    assert batch.downstream(batch.x).item() > 0


def test_sampling_does_not_move_the_source(subject, model):
    data, fresh = source(subject, model), source(subject, model)
    sample = data.sample(150)
    assert sample.shape == (150, D)
    assert torch.equal(sample[:ROWS], some(fresh, 1)[0].x)
    assert data.state() == source(subject, model).state()
    assert torch.equal(some(data, 1)[0].x, sample[:ROWS])


# ---- the loss ----


@pytest.mark.parametrize("kind", ["kl", "ce"])
@pytest.mark.parametrize("rows", [1, 37, ROWS])
def test_loss_and_gradient_equal_plain_passes(subject, model, reference, kind, rows):
    data = source(subject, model, kind)
    batch = some(data, 1, rows)[0]
    ids, document, keep = expected_contexts(subject, model, data, 12)
    places = places_of(keep, rows)
    counts = predicting(places, document)
    moved = batch.x + 0.5 * torch.randn(batch.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found_rows, rows_by_hand = moved.clone().requires_grad_(), moved.clone().requires_grad_()
    found, expected = batch.downstream(found_rows), by_hand(reference, ids, rows_by_hand, places, counts, kind)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(found_rows.grad, rows_by_hand.grad, rtol=1e-7, atol=1e-11)
    assert found_rows.grad.any()


def test_the_gradient_equals_differences(subject, model):
    batch = some(source(subject, model), 1, 2)[0]
    assert torch.autograd.gradcheck(batch.downstream, ((batch.x * 1.3).requires_grad_(),), atol=1e-6)


def test_the_models_own_rows_cost_nothing_more(subject, model):
    for brings in ("kl", "ce"):
        batch = some(source(subject, model, brings), 1)[0]
        rows = batch.x.clone().requires_grad_()
        loss = batch.downstream(rows)
        loss.backward()
        if brings == "kl":
            assert loss.item() == 0
            assert rows.grad.abs().max() < 1e-12  # a minimum
            assert batch.downstream(-batch.x).item() > 0.01
        else:
            assert loss.item() > 1
            assert rows.grad.any()


def test_a_prediction_of_padding_does_not_count(subject, model, reference):
    """The last context of the text: padding is not predicted, and nothing is divided by it."""
    length = sum(len(block) for block in subject.token_rows(model, "train", 100))
    data = source(subject, model, "ce", window_rows=16 * length)
    contexts = data._contexts(0)
    (last,) = (contexts.document[:, -1] < 0).nonzero().flatten().tolist()
    ids, document, keep = contexts.ids[last:][:1], contexts.document[last:][:1], contexts.keep[last:][:1]
    rows, taken, _, _ = data._taken(0, last, int(keep.sum()))
    places = keep.nonzero().tolist()
    counts = predicting(places, document)
    assert len(counts) < len(places)
    expected = by_hand(reference, ids, rows, places, counts, "ce")
    assert taken.loss("ce", rows).item() == pytest.approx(expected.item(), rel=1e-9)


def test_mixed_precision_of_the_trainer_does_not_reach_the_model(subject, tiny_gpt2):
    model = replace(subject, precision="float32").language_model()
    batch = some(source(replace(subject, precision="float32"), model), 1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert batch.downstream(batch.x).item() == 0


def test_rows_of_a_replica_only_are_refused(subject, model):
    batch = some(source(subject, model), 1)[0]
    with pytest.raises(ValueError, match="100 rows .*got 50; contexts"):
        batch.downstream(batch.x[::2])


def test_training_on_the_loss_lowers_it_more_than_training_without(short, model):
    """A few steps of the trainer, on rows of one context each so that it is quick."""
    data = source(short, model, "kl")
    held = next(data.batches(60))

    def after_training(losses) -> float:
        sae = SAE(D, 24, TopK(k=4), losses)
        trainer = Trainer(sae, lr=5e-3, batch=20, warmup=0)
        sae.initialise(data.sample(200).float())
        before = held.downstream(sae(held.x.float())).item()
        for batch in islice(source(short, model, "kl").batches(20), 15):
            trainer.step(batch)
        return held.downstream(sae(held.x.float())).item() / before

    with_it, without = after_training([EndToEnd(weight=10.0)]), after_training([])
    assert with_it < 0.7
    assert with_it < 0.9 * without


# ---- the gradient of the model's own loss ----


def test_the_gradient_of_the_models_loss_is_that_of_a_plain_pass(subject, model, reference):
    data = source(subject, model, "gradient")
    batch = some(data, 1)[0]
    ids, document, keep = expected_contexts(subject, model, data, 12)
    kept = []

    def watch(module, args, output):
        kept.append(output)
        output.requires_grad_()

    handle = reference.transformer.h[LAYER].register_forward_hook(watch)
    reference.requires_grad_(False)
    logits = reference(ids).logits
    handle.remove()
    used = predicting(keep.nonzero().tolist(), document)
    loss = sum(F.cross_entropy(logits[r, t], ids[r, t + 1]) for r, t in used)
    (expected,) = torch.autograd.grad(loss, kept[0])
    assert batch.downstream is None
    torch.testing.assert_close(batch.gradient, expected[keep][:ROWS], rtol=1e-7, atol=1e-11)
    assert (batch.gradient.norm(dim=1) > 0).float().mean() > 0.8


def test_both_may_be_brought(subject, model):
    batch = some(source(subject, model, "ce, gradient"), 1)[0]
    assert batch.gradient.shape == batch.x.shape
    assert batch.downstream(batch.x).item() > 0


# ---- places ----


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 9])
def test_a_restored_source_goes_on_bit_for_bit(short, model, taken):
    """Windows of ten contexts, batches of about five."""
    data, batches = source(short, model), []
    state = data.state()
    for batch in data.batches(60):
        batches.append(batch)
        if len(batches) == taken:
            state = data.state()
            assert state == batch.place
        if len(batches) == taken + 3:
            break
    again = source(short, model)
    again.restore(json.loads(json.dumps(state)))
    assert again.state() == state
    for expected, found in zip(batches[taken:], again.batches(60), strict=False):
        assert torch.equal(found.x, expected.x)
        assert found.place == expected.place
        assert found.downstream(found.x * 2).item() == expected.downstream(expected.x * 2).item() > 0


def test_the_batches_above_go_past_the_end_of_the_text(short, model):
    rows = sum(int(block.keep.sum()) for block in short.token_rows(model, "train", 64))
    assert 60 * 3 < rows < 60 * 9


@pytest.mark.parametrize(
    ("change", "key"), [({"seed": 1}, "seed"), ({"site": "transformer.h.0"}, "site"), ({"target": SITE}, "target")]
)
def test_a_place_in_another_text_or_site_is_refused(subject, model, change, key):
    data = source(subject, model)
    some(data, 1)
    with pytest.raises(ValueError, match=f"the saved position is for {key} "):
        source(replace(subject, **change), model).restore(data.state())
    with pytest.raises(ValueError, match="contexts_a_window 10, .* 11"):
        source(subject, model, window_rows=16 * 11).restore(data.state())


def test_a_text_that_changed_is_refused(subject, model, tmp_path):
    (tmp_path / "text.txt").write_text("the lazy dog jumps over " * 60)
    here = replace(subject, text=str(tmp_path / "text.txt"))
    data = source(here, model, split="all", window_rows=16 * 100)
    some(data, 1)
    (tmp_path / "text.txt").write_text("the lazy dog jumps over. " * 50)
    again = source(here, model, split="all", window_rows=16 * 100)
    again.restore(data.state())
    with pytest.raises(ValueError, match="the data changed"):
        next(again.batches(60))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("brings", "message"),
    [
        ("lk", "unknown downstream 'lk'; did you mean 'kl'"),
        ("", "unknown downstream ''; there are: ce, gradient, kl"),
        ("kl,ce", "downstream takes kl or ce, not both"),
    ],
)
def test_only_what_there_is_can_be_brought(subject, model, brings, message):
    with pytest.raises(ValueError, match=message):
        source(subject, model, brings)


def test_averages_and_gradients_at_several_sites_are_refused(subject, model):
    with pytest.raises(ValueError, match="averaged rows"):
        source(replace(subject, average="document"), model)
    several = replace(subject, site="transformer.h.0,transformer.h.1")
    with pytest.raises(ValueError, match="the gradient is of the rows of one site"):
        source(several, None, "gradient")
    assert source(several, None, "kl").d_in == 2 * D
    with pytest.raises(ValueError, match="a batch needs at least 1 row, got 0"):
        next(source(subject, model).batches(0))


def test_nan_is_refused_by_model_and_site(subject, model, monkeypatch):
    real = model.activations
    monkeypatch.setattr(model, "activations", lambda ids: real(ids) * float("nan"))
    with pytest.raises(ValueError, match=rf"gives NaN or infinity at {SITE}"):
        next(source(subject, model).batches(8))
