"""Helpers for tests of whole commands: what a command said, processes that are killed, folders compared.

The fixtures that go with them are in `small_world.py`.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from saelab.cli import main

SITE = "model.layers.1"
SMALL = ["--sae.n_latents", "32", "--sae.activation.k", "4", "--trainer.batch", "128", "--log_every", "2"]
"""Options of a training run of a few milliseconds."""
PRELOAD = [
    "torch", "safetensors.torch", "rich.progress", "jsonargparse", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error that is the command's message; only progress may stand before it."""
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("saelab: ")] == lines[-1:], self.err
        assert "Traceback" not in self.err
        return lines[-1]


def fork_server() -> ForkServerContext:
    """Where processes come from that have imported what takes seconds to import, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def in_process(target: Callable[..., Any], *args: Any) -> int:
    """Exit status of a process of its own that calls target(*args); minus the signal's number if one ended it.

    It is forked from a server that has only imported what takes seconds to import: as good as a fresh interpreter.
    """
    process = fork_server().Process(target=_silently, args=(target, *args))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{target.__name__} did not end within two minutes")
    return process.exitcode


def _silently(target: Callable[..., Any], *args: Any) -> None:
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        torch.set_num_threads(1)  # as in conftest: results are compared
        target(*args)


def command(words: list[str], said: Path) -> None:
    """The target of a process: the command line, with its standard error in a file."""
    with said.open("w") as sys.stderr:
        main(words)


def die(*_: Any, **__: Any) -> None:
    """End this process as `kill -9` and a power cut do."""
    os.kill(os.getpid(), signal.SIGKILL)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder and below, by name; of tensors without the order of their header."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".safetensors":
                end = 8 + int.from_bytes(data[:8], "little")
                data = json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
            found[str(path.relative_to(folder))] = data
    return found
