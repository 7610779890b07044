"""Several processes as one: rows dealt to replicas, latents dealt to shards. The only place that knows of processes.

    world = replicas * shards,      rank = replica * shards + shard

A replica sees its own rows of every batch; a shard holds its own latents of the dictionary. One process is the trivial
mesh, on which every operation is the identity, so callers are written once and never ask how many processes there are.
Start several with torchrun; `Mesh(replicas, shards)` joins them, over NCCL on GPUs and gloo on CPUs.
"""

# Shape letters: B rows of this replica, K entries per row, L latents of this shard.

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


def device_named(name: str, rank: int = 0) -> torch.device:
    """The device of that name; `auto` is this process's GPU if there is one. ValueError if it cannot be used."""
    if name == "auto":
        name = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for the device
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot use the device '{name}': {reason}") from None
    return torch.device(name)


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Mesh:
    """The processes that train one SAE together.

    Args:
        replicas: number of groups of processes that split the rows of a batch.
        shards: number of processes that split the latents.

    Raises:
        ValueError: if the world that torchrun started has another size than replicas * shards.
    """

    def __init__(self, replicas: int = 1, shards: int = 1):
        if replicas < 1 or shards < 1:
            raise ValueError(f"a mesh needs at least 1 replica and 1 shard, got {replicas} and {shards}")
        self.replicas, self.shards = replicas, shards
        self.rank = self.replica = self.shard = 0
        self._over_replicas: Any = None
        self._over_shards: Any = None
        if replicas * shards > 1:
            self._join()

    def _join(self) -> None:
        replicas, shards = self.replicas, self.shards
        world = world_size()
        if world != replicas * shards:
            raise ValueError(
                f"{replicas} replicas of {shards} shards need {replicas * shards} processes, there are {world}: "
                f"start with torchrun --nproc-per-node {replicas * shards}"
            )
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.rank = dist.get_rank()
        self.replica, self.shard = divmod(self.rank, shards)
        # Every process has to take part in making every group, its own or not.
        for shard in range(shards):
            group = dist.new_group([replica * shards + shard for replica in range(replicas)])
            self._over_replicas = group if shard == self.shard else self._over_replicas
        for replica in range(replicas):
            group = dist.new_group([replica * shards + shard for shard in range(shards)])
            self._over_shards = group if replica == self.replica else self._over_shards

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.replicas * self.shards > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all of them get the same answer."""
        if self.replicas * self.shards == 1:
            return flag
        raised = torch.tensor(int(flag), device="cuda" if torch.cuda.is_available() else "cpu")
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    # ---- values of all processes ----

    def count(self, own: int) -> int:
        """The sum of a number over all processes."""
        if self.replicas * self.shards == 1:
            return own
        total = torch.tensor(own, device="cuda" if torch.cuda.is_available() else "cpu")
        dist.all_reduce(total)
        return int(total)

    def nth_largest(self, values: Tensor, n: int) -> float:
        """The n-th largest (from 1) of all processes' values [any], none of them negative; 0 if there are fewer.

        Exact, and nothing but counts travels: the bits of floats that are not negative are in the order of the floats,
        so that the value is found bit by bit.
        """
        if self.replicas * self.shards == 1:
            return values.kthvalue(len(values) - n + 1).values.item() if n <= len(values) else 0.0
        bits, found = values.double().view(torch.int64), 0
        for bit in reversed(range(63)):
            if self.count(int((bits >= found + (1 << bit)).sum())) >= n:
                found += 1 << bit
        return torch.tensor(found).view(torch.float64).item()

    # ---- rows over replicas ----

    def local_rows(self, rows: Tensor) -> Tensor:
        """This replica's rows of a batch [B_all, ...]: every replicas-th; ValueError if they do not divide evenly."""
        if len(rows) % self.replicas:
            raise ValueError(f"a batch of {len(rows)} rows cannot be split evenly over {self.replicas} replicas")
        return rows[self.replica :: self.replicas]

    def mean(self, value: Tensor) -> Tensor:
        """Mean over replicas; no gradient."""
        if self.replicas == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self._over_replicas)
        return total / self.replicas

    def smallest(self, value: Tensor) -> Tensor:
        """Entrywise minimum over replicas."""
        if self.replicas > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN, group=self._over_replicas)
        return value

    def average_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Replace gradients by their means over replicas."""
        if self.replicas > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=self._over_replicas)
                    parameter.grad /= self.replicas

    # ---- latents over shards ----

    def local_latents(self, full: Tensor) -> Tensor:
        """This shard's part of a tensor whose first axis is all latents."""
        return full if self.shards == 1 else full.chunk(self.shards)[self.shard].clone()

    def gather_latents(self, part: Tensor) -> Tensor:
        """The tensor whose first axis is all latents, from every shard's part; no gradient."""
        if self.shards == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.shards)]
        dist.all_gather(parts, part.detach().contiguous(), group=self._over_shards)
        return torch.cat(parts)

    def sum_over_shards(self, value: Tensor) -> Tensor:
        """Sum over shards. Its gradient is every shard's own, because each goes on with the same sum."""
        return value if self.shards == 1 else _Sum.apply(value, self._over_shards)

    def replicated(self, value: Tensor) -> Tensor:
        """A tensor that every shard holds and uses for its own latents: gradients are summed over shards."""
        return value if self.shards == 1 else _Shared.apply(value, self._over_shards)

    def largest(self, values: Tensor, k: int) -> Tensor:
        """Which of the entries [B, K] are among the k largest of their row over all shards; [B, K] bool.

        Exactly min(k, all entries) per row are: ties go to the lower shard and slot.
        """
        if self.shards == 1 and values.shape[1] <= k:
            return torch.ones_like(values, dtype=torch.bool)
        width = values.shape[1]
        if self.shards > 1:
            widest = torch.tensor(width, device=values.device)
            dist.all_reduce(widest, dist.ReduceOp.MAX, group=self._over_shards)
            padded = torch.nn.functional.pad(values.detach(), (0, int(widest) - width), value=-torch.inf)
            parts = [torch.empty_like(padded) for _ in range(self.shards)]
            dist.all_gather(parts, padded.contiguous(), group=self._over_shards)
            every = torch.cat(parts, dim=1)
        else:
            every = values.detach()
        ranks = every.sort(dim=1, descending=True, stable=True).indices[:, :k]
        chosen = torch.zeros_like(every, dtype=torch.bool).scatter_(1, ranks, True)
        first = self.shard * (every.shape[1] // self.shards)
        return chosen[:, first : first + width]

    def largest_of_batch(self, values: Tensor, count: int) -> Tensor:
        """Which of the entries [B, K] are among the `count` largest of all rows and all shards; [B, K] bool.

        Exactly min(count, all entries) are: ties go to the lower process, row and slot. Every process has to hold
        equally many entries.
        """
        flat = values.detach().flatten()
        own = flat.sort(descending=True, stable=True).indices[:count]
        if self.replicas * self.shards > 1:
            sent = flat[own].contiguous()
            parts = [torch.empty_like(sent) for _ in range(self.replicas * self.shards)]
            dist.all_gather(parts, sent)
            ranks = torch.cat(parts).sort(descending=True, stable=True).indices[:count] - self.rank * len(own)
            own = own[ranks[(ranks >= 0) & (ranks < len(own))]]
        return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, own, True).view_as(values)

    def total(self, part: Tensor) -> Tensor:
        """Sum over shards; no gradient."""
        if self.shards == 1:
            return part
        total = part.detach().clone()
        dist.all_reduce(total, group=self._over_shards)
        return total


ALONE = Mesh()
"""The trivial mesh."""


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)  # what is added up is raw memory
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
