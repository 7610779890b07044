"""Other readings of an SAE, and refined codes: points by hand, planted shrinkage."""

import pytest
import torch
from sweeps import Rows, constant, random_sae, values, with_weights

from saelab.metrics import measure
from saelab.sae import refine, reread, threshold_for
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.ensemble import Ensemble
from saelab.sae.sae import SAE


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(sae, x: torch.Tensor, name: str, **setting):
    return measure({"sae": sae}, Rows(x, torch.arange(len(x))), [{"name": name} | setting], show=False)["sae"]


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()


@torch.no_grad()
def test_points_of_the_curve_are_those_of_the_sae_read_so():
    sae, x = random_sae(k=4), gaussian(300, 16, seed=1)
    found = measured(sae, x, "TestTime")
    table = found.tables["test_time"]
    lines = {(line[0], line[2]): line for line in zip(*table.values(), strict=True)}
    assert lines["own", None][4] == pytest.approx(fvu(x, sae(x)), rel=1e-5)
    for k in (1, 2, 4, 8, 16):
        by_k = reread(sae, TopK(k))
        assert lines["topk", k][3:5] == pytest.approx((by_k.encode(x).l0().double().mean().item(), fvu(x, by_k(x))))
        if k <= 8:
            by_threshold = reread(sae, JumpReLU(threshold=threshold_for(sae, x, k)))
            assert lines["threshold", k][3] == pytest.approx(k, rel=0.02)
            assert lines["threshold", k][4] == pytest.approx(fvu(x, by_threshold(x)), rel=1e-5)
    assert ("threshold", 16) not in lines  # fewer pre-activations are positive
    assert ("topk", 32) not in lines  # more than there are latents
    assert found.scores["fvu_read_topk_double"].value == lines["topk", 8][4]
    assert found.scores["fvu_read_own"].value == pytest.approx(found.scores["fvu_read_topk_same"].value)
    for line in lines.values():
        assert line[5] < line[4] < line[6]


def test_factors_are_a_setting():
    table = measured(random_sae(k=4), gaussian(200, 16), "TestTime", factors=[0.5, 3]).tables["test_time"]
    assert table["k"][1:] == [2, 2, 12, 12] or table["k"][1:] == [2, 2, 12]


@torch.no_grad()
def test_codes_that_were_shrunk_move_up_and_others_do_not():
    directions = torch.linalg.qr(gaussian(8, 8)).Q
    x = (gaussian(400, 8, seed=1).relu() + 0.5) * (gaussian(400, 8, seed=2) > 0) @ directions
    fair = with_weights(SAE(8, 8, ReLU(l1=0.0)), directions, directions, torch.zeros(8))
    shrunk = with_weights(SAE(8, 8, ReLU(l1=0.0)), 0.8 * directions, directions, torch.zeros(8))
    found = {name: measured(sae, x, "Refinement") for name, sae in (("fair", fair), ("shrunk", shrunk))}
    assert found["fair"].scores["refined_shift"].value == pytest.approx(0, abs=1e-5)
    assert found["shrunk"].scores["refined_shift"].value == pytest.approx(0.25, abs=1e-4)
    assert found["shrunk"].scores["refined_fvu"].value == pytest.approx(0, abs=1e-8)
    assert found["shrunk"].scores["refined_gain"].value == pytest.approx(1, abs=1e-6)
    curve = found["shrunk"].tables["refinement"]
    ratios = [r / c for c, r in zip(curve["code"], curve["refined"], strict=True) if c > 0.1]  # others: rounding
    assert ratios == pytest.approx([1.25] * len(ratios), rel=1e-4)
    assert len(ratios) > 10
    assert sum(curve["n"]) == int((shrunk.encode(x).values > 0).sum())
    assert curve["code"] == sorted(curve["code"])


@torch.no_grad()
def test_refined_scores_are_those_of_refine_and_never_worse():
    sae, x = random_sae(k=6), gaussian(200, 16, seed=3)
    found = values(measured(sae, x, "Refinement").scores)
    codes = sae.encode(x)
    better = refine(sae, x, codes)
    assert found["refined_fvu"] == pytest.approx(fvu(x, sae.decode(better)), rel=1e-5)
    assert found["refined_gain"] == pytest.approx(1 - fvu(x, sae.decode(better)) / fvu(x, sae(x)), rel=1e-4)
    assert found["refined_shift"] == pytest.approx((better.values.sum() / codes.values.sum() - 1).item(), rel=1e-4)
    assert found["refined_gain"] > 0


def test_what_cannot_be_read_or_refined_says_why():
    nothing, x = constant(torch.zeros(16)), gaussian(20, 16)
    assert measured(nothing, x, "TestTime").skipped["TestTime"] == "no latent fires in these rows"
    assert measured(nothing, x, "Refinement").skipped["Refinement"] == "no latent fires in these rows"
    assert "ensemble" in measured(Ensemble([random_sae()]), x, "TestTime").skipped["TestTime"]
    assert "factors" in measured(random_sae(), x, "TestTime", factors=[0]).skipped["TestTime"]
    assert "rows" in measured(random_sae(), x, "TestTime", rows=1).skipped["TestTime"]
    assert "rows" in measured(random_sae(), x, "Refinement", rows=1).skipped["Refinement"]
