"""Several sites and target sites: each column where it belongs, each replacement in its own place."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from saelab.models.language_model import LanguageModel

IDS = torch.tensor([[0, 5, 9, 200, 31], [0, 7, 7, 12, 300]])
MLP = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return str(tiny_llama)


@pytest.fixture(scope="module")
def transcoded(folder):
    """Reads an MLP's input, has its output as the target."""
    return LanguageModel(folder, f"{MLP}:in", target=MLP)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def hidden(reference, layer: int) -> torch.Tensor:
    with torch.no_grad():
        return reference(IDS, output_hidden_states=True).hidden_states[layer]


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, -1)])
def test_several_sites_stand_side_by_side_in_the_order_they_are_named(folder, reference, order):
    """Whatever their order in the model; -1 is what the first layer is given."""
    names = ["model.layers.0:in" if layer < 0 else f"model.layers.{layer}" for layer in order]
    model = LanguageModel(folder, ", ".join(names))
    expected = torch.cat([hidden(reference, layer + 1) for layer in order], dim=2)
    assert (model.d_in, model.d_out) == (16 * len(order), None)
    assert torch.equal(model.activations(IDS), expected)
    logits, activations = model.run(IDS)
    assert torch.equal(activations, expected)
    with torch.no_grad():
        assert torch.equal(logits, reference(IDS).logits)


def test_a_target_stands_behind_what_is_read(transcoded, reference):
    activations = transcoded.activations(IDS)
    assert (transcoded.d_in, transcoded.d_out) == (16, 16)
    assert activations.shape == (2, 5, 32)
    with torch.no_grad():
        assert torch.allclose(reference.model.layers[1].mlp(activations[..., :16]), activations[..., 16:], atol=1e-6)
    assert torch.equal(transcoded.run(IDS)[1], activations)
    assert torch.equal(transcoded.output_activations(activations), activations[..., 16:])


def test_sites_may_differ_in_width_and_targets_be_several(folder):
    model = LanguageModel(folder, f"{MLP}.up_proj,{MLP}:in", target="model.layers.0,model.layers.2:in,model.layers.2")
    assert (model.d_in, model.d_out, model.n_output_sites) == (24 + 16, 48, 3)
    parts = [f"{MLP}.up_proj", f"{MLP}:in", "model.layers.0", "model.layers.1", "model.layers.2"]
    expected = torch.cat([LanguageModel(folder, part).activations(IDS) for part in parts], dim=2)
    assert torch.equal(model.activations(IDS), expected)
    assert torch.equal(model.output_activations(expected), expected[..., 40:])


@pytest.mark.parametrize(("site", "target", "last"), [("0", "1", 1), ("1", "0", 1), ("0,1", None, 1), ("0", "2", 2)])
def test_layers_above_the_last_of_the_sites_are_not_run(folder, site, target, last):
    names = [words and ",".join(f"model.layers.{number}" for number in words.split(",")) for words in (site, target)]
    model = LanguageModel(folder, names[0], target=names[1])
    calls = []
    for layer in range(3):
        model.model.get_submodule(f"model.layers.{layer}").register_forward_hook(
            lambda *_, layer=layer: calls.append(layer)
        )
    model.activations(IDS)
    assert calls == list(range(last + 1))


def test_what_was_read_below_does_not_change_when_the_model_goes_on_in_place(folder):
    model = LanguageModel(folder, "model.layers.0,model.layers.1")
    expected = model.activations(IDS)
    model.model.get_submodule("model.layers.1").register_forward_pre_hook(lambda _, args: (args[0].mul_(2),))
    found = model.activations(IDS)
    assert torch.equal(found[..., :16], expected[..., :16])
    assert not torch.equal(found[..., 16:], expected[..., 16:])


# ---- replacing ----


def test_the_target_is_replaced_and_not_what_is_read(transcoded, reference):
    rows = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    handle = reference.model.layers[1].mlp.register_forward_hook(lambda *_: rows)
    with torch.no_grad():
        expected = reference(IDS).logits
    handle.remove()
    assert torch.equal(transcoded.forward_with(IDS, rows), expected)


@pytest.mark.parametrize("names", ["model.layers.0.mlp,model.layers.2.mlp", "model.layers.2.mlp,model.layers.0.mlp"])
def test_every_site_takes_its_own_replacement(folder, reference, names):
    model = LanguageModel(folder, names)
    rows = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    handles = []
    for name, part in zip(names.split(","), rows.split(16, dim=2), strict=True):
        module = reference.get_submodule(name)
        handles.append(module.register_forward_hook(lambda *_, part=part: part))
    with torch.no_grad():
        expected = reference(IDS).logits
    for handle in handles:
        handle.remove()
    assert torch.equal(model.forward_with(IDS, rows), expected)


def test_its_own_activations_change_nothing(folder):
    for names in ({"site": "model.layers.0,model.layers.1"}, {"site": "model.layers.0", "target": f"{MLP},model.norm"}):
        model = LanguageModel(folder, **names)
        logits, activations = model.run(IDS)
        assert torch.equal(model.forward_with(IDS, model.output_activations(activations)), logits)


def test_activations_of_another_width_are_refused(transcoded):
    with pytest.raises(ValueError, match=r"\[2, 5, 16\], got \[2, 5, 32\]"):
        transcoded.forward_with(IDS, transcoded.activations(IDS))


@pytest.mark.parametrize("names", ["transformer.h.0", "transformer.h.0.mlp,transformer.h.2.mlp"])
def test_logits_can_be_differentiated_by_what_is_put_in_place(tiny_gpt2, names):
    """Against differences, in a model that computes in float64 throughout (a Llama's norms do not)."""
    model = LanguageModel(str(tiny_gpt2), names, dtype="float64")
    rows = model.activations(IDS).requires_grad_()
    assert not model.forward_with(IDS, rows).requires_grad
    logits = model.forward_with(IDS, rows, gradient=True)
    (found,) = torch.autograd.grad(logits[1, 3, 7], rows)
    step = 1e-5
    for place in [(1, 1, 3), (1, 3, 5), (1, 3, model.d_in - 1), (1, 4, 0), (0, 2, 2)]:
        moved = [rows.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (model.forward_with(IDS, one)[1, 3, 7].item() for one in moved)
        assert found[place].item() == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-8)
    assert found[1, 3].abs().min() > 0
    assert not found[0].any()
    assert not found[1, 4].any()
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_a_model_that_goes_on_in_place_can_be_differentiated_too(folder):
    model = LanguageModel(folder, "model.layers.0,model.layers.1")
    model.model.get_submodule("model.layers.1").register_forward_pre_hook(lambda _, args: (args[0].mul_(2),))
    rows = model.activations(IDS).requires_grad_()
    before = rows.detach().clone()
    model.forward_with(IDS, rows, gradient=True).sum().backward()
    assert torch.equal(rows, before)
    assert torch.isfinite(rows.grad).all()
    assert rows.grad.any()


# ---- errors ----


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"site": "model.layers.0,model.layers.0:out"}, "the site 'model.layers.0' is named 2 times; name it once"),
        ({"site": "model.layers.0", "target": f"{MLP},{MLP}"}, f"the site '{MLP}' is named 2 times"),
        ({"site": MLP, "target": f"{MLP}:out"}, f"the target '{MLP}:out' is the site itself; leave it out"),
        ({"site": MLP, "target": "model.layer.1"}, r"has no module 'model\.layer\.1'; closest: model\.layers\.1"),
        ({"site": f"{MLP},"}, "has no module ''"),
        ({"site": MLP, "target": "model.embed_tokens:in"}, r"the site 'model.embed_tokens:in' of .* torch\.int64"),
        ({"site": f"{MLP},model.layers"}, r"the site 'model\.layers' of .* is never run itself"),
    ],
)
def test_wrong_sites_are_named(folder, names, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(folder, **names)


def test_an_empty_target_is_none(folder):
    model = LanguageModel(folder, MLP, target="")
    assert (model.target, model.d_out) == (None, None)
