"""The model's loss along a way is that of the stitched SAEs measured one by one."""

import pytest
import torch
from planted import drawn, sae_with

from saelab.analysis.loss_along import loss_along
from saelab.analysis.rows import Rows
from saelab.analysis.stitch import StitchSettings, stitch
from saelab.metrics import TextEvaluation, measure
from saelab.models.subject import Subject
from saelab.sae.activations.jump_relu import JumpReLU

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture(scope="module")
def subject(tiny_llama, text_folder):
    return Subject(str(tiny_llama), "model.layers.1", str(text_folder), seq_len=16)


def test_the_loss_at_each_step_is_that_of_the_sae_after_it(subject):
    evaluation = TextEvaluation(subject, 120)
    rows = Rows.of(evaluation)
    mean, width = rows.x.mean(0), rows.x.shape[1]
    saes = {}
    for n in (6, 12):
        directions = torch.linalg.qr(drawn(width, width, seed=n))[0][:n]
        saes[str(n)] = sae_with(directions, JumpReLU(threshold=0.2), bias=mean.clone(), seed=n)
    found = stitch(saes, rows, StitchSettings(points=4, ce_points=3), loss_along(evaluation), show=False)
    pair = found.pairs[0]
    assert {0, pair.steps.last("insert"), len(pair.steps)} <= set(pair.ce)
    for step, value in pair.ce.items():
        scores = measure({"it": pair.sae(step)}, evaluation, ["Downstream"], show=False)["it"].scores
        assert value == pytest.approx(scores["ce_delta"].value, abs=1e-5)
    assert len({round(value, 6) for value in pair.ce.values()}) >= 3


def test_rows_that_cannot_be_put_back_are_refused(subject):
    from dataclasses import replace

    with pytest.raises(ValueError, match="rows that can be put back into the model"):
        loss_along(TextEvaluation(replace(subject, average="document"), 20))
