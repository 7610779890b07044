"""Small SAEs against plain float64 code, and the contrast between hollow and filled manifolds."""

import json

import numpy as np
import pytest
import torch

from saelab.capacity.manifolds import as_curve, exponents, loss_curve, points_of
from saelab.capacity.small import ACTIVATIONS, Recipe, Small, measure
from saelab.capacity.theory import circle_error, circle_lasso, lasso_floor
from saelab.data.synthetic.shapes import shape_named


def reference(small, member, x, kind):
    """Error and penalty of one member by loops, in float64."""
    n = small.sizes[member]
    encoder, decoder = small.encoder[member, :n].double(), small.decoder[member, :n].double()
    bias, theta = small.bias[member, :n].double(), small.log_threshold[member, :n].double().exp()
    pre = x.double() @ encoder.T + bias
    if kind == "jumprelu":
        codes = pre * (pre > theta)
    elif kind == "topk":
        codes = torch.zeros_like(pre)
        for row in range(len(x)):
            for place in sorted(range(n), key=lambda j, row=row: -pre[row, j].item())[: small.recipe.k]:
                codes[row, place] = max(pre[row, place], torch.zeros(()).double())
    elif kind == "batchtopk":
        positive = sorted(pre.relu().flatten().tolist(), reverse=True)
        least = positive[min(small.recipe.k * len(x), len(positive)) - 1]
        codes = pre.relu() * (pre.relu() >= least)
    else:
        codes = pre.relu()
    error = (x.double() - codes @ decoder).square().sum(1).mean()
    penalty = {"relu": codes.sum(1).mean(), "jumprelu": (codes > 0).double().sum(1).mean()}.get(kind, 0 * error)
    return error, penalty


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_objective_and_gradients_of_each_member_are_its_own(kind):
    small = Small(3, [2, 5, 4], [0, 1, 2], Recipe(kind, k=2))
    small.bias.data += 0.1 * torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(4))
    error, penalty, codes = small.terms(x)
    assert not codes[:, 0, 2:].any()  # latents that are not there
    (error + 0.3 * penalty).sum().backward()
    grads = [part.grad.clone() for part in (small.encoder, small.decoder, small.bias)]
    for member in range(3):
        for part in small.parameters():
            part.grad = None
        wanted_error, wanted_penalty = reference(small, member, x, kind)
        assert error[member].item() == pytest.approx(wanted_error.item(), rel=1e-5)
        assert penalty[member].item() == pytest.approx(wanted_penalty.item(), rel=1e-5)
        total = wanted_error if kind == "jumprelu" else wanted_error + 0.3 * wanted_penalty
        total.backward()  # the count of jumprelu reaches thresholds only
        for grad, part in zip(grads, (small.encoder, small.decoder, small.bias), strict=True):
            torch.testing.assert_close(grad[member], part.grad[member], rtol=1e-4, atol=1e-5)


def test_thresholds_learn_by_the_rectangle():
    small = Small(2, [3], [0], Recipe("jumprelu"))
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    _, penalty, _ = small.terms(x)
    penalty.sum().backward()
    pre = (x @ small.encoder[0].T + small.bias[0]).detach()
    near = ((pre - 0.1).abs() < 0.05).float().mean(0)
    torch.testing.assert_close(small.log_threshold.grad[0], -near / 0.1 * 0.1)  # d ln theta = theta d theta


@pytest.fixture(scope="module")
def contrast():
    recipe = Recipe("relu", 0.1, steps=700, batch=256, lr=1e-2)
    return [loss_curve("circle", s, recipe, sizes=(4, 8), seeds=2, show=False) for s in (0.0, 0.5)]


def test_the_hollow_circle_keeps_improving_and_radial_variation_does_not(contrast):
    hollow, varied = ([row["total"] for row in curve["rows"]] for curve in contrast)
    assert hollow[0] == pytest.approx(0.1224, abs=0.002)
    assert varied[0] == pytest.approx(0.1226, abs=0.002)
    assert hollow[0] - min(hollow[1:]) > 0.004  # more latents keep lowering the loss
    assert varied[0] - min(varied[1:]) < 0.003  # beyond the basis almost nothing is gained
    json.dumps(contrast, allow_nan=False)


def test_no_trained_sae_is_below_the_lasso_bound(contrast):
    for row in contrast[0]["rows"]:
        assert min(row["totals"]) >= circle_lasso(row["n"], 0.1) - 2e-4  # sampling noise
        assert row["total"] >= contrast[0]["floor"]
    for row in contrast[1]["rows"]:
        assert row["total"] >= contrast[1]["floor"] - 1e-4
    assert contrast[0]["floor"] == pytest.approx(0.0975)
    assert contrast[1]["floor"] == pytest.approx(0.0975, abs=1e-3)


def test_one_active_latent_comes_close_to_its_closed_form():
    recipe = Recipe("topk", k=1, steps=500, batch=128, lr=1e-2)
    curve = loss_curve("circle", 0.0, recipe, sizes=(3, 4, 8), seeds=2, show=False)
    for row in curve["rows"]:
        assert circle_error(row["n"]) - 4e-3 < row["error"] < circle_error(row["n"]) * 1.3 + 0.01
        assert row["l0"] <= 1


def test_exponents_of_a_planted_curve_come_back():
    n = [2, 3, 4, 6, 8, 12, 16, 24, 32]
    curve = {"dims": 2, "floor": 0.0975, "rows": [{"n": k, "total": 0.0975 + 0.3 * k**-1.5} for k in n]}
    found = exponents(curve)
    assert found["beta"]["value"] == pytest.approx(1.5, abs=1e-3)
    assert found["limit"]["value"] == pytest.approx(0.0975, rel=1e-3)
    assert found["beta_fixed_floor"]["value"] == pytest.approx(1.5, abs=1e-6)
    assert found["beta_no_floor"]["value"] < 0.5  # the false alarm of a fit without the floor
    few = exponents(curve | {"rows": curve["rows"][:4]})
    assert few["beta"]["value"] is None
    assert "needs" in few["beta"]["why"]
    measured = as_curve(curve | found | {"nothing": 1.0})
    assert measured.loss(np.array([64]))[0] == pytest.approx(0.0975 + 0.3 * 64**-1.5, rel=1e-3)


def test_radii_vary_as_asked():
    points = points_of(shape_named("sphere3"), 0.5, 4000, torch.Generator().manual_seed(0))
    sizes = points.norm(dim=1)
    assert 0.5 <= sizes.min() < 0.52
    assert 1.48 < sizes.max() <= 1.5
    assert lasso_floor(0.1, sizes.numpy()) == pytest.approx(0.0975, abs=1e-3)


def test_dead_latents_are_put_on_rows():
    small = Small(2, [6], [0], Recipe("topk", k=1, steps=300, batch=128, lr=1e-2))
    small.bias.data[0, 1:] = -5.0
    small.fit(lambda n, generator: points_of(shape_named("circle"), 0.0, n, generator))
    x = points_of(shape_named("circle"), 0.0, 500, torch.Generator().manual_seed(9))
    assert measure(small, x)["alive"].item() >= 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe("rely"), "unknown activation 'rely'; did you mean 'relu'?"),
        (lambda: Recipe(weight=-1), "need weight >= 0"),
        (lambda: Small(2, [0], [0], Recipe()), "at least 1 latent"),
        (lambda: loss_curve("circle", 2.0, Recipe()), "radial must be from 0 to 1"),
        (lambda: loss_curve("circel", 0.0, Recipe()), "did you mean 'circle'?"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make()
