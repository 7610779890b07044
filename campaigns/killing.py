"""Commands in processes of their own that are killed with SIGKILL, at a moment or within a write.

The process that imports this has everything imported already; a command runs in a fork of it, where the functions of
`os` that make a file appear are counted, and one of them kills. Nothing in saelab knows of this.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
"""Functions of `os` that write, rename or remove; a process is killed before or after one of them."""
TIMES = ("rows_per_second", "seconds.")
"""What differs between equal logs begins so."""
LONGEST = 600.0
"""Seconds after which a process counts as hanging."""


@dataclass
class Ended:
    """How a command ended."""

    status: int
    """Of the exit; -9 if it was killed."""
    seconds: float
    calls: int
    """How often the functions above were called, by the first process."""
    said: str


@dataclass
class Kill:
    """When a command is killed: after some seconds, or at a call of the functions above."""

    after: float | None = None
    call: int | None = None
    cut: float = 1.0
    """At an fsync, how much of the file has reached the disk."""
    late: bool = False
    """Whether the call is made before the kill."""

    def __str__(self) -> str:
        return f"after {self.after:.2f} s" if self.after is not None else f"at write {self.call}"


@dataclass
class Command:
    """What is run: a command line in a folder, or a function."""

    words: Sequence[str]
    target: Callable[[], None] | None = None
    processes: int = 1
    patch: Callable[[], None] = field(default=lambda: None)
    """Is called in the process first: makes windows and shards small."""


def drawn(rng: random.Random, undisturbed: Ended) -> Kill:
    """A moment to kill at, of a command that took so long undisturbed."""
    if rng.random() < 0.6 and undisturbed.calls:
        return Kill(
            call=rng.randint(1, undisturbed.calls), cut=rng.choice([0.0, rng.random(), 1.0]), late=rng.random() < 0.5
        )
    return Kill(after=rng.uniform(0, 1.1 * undisturbed.seconds))


def run(command: Command, folder: Path, kill: Kill | None = None) -> Ended:
    """Run a command in a folder, to its end or to where it is killed."""
    together = {}
    if command.processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
            together["WORLD_SIZE"] = str(command.processes)
    sys.stdout.flush()
    counts = folder.parent / "calls"
    counts.unlink(missing_ok=True)
    start, children = time.monotonic(), dict[int, int]()
    for rank in range(command.processes):
        child = os.fork()
        if not child:
            own = together | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if together else {})
            _child(command, folder, own, kill if rank == 0 else None, counts if rank == 0 else None)
        children[child] = rank
    statuses = _waited(children, start, None if kill is None else kill.after)
    seconds = time.monotonic() - start
    said = (folder.parent / "said").read_text(errors="replace")
    calls = int(counts.read_text()) if counts.exists() else 0
    worst = next((status for status in statuses.values() if status), 0)
    return Ended(-9 if -9 in statuses.values() else worst, seconds, calls, said)


def _waited(children: dict[int, int], start: float, after: float | None) -> dict[int, int]:
    """Exit statuses by rank; once one is killed all are."""
    left, statuses = dict(children), dict[int, int]()
    while left:
        for child in list(left):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                statuses[left.pop(child)] = os.waitstatus_to_exitcode(status)
        spent = time.monotonic() - start
        if (after is not None and spent > after) or any(statuses.values()) or spent > LONGEST:
            for child in left:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    if time.monotonic() - start > LONGEST:
        raise TimeoutError(f"the command did not end within {LONGEST:g} seconds")
    return statuses


def _child(command: Command, folder: Path, together: dict[str, str], kill: Kill | None, counts: Path | None) -> None:
    status = 1
    try:
        said = os.open(folder.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout = sys.stderr = os.fdopen(said, "w", buffering=1)
        os.environ.update(together)
        os.chdir(folder)
        made = _count_calls(kill)
        command.patch()
        try:
            _body(command)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        if counts:
            counts.write_text(str(made[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _body(command: Command) -> None:
    from saelab.cli import main

    if command.target:
        command.target()
    else:
        main(list(command.words))


def _count_calls(kill: Kill | None) -> list[int]:
    """Count the calls that write, in the list that is returned; die at one of them."""
    made = [0]

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            made[0] += 1
            if kill is None or kill.call != made[0]:
                return real(*words, **named)
            if kill.late:
                real(*words, **named)
            elif name == "fsync":
                _cut(words[0], kill.cut)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    return made


def _cut(descriptor: int, share: float) -> None:
    """Leave so much of a file as a process that is killed while it writes leaves it; of one that grows, of its end."""
    path, size = Path(f"/proc/self/fd/{descriptor}").resolve(), os.fstat(descriptor).st_size
    if path.is_file():
        first = 0 if path.name.endswith(".part") else path.read_bytes()[:-1].rfind(b"\n") + 1
        os.truncate(path, first + int((size - first) * share))


def difference(found: Path, expected: Path) -> str | None:
    """What of two folders is not the same, the times in logs and databases apart; None if nothing."""
    names = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (found, expected)]
    if odd := names[0] ^ names[1]:
        where = "is there" if min(odd) in names[0] else "is missing"
        return f"{min(odd)} {where}"
    for name in sorted(names[0]):
        a, b = found / name, expected / name
        if a.is_file() and _content(a) != _content(b):
            return f"{name} differs"
    return None


def _content(path: Path) -> Any:
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]
    if path.suffix == ".sqlite":
        import sqlite3

        with sqlite3.connect(path) as connection:
            return [line for line in connection.iterdump() if "'collected'" not in line]  # when
    return path.read_bytes()
