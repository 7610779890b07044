"""Processes that train together, for tests of meshes: forked from a server that has torch, joined over gloo."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from recipes.world import fork_server

from saelab.core.mesh import Mesh

Target = Callable[[Mesh, Path], None]


def together(target: Target, folder: Path, replicas: int, shards: int) -> None:
    """Call target(mesh, folder) in a process of its own for each place of a mesh of that shape."""
    folder.mkdir()
    world = replicas * shards
    joined = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    server, said = fork_server(), [folder.with_name(f"{folder.name}-{rank}.txt") for rank in range(world)]
    processes = [
        server.Process(target=_join, args=(joined | {"RANK": str(rank)}, said[rank], target, folder, replicas, shards))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        process.kill()
        process.join()
    assert all(process.exitcode == 0 for process in processes), [path.read_text() for path in said]


def _join(environment: dict[str, str], said: Path, target: Target, folder: Path, replicas: int, shards: int) -> None:
    os.environ.update(environment)
    with said.open("w") as sys.stderr:
        torch.set_num_threads(1)
        target(Mesh(replicas, shards), folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
