"""Damaged files, through every command that reads them: one line that says what is wrong, and nothing read in silence.

Each trial copies a small world (a store, a sweep of two runs, scores, laws, comparisons, an explorer's database, tasks,
other libraries' files), damages one file at random and runs a command on it in a process of its own, whose memory and
time are bounded. It fails on a traceback, on more than one line of complaint, on a process that hangs or dies of a
signal, and on a command that succeeds although the tensors of a file that it reads are no longer those written.

Left out: what needs a language model, because that is what commands read besides files.
"""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from campaigns.trials import run_campaign
from saelab.cli import main as saelab

MEMORY, SECONDS = 3 << 30, 60
"""Bytes of address space that a command may take besides what is there already, and how long it may take."""
SMALL = ["--sae.activation.k", "4", "--trainer.batch", "128", "--log_every", "1", "--save_every", "4"]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    1.5,
    1e308,
    10**30,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
    "NaN",
    float("nan"),
]


@cache
def world() -> Path:
    """What the trials copy; made once, by the commands themselves."""
    from saelab.data.store import StoreWriter

    root = Path(tempfile.mkdtemp(prefix="saelab-mutations-"))
    here = os.getcwd()
    os.chdir(root)
    writer = StoreWriter("acts", 16, "fp32", {"text": "made up"})
    generator = torch.Generator().manual_seed(0)
    for part in range(2):
        number = torch.arange(640) + 640 * part
        columns = {"token": number % 50, "document": number // 32, "position": number % 32}
        writer.append(torch.randn(640, 16, generator=generator), 20, {}, [(20 * part, "a.txt")], **columns)
    writer.finish()
    vary = ["--vary", "sae.n_latents=24,48", "--store", "acts", "--rows", "1024", *SMALL]
    saelab(["sweep", "--out", "sweep", *vary])
    runs = sorted(map(str, Path("sweep").glob("*/")))
    data = ["--store", "acts", "--tokens", "1000"]
    saelab(["measure", *runs, *data])
    saelab(["stitch", *runs, "--out", "stitched", *data, "--min_firings", "5", "--figures", "false"])
    saelab(["manifolds", runs[1], "--out", "clusters", *data, "--figures", "false"])
    saelab(["match", *runs, "--out", "matched", "--tokens", "0"])
    for library in ("sae_lens", "dictionary_learning", "sparsify"):
        saelab(["convert", runs[0], f"theirs-{library}", "--to", library])
    saelab(["explore", runs[1], "stitched", "matched", *data, "--export.to", "page"])
    lines = [{"text": f"a b c {n}", "label": n % 2, "document": str(n)} for n in range(80)]
    Path("tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.chdir(here)
    return root


Case = tuple[tuple[str, ...], Callable[[Path], list[Any]]]
"""Patterns of the files that are damaged, and the command that reads them."""
RUNS = ("sweep/n_latents24", "sweep/n_latents48")
DATA = ["--store", "acts", "--tokens", "600"]
CASES: dict[str, Case] = {
    "show": ((f"{RUNS[0]}/config.yaml", f"{RUNS[0]}/scores.json"), lambda _: ["show", RUNS[0]]),
    "measure": (
        (f"{RUNS[0]}/sae/*", f"{RUNS[0]}/*.json", f"{RUNS[0]}/log.jsonl", f"{RUNS[0]}/config.yaml", "acts/*"),
        lambda _: ["measure", *RUNS, *DATA],
    ),
    "resume": (
        (f"{RUNS[0]}/checkpoints/*", f"{RUNS[0]}/*.yaml", f"{RUNS[0]}/source.json", f"{RUNS[0]}/log.jsonl", "acts/*"),
        lambda _: ["train", "--resume", RUNS[0]],
    ),
    "sweep": (("sweep/*.json", "sweep/*/config.yaml", "sweep/*/source.json"), lambda _: ["sweep", "--resume", "sweep"]),
    "config": ((f"{RUNS[0]}/config.yaml",), lambda file: ["train", "--config", file, "--out", "new"]),
    "match": ((f"{RUNS[0]}/sae/*",), lambda _: ["match", *RUNS, "--out", "new", "--tokens", "0"]),
    "stitch": ((f"{RUNS[0]}/sae/*", "acts/*"), lambda _: ["stitch", *RUNS, "--out", "new", *DATA]),
    "manifolds": ((f"{RUNS[0]}/sae/*", "acts/*"), lambda _: ["manifolds", RUNS[0], "--out", "new", *DATA]),
    "fit": (
        ("sweep/sweep.json", "sweep/*/log.jsonl", "sweep/*/scores.json", "sweep/*/sae/*.json", "sweep/*/*.yaml"),
        lambda _: ["scaling", "fit", "sweep", "--out", "new"],
    ),
    "figures": ((f"{RUNS[0]}/tables/*", f"{RUNS[0]}/scores.json", f"{RUNS[0]}/latents.safetensors"),
                lambda _: ["figures", *RUNS, "--out", "new"]),
    "tasks": (("tasks.jsonl",), lambda _: ["measure", RUNS[0], *DATA, "--tasks", "tasks.jsonl"]),
    "convert": (("theirs-*/*",), lambda file: ["convert", file.parts[0], "new"]),
    "explore": (
        (f"{RUNS[1]}/explorer.sqlite", "stitched/*.json", "stitched/*/*.parquet", "matched/*", f"{RUNS[1]}/sae/*"),
        lambda _: ["explore", RUNS[1], "stitched", "matched", *DATA, "--export.to", "new"],
    ),
}  # fmt: skip


def trial(draw: random.Random, folder: Path) -> str | None:
    """One damaged file, one command."""
    name = draw.choice(sorted(CASES))
    patterns, words = CASES[name]
    shutil.copytree(world(), folder / "world")
    place = folder / "world"
    files = sorted({path for pattern in patterns for path in place.glob(pattern) if path.is_file()})
    file = draw.choice(files)
    before = file.read_bytes()
    how = damage(draw, file)
    if file.read_bytes() == before:
        return None
    command = [str(word) for word in words(file.relative_to(place))]
    status, broken = ended(command, place, folder / "stderr")
    tensors = file.suffix == ".safetensors" and name != "convert"  # others' files have no checksum
    if status == 0 and tensors and read_by(file, name) and changed(file, before, folder):
        broken = "the tensors of a damaged file were read in silence"
    return f"{' '.join(command)}, {file.relative_to(place)} {how}: {broken}" if broken else None


def read_by(file: Path, name: str) -> bool:
    """Whether a command certainly reads the tensors of a file: of checkpoints it is the newest, of shards the first."""
    if "checkpoints" in file.parts:
        return file == max(file.parent.glob("step-*"))
    return not file.name.startswith("shard-00001") and not (name == "resume" and "acts" in file.parts)


def changed(file: Path, before: bytes, folder: Path) -> bool:
    """Whether a file of tensors reads otherwise than it did, or not at all."""
    from safetensors.torch import load_file

    (folder / "before.safetensors").write_bytes(before)
    old = load_file(folder / "before.safetensors")
    try:
        new = load_file(file)
    except Exception:  # whatever is wrong with it, it was to be said
        return True
    return old.keys() != new.keys() or any(
        old[key].dtype != new[key].dtype or not torch.equal(old[key], new[key]) for key in old
    )


def ended(command: list[str], place: Path, errors: Path) -> tuple[int, str]:
    """Status of a command, run in a process that is forked from this one, and what is wrong with how it ended."""
    child = os.fork()
    if child == 0:
        os.chdir(place)
        with errors.open("wb") as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        os._exit(_run(command))
    end = time.monotonic() + SECONDS
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -9, f"it was not done after {SECONDS} seconds"
        time.sleep(0.01)
    status, said = os.waitstatus_to_exitcode(found[1]), errors.read_text(errors="replace")
    if status < 0:
        return status, f"it died of signal {-status}"
    if "Traceback" in said:
        return status, f"a traceback: {said.strip().splitlines()[-1][:200]}"
    complaints = said[said.find("saelab: ") :].strip().splitlines() if "saelab: " in said else []
    if status and len(complaints) != 1:
        return status, f"{len(complaints)} lines of complaint: {said.strip()[-300:]}"
    return status, ""


def _run(command: list[str]) -> int:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        saelab(command)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stderr.flush()
    return 0


# ---- damage ----


def damage(draw: random.Random, file: Path) -> str:
    """Damage a file in a way that fits it, or as bytes; returns how."""
    kinds: list[Callable[[random.Random, Path], str]] = [_bytes]
    if file.suffix in (".json", ".jsonl"):
        kinds = [_structure, _structure, _structure, _bytes, _text]
    if file.suffix == ".yaml":
        kinds = [_settings, _settings, _bytes, _text]
    if file.suffix == ".safetensors":
        kinds = [_bytes, _header]
    if file.suffix == ".sqlite":
        kinds = [_bytes, _table, _table]
    return draw.choice(kinds)(draw, file)


def _bytes(draw: random.Random, file: Path) -> str:
    data, at = bytearray(file.read_bytes()), draw.randrange(max(1, file.stat().st_size))
    how = draw.choice(("bit", "cut", "zeros", "junk", "empty", "twice"))
    if how == "bit" and data:
        data[at] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "zeros":
        data[at : at + 64] = bytes(min(64, len(data) - at))
    elif how == "junk":
        data[at : at + 8] = draw.randbytes(8)
    elif how == "empty":
        data.clear()
    else:
        data += data[:at]
    file.write_bytes(data)
    return f"{how} at {at}"


def _text(draw: random.Random, file: Path) -> str:
    bad = draw.choice((b"[" * 10_000, b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"&a [*a]\n", b"9" * 5000, b"{}\n", b"\n"))
    data = file.read_bytes()
    at = draw.choice((0, len(data), draw.randrange(len(data))))
    file.write_bytes(data[:at] + bad + data[at:])
    return f"{bad[:8]!r} put in at {at}"


def _structure(draw: random.Random, file: Path) -> str:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = draw.randrange(len(lines))
    value, how = _other(draw, json.loads(lines[number]))
    lines[number] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")
    return how


def _settings(draw: random.Random, file: Path) -> str:
    import yaml

    value, how = _other(draw, yaml.safe_load(file.read_text()))
    file.write_text(yaml.safe_dump(value))
    return how


def _other(draw: random.Random, value: Any) -> tuple[Any, str]:
    """A value with one part replaced, removed or added."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            walk(part[key])

    walk(value)
    if not places or draw.random() < 0.05:
        odd = draw.choice(ODD)
        return odd, f"made {odd!r}"
    part, key = draw.choice(places)
    odd = draw.choice(ODD)
    if draw.random() < 0.3:
        del part[key]
        return value, f"without {key}"
    part[key] = odd
    return value, f"with {key} = {odd!r}"


def _header(draw: random.Random, file: Path) -> str:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, how = _other(draw, json.loads(data[8 : 8 + size]))
    text = json.dumps(header).encode()
    length = draw.choice((len(text), len(text), len(text) + draw.randrange(9), 1 << draw.randrange(64)))
    file.write_bytes(length.to_bytes(8, "little") + text + data[8 + size :])
    return f"header {how}, its length {length}"


def _table(draw: random.Random, file: Path) -> str:
    with sqlite3.connect(file) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        name = draw.choice([name for name in names if not name.startswith(("sqlite", "words_", "said_"))])
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
        column = draw.choice(columns)
        odd = draw.choice((None, b"\x01\x02\x03", "x", -1, 1 << 40, "", b"", "[]", "{"))
        change = draw.choice((f"DROP TABLE {name}", f"DELETE FROM {name}", f"UPDATE {name} SET {column} = ?"))
        try:
            connection.execute(change, (odd,) if "?" in change else ())
        except sqlite3.Error:
            connection.execute(f"DELETE FROM {name}")
    return f"{change} {odd!r}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    promise = "damaged files give one line, never a traceback, a hang or wrong rows."
    sys.exit(run_campaign("mutations", promise, trial, 1000))
