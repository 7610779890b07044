"""Documents of every kind of source: complete, in a fixed order, split by content; every error says what is wrong."""

import gzip
import hashlib
import json
import sysconfig
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.models.text import Document, _letters, is_held_out, read_text

TEXTS = [f"document number {number}, with some words in it" for number in range(200)]


def json_lines(path: Path, texts: list[str] = TEXTS, field: str = "text") -> Path:
    data = "".join(json.dumps({"id": n, field: text}) + "\n" for n, text in enumerate(texts)).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def parquet(path: Path, texts: list[str | None] = TEXTS, field: str = "text") -> Path:
    pq.write_table(pa.table({"id": range(len(texts)), field: texts}), path, row_group_size=64)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind, some below, one hidden, one of an ending that is not read."""
    root = tmp_path / "folder"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "a.txt").write_text("text a")
    (root / "b.md").write_text("# text b")
    (root / "sub" / "c.py").write_text("c = 'text c'")
    (root / "sub" / "image.png").write_bytes(b"\x89PNG")
    (root / ".git" / "hidden.txt").write_text("hidden")
    json_lines(root / "sub" / "d.jsonl", ["text d1", "text d2"])
    json_lines(root / "sub" / "deep" / "e.jsonl.gz", ["text e1", "text e2"])
    parquet(root / "sub" / "deep" / "f.parquet", ["text f1", "text f2"])
    return root


ALL_IN_FOLDER = {
    Document("a.txt", "text a"),
    Document("b.md", "# text b"),
    Document("sub/c.py", "c = 'text c'"),
    Document("sub/d.jsonl row 1", "text d1"),
    Document("sub/d.jsonl row 2", "text d2"),
    Document("sub/deep/e.jsonl.gz row 1", "text e1"),
    Document("sub/deep/e.jsonl.gz row 2", "text e2"),
    Document("sub/deep/f.parquet row 1", "text f1"),
    Document("sub/deep/f.parquet row 2", "text f2"),
}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_line_based_file_keeps_its_order(tmp_path, ending):
    path = (parquet if ending == "parquet" else json_lines)(tmp_path / f"data.{ending}", field="content")
    found = list(read_text(str(path), field="content"))
    assert found == [Document(f"data.{ending} row {n}", text) for n, text in enumerate(TEXTS, 1)]


def test_plain_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("grüße\n\nzweiter absatz", encoding="utf-8")
    assert list(read_text(str(tmp_path / "a.txt"))) == [Document("a.txt", "grüße\n\nzweiter absatz")]


def test_folder_gives_all_its_files(folder):
    found = list(read_text(str(folder)))
    assert len(found) == len(ALL_IN_FOLDER)
    assert set(found) == ALL_IN_FOLDER


def test_glob_gives_what_matches(folder):
    assert set(read_text(str(folder / "**" / "*.txt"))) == {Document("a.txt", "text a")}
    found = set(read_text(str(folder / "sub" / "**" / "*.*l*")))
    assert {document.name for document in found} == {
        "d.jsonl row 1",
        "d.jsonl row 2",
        "deep/e.jsonl.gz row 1",
        "deep/e.jsonl.gz row 2",
    }


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text a")
    assert [document.name for document in read_text("~/a.txt")] == ["a.txt"]


def test_order_is_a_function_of_the_seed(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}")
    first, again, other = (list(read_text(str(tmp_path), seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first != sorted(first, key=lambda document: document.name)
    assert set(first) == set(other)


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_split_is_by_content_disjoint_and_complete(tmp_path, kind):
    if kind == "folder":
        source = tmp_path
        for number, text in enumerate(TEXTS):
            (tmp_path / f"{number}.txt").write_text(text)
    else:
        source = (json_lines if kind == "jsonl" else parquet)(tmp_path / f"data.{kind}")
    everything, train, held_out = (list(read_text(str(source), split)) for split in ("all", "train", "held-out"))
    expected = {text for text in TEXTS if hashlib.sha256(text.encode()).digest()[0] < 13}
    assert {document.text for document in held_out} == expected
    assert set(train) | set(held_out) == set(everything)
    assert not set(train) & set(held_out)
    assert [document for document in everything if not is_held_out(document.text)] == train  # same order
    assert 1 <= len(held_out) <= 25


def test_empty_documents_are_left_out(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": ""}\n\n{"text": " \\n"}\n{"text": null}\n{"text": "here"}\n')
    assert list(read_text(str(tmp_path / "data.jsonl"))) == [Document("data.jsonl row 5", "here")]
    parquet(tmp_path / "data.parquet", [None, "", "here"])
    assert list(read_text(str(tmp_path / "data.parquet"))) == [Document("data.parquet row 3", "here")]


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a \\ud83d b"}\n{"text": "a \\ud83d\\ude00 b"}')
    assert [document.text for document in read_text(str(tmp_path / "data.jsonl"))] == ["a ? b", "a 😀 b"]


# ---- the standard library ----


def library(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return root


def test_stdlib_filter(tmp_path, monkeypatch):
    root = library(tmp_path, monkeypatch)
    good = "def function(argument):\n    return argument\n" * 8
    for folder in ("json", "site-packages/torch", "__pycache__"):
        (root / folder).mkdir(parents=True)
    (root / "good.py").write_text(good)
    (root / "json" / "inner.py").write_text(good + "# another")
    (root / "copy.py").write_text(good + "# another")
    (root / "site-packages" / "torch" / "no.py").write_text(good + "# a package")
    (root / "__pycache__" / "no.py").write_text(good + "# a cache")
    (root / "latin.py").write_bytes((good + "# é").encode("latin-1"))
    (root / "short.py").write_text("x = 1\n")
    (root / "long.py").write_text(good * 4000)
    (root / "wide.py").write_text(good + "#" + "x" * 1000)
    (root / "table.py").write_text("1, 2, 3, 4, 5, 6, 7\n" * 20)
    (root / "notes.txt").write_text(good + "no Python")
    found = list(read_text("stdlib"))
    assert {document.text for document in found} == {good, good + "# another"}
    assert len(found) == 2
    assert {document.name for document in found} <= {"good.py", "json/inner.py", "copy.py"}


def test_stdlib_of_this_interpreter():
    found = list(read_text("stdlib", split="held-out"))
    assert [document.name for document in found] == [document.name for document in read_text("stdlib", "held-out")]
    assert all(is_held_out(document.text) for document in found)
    assert 20 < len(found) < 400
    assert not any("site-packages" in document.name for document in found)


def test_stdlib_that_is_absent(tmp_path, monkeypatch):
    library(tmp_path / "python311.zip", monkeypatch)
    with pytest.raises(ValueError, match="python311.zip holds no .py files"):
        list(read_text("stdlib"))


# ---- the hub ----


def serve(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]], error: Exception | None = None) -> list:
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))

        def stream():
            yield from rows
            if error:
                raise error

        if error and not rows:
            raise error
        return datasets.IterableDataset.from_generator(stream)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("source", "name", "config", "split"),
    [
        ("hf:openwebtext", "openwebtext", None, "train"),
        ("hf:org/set@test", "org/set", None, "test"),
        ("hf:org/set:sample-10BT", "org/set", "sample-10BT", "train"),
        ("hf:org/set:20231101.en@validation", "org/set", "20231101.en", "validation"),
    ],
)
def test_hub_rows_are_streamed(monkeypatch, source, name, config, split):
    calls = serve(monkeypatch, [{"content": "one"}, {"content": ""}, {"content": "three"}])
    found = list(read_text(source, field="content"))
    assert found == [Document(f"{name} row 1", "one"), Document(f"{name} row 3", "three")]
    assert calls == [((name, config), {"split": split, "streaming": True})]


def test_hub_errors(monkeypatch):
    serve(monkeypatch, [], ConnectionError("Couldn't reach 'x/y' on the Hub\nmore"))
    with pytest.raises(ValueError, match=r"^cannot stream 'hf:x/y' .*\(ConnectionError.*network"):  # fmt: skip
        list(read_text("hf:x/y"))
    serve(monkeypatch, [{"text": "one"}, {"text": "two"}], ConnectionError("gone"))
    stream = read_text("hf:x/y")
    assert [next(stream).text, next(stream).text] == ["one", "two"]
    with pytest.raises(ValueError, match=r"'hf:x/y' .*2 rows \(ConnectionError"):
        next(stream)
    serve(monkeypatch, [{"texts": "one", "id": 3}])
    with pytest.raises(ValueError, match="row 1 of 'hf:x/y' .*'text'; .*'texts'"):
        list(read_text("hf:x/y"))
    with pytest.raises(ValueError, match="'hf:@train' .*hf:NAME"):
        list(read_text("hf:@train"))


def test_hub_out_of_reach_for_real(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot stream 'hf:nobody/nothing'"):
        list(read_text("hf:nobody/nothing"))


# ---- errors ----


def test_unknown_split():
    with pytest.raises(ValueError, match="'heldout'; did you mean 'held-out'"):
        read_text("stdlib", split="heldout")


def test_missing_path(folder):
    message = (
        r"there is no file or folder '.*b\.mt'; did you mean 'b\.md'\?; a text source is stdlib, "
        r"a file \(\.txt, \.md, \.py, \.jsonl, \.jsonl\.gz, \.parquet\), a folder"
    )
    with pytest.raises(ValueError, match=message):
        read_text(str(folder / "b.mt"))
    with pytest.raises(ValueError, match="'stdlb'; did you mean 'stdlib'"):
        read_text("stdlb")
    with pytest.raises(ValueError, match=r"no file matches '.*\*\.csv'"):
        read_text(str(folder / "*.csv"))


def test_unsupported_ending(folder):
    message = r"cannot read .*image\.png: its ending is none of \.txt, \.md, \.py, \.jsonl, \.jsonl\.gz, \.parquet"
    for source in (folder / "sub" / "image.png", folder / "sub" / "*.*"):
        with pytest.raises(ValueError, match=message):
            read_text(str(source))
    (folder / "only").mkdir()
    (folder / "only" / "image.png").touch()
    with pytest.raises(ValueError, match=r"only holds no file .*\.txt"):
        read_text(str(folder / "only"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b"', r"data\.jsonl, line 2 is damaged: not JSON \(.*\); mend the line or take it out"),
        ('["b"]', r"data\.jsonl, line 2: expected a table, got a list of 1"),
        ('{"txt": "b", "id": 1}', r"data\.jsonl, line 2, has no field 'text'; did you mean 'txt'\?; its fields are: "),
        ('{"a": "b", "id": 1}', r"data\.jsonl, line 2, has no field 'text'; its fields are: a, id"),
        ('{"text": 7}', r"data\.jsonl, line 2, holds a int in the field 'text', expected text"),
    ],
)  # fmt: skip
def test_bad_json_line(tmp_path, line, message):
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        list(read_text(str(tmp_path / "data.jsonl")))


def test_bad_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("grüße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        list(read_text(str(tmp_path / "a.txt")))
    (tmp_path / "b.jsonl").write_bytes('{"text": "grüße"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1 is damaged: not JSON"):
        list(read_text(str(tmp_path / "b.jsonl")))


def test_bad_parquet(tmp_path):
    path = parquet(tmp_path / "data.parquet", field="words")
    with pytest.raises(ValueError, match=r"data\.parquet .*'text'; .*id, words"):
        list(read_text(str(path)))
    with pytest.raises(ValueError, match=r"data\.parquet, row 1, .*int .*'id'"):
        list(read_text(str(path), field="id"))


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_damaged_file(tmp_path, ending, damage):
    path = (parquet if ending == "parquet" else json_lines)(tmp_path / f"data.{ending}")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        data[20:] = bytes(255 - byte for byte in data[20:])
    elif damage == "foreign":
        data = bytearray(b"not at all " * 20)
    else:
        data.clear()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"data\.{ending}.* (damaged|no document)") as caught:
        list(read_text(str(path)))
    assert "\n" not in str(caught.value)


def test_no_document(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"a\.txt' has no document"):
        list(read_text(str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_text(next(text for text in TEXTS if not is_held_out(text)))
    with pytest.raises(ValueError, match=r"a\.txt' .*'held-out' \(it has 1"):
        list(read_text(str(tmp_path / "a.txt"), split="held-out"))


@given(st.text())
def test_letters_are_counted_the_same_in_ascii_and_beyond(text):
    assert _letters(text) == sum(letter.isalpha() for letter in text)
    assert _letters("x = 1\n") == 1
