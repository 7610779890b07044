"""Direct logits as pages show them: the model's own last norm and head, or why there are none."""

import shutil
import sqlite3

import pytest
import torch
from explorer.planted import Model, Planted, sae

from saelab.explorer.collect import collect
from saelab.explorer.database import FILE, Database
from saelab.explorer.directions import directions_of, head_of
from saelab.explorer.export import neuronpedia
from saelab.explorer.lens import Lens
from saelab.explorer.pages import latents
from saelab.explorer.workspace import Workspace


def test_a_page_shows_what_the_models_own_norm_and_head_make_of_the_direction(workspace):
    member = workspace["run0"]
    inner = workspace.model(member).model
    for number in (0, 9):
        direction = directions_of(member.sae)[number]
        row = direction * len(direction) ** 0.5
        with torch.no_grad():
            up, down = (inner.lm_head(inner.model.norm(sign * row)) for sign in (1, -1))
        expected = (up - down) / 2 - ((up - down) / 2).mean()
        page = latents.latent(workspace, "run0", number, {})
        assert page["why_no_logits"] is None
        for side, sign in (("top", 1), ("bottom", -1)):
            values = [value for _, value in page["logits"][side]]
            best = (sign * expected).topk(len(values)).values * sign
            assert values == pytest.approx(best.tolist(), abs=1e-3)


def test_a_database_of_an_older_saelab_shows_no_logits_and_says_why(runs, workspace, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(runs[0], old)
    with sqlite3.connect(old / FILE) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'logits'")
    connection.close()
    page = latents.latent(Workspace([old]), "old", 9, {})
    assert page["logits"] is None
    assert "collect again with --recollect true" in page["why_no_logits"]
    neuronpedia(Workspace([old]), tmp_path / "n.jsonl", [9])
    assert "pos_str" not in (tmp_path / "n.jsonl").read_text()


def test_a_lens_leaves_out_what_it_cannot_tell(workspace):
    member = workspace["run0"]
    model = workspace.model(member)
    lens = Lens(member.sae, model)
    ids = lens.ids("import os")
    assert lens.why_no_logit is None
    assert all("logit" in one for token in lens.by_token(ids) for one in token)
    other = Lens(member.sae, model)
    other.why_no_logit = "for a reason"
    found = other.by_token(ids)
    assert [one.keys() for token in found for one in token] == [{"latent", "value", "loss"}] * sum(map(len, found))


def test_why_there_are_none(workspace, tmp_path):
    model = workspace.model(workspace["run0"])
    assert head_of(None, 256) == (None, "these rows are of no language model")
    assert head_of(model, 8) == (None, "directions are 8 wide, the model's residual stream 256")
    assert head_of(model, 256) == (model.head, None)
    (tmp_path / "weights").write_bytes(b"1")
    found = {}
    for name, head in (("fits", Model()), ("does not", Model())):
        head.head.width += name != "fits"
        (tmp_path / name).mkdir()
        path = collect(sae(), tmp_path / "weights", Planted(), head, tmp_path / name, show=False)
        found[name] = Database(path)
    assert found["fits"].meta()["logits"] is None
    assert found["fits"].details(3)["logits_top"]
    assert found["does not"].meta()["logits"] == "directions are 8 wide, the model's residual stream 9"
    assert "logits_top" not in found["does not"].details(3)
