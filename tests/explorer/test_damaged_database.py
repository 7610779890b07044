"""A database whose tables hold other than what was collected: one line that names the file, from every page."""

import shutil
import sqlite3
import zlib

import numpy as np
import pytest
from explorer.planted import Model, Planted, sae

from saelab.explorer.collect import collect
from saelab.explorer.contents import packed
from saelab.explorer.database import FILE, DamagedError, Database
from saelab.explorer.meta_result import MetaResult
from saelab.explorer.pages.meta import meta_latent
from saelab.explorer.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    sae().save(folder)
    return collect(sae(), folder / "weights.safetensors", Planted(), Model(), folder, show=False)


@pytest.fixture
def path(made, tmp_path):
    return shutil.copy(made, tmp_path / FILE)


def change(path, statement, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE latents SET density = 'x' WHERE id = 3", "latent 3 in the table has a value of a wrong kind"),
        ("UPDATE latents SET mean = x'0102' WHERE id = 0", "latent 0 in the table has a value of a wrong kind"),
        ("UPDATE latents SET norm = 9e999 WHERE id = 1", "latent 1 in the table has a value of a wrong kind"),
        ("UPDATE latents SET tokens = x'ff' WHERE id = 2", "latent 2 in the table has a value of a wrong kind"),
        ("UPDATE latents SET nearest = 'none' WHERE id = 2", "latent 2 in the table has a value of a wrong kind"),
        ("DELETE FROM latents WHERE id = 3", "its meta says [0-9]+ latents, the table has [0-9]+"),
        ("UPDATE latents SET id = 10000 WHERE id = 3", "its meta says [0-9]+ latents, the table has [0-9]+"),
        ("UPDATE meta SET value = '7' WHERE key = 'n_latents'", "its meta says 7 latents"),
        ("UPDATE meta SET value = '-1' WHERE key = 'rows'", "its meta says -1 rows"),
        ("DELETE FROM corpus", "its meta says 330 rows, which are 1 pieces of its corpus; there are others"),
        ("UPDATE documents SET first = NULL WHERE number = 3", "document 3 has a value of a wrong kind"),
    ],
)
def test_tables_are_looked_at_when_a_database_is_opened(path, statement, why):
    Database(path)
    change(path, statement)
    with pytest.raises(DamagedError, match=f"{FILE} is damaged .*{why}.*--recollect"):
        Database(path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"top": [10**6]}, "an example in a row that is none of"),
        ({"near": [[-1, 0.5]]}, "an example in a row that is none of"),
        ({"intervals": [{"count": 1, "rows": [10**6]}]}, "an example in a row that is none of"),
        ({"top": "text"}, "details of latent 1: top: expected a list of whole numbers"),
        ({"tokens": [[1, 0.5]]}, r"details of latent 1: tokens\[0\]: expected a list of 3"),
        ({"neighbours": None}, "details of latent 1: neighbours: expected a list"),
        ({"logits_top": []}, "a part of its logits is missing"),
    ],
)
def test_details_of_a_latent(path, changes, why):
    whole = Database(path).details(1)
    change(path, "UPDATE details SET data = ? WHERE id = 1", packed(whole | changes))
    with pytest.raises(DamagedError, match=why):
        Database(path).details(1)
    assert Database(path).details(2)
    kept = {key: value for key, value in whole.items() if key != "intervals"}
    change(path, "UPDATE details SET data = ? WHERE id = 1", packed(kept))
    with pytest.raises(DamagedError, match="intervals: expected a list"):
        Database(path).details(1)
    change(path, "DELETE FROM details WHERE id = 1")
    with pytest.raises(DamagedError, match="details lacks 1"):
        Database(path).details(1)


@pytest.mark.parametrize(
    ("rows", "values", "why"),
    [
        ([1, 2, 3], [0.5, 0.5], "3 rows with 2 values"),
        ([2, 1], [0.5, 0.5], "its rows do not rise"),
        ([-1, 1], [0.5, 0.5], "none of the corpus"),
        ([1, 10**6], [0.5, 0.5], "none of the corpus"),
        ([1, 2], [0.5, float("nan")], "a value is no number"),
    ],
)
def test_activations_of_a_latent(path, rows, values, why):
    blobs = np.array(rows, np.int32).tobytes(), np.array(values, np.float32).tobytes()
    change(path, "UPDATE activations SET rows = ?, vals = ? WHERE id = 1", *blobs)
    opened = Database(path)
    with pytest.raises(DamagedError, match=why):
        opened.activations(1)
    assert len(opened.activations(0)[0]) >= 0
    with pytest.raises(LookupError, match="there is no latent 100000"):
        opened.activations(100_000)


def test_arrays_the_vocabulary_and_the_corpus(path):
    change(path, "UPDATE blobs SET data = substr(data, 1, 4) WHERE name = 'umap'")
    change(path, "UPDATE blobs SET data = ? WHERE name = 'vocabulary'", zlib.compress(b'["a", 3]'))
    near = Database(path).array("neighbours").copy()
    near[0] = 10**6
    change(path, "UPDATE blobs SET data = ? WHERE name = 'neighbours'", near.tobytes())
    change(path, "DELETE FROM blobs WHERE name = 'pca'")
    columns = ("token", "document", "line", "start", "stop")
    change(path, f"UPDATE corpus SET {', '.join(f'{name} = substr({name}, 1, 400)' for name in columns)}")
    change(path, "DELETE FROM documents WHERE number = 3")
    opened = Database(path)
    for ask, why in (
        (lambda: opened.array("umap"), "umap: 1 numbers for"),
        (lambda: opened.array("pca"), "blobs lacks pca"),
        (lambda: opened.array("neighbours"), "neighbours: a latent that is none of"),
        (opened.vocabulary, r"its vocabulary: \[1\]: expected a text, got 3"),
        (lambda: opened.corpus(0, 5), "piece 0 of its corpus has 100 rows"),
        (lambda: opened.document(3), "documents lacks 3"),
    ):
        with pytest.raises(DamagedError, match=why):
            ask()


def test_a_text_of_the_corpus_that_is_of_another_kind(path):
    change(path, "UPDATE corpus SET text = 'x'")
    with pytest.raises(DamagedError):
        Database(path).corpus(0, 5)


def test_damaged_meta_latents_are_said_each_time(tmp_path):
    """The first complaint is no reason to tell of no meta-latents from then on."""
    sae().save(tmp_path / "run")
    (tmp_path / "metas").mkdir()
    (tmp_path / "metas" / "meta.json").write_text("{")
    workspace = Workspace([tmp_path / "run", tmp_path / "metas"])
    for _ in range(2):
        with pytest.raises(ValueError, match="there is no file .*codes.parquet"):
            workspace.meta(workspace["run"])


def test_meta_latents_of_another_sae_are_named_with_their_file(tmp_path, monkeypatch):
    sae().save(tmp_path / "run")
    other = MetaResult(tmp_path / "metas", {"sae": "runs/other", "n_meta": 3})
    monkeypatch.setattr(Workspace, "meta_results", lambda _: [other])
    with pytest.raises(LookupError, match=r"run has no meta-latent 1, .*metas/meta\.json is of 'other'"):
        meta_latent(Workspace([tmp_path / "run"]), "run", 1)
