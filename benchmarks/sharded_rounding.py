"""How far two shards stray from one process:  python benchmarks/sharded_rounding.py [--store STORE] [--steps 200]

Trains the same TopK SAE on the same batches four times: in one process, in one process whose first encoder was moved by
1e-7 of its norm, in two processes that share the latents, and in one process again. Prints, after some steps, how far
W_enc is from that of the first as a share of its norm, which share of the codes of one batch names other latents, and
the FVU of that batch. Where two shards differ by rounding only, they stray as the moved one does.
"""

import argparse
import os
import socket
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from saelab.core.mesh import Mesh
from saelab.data.source import Source
from saelab.data.store import Store, StoreSource
from saelab.data.synthetic import SparseWorld
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train.trainer import Trainer

MARKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
NUDGE = 1e-7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="activations to train on; by default a synthetic world's rows")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--n_latents", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    one = trained(options)
    others = {"moved by 1e-7": trained(options, nudge=NUDGE), "two shards": in_two(options), "again": trained(options)}
    x = next(source_of(options).batches(options.batch)).x.float()
    n, k = options.n_latents, options.k
    print(f"{n:,} latents, k {k}, batch {options.batch:,}, lr {options.lr:g}: distance of W_enc, other latents, FVU")
    print(f"{'step':>6}{'one':>8}" + "".join(f"{name:>28}" for name in others))
    for step, state in one.items():
        codes, fvu = read(options, state, x)
        cells = []
        for other in others.values():
            own, theirs = state["dictionary.W_enc"], other[step]["dictionary.W_enc"]
            found, error = read(options, other[step], x)
            apart = ((own - theirs).norm() / own.norm()).item()
            changed = (found & ~codes).sum().item() / codes.sum().item()
            cells.append(f"{apart:12.1e}{changed:8.4f}{error:8.4f}")
        print(f"{step:6}{fvu:8.4f}" + "".join(cells), flush=True)


def source_of(options: argparse.Namespace) -> Source:
    if options.store:
        return StoreSource(Store(options.store))
    return SparseWorld(64, 2048, l0=8.0, alpha=-0.2, seed=0)


def trained(options: argparse.Namespace, mesh: Mesh | None = None, nudge: float = 0.0) -> dict[int, dict[str, Tensor]]:
    """The whole dictionary's weights after each of the marked steps."""
    source, more = source_of(options), {"mesh": mesh} if mesh else {}
    sae = SAE(source.d_in, options.n_latents, TopK(options.k), [AuxK()], **more)
    trainer = Trainer(sae, options.lr, options.batch, warmup=0)
    trainer.prepare(source)
    if nudge:
        with torch.no_grad():
            noise = torch.randn(sae.dictionary.W_enc.shape, generator=torch.Generator().manual_seed(1))
            sae.dictionary.W_enc += nudge * noise * sae.dictionary.W_enc.norm() / noise.norm()
    found, batches = {}, source.batches(options.batch)
    for step in range(1, options.steps + 1):
        trainer.step(next(batches))
        if step in MARKS or step == options.steps:
            found[step] = whole(trainer)
    batches.close()
    return found


def whole(trainer: Trainer) -> dict[str, Tensor]:
    """The SAE's state, of all shards."""
    trainer.finish()
    sharded = trainer.sae.sharded_names()
    state = trainer.sae.state_dict()
    mesh = trainer.sae.mesh
    return {name: (mesh.gather_latents(part) if name in sharded else part).clone() for name, part in state.items()}


def in_two(options: argparse.Namespace) -> dict[int, dict[str, Tensor]]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        multiprocessing.spawn(shard, args=(options, port, folder), nprocs=2)
        return torch.load(Path(folder) / "states.pt", weights_only=True)


def shard(rank: int, options: argparse.Namespace, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = trained(options, Mesh(shards=2))
    if rank == 0:
        torch.save(found, Path(folder) / "states.pt")
    torch.distributed.destroy_process_group()


@torch.no_grad()
def read(options: argparse.Namespace, state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, float]:
    """Which latents are active in each row, [B, L] bool, and the FVU."""
    sae = SAE(x.shape[1], options.n_latents, TopK(options.k), [AuxK()])
    sae.load_state_dict(state)
    codes = sae.encode(x)
    error = (x - sae.decode(codes, x)).square().sum() / (x - x.mean(0)).square().sum()
    return codes.dense() != 0, error.item()


if __name__ == "__main__":
    main()
