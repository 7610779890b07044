"""Compute equivalent: a power law that is inverted, points in files, wrong files, the score of an SAE."""

import json
import math
from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import constant, mirror, random_sae

from saelab.metrics import TextEvaluation, measure
from saelab.metrics.compute import Compute
from saelab.models.subject import Subject

pytest_plugins = ["models.conftest", "recipes.small_world"]


def written(folder: Path, points: list, name: str = "points.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(points))
    return path


def test_a_loss_linear_in_log_compute_is_inverted_exactly(tmp_path):
    points = [(10.0**power, 5 - 0.5 * power) for power in (0, 3, 1, 6)]  # in any order
    curve = Compute(written(tmp_path, points))
    delta = torch.tensor([0.0, 0.25, 0.5, 1.2, 3.0])
    torch.testing.assert_close(curve.share(delta), 10 ** (-2 * delta.double()))
    assert not curve.is_beyond(2.9)
    assert curve.is_beyond(3.1)
    assert curve.share(torch.tensor(9.0)).item() == pytest.approx(1e-6)  # the first point's
    assert curve.share(torch.tensor(-1.0)).item() == 1


def test_points_that_rise_do_not_count(tmp_path):
    curve = Compute(written(tmp_path, [(1, 4.0), (10, 3.0), (100, 3.5), (1000, 2.0)]))
    assert curve.share(torch.tensor(1.0)).item() == pytest.approx(10 / 1000)
    assert curve.share(torch.tensor(0.5)).item() == pytest.approx(math.sqrt(10 * 1000) / 1000)


def test_a_csv_says_the_same(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("step,loss,compute\n1,4.0,1\n2,2.0,100\n")
    assert Compute(path).share(torch.tensor(1.0)).item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[1, 2]]", "at least two points"),
        ("[[1, 2], [2, 2]]", "at least two points are needed between which the loss falls"),
        ("[[0, 2], [2, 1]]", "compute must be above 0"),
        ("[[1, NaN], [2, 1]]", "NaN is not a number of JSON"),
        ("rubbish", "not JSON .*give a JSON list of"),
        ("[1, 2]", r"\[0\]: expected a list of 2, got 1"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, said):
    path = tmp_path / "points.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        Compute(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="there is no file"):
        Compute(tmp_path / "none.json")


def test_the_score_is_the_share_at_the_sae_s_loss_with_the_interval_of_it(tiny_llama, text_folder, tmp_path):
    text = TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=200)
    path = written(tmp_path, [(1.0, 90.0), (math.exp(90), 0.0)])  # a loss one higher: 1/e of the compute
    wanted = [{"name": "Downstream", "compute": str(path)}]
    found = measure({"sae": random_sae()}, text, wanted, show=False)["sae"].scores
    score, delta = found["compute_equivalent"], found["ce_delta"]
    if delta.value > 0:
        assert score.value == pytest.approx(math.exp(-delta.value), rel=1e-6)
        assert score.low <= score.value <= score.high
    assert score.n == delta.n
    exact = measure({"sae": mirror(16)}, text, wanted, show=False)["sae"].scores["compute_equivalent"]
    assert exact.value == pytest.approx(1, abs=1e-4)
    steep = written(tmp_path, [(1.0, 1e-6), (10.0, 0.0)], "steep.json")
    found = measure({"s": constant(torch.zeros(16))}, text, [{"name": "Downstream", "compute": str(steep)}], show=False)
    beyond = found["s"].scores["compute_equivalent"]
    if found["s"].scores["ce_delta"].value > 0:
        assert (beyond.value, beyond.unit) == (pytest.approx(0.1), "share of compute, at most")
