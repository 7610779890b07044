"""Files appear whole or not at all; a damaged, foreign or newer one is named with what is wrong."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from saelab.core import files
from saelab.core.read import read_json


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def half_written(error: BaseException) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise error

    return write


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "text"
    files.write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    assert os.listdir(path.parent) == ["text"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda handle, real=os.fsync: (calls.append("fsync"), real(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b, real=os.replace: (calls.append("replace"), real(a, b)))
    files.write_text(tmp_path / "text", "new")
    assert calls == ["fsync", "replace", "fsync"]  # the last makes the rename itself last


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_failing_leaves_the_older_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "text"
    files.write_text(path, "older")
    with pytest.raises(type(error)):
        files.write_whole(path, half_written(error))
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["text"]


@pytest.mark.parametrize(("module", "call"), [(os, "fsync"), (os, "replace"), (Path, "mkdir")])
def test_full_disk_is_said_with_the_path_and_the_remedy(tmp_path, monkeypatch, module, call):
    monkeypatch.setattr(module, call, failing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"disk is full: .*/text\. .*free") as caught:
        files.write_text(tmp_path / "text", "new")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_another_error_of_the_system_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_text(tmp_path / "text", "new")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "text", "new")
        assert (tmp_path / "text").stat().st_mode & 0o777 == mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": "ü"}}
    files.write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path, number):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "file.json", {"a": number})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_round_trip(tmp_path, dtype):
    tensor = (torch.arange(6).reshape(2, 3) % 3).to(dtype).T  # not contiguous
    files.write_tensors(tmp_path / "file", {"a": tensor, "empty": tensor[:0]}, {"list": [1]})
    tensors, metadata = files.read_tensors(tmp_path / "file")
    assert torch.equal(tensors["a"], tensor)
    assert tensors["a"].dtype == dtype
    assert tensors["empty"].shape == (0, 2)
    assert metadata == {"list": [1]}


def test_a_parameter_is_stored_as_its_values(tmp_path):
    files.write_tensors(tmp_path / "file", {"a": torch.ones(2, requires_grad=True)})
    tensors, metadata = files.read_tensors(tmp_path / "file")
    assert not tensors["a"].requires_grad
    assert metadata == {}


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"PK\3\4" + data])
def test_damaged_tensors_are_named(tmp_path, damage):
    path = tmp_path / "file.safetensors"
    files.write_tensors(path, {"a": torch.ones(3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"file\.safetensors is damaged.*restore"):
        files.read_tensors(path)


def test_missing_tensors_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*file\.safetensors"):
        files.read_tensors(tmp_path / "file.safetensors")


def test_checksum(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert files.sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "new" / "results"
    with files.whole_folder(out) as folder:
        files.write_text(folder / "deep" / "a", "1")
        assert not out.exists()
    assert os.listdir(tmp_path / "new") == ["results"]
    assert (out / "deep" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_nothing(tmp_path, error):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(type(error)), files.whole_folder(tmp_path / name) as folder:
            files.write_text(folder / "a", "1")
            raise error
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_a_folder_takes_the_place_of_an_empty_one_and_of_what_a_killed_writer_left(tmp_path):
    out, left = tmp_path / "results", tmp_path / ".results.part"
    for folder in (out, left):
        folder.mkdir()
    (left / "half").write_text("half")
    (out / ".config.yaml.part").write_text("half")
    with files.whole_folder(out) as folder:
        files.write_text(folder / "a", "1")
    assert os.listdir(tmp_path) == ["results"]
    assert os.listdir(out) == ["a"]


def test_the_current_folder_is_filled_and_stays_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    with files.whole_folder(".") as folder:
        files.write_text(folder / "a", "1")
        assert files.is_vacant(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert os.stat(tmp_path).st_ino == before


def test_a_folder_that_holds_something_or_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for out, said in ((tmp_path, "is not an empty folder; choose another"), (tmp_path / "file" / "in", "is a file")):
        with pytest.raises(ValueError, match=said), files.whole_folder(out):
            pass
    assert os.listdir(tmp_path) == ["file"]
