"""What other commands found, in the table; and a database's versions."""

import json
import sqlite3

import pytest
from explorer.planted import L, Model, Planted, sae

from saelab.analysis.tables import write_result, write_table
from saelab.explorer import database
from saelab.explorer.collect import collect
from saelab.explorer.database import FILE, Database
from saelab.explorer.known import import_results
from saelab.explorer.pages.latents import table as page_of
from saelab.explorer.search import Query, filled, latents
from saelab.explorer.workspace import Workspace
from saelab.metrics.table import write_columns


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "large"
    sae().save(run)
    collect(sae(), run / "weights.safetensors", Planted(), Model(), run, show=False)
    return run


def table(run, **query):
    return {row["id"]: row for row in latents(Database(run / FILE), Query(**query))["rows"]}


def test_explanations_come_in_are_found_replaced_and_taken_back(folder):
    (folder / "latents.json").write_text(json.dumps({"latents": [{"latent": 3, "label": "a reading", "f1": 0.5}]}))
    import_results(Workspace([folder]))
    assert (table(folder)[3]["explanation"], table(folder)[3]["score"]) == ("a reading", 0.5)
    (folder / "explain").mkdir()
    said = {"latent": 3, "phrase": "platypuses", "scores": {"fuzz": {"all": 0.9, "other": 0.1}, "detect": {"all": 0.7}}}
    (folder / "explain" / "explanations.json").write_text(json.dumps({"latents": [said]}))
    import_results(Workspace([folder]))
    assert table(folder)[3]["explanation"] == "platypuses"
    assert table(folder)[3]["score"] == pytest.approx(0.8)
    assert list(table(folder, q="platypus")) == [3]
    assert list(table(folder, q="reading")) == []
    before = (folder / FILE).stat().st_mtime_ns
    import_results(Workspace([folder]))
    assert (folder / FILE).stat().st_mtime_ns == before
    (folder / "explain" / "explanations.json").unlink()
    (folder / "latents.json").unlink()
    import_results(Workspace([folder]))
    assert table(folder)[3]["explanation"] is None


def test_a_latents_task_is_the_one_of_the_smallest_loss_and_goes_when_the_table_goes(folder):
    assert page_of(Workspace([folder]), "large", {})["filled"] == []
    file = folder / "tables" / "probes.parquet"
    hits = {"task": ["a: x", "b", "c"], "latent": [20, 7, 20], "loss": [0.5, 0.3, 0.2], "accuracy": [0.9, 0.95, 0.8]}
    write_columns(file, hits)
    import_results(Workspace([folder]))
    found = table(folder)
    assert {j: (row["probe"], row["probe_score"]) for j, row in found.items() if row["probe"]} == {
        7: ("b", 0.95),
        20: ("c", 0.8),
    }
    page = page_of(Workspace([folder]), "large", {"limit": "5"})
    assert page["filled"] == ["probe"]
    assert not any(row["probe"] for row in page["table"]["rows"])
    assert list(table(folder, filters=(("probe_score", 0.9, None),))) == [7]
    before = (folder / FILE).stat().st_mtime_ns
    import_results(Workspace([folder]))
    assert (folder / FILE).stat().st_mtime_ns == before
    file.unlink()
    import_results(Workspace([folder]))
    assert filled(Database(folder / FILE)) == []
    assert not any(row["probe"] for row in table(folder).values())


def test_classes_come_from_a_stitching_result(folder, tmp_path):
    out = tmp_path / "stitched"
    pair = {"small": "small", "large": "large", "counts": {}, "rule": None}
    write_result(out, "stitch", {"saes": [], "pairs": [pair]})
    kinds = ["novel", "reconstruction", "undecided", "dead"]
    own = {"latent": list(range(4)), "class": kinds, "delta_mse": [0.0] * 4, "low": [0.0] * 4, "high": [0.0] * 4}
    own |= {"firings": [1] * 4, "cosine": [0.1] * 4, "nearest": [0] * 4, "group": [0] * 4, "step": [0] * 4}
    write_table(out / "pair-0" / "large.parquet", own)
    write_table(out / "pair-0" / "small.parquet", {"latent": [0], "group": [0], "step": [0]})
    path = {"pair": [0], "step": [0], "phase": ["insert"], "n_latents": [1], "mse": [0.1], "mse_low": [0.1]}
    write_table(out / "path.parquet", path | {"mse_high": [0.1], "fvu": [0.1], "l0": [1.0], "ce_delta": [None]})
    before = table(folder)
    import_results(Workspace([folder, out]))
    after = table(folder)
    for latent in range(L):
        wanted = kinds[latent] if latent < 2 and before[latent]["kind"] == "ordinary" else before[latent]["kind"]
        assert after[latent]["kind"] == wanted


def test_an_old_database_is_brought_up_to_date_and_keeps_its_notes(folder, monkeypatch):
    Database(folder / FILE, write=True).write_note(2, "kept", ["tag"], 1.0)
    monkeypatch.setattr(
        database, "MIGRATIONS", [*database.MIGRATIONS, "CREATE TABLE later (x); INSERT INTO later VALUES (7)"]
    )
    opened = Database(folder / FILE)
    assert opened.all("SELECT x FROM later")[0]["x"] == 7
    assert opened.note(2)["note"] == "kept"
    assert len(table(folder)) == L


def test_a_failing_migration_leaves_the_version_before(folder, monkeypatch):
    monkeypatch.setattr(database, "MIGRATIONS", [*database.MIGRATIONS, "CREATE TABLE later (x); SELECT no_such()"])
    with pytest.raises(ValueError, match="damaged or not an explorer's database"):
        Database(folder / FILE)
    monkeypatch.undo()
    assert len(table(folder)) == L
    assert sqlite3.connect(folder / FILE).execute(
        "SELECT count(*) FROM sqlite_master WHERE name = 'later'"
    ).fetchone() == (0,)


def test_foreign_newer_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no .*explorer.sqlite; `saelab explore"):
        Database(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"not a database at all, but long enough to be read as one" * 40)
    with pytest.raises(ValueError, match="damaged or not an explorer's database"):
        Database(tmp_path / FILE)
    connection = sqlite3.connect(tmp_path / "new.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ValueError, match="version 99, newer than"):
        Database(tmp_path / "new.sqlite")
