"""The lens against the model run by hand."""

import pytest
import torch
import torch.nn.functional as F

from saelab.explorer.lens import Change, Lens
from saelab.models.language_model import LanguageModel
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.sae.scales import LayerNorm

TEXT = "def f(x):\n    return x"


@pytest.fixture(scope="module")
def lens():
    model = LanguageModel("pycode-7m", "model.layers.3")
    sae = SAE(d_in=256, n_latents=64, activation=TopK(k=5))
    ids = torch.tensor([model.tokenizer(TEXT * 8)["input_ids"]])
    sae.initialise(model.activations(ids)[0].float())
    sae.scale.set(torch.randn(256, generator=torch.Generator().manual_seed(0)) * 0.1, 2.5)
    return Lens(sae, model)


def direct(lens: Lens, ids: list[int], rows: torch.Tensor) -> torch.Tensor:
    return F.log_softmax(lens.model.forward_with(torch.tensor([ids]), rows[None])[0].float(), dim=-1)


def loss(logs: torch.Tensor, ids: list[int]) -> torch.Tensor:
    return -logs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_texts_begin_with_the_token_that_has_no_codes(lens):
    ids = lens.ids(TEXT)
    _, codes = lens.read(ids)
    assert ids[0] == lens.model.tokenizer.bos_token_id
    assert codes.l0().tolist() == [0] + [5] * (len(ids) - 1)
    assert all(not one for one in lens.by_token(ids)[:1])


def test_effects_are_the_derivative_of_the_loss_and_the_direct_logit(lens):
    ids = lens.ids(TEXT)
    activations, _ = lens.read(ids)
    found = lens.by_token(ids)
    inner = lens.model.model
    with torch.no_grad():
        seen = []
        handle = inner.model.layers[-1].register_forward_hook(lambda _, args, out: seen.append(out))
        inner(torch.tensor([ids]))
        handle.remove()
    before = loss(direct(lens, ids, activations), ids).sum()
    for t in (2, len(ids) - 2):
        for one in found[t]:
            step = 1e-2 * one["value"] * lens.sae.dictionary.directions()[one["latent"]] * lens.sae.scale.scale
            moved = activations.clone()
            moved[t] -= step.detach()
            slope = (loss(direct(lens, ids, moved), ids).sum() - before) / 1e-2
            assert one["loss"] == pytest.approx(slope.item(), abs=0.02 + 0.1 * abs(one["loss"]))
            with torch.no_grad():
                up, down = (inner.lm_head(inner.model.norm(seen[0][0, t] + sign * step)) for sign in (1, -1))
            change = (up - down) / 2e-2
            along = change[ids[t + 1]] - change.mean()
            assert one["logit"] == pytest.approx(along.item(), rel=1e-2, abs=2e-3)


@pytest.mark.parametrize("position", [None, 3])
def test_ablation_takes_exactly_the_latents_part_out(lens, position):
    ids = lens.ids(TEXT)
    activations, codes = lens.read(ids)
    latent = int(codes.indices[3][codes.values[3].abs().argmax()])
    (found,) = lens.ablated(ids, [latent], position and range(position, position + 1))
    rows = activations.clone()
    for t in range(1, len(ids)):
        for value, index in zip(codes.values[t].tolist(), codes.indices[t].tolist(), strict=True):
            if index == latent and position in (None, t):
                rows[t] -= value * (lens.sae.dictionary.directions()[latent] * lens.sae.scale.scale).detach()
    clean, after = direct(lens, ids, activations), direct(lens, ids, rows)
    change = loss(after, ids) - loss(clean, ids)
    assert found["loss"] == pytest.approx(change.tolist(), abs=2e-3)
    assert change.abs().max() > 1e-3
    divergence = F.kl_div(after[:-1], clean[:-1], log_target=True, reduction="none").sum(1)
    assert found["kl"] == pytest.approx(divergence.tolist(), abs=2e-3)
    if position:
        assert found["loss"][: position - 1] == pytest.approx([0.0] * (position - 1), abs=1e-4)


def test_changes_of_nothing_change_nothing_and_others_move_along_the_direction(lens):
    ids = lens.ids(TEXT)
    activations, codes = lens.read(ids)
    same = lens.changed(activations, codes, [Change(1, "add", 0.0), Change(2, "scale", 1.0)], [3.0, 3.0])
    assert torch.allclose(same, activations)
    moved = lens.changed(activations, codes, [Change(1, "add", -0.5)], [3.0]) - activations
    assert torch.allclose(moved[1:], -1.5 * lens.data_directions[1].expand(len(ids) - 1, -1), atol=1e-5)
    assert not moved[0].any()


def test_a_plain_continuation_is_the_models_own_greedy_one(lens):
    ids = lens.ids(TEXT)
    own = list(ids)
    for _ in range(5):
        own.append(int(lens.model.model(torch.tensor([own])).logits[0, -1].argmax()))
    assert lens.continued(ids, [], [], 5) == own[len(ids) :]
    steered = lens.continued(ids, [Change(3, "add", 40.0)], [3.0], 5)
    assert steered != own[len(ids) :]
    drawn = [lens.continued(ids, [], [], 6, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_moved_tokens_are_those_whose_probability_changed_most(lens):
    before = torch.log_softmax(torch.tensor([2.0, 1.0, 0.5, -30.0]), 0)
    after = torch.log_softmax(torch.tensor([0.0, 1.0, 0.6, -20.0]), 0)
    found = lens.moved_tokens(before, after, 2)
    assert [token for token, _, _ in found["down"]] == [0]
    assert [token for token, _, _ in found["up"]] == [2, 1]  # the last is impossible either way
    assert found["up"][1][2] == pytest.approx(before[1].exp().item(), rel=1e-3)


@torch.no_grad()
def test_where_rows_are_each_scaled_by_themselves_a_latent_is_taken_out_of_each_by_its_own_size(lens):
    sae = SAE(d_in=256, n_latents=64, activation=TopK(k=5), scale=LayerNorm())
    own = Lens(sae, lens.model)
    ids = own.ids(TEXT)
    activations, codes = own.read(ids)
    latent = int(codes.indices[3, 0])
    without = codes.with_values(torch.where(codes.indices == latent, 0, codes.values))
    moved = own.changed(activations, codes, [Change(latent, "scale", 0.0)], [0.0])
    expected = activations + sae.decode(without) - sae.decode(codes)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)
    more = own.changed(activations, codes, [Change(latent, "add", 0.5)], [2.0]) - activations
    deviation = activations.std(1, keepdim=True)
    expected = deviation * sae.dictionary.W_dec[latent] * (torch.arange(len(ids)) > 0)[:, None]
    torch.testing.assert_close(more, expected, rtol=1e-4, atol=1e-4)
    one = next(one for one in own.by_token(ids)[3] if one["latent"] == latent)
    along = own.gradient(ids, activations)[3] @ (deviation[3] * sae.dictionary.W_dec[latent])
    assert one["loss"] == pytest.approx(-one["value"] * along.item(), rel=2e-3)
