"""Harvesting against transformers' own hidden states; kills and full disks; a live source that gives the same rows."""

import ctypes
import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.world import SITE, die, files, in_process
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.core.files import write_whole
from saelab.data import store as store_module
from saelab.data.store import Store
from saelab.models import harvest as module
from saelab.models.harvest import LiveSource, harvest
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.text import read_text
from saelab.models.tokens import pack

pytest_plugins = ["recipes.small_world"]

AT_ONCE, SHARD = 64, 100 * 16 * 4
"""4 packed rows a pass and about 100 kept rows a shard: a store of 1000 rows has ten shards."""
TOKENS = 1000
store_module_write = {".safetensors": store_module.write_tensors, ".json": store_module.write_json}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(module, "SHARD_BYTES", SHARD)
    monkeypatch.setattr(
        os, "fsync", lambda file: None
    )  # a killed process leaves what it wrote; only power cuts need it


@pytest.fixture(scope="session")
def subject(tiny_llama: Path, text_folder: Path) -> Subject:
    return Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16)


@pytest.fixture(scope="session")
def model(subject: Subject) -> LanguageModel:
    return subject.language_model()


@pytest.fixture(scope="session")
def writes() -> list[str]:
    """The names of the files that `whole` wrote, in order."""
    return []


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, subject: Subject, model: LanguageModel, writes: list[str]
) -> dict[str, bytes]:
    """The files of a store that was harvested in one go, in the small steps of this file."""
    folder = tmp_path_factory.mktemp("whole")

    def noted(path: Path, data: Any, *rest: Any) -> None:
        writes.append(path.name)
        store_module_write[path.suffix](path, data, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOKENS_AT_ONCE", AT_ONCE)
        patch.setattr(module, "SHARD_BYTES", SHARD)
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(store_module, "write_tensors", noted)
        patch.setattr(store_module, "write_json", noted)
        harvest(subject, folder, TOKENS, model=model, show=False)
    return files(folder)


def all_rows(store: Store) -> torch.Tensor:
    return torch.cat([store.rows(number) for number in range(len(store.manifest.shards))])


def column(store: Store, name: str) -> torch.Tensor:
    return torch.cat([store.columns(number)[name] for number in range(len(store.manifest.shards))])


def edited(source: Path, folder: Path, edit: Any) -> Path:
    """A copy of a model's folder with some weights changed in place by edit(model, tokenizer)."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        edit(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- what is in a store ----


def test_rows_are_the_hidden_states_at_kept_positions(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 10**6, split="all", dtype="fp32", model=model, show=False)
    documents = list(read_text(subject.text, seed=subject.seed))
    blocks = list(pack(documents, model.tokenizer, 16, rows=10**6))
    reference = AutoModelForCausalLM.from_pretrained(subject.model).eval()
    with torch.no_grad():
        hidden = reference(blocks[0].ids, output_hidden_states=True).hidden_states[2]  # after the second of the layers
    kept = blocks[0].position >= 0
    assert hidden[kept].norm(dim=1).max() < 10 * hidden[kept].norm(dim=1).median()  # nothing here is an outlier
    torch.testing.assert_close(all_rows(store), hidden[kept], rtol=1e-4, atol=1e-4)
    assert len(store.manifest.shards) > 10
    assert store.manifest.complete


def test_columns_say_which_token_of_which_document_a_row_is(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 10**6, split="all", model=model, show=False)
    token, document, position = (column(store, name).tolist() for name in ("token", "document", "position"))
    documents = list(read_text(subject.text, seed=subject.seed))
    ids = [model.tokenizer(one.text, add_special_tokens=False, verbose=False)["input_ids"] for one in documents]
    expected = [(id, number, place) for number, one in enumerate(ids) for place, id in enumerate(one)]
    assert list(zip(token, document, position, strict=True)) == expected
    assert column(store, "token").dtype == torch.int32


def test_what_is_left_out_is_counted(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 10**6, split="all", model=model, show=False)
    blocks = list(pack(read_text(subject.text, seed=subject.seed), model.tokenizer, 16, rows=10**6))
    ids, document = blocks[0].ids, blocks[0].document
    dropped = store.manifest.dropped
    assert dropped["padding"] == (document < 0).sum() > 0
    assert dropped["bos"] == ((ids == model.tokenizer.bos_token_id) & (document >= 0)).sum() > 0
    assert dropped["outlier"] == 0
    assert len(store) + sum(dropped.values()) == ids.numel()
    assert store.manifest.origin["fingerprint"] == model.fingerprint


@pytest.fixture(scope="session")
def loud(tmp_path_factory: pytest.TempPathFactory, subject: Subject) -> tuple[Subject, int]:
    """A subject whose model gives one token an enormous norm, and that token."""
    tokenizer = AutoTokenizer.from_pretrained(subject.model)
    token = tokenizer(" fox", add_special_tokens=False)["input_ids"][-1]

    def edit(model: Any, tokenizer: Any) -> None:
        model.get_input_embeddings().weight[token] *= 1e4

    folder = edited(Path(subject.model), tmp_path_factory.mktemp("loud"), edit)
    return replace(subject, model=str(folder)), token


def test_tokens_of_outlier_norm_are_left_out_and_counted(loud, tmp_path):
    subject, token = loud
    store = harvest(subject, tmp_path / "acts", 10**6, split="all", dtype="fp32", show=False)
    (block,) = pack(read_text(subject.text), AutoTokenizer.from_pretrained(subject.model), 16, rows=10**6)
    assert store.manifest.dropped["outlier"] == (block.ids[block.keep] == token).sum() > 0
    assert (column(store, "token") != token).all()
    assert len(store) == (block.ids[block.keep] != token).sum()
    assert all_rows(store).norm(dim=1).max() <= store.manifest.notes["norm_limit"]


def test_the_outlier_limit_is_ten_median_norms_of_the_first_block(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", TOKENS, dtype="fp32", model=model, show=False)
    first = next(subject.token_rows(model, "train", AT_ONCE // 16))
    norms = model.activations(first.ids)[first.keep].double().norm(dim=1).sort().values
    assert store.manifest.notes["norm_limit"] == pytest.approx(10 * norms[(len(norms) - 1) // 2].item(), rel=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_mean_and_scale_are_those_of_the_rows_on_disk(subject, model, tmp_path, dtype):
    store = harvest(subject, tmp_path / "acts", TOKENS, dtype=dtype, model=model, show=False)
    rows = all_rows(store)
    assert rows.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    rows = rows.double()
    mean, scale = store.manifest.statistics()
    torch.testing.assert_close(mean.double(), rows.mean(0), rtol=1e-6, atol=1e-7)
    assert scale.item() == pytest.approx((rows - rows.mean(0)).square().mean().sqrt().item(), rel=1e-6)


# ---- again, and further ----


def test_a_store_that_has_enough_is_left_as_it_is(subject, model, tmp_path, monkeypatch):
    harvest(subject, tmp_path / "acts", TOKENS, model=model, show=False)
    before = files(tmp_path / "acts")
    monkeypatch.setattr(model, "activations", lambda ids: pytest.fail("the model was run again"))
    assert len(harvest(subject, tmp_path / "acts", TOKENS, model=model, show=False)) >= TOKENS
    assert files(tmp_path / "acts") == before


def test_a_store_goes_on_when_more_is_asked_for(subject, model, tmp_path):
    harvest(subject, tmp_path / "acts", 300, dtype="fp32", model=model, show=False)
    longer = harvest(subject, tmp_path / "acts", TOKENS, dtype="fp32", model=model, show=False)
    once = harvest(subject, tmp_path / "once", TOKENS, dtype="fp32", model=model, show=False)
    assert torch.equal(all_rows(longer), all_rows(once))
    assert torch.equal(column(longer, "position"), column(once, "position"))
    assert longer.manifest.dropped == once.manifest.dropped


def test_a_text_that_ended_is_not_read_again(subject, model, tmp_path, monkeypatch):
    store = harvest(subject, tmp_path / "acts", 10**6, model=model, show=False)
    assert len(store) < 10**6
    monkeypatch.setattr(model, "activations", lambda ids: pytest.fail("the model was run again"))
    assert len(harvest(subject, tmp_path / "acts", 10**6, model=model, show=False)) == len(store)


@pytest.mark.parametrize("tokens", [0, -1])
def test_at_least_one_token_has_to_be_asked_for(subject, model, tmp_path, tokens):
    with pytest.raises(ValueError, match=f"tokens must be at least 1, got {tokens}"):
        harvest(subject, tmp_path / "acts", tokens, model=model)


# ---- killed, and a full disk ----


def harvested(subject: Subject, out: Path, **patches: Any) -> None:
    """The target of a process: harvest in small steps, with functions of the store's module replaced."""
    module.TOKENS_AT_ONCE, module.SHARD_BYTES = AT_ONCE, SHARD
    os.fsync = lambda file: None
    for name, value in patches.items():
        setattr(store_module, name, value)
    harvest(subject, out, TOKENS, show=False)


def killed_writing(file: str, time: int, moment: str, path: Path, data: Any, *rest: Any) -> None:
    """Stands for `write_tensors` and `write_json`: the time-th write of a file is cut by kill -9."""
    global seen
    seen += path.name == file
    write = store_module_write[path.suffix]
    if path.name != file or seen < time:
        write(path, data, *rest)
    elif moment == "half-way":
        write_whole(path, lambda opened: (opened.write(b"half"), opened.flush(), die()))
    else:
        write(path, data, *rest)
        die()


seen = 0
KILLS = [
    ("shard-00004.safetensors", 1, "half-way"),
    ("shard-00004.safetensors", 1, "written"),
    ("manifest.json", 5, "half-way"),
    ("manifest.json", 5, "written"),
    ("shard-00000.safetensors", 1, "half-way"),
    ("shard-00000.safetensors", 1, "written"),
    ("manifest.json", 1, "half-way"),
    ("manifest.json", -2, "half-way"),  # the last shard is written, but not named
    ("manifest.json", -1, "half-way"),  # it is named, but the store is not yet marked complete
]


def interrupted(subject: Subject, out: Path, file: str, time: int, moment: str) -> None:
    """Harvest in a process of its own that kills itself."""
    kill = partial(killed_writing, file, time, moment)
    assert in_process(partial(harvested, write_tensors=kill, write_json=kill), subject, out) == -9
    assert not (out / "manifest.json").exists() or not json.loads((out / "manifest.json").read_text())["complete"]


@pytest.mark.parametrize(("file", "time", "moment"), KILLS)
def test_a_harvest_killed_and_resumed_equals_an_uninterrupted_one(
    subject, model, whole, writes, tmp_path, file, time, moment
):
    interrupted(subject, tmp_path / "acts", file, time if time > 0 else writes.count(file) + 1 + time, moment)
    harvest(subject, tmp_path / "acts", TOKENS, model=model, show=False)
    found = files(tmp_path / "acts")
    assert {name: found.get(name) for name in whole} == whole


def test_what_a_killed_writer_left_unfinished_is_cleared_away(subject, model, whole, tmp_path):
    interrupted(subject, tmp_path / "acts", "shard-00004.safetensors", 1, "half-way")
    harvest(subject, tmp_path / "acts", TOKENS, model=model, show=False)
    assert files(tmp_path / "acts").keys() == whole.keys()


def full(file: str, path: Path, data: Any, *rest: Any) -> None:
    """Stands for `write_tensors` and `write_json` on a disk with no room for a file of that name."""

    def write(opened: Any) -> None:
        opened.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if path.name == file:
        write_whole(path, write)
    store_module_write[path.suffix](path, data, *rest)


@pytest.mark.parametrize(
    "file",
    [
        "shard-00001.safetensors",
        "shard-00000.safetensors",
        "manifest.json",
    ],
)
def test_a_full_disk_is_said_and_the_same_call_finishes_later(subject, model, whole, tmp_path, monkeypatch, file):
    out = tmp_path / "acts"
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_tensors", partial(full, file))
        patch.setattr(store_module, "write_json", partial(full, file))
        with pytest.raises(OSError, match=f"disk is full: .*{file}.*the same again") as caught:
            harvest(subject, out, TOKENS, model=model, show=False)
    assert caught.value.errno == errno.ENOSPC
    assert not list(out.glob(".*"))
    if file == "shard-00001.safetensors":
        assert all_rows(Store(out)).isfinite().all()  # what was complete is there to be read
    harvest(subject, out, TOKENS, model=model, show=False)
    assert files(out) == whole


def on_a_small_disk(subject: Subject, mount: Path, said: Path) -> None:
    """The target of a process: harvest onto a disk of 64 KiB, give it more room, harvest again.

    It writes what was said and the files of the store; it exits with 77 where this system lets nobody mount a disk.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, mounts, remount = 0x10000000, 0x00020000, 32
    if libc.unshare(mounts) and libc.unshare(user | mounts):
        os._exit(77)
    if libc.mount(b"none", b"/", None, 0x44000, None) or libc.mount(b"none", bytes(mount), b"tmpfs", 0, b"size=64k"):
        os._exit(77)
    complaint = ""
    try:
        harvested(subject, mount / "acts")
    except OSError as error:
        complaint = str(error)
    left = [path.name for path in (mount / "acts").iterdir()]
    rows = len(Store(mount / "acts"))
    libc.mount(b"none", bytes(mount), b"tmpfs", remount, b"size=8m")
    harvested(subject, mount / "acts")
    content = {name: data.hex() for name, data in files(mount / "acts").items()}
    said.write_text(json.dumps({"complaint": complaint, "left": left, "rows": rows, "files": content}))


def test_a_really_full_disk_loses_nothing(subject, whole, tmp_path):
    (tmp_path / "disk").mkdir()
    status = in_process(on_a_small_disk, subject, tmp_path / "disk", tmp_path / "said.json")
    if status == 77:
        pytest.skip("needs the right to mount a small disk, and this system does not give it")
    assert status == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert "the disk is full" in said["complaint"]
    assert said["rows"] > 0
    assert not [name for name in said["left"] if name.startswith(".")]
    assert {name: bytes.fromhex(data) for name, data in said["files"].items()} == whole


# ---- what is refused ----


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("model", {"model": "tiny_gpt2", "site": "transformer.h.1"}),
        ("site", {"site": "model.layers.0"}),
        ("seq_len", {"seq_len": 8}),
        ("seed", {"seed": 1}),
        ("text", {"text": "other"}),
    ],
)
def test_a_store_of_another_subject_is_refused_by_its_key(subject, model, tmp_path, request, key, other):
    harvest(subject, tmp_path / "acts", 100, model=model, show=False)
    before = files(tmp_path / "acts")
    (tmp_path / "other.txt").write_text("the lazy dog " * 50)
    if key == "model":
        other = other | {"model": str(request.getfixturevalue("tiny_gpt2"))}
    if key == "text":
        other = {"text": str(tmp_path / "other.txt")}
    with pytest.raises(ValueError, match=f"a store with {key} = "):
        harvest(replace(subject, **other), tmp_path / "acts", 2000, show=False)
    assert files(tmp_path / "acts") == before


@pytest.mark.parametrize(("key", "other"), [("split", {"split": "all"}), ("dtype", {"dtype": "fp32"})])
def test_a_store_of_another_harvest_is_refused_by_its_key(subject, model, tmp_path, key, other):
    harvest(subject, tmp_path / "acts", 100, model=model, show=False)
    with pytest.raises(ValueError, match=rf"acts holds a store with {key} = "):
        harvest(subject, tmp_path / "acts", 2000, model=model, show=False, **other)


def test_other_weights_under_the_same_name_are_refused(subject, tmp_path):
    copy = edited(Path(subject.model), tmp_path / "model", lambda model, tokenizer: None)
    here = replace(subject, model=str(copy))
    harvest(here, tmp_path / "acts", 100, show=False)
    edited(Path(subject.model), copy, lambda model, tokenizer: model.lm_head.weight.mul_(2))
    with pytest.raises(ValueError, match="acts holds a store with fingerprint = "):
        harvest(here, tmp_path / "acts", 2000, show=False)


def test_rows_too_large_for_fp16_are_refused_with_the_way_out(subject, tmp_path):
    huge = edited(
        Path(subject.model), tmp_path / "model", lambda model, tokenizer: model.model.embed_tokens.weight.mul_(1e6)
    )
    here = replace(subject, model=str(huge))
    with pytest.raises(ValueError, match=r"\d+ rows .*fp16 .*bf16"):
        harvest(here, tmp_path / "acts", 100, dtype="fp16", show=False)
    assert not (tmp_path / "acts").exists()
    assert len(harvest(here, tmp_path / "acts", 100, dtype="bf16", show=False)) >= 100


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory, subject: Subject) -> Subject:
    """A subject whose model has a NaN among its weights, below the site."""

    def edit(model: Any, tokenizer: Any) -> None:
        model.model.layers[0].mlp.down_proj.weight[3, 2] = float("nan")

    return replace(subject, model=str(edited(Path(subject.model), tmp_path_factory.mktemp("nan"), edit)))


def test_nan_in_activations_is_refused_and_nothing_is_written(broken, tmp_path):
    with pytest.raises(ValueError, match=r"NaN .*in \d+ rows .*token \d+"):
        harvest(broken, tmp_path / "acts", 100, show=False)
    assert not (tmp_path / "acts").exists()


def test_text_shorter_than_one_row_is_refused(subject, model, tmp_path):
    (tmp_path / "short.txt").write_text("the fox")
    here = replace(subject, text=str(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match=r"\d+ tokens, .*row of 16.*seq_len"):
        harvest(here, tmp_path / "acts", 100, split="all", model=model, show=False)
    assert not (tmp_path / "acts").exists()


def test_rows_longer_than_the_model_takes_are_refused(subject, model, tmp_path):
    with pytest.raises(ValueError, match="17 tokens .*the 16"):
        harvest(replace(subject, seq_len=17), tmp_path / "acts", 100, model=model, show=False)


@pytest.mark.parametrize("seq_len", [1, 0, -3])
def test_a_row_needs_two_tokens(subject, model, tmp_path, seq_len):
    with pytest.raises(ValueError, match=f"seq_len .*got {seq_len}"):
        harvest(replace(subject, seq_len=seq_len), tmp_path / "acts", 100, model=model, show=False)


# ---- the live source ----

WINDOW = 16 * 7
"""Seven packed rows: a pass of four and one of three."""


def live(subject: Subject, model: LanguageModel | None = None, **options: Any) -> LiveSource:
    return LiveSource(subject, window_rows=WINDOW, model=model, **options)


def test_a_live_source_gives_the_rows_a_harvest_stores(subject, model, tmp_path):
    store = harvest(subject, tmp_path / "acts", 10**6, dtype="fp32", model=model, show=False)
    source, rows = live(subject, model), all_rows(store)
    parts = [source.window(0)]
    while sum(map(len, parts)) < 2 * len(rows):
        parts.append(source.window(len(parts)))
    torch.testing.assert_close(torch.cat(parts)[: 2 * len(rows)], torch.cat([rows, rows]), rtol=1e-4, atol=1e-4)


def test_a_live_source_leaves_outliers_out_wherever_it_starts(loud):
    subject, _ = loud
    for number in (0, 9):
        source = live(subject)
        norms = source.window(number).norm(dim=1)
        assert norms.max() < 10 * 1.5 * norms.median()
        assert len(norms) < WINDOW


def test_windows_are_shuffled_and_lose_no_row(subject, model):
    source = live(subject, model)
    first = source.window(0)
    (batch,) = (batch.x for batch, _ in zip(source.batches(len(first)), range(1), strict=False))
    assert not torch.equal(batch, first)
    assert torch.equal(batch[batch[:, 0].argsort()], first[first[:, 0].argsort()])


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 7, 40, 41, 100])
def test_a_restored_live_source_goes_on_bit_for_bit(subject, model, taken):
    """Batches of 60 rows of windows of about 100: most straddle two, and 40 batches go past the end of the text."""
    source, batches = live(subject, model), []
    state = source.state()
    for batch in source.batches(60):
        batches.append(batch)
        if len(batches) == taken:
            state = source.state()
            assert state == batch.place
        if len(batches) == taken + 4:
            break
    again = live(subject, model)
    again.restore(json.loads(json.dumps(state)))
    assert again.state() == state
    for expected, found in zip(batches[taken:], again.batches(60), strict=False):
        assert torch.equal(found.x, expected.x)
        assert found.place == expected.place


def test_the_batches_above_go_past_the_end_of_the_text(subject, model):
    rows = sum(int(block.keep.sum()) for block in subject.token_rows(model, "train", 64))
    assert 100 * 60 > rows > 60


def test_a_window_beyond_the_text_starts_where_the_text_would_after_wrapping(subject, model):
    length = sum(len(block) for block in subject.token_rows(model, "train", 64))
    per_window = WINDOW // 16
    number = 3 * length // per_window + 2
    assert number * per_window > 3 * length
    found = live(subject, model).window(number)
    blocks = list(subject.token_rows(model, "train", 10**6))
    place = [(number * per_window + n) % length for n in range(per_window)]
    ids, keep = blocks[0].ids[place], blocks[0].keep[place]
    torch.testing.assert_close(found, model.activations(ids)[keep], rtol=1e-4, atol=1e-4)


def test_sampling_does_not_move_a_live_source(subject, model):
    source, fresh = live(subject, model), live(subject, model)
    sample = source.sample(150)
    assert sample.shape == (150, 16)
    assert torch.equal(live(subject, model).sample(150), sample)
    assert source.state() == fresh.state()
    one, other = ([batch.x for _, batch in zip(range(4), it.batches(60), strict=False)] for it in (source, fresh))
    assert torch.equal(torch.stack(one), torch.stack(other))


def test_two_threads_may_use_one_model(subject, model, monkeypatch):
    """As when a live source prepares its next window while the same model is measured on."""
    both, real = threading.Barrier(2), model._logits

    def logits(ids: torch.Tensor, *others: object) -> torch.Tensor:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # until the hooks of both are set, or it is clear that one waits for the other
        return real(ids, *others)

    monkeypatch.setattr(model, "_logits", logits)
    blocks = [next(subject.token_rows(model, "train", rows)).ids for rows in (2, 3)]
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(model.activations, blocks[0])
        changed = pool.submit(model.forward_with, blocks[1], torch.zeros(3, 16, 16))
        found = read.result(), changed.result()
    both.abort()
    torch.testing.assert_close(found[0], model.activations(blocks[0]))
    torch.testing.assert_close(found[1], model.forward_with(blocks[1], torch.zeros(3, 16, 16)))


def test_a_live_source_refuses_nan_by_model_and_site(broken):
    with pytest.raises(ValueError, match=f"{broken.model} .*{SITE}.*float32"):
        next(live(broken).batches(8))


def test_a_live_source_refuses_text_shorter_than_one_row(subject, model, tmp_path):
    (tmp_path / "short.txt").write_text("the fox")
    source = live(replace(subject, text=str(tmp_path / "short.txt")), model, split="all")
    with pytest.raises(ValueError, match="shorter than one row of 16"):
        next(source.batches(8))


def test_a_text_shorter_than_a_window_is_read_over_and_over(subject, model, tmp_path):
    (tmp_path / "short.txt").write_text("the lazy dog jumps over " * 5)
    here = replace(subject, text=str(tmp_path / "short.txt"))
    (block,) = here.token_rows(model, "all", 100)
    assert len(block) < WINDOW // 16
    once = model.activations(block.ids)[block.keep]
    found = live(here, model, split="all").window(0)
    assert len(found) > len(once)
    torch.testing.assert_close(found[: len(once)], once, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found[len(once) :], torch.cat([once] * 9)[: len(found) - len(once)], rtol=1e-4, atol=1e-4
    )
