"""When `saelab explore` collects again by itself, and what it says of rows that stand for no text."""

import sqlite3

import pytest
import torch
from explorer.bare import bare, bare_store
from explorer.planted import K, L, Model, Planted, rows, sae
from explorer.world import served

from saelab.explorer.collect import collect
from saelab.explorer.corpus import StoreCorpus
from saelab.explorer.database import FILE, Database
from saelab.explorer.export import folder as export_folder
from saelab.explorer.export import neuronpedia
from saelab.explorer.workspace import Workspace
from saelab.recipes import explore as recipe
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "own"
    sae().save(folder)
    collect(sae(), folder / "weights.safetensors", Planted(), Model(), folder, show=False)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """The SAEs that were collected."""
    found = []
    monkeypatch.setattr(recipe, "collect_member", lambda workspace, member, tokens, store: found.append(member.name))
    monkeypatch.setattr(recipe, "import_results", lambda workspace: None)
    monkeypatch.setattr("saelab.explorer.serve.serve", lambda *given: None)
    return found


def other(seed: int = 2, k: int = K) -> SAE:
    made = SAE(d_in=8, n_latents=L, activation=TopK(k=k), seed=seed)
    made.initialise(rows()[:200])
    return made


@pytest.mark.parametrize("old", [False, True])
def test_other_weights_are_said_and_collected_anew(run, asked, capsys, old):
    if old:  # as databases were before they had checksums
        with sqlite3.connect(run / FILE) as connection:
            connection.execute("DELETE FROM meta WHERE key = 'sae'")
    recipe.explore([str(run)])
    assert asked == []
    assert capsys.readouterr().err == ""
    other().save(run)
    recipe.explore([str(run)])
    assert asked == ["own"]
    assert "note: own was collected with other weights or settings" in capsys.readouterr().err


def test_other_settings_of_the_same_weights_are_seen(run, asked):
    other(seed=1, k=K + 1).save(run)
    recipe.explore([str(run)])
    assert asked == ["own"]


def test_rows_of_another_store_than_the_one_named_are_said(run, asked, tmp_path, capsys):
    recipe.explore([str(run)], store=str(bare_store(tmp_path)))
    assert asked == []
    assert "own was collected on other rows than those of" in capsys.readouterr().err


def test_a_damaged_database_is_collected_anew(run, asked, capsys):
    Database(run / FILE).write_note(2, "kept", [], 1.0)
    with sqlite3.connect(run / FILE) as connection:
        connection.execute("DROP TABLE latents")
    recipe.explore([str(run)])
    assert asked == ["own"]
    said = capsys.readouterr().err
    assert "no table latents" in said
    assert "notes are kept in explorer-notes.jsonl, the damaged file in explorer.damaged.sqlite" in said
    assert said.count("\n") == 1


# ---- rows that stand for no text ----


COUNT = torch.arange(330, dtype=torch.int32)


@pytest.mark.parametrize("columns", [{}, {"token": COUNT % 50, "document": COUNT * 0, "position": COUNT}])
def test_pages_tell_what_there_is_to_tell_of_rows_without_text(tmp_path, columns):
    workspace = bare(tmp_path, **columns)
    with torch.no_grad():
        dense = sae().encode(rows()).dense().numpy()
    with served(workspace) as site:
        table = site.json("/run/bare/latents.json?sort=count&desc=1")
        assert (table["unit"], table["rows_seen"]) == ("rows", 330)
        latent = table["table"]["rows"][0]["id"]
        found = site.json(f"/run/bare/latent/{latent}.json")
        assert found["has_text"] is False
        assert found["tokens"] == []
        assert found["numbers"]["count"] == (dense[:, latent] != 0).sum() > 0
        kinds = [*found["examples"].values(), *(part["examples"] for part in found["intervals"])]
        assert found["examples"]["top"]
        for one in (one for kind in kinds for one in kind):
            assert one["tokens"] == [f"row {one['row']}"]
            assert one["value"] == pytest.approx(dense[one["row"], latent], rel=1e-3)
            assert one["document"] == ("series" if columns else "")
        assert sum(part["count"] for part in found["intervals"]) == found["numbers"]["count"]
        cloud = site.json(f"/run/bare/cloud.json?latents={latent}")
        assert cloud["unit"] == "rows"
        assert cloud["tokens"] == [f"row {row}" for row in cloud["rows"]]
        assert site.json("/run/bare/manifolds.json")["n_latents"] == L
        assert site.json("/scaling.json")["zf"] == []
        row = found["examples"]["top"][0]["row"]
        for path in (f"latent/{latent}/effects.json?row={row}", f"latent/{latent}/pattern.json", "norms.json"):
            said = site.json(f"/run/bare/{path}", status=400)["error"]
            assert said.startswith("bare was collected on rows without text, and this page needs text")


def test_copies_of_rows_without_text_are_whole(tmp_path):
    workspace = bare(tmp_path)
    export_folder(workspace, tmp_path / "copy", show=False)
    assert '"unit":"rows"' in (tmp_path / "copy" / "data" / "bare" / "table.js").read_text()
    neuronpedia(workspace, tmp_path / "neurons.jsonl")
    assert '"tokens": ["row ' in (tmp_path / "neurons.jsonl").read_text()


def test_a_store_without_tokens_has_no_text_whatever_model_its_run_has(tmp_path):
    sae().save(tmp_path / "own")
    store = StoreCorpus(bare_store(tmp_path))
    collect(sae(), tmp_path / "own" / "weights.safetensors", store, Model(), tmp_path / "own", show=False)
    member = Workspace([tmp_path / "own"])["own"]
    assert not member.has_text
    assert member.vocabulary  # what its latents promote is known all the same
