"""Activations on disk: what was written comes back, whoever was killed, and damage is named."""

import errno
import json
import os
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelab.core.files import write_json
from saelab.core.read import read_json
from saelab.data import Store, StoreSource
from saelab.data.store import DTYPES, StoreWriter

D = 3
ORIGIN = {"model": "pycode-7m", "site": "layers.3", "text": {"path": "stdlib", "split": "train"}}


class Killed(BaseException):
    """Stands for the end of the process."""


def numbered(first: int, n: int) -> Tensor:
    """Rows whose first entry is their number."""
    return torch.stack([torch.arange(first, first + n).float(), torch.randn(n) * 4, torch.full((n,), 9.0)], 1)


def writer(folder: Path, dtype: str = "fp32", **origin: object) -> StoreWriter:
    return StoreWriter(folder, D, dtype, ORIGIN | origin)


def append(to: StoreWriter, rows: Tensor, token_rows: int = 1) -> None:
    position = torch.arange(len(rows))
    to.append(rows, token_rows, {"bos": 1, "outlier": len(rows)}, token=position + 100, position=position)


def make(folder: Path, sizes: tuple[int, ...] = (5, 3, 7), dtype: str = "fp32") -> Tensor:
    """A finished store of numbered rows in shards of these sizes; the rows."""
    to, shards = writer(folder, dtype), []
    for size in sizes:
        shards.append(numbered(sum(map(len, shards)), size))
        append(to, shards[-1])
    to.finish()
    return torch.cat(shards)


def all_rows(folder: Path) -> Tensor:
    store = Store(folder)
    return torch.cat([store.rows(shard) for shard in range(len(store.manifest.shards))])


def fail_once(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """Let the flush number `at` from here on fail, and no other; a file is flushed, then its folder."""
    calls = iter(range(1000))
    real = os.fsync

    def fsync(handle: int) -> None:
        if next(calls) == at:
            raise error
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


# Writing and reading.


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_in_the_stores_precision(tmp_path, dtype):
    rows = make(tmp_path, dtype=dtype)
    assert torch.equal(all_rows(tmp_path), rows.to(DTYPES[dtype]))
    assert len(Store(tmp_path)) == len(rows) == 15


def test_columns_stand_beside_the_rows(tmp_path):
    make(tmp_path)
    columns = Store(tmp_path).columns(1)
    assert {key: value.tolist() for key, value in columns.items()} == {
        "token": [100, 101, 102],
        "position": [0, 1, 2],
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_scale_are_those_of_the_stored_rows(tmp_path, dtype):
    to = writer(tmp_path, dtype)
    for seed in range(3):
        append(to, torch.randn(50, D, generator=torch.Generator().manual_seed(seed)) * 3 + 50)
    exact = all_rows(tmp_path).double().numpy()
    mean, scale = StoreSource(tmp_path).statistics()
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(((exact - exact.mean(0)) ** 2).mean()), rtol=1e-6)


def test_the_manifest_says_what_there_is(tmp_path):
    make(tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["format"] == 1
    assert manifest["rows"] == 15
    assert manifest["origin"] == ORIGIN
    assert manifest["dropped"] == {"bos": 3, "outlier": 15}
    assert manifest["complete"] is True
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 3, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json"] + [
        f"shard-0000{number}.safetensors" for number in range(3)
    ]


def test_a_finished_store_needs_rows(tmp_path):
    with pytest.raises(ValueError, match="nothing was harvested"):
        writer(tmp_path).finish()


def test_a_shard_may_be_empty(tmp_path):
    to = writer(tmp_path)
    for size in (2, 0, 3):
        append(to, numbered(0, size))
    assert len(all_rows(tmp_path)) == 5
    with closing(StoreSource(tmp_path).batches(5)) as stream:
        assert len(next(stream).x) == 5


# Going on after a stop.


def test_another_writer_goes_on(tmp_path):
    rows = numbered(0, 10)
    append(writer(tmp_path), rows[:4], token_rows=2)
    assert torch.equal(all_rows(tmp_path), rows[:4])
    again = writer(tmp_path)
    assert [shard.token_rows for shard in again.manifest.shards] == [2]
    assert not again.manifest.complete
    again.manifest.notes["norm_limit"] = 7.5
    append(again, rows[4:], token_rows=3)
    third = writer(tmp_path)
    assert third.manifest.notes == {"norm_limit": 7.5}
    assert third.manifest.dropped == {"bos": 2, "outlier": 10}
    assert torch.equal(all_rows(tmp_path), rows)
    np.testing.assert_allclose(third.manifest.statistics()[0], rows.double().mean(0), rtol=1e-6)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_killed_writer_loses_only_the_shard_under_way(tmp_path, monkeypatch, shard, at):
    rows = numbered(0, 8)
    to = writer(tmp_path)
    if shard:
        append(to, rows[:4])
    with monkeypatch.context() as patch:
        fail_once(patch, at, Killed())
        patch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # the dead clean nothing up
        with pytest.raises(Killed):
            append(to, torch.zeros(6, D))
    again = writer(tmp_path)
    assert len(again.manifest.shards) == shard
    if not shard:
        append(again, rows[:4])
    assert torch.equal(all_rows(tmp_path), rows[:4])
    append(again, rows[4:])
    assert torch.equal(all_rows(tmp_path), rows)


def test_a_store_without_a_shard_yet_says_so(tmp_path):
    make(tmp_path)
    write_json(tmp_path / "manifest.json", read_json(tmp_path / "manifest.json") | {"shards": []})
    with pytest.raises(ValueError, match="no rows yet.*harvest again"):
        Store(tmp_path)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_full_disk_keeps_the_shards_before_and_the_writer_goes_on(tmp_path, monkeypatch, at):
    rows = numbered(0, 9)
    to = writer(tmp_path)
    append(to, rows[:4])
    with monkeypatch.context() as patch:
        fail_once(patch, at, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="disk is full: .*free some space"):
            append(to, rows[4:])
    assert torch.equal(all_rows(tmp_path)[:4], rows[:4])
    assert list(tmp_path.glob(".*")) == []
    if len(all_rows(tmp_path)) == 4:  # otherwise only the flush of the folder failed
        append(to, rows[4:])
    assert torch.equal(all_rows(tmp_path), rows)
    assert to.manifest.rows == 9
    assert torch.equal(all_rows(tmp_path), rows)


@pytest.mark.parametrize(
    ("dtype", "origin", "message"),
    [
        ("fp32", {"site": "layers.2"}, "holds a store with site = 'layers.3', not 'layers.2'; choose another folder"),
        ("fp32", {"revision": "main"}, "holds a store with revision = None, not 'main'"),
        ("bf16", {}, "holds a store with dtype = 'fp32', not 'bf16'"),
    ],
)
def test_another_origin_is_refused_by_its_key(tmp_path, dtype, origin, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer(tmp_path, dtype, **origin)
    with pytest.raises(ValueError, match="holds a store with text = "):
        StoreWriter(tmp_path, D, "fp32", {"model": "pycode-7m", "site": "layers.3"})
    with pytest.raises(ValueError, match=f"holds a store with d_in = {D}, not 4"):
        StoreWriter(tmp_path, 4, "fp32", ORIGIN)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not a store; choose another"):
        writer(tmp_path)


# Wrong rows.


def test_rows_that_are_not_finite_are_refused_with_their_place(tmp_path):
    to, rows = writer(tmp_path), numbered(0, 5)
    append(to, rows)
    rows[2, 1], rows[4, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="in 2 rows .*token 102, position 2"):
        append(to, rows)
    assert len(all_rows(tmp_path)) == 5


def test_rows_too_large_for_fp16_say_what_to_do(tmp_path):
    rows = numbered(0, 5)
    rows[3, 1] = -70_000
    with pytest.raises(ValueError, match=r"fp16 \(.*7e\+04, at token 103.*bf16"):
        append(writer(tmp_path / "fp16", "fp16"), rows)
    append(writer(tmp_path / "bf16", "bf16"), rows)


@pytest.mark.parametrize("width", [1, D + 1])
def test_rows_of_another_width_are_refused_before_anything_is_written(tmp_path, width):
    to = writer(tmp_path)
    append(to, numbered(0, 4))
    with pytest.raises(ValueError, match="wide|width"):
        append(to, torch.zeros(2, width))
    assert len(list(tmp_path.glob("shard-*"))) == 1


def test_an_unknown_precision_says_the_near_miss(tmp_path):
    with pytest.raises(ValueError, match="'bf61'; did you mean 'bf16'"):
        writer(tmp_path, "bf61")


# Damage.


def damage_shard(folder: Path, change: str) -> None:
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    if change == "missing":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(data[:-1])
    else:
        data[-1] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"the shard .*shard-00001\.safetensors is missing; restore it from a copy or harvest again"),
        ("truncated", r"the shard .*shard-00001\.safetensors is truncated: \d+ bytes of \d+; restore"),
    ],
)
def test_a_missing_or_truncated_shard_is_named_at_once(tmp_path, change, message):
    make(tmp_path)
    damage_shard(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        Store(tmp_path)


def test_a_flipped_bit_is_found_before_a_row_is_used(tmp_path):
    make(tmp_path)
    damage_shard(tmp_path, "flipped")
    store = Store(tmp_path)
    assert len(store.rows(0)) == 5
    for read in (store.rows, store.columns):
        with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged"):
            read(1)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged"):
        next(StoreSource(tmp_path).batches(15))


def test_a_folder_that_is_no_store_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"not a store: .*manifest\.json"):
            Store(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"manifest\.json has format 2, newer than 1"),
        ({"format": None}, r"manifest\.json has no format number"),
        ({"dtype": "bf61"}, r"manifest\.json: unknown dtype 'bf61'; did you mean 'bf16'"),
        ({"shards": [{"file": "x"}]}, r"manifest\.json: shards\[0\]\.rows: expected a whole number, got nothing"),
        ({"shards": None}, r"manifest\.json: shards: expected a list of tables, got null"),
        ({"colour": "red"}, r"manifest\.json is damaged: .*colour"),
    ],
)
def test_a_bad_manifest_is_named(tmp_path, change, message):
    make(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(ValueError, match=message):
        Store(tmp_path)


def test_a_cut_manifest_is_named(tmp_path):
    make(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text()[:-20])
    for user in (Store, writer):
        with pytest.raises(ValueError, match=r"manifest\.json is damaged: not JSON"):
            user(tmp_path)


# As a source.


def read(source: StoreSource, rows: int, batches: int) -> list[int]:
    """The numbers of the rows of some batches."""
    with closing(source.batches(rows)) as stream:  # type: ignore[type-var]
        return [int(row[0]) for batch in islice(stream, batches) for row in batch.x]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 23 rows that no test changes."""
    folder = tmp_path_factory.mktemp("store")
    make(folder, sizes=(10, 3, 1, 9))
    return folder


@settings(deadline=None, max_examples=25, derandomize=True)
@given(block=st.integers(1, 12), more=st.integers(0, 15), batch=st.integers(1, 30), seed=st.integers(0, 3))
def test_every_row_comes_once_a_pass(folder, block, more, batch, seed):
    source = StoreSource(folder, seed, block_rows=block, window_rows=block + more)
    order = read(source, batch, -(-3 * 23 // batch))
    for start in (0, 23, 46):
        assert sorted(order[start : start + 23]) == list(range(23))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(block=st.integers(1, 12), more=st.integers(0, 15), batch=st.integers(1, 9), before=st.integers(0, 12))
def test_it_goes_on_from_any_place(folder, block, more, batch, before):
    def source() -> StoreSource:
        return StoreSource(folder, 1, block_rows=block, window_rows=block + more)

    first = source()
    read(first, batch, before)
    state = json.loads(json.dumps(first.state()))
    again = source()
    again.restore(state)
    assert read(again, batch, 7) == read(first, batch, 7)


def test_blocks_stay_together_in_a_window_and_windows_differ_by_pass(folder):
    source = StoreSource(folder, block_rows=5, window_rows=5)
    blocks = [sorted(source.window(number)[:, 0].int().tolist()) for number in range(2 * 6)]
    expected = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12], [13], [14, 15, 16, 17, 18], [19, 20, 21, 22]]
    assert sorted(blocks[:6]) == sorted(blocks[6:]) == expected
    assert blocks[:6] != blocks[6:]


def test_another_seed_is_another_order(folder):
    first, same, other = (read(StoreSource(folder, seed), 23, 1) for seed in (0, 0, 1))
    assert first == same != other


def test_rows_come_in_the_stores_precision(tmp_path):
    make(tmp_path, dtype="bf16")
    with closing(StoreSource(tmp_path).batches(2)) as stream:
        assert next(stream).x.dtype == torch.bfloat16


def test_a_sample_is_of_different_rows(folder):
    source = StoreSource(folder)
    assert sorted(source.sample(23)[:, 0].int().tolist()) == list(range(23))
    assert source.sample(100)[:, 0].unique().numel() == len(source.sample(100)) == 23
    assert source.state() == StoreSource(folder).state()


@pytest.mark.parametrize(("block", "window"), [(0, 10), (5, 4)])
def test_blocks_and_windows_must_fit(folder, block, window):
    with pytest.raises(ValueError, match=f"block_rows.*got {block} and {window}"):
        StoreSource(folder, block_rows=block, window_rows=window)


@pytest.mark.parametrize("other", [{"window_rows": 6}, {"block_rows": 2}])
def test_a_place_in_other_windows_is_refused(folder, other):
    source = StoreSource(folder, block_rows=3, window_rows=12)
    read(source, 10, 1)
    with pytest.raises(ValueError, match="the saved position is for (window_rows|block_rows|rows) "):
        StoreSource(folder, **{"block_rows": 3, "window_rows": 12, **other}).restore(source.state())


def test_a_place_in_another_store_is_refused(folder, tmp_path):
    make(tmp_path, sizes=(4, 4))
    source = StoreSource(folder)
    read(source, 20, 1)
    with pytest.raises(ValueError, match="the saved position is for (window_rows|block_rows|rows) "):
        StoreSource(tmp_path).restore(source.state())


# Targets behind the rows.


def with_targets(folder: Path, sizes: tuple[int, ...] = (10, 13)) -> tuple[Tensor, Tensor]:
    """A finished store of rows with targets two wide, which are enormous; rows and targets."""
    to, draw = StoreWriter(folder, D, "fp32", ORIGIN, d_out=2), torch.Generator().manual_seed(0)
    rows = torch.randn(sum(sizes), D + 2, generator=draw) + 3
    rows[:, D:] *= 1000
    for part in rows.split(sizes):
        append(to, part)
    to.finish()
    return rows[:, :D], rows[:, D:]


def test_a_source_gives_each_row_its_target(tmp_path):
    rows, targets = with_targets(tmp_path)
    source = StoreSource(tmp_path, block_rows=4, window_rows=8)
    assert (source.d_in, source.d_out) == (D, 2)
    with closing(source.batches(23)) as stream:
        batch = next(stream)
    where = [(rows == row).all(1).nonzero().item() for row in batch.x]
    assert sorted(where) == list(range(23))
    assert torch.equal(batch.target, targets[where])
    assert source.sample(5).shape == (5, D + 2)


def test_statistics_are_of_what_is_read_only(tmp_path):
    rows, _ = with_targets(tmp_path)
    mean, scale = StoreSource(tmp_path).statistics()
    exact = rows.double().numpy()
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(((exact - exact.mean(0)) ** 2).mean()), rtol=1e-6)


def test_the_manifest_says_the_targets_width_where_there_is_one(tmp_path):
    with_targets(tmp_path / "targets")
    make(tmp_path / "plain")
    assert read_json(tmp_path / "targets" / "manifest.json")["d_out"] == 2
    assert "d_out" not in read_json(tmp_path / "plain" / "manifest.json")  # as before there were targets
    assert Store(tmp_path / "plain").d_out is None
    assert StoreSource(tmp_path / "plain").d_out is None


def test_another_target_width_is_refused(tmp_path):
    with_targets(tmp_path)
    with pytest.raises(ValueError, match="holds a store with d_out = 2, not None"):
        writer(tmp_path)
    to = StoreWriter(tmp_path, D, "fp32", ORIGIN, d_out=2)
    for width in (D, 2, D + 3):
        with pytest.raises(ValueError, match=f"the store's rows are {D + 2} wide"):
            append(to, torch.zeros(4, width))
    append(to, torch.zeros(4, D + 2))
    assert len(Store(tmp_path)) == 27


@pytest.mark.parametrize(
    ("change", "held", "said"),
    [
        ({"d_in": 2, "sums": [0.0, 0.0]}, r"\[5, 3\] fp32", r"\[5, 2\] fp32"),
        ({"dtype": "bf16"}, r"\[5, 3\] fp32", r"\[5, 3\] bf16"),
        ({"rows": 4}, r"\[5, 3\] fp32", r"\[4, 3\] fp32"),
    ],
)
def test_a_manifest_that_says_other_rows_than_the_shard_holds_is_refused(tmp_path, change, held, said):
    make(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = read_json(path)
    manifest["shards"][0]["rows"] = change.pop("rows", 5)
    path.write_text(json.dumps(manifest | change))
    message = rf"shard-00000\.safetensors holds rows {held}, and manifest\.json says {said}; restore"
    with pytest.raises(ValueError, match=message):
        Store(tmp_path)


def test_the_header_of_a_later_shard_is_checked_before_its_rows_are_used(tmp_path):
    make(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = read_json(path)
    manifest["shards"][1]["rows"] = 2
    path.write_text(json.dumps(manifest))
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=r"shard-00001.*\[3, 3\] .*\[2, 3\]"):
        store.columns(1)


def test_a_shard_cut_while_it_is_in_use_is_named(tmp_path):
    rows = make(tmp_path, (500, 500))
    store = Store(tmp_path)
    assert torch.equal(store.rows(1), rows[500:])
    path = tmp_path / "shard-00001.safetensors"
    os.truncate(path, 4096)
    for read in (store.rows, store.columns):
        with pytest.raises(ValueError, match="shard-00001.*changed.*4096 bytes"):
            read(1)
    assert torch.equal(store.rows(0), rows[:500])


def test_some_rows_of_a_shard_are_read(tmp_path):
    rows = make(tmp_path, (5, 3, 7))
    store = Store(tmp_path)
    assert torch.equal(store.rows(2, 2, 5), rows[10:13])
    assert torch.equal(store.spans({2: [(0, 1), (3, 9)], 0: [(4, 5)]}), rows[[8, 11, 12, 13, 14, 4]])
    assert store.rows(2, 7).shape == (0, 3)


@pytest.mark.parametrize("at", [0, 3, 8, 40, -1])
def test_a_shard_that_is_no_safetensors_file_is_named(tmp_path, at):
    make(tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[at if at >= 0 else 9] ^= 0x5A
    path.write_bytes(data if at >= 0 else data[:5] + b"x" * (len(data) - 5))
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors"):
        Store(tmp_path).rows(0)


def test_a_store_and_its_source_say_what_they_hold(tmp_path):
    make(tmp_path / "s")
    said = f"Store({tmp_path / 's'}: 15 rows, {D} wide, fp32, 3 shards, pycode-7m at layers.3)"
    assert repr(Store(tmp_path / "s")) == said
    source = StoreSource(tmp_path / "s")
    assert repr(source) == f"StoreSource({said})"
    assert (source.distinct_rows(16), source.distinct_rows(15)) == (15, None)


def test_rows_and_columns_may_share_memory(tmp_path):
    to = writer(tmp_path / "s")
    column = torch.arange(5, dtype=torch.int32)
    to.append(numbered(0, 5), 1, {}, token=column, position=column, document=column[:5])
    columns = Store(tmp_path / "s").columns(0)
    assert all(columns[name].tolist() == list(range(5)) for name in ("token", "position", "document"))
