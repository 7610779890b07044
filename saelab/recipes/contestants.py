"""What `saelab bench` lets compete, and the process each runs in:  python -m saelab.recipes.contestants '{...}'

Every contestant trains a TopK SAE on the same rows with its own defaults and does one thing at a time when it is told
to on standard input, so that all can be timed in turns. The others are called through their own trainers: SAELens'
`SAETrainer.step`, dictionary-learning's `TopKTrainer.update`; sparsify's trainer insists on running a language model,
so its step is what its training loop does to one batch.
"""

# Shape letters: B rows, D width, L latents, K kept per row.

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from saelab.data.source import Batch
from saelab.data.synthetic import SparseWorld
from saelab.kernels import native, tier
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.sae import SAE
from saelab.train.optimizers.adam import Adam
from saelab.train.trainer import Trainer

WARMUP = 10
HELD_OUT = 4096


class Contestant(ABC):
    """One way to train and read a TopK SAE."""

    def __init__(self, d_in: int, n_latents: int, k: int, batch: int):
        self.d_in, self.n_latents, self.k, self.batch = d_in, n_latents, k, batch

    @abstractmethod
    def begin(self, x: Tensor) -> None:
        """Make the SAE, from a sample of rows [B, D]."""

    @abstractmethod
    def step(self, x: Tensor, number: int) -> None:
        """One update on rows [B, D]."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Latents and values [B, K] of rows; None if that is not what this is about."""
        return None

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """Rows [B, D] again."""
        return None


class Product(Contestant):
    """The floor: nothing but one dense encoder product, in blocks that fit the cache."""

    dtype = torch.float32

    def begin(self, x: Tensor) -> None:
        self.weight = torch.randn(self.n_latents, self.d_in).to(self.dtype)
        self.out = torch.empty(256, self.n_latents, dtype=self.dtype)

    def step(self, x: Tensor, number: int) -> None:
        for rows in x.to(self.dtype).split(256):
            torch.mm(rows, self.weight.T, out=self.out[: len(rows)])


class HalfProduct(Product):
    """The same in bfloat16."""

    dtype = torch.bfloat16


class Saelab(Contestant):
    """saelab, through its trainer."""

    kernels, adam = "auto", Adam()

    def begin(self, x: Tensor) -> None:
        self.sae = SAE(self.d_in, self.n_latents, TopK(self.k), [AuxK()])
        self.sae.initialise(x)
        with tier.using(self.kernels):
            self.trainer = Trainer(self.sae, batch=self.batch, warmup=WARMUP, optimizer=self.adam)

    def step(self, x: Tensor, number: int) -> None:
        with tier.using(self.kernels):
            self.trainer.step(Batch(x))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with tier.using(self.kernels), torch.no_grad():
            codes = self.sae.encode(x)
        return codes.indices, codes.values

    def reconstruct(self, x: Tensor) -> Tensor:
        with tier.using(self.kernels), torch.no_grad():
            return self.sae(x)


class SaelabTorch(Saelab):
    """saelab without a compiler."""

    kernels = "torch"


class SaelabReference(Saelab):
    """saelab by plain autograd over dense products."""

    kernels = "reference"


class SaelabFloat8(Saelab):
    """saelab with 8-bit moments."""

    adam = Adam(moments="float8")


class SAELensPeer(Contestant):
    """SAELens: TopKTrainingSAE and SAETrainer, with their defaults."""

    def begin(self, x: Tensor) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        own = TopKTrainingSAEConfig(d_in=self.d_in, d_sae=self.n_latents, k=self.k, device="cpu", dtype="float32")
        self.sae = TopKTrainingSAE(own)
        settings: dict[str, Any] = {
            "n_checkpoints": 0, "checkpoint_path": None, "save_final_checkpoint": False, "device": "cpu",
            "total_training_samples": 10**9, "autocast": False, "lr": 3e-4, "lr_end": 3e-5,
            "lr_scheduler_name": "constant", "lr_warm_up_steps": WARMUP, "lr_decay_steps": 0, "n_restart_cycles": 1,
            "adam_beta1": 0.9, "adam_beta2": 0.999, "train_batch_size_samples": self.batch,
            "dead_feature_window": 1000, "feature_sampling_window": 2000, "logger": LoggingConfig(log_to_wandb=False),
        }  # fmt: skip
        self.trainer = SAETrainer(SAETrainerConfig(**settings), self.sae, data_provider=iter(()))

    def step(self, x: Tensor, number: int) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            values, indices = self.sae.encode(x).topk(self.k, dim=1, sorted=False)
        return indices, values

    def reconstruct(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.sae.decode(self.sae.encode(x))


class DictionaryLearningPeer(Contestant):
    """dictionary-learning: TopKTrainer, with its defaults."""

    def begin(self, x: Tensor) -> None:
        from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

        self.trainer = TopKTrainer(
            steps=10**6, activation_dim=self.d_in, dict_size=self.n_latents, k=self.k, layer=0, lm_name="none",
            dict_class=AutoEncoderTopK, warmup_steps=WARMUP, device="cpu", seed=0,
        )  # fmt: skip

    def step(self, x: Tensor, number: int) -> None:
        self.trainer.update(number, x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            _, values, indices, _ = self.trainer.ae.encode(x, return_topk=True)
        return indices, values

    def reconstruct(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.trainer.ae(x)


class SparsifyPeer(Contestant):
    """sparsify with Adam: SparseCoder and the body of its training loop."""

    def begin(self, x: Tensor) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        config = SparseCoderConfig(k=self.k, num_latents=self.n_latents)
        self.coder = SparseCoder(self.d_in, config, "cpu", dtype=torch.float32)
        self.coder.b_dec.data = x.mean(0)
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=2e-4 / (self.n_latents / 2**14) ** 0.5)

    def step(self, x: Tensor, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 2e-4 / (self.n_latents / 2**14) ** 0.5 * min(1.0, (number + 1) / WARMUP)
        self.coder.set_decoder_norm_to_unit_norm()
        self.coder(x=x, y=x).fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = self.coder.encode(x)
        return found.top_indices, found.top_acts

    def reconstruct(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.coder(x).sae_out


CONTESTANTS: dict[str, tuple[type[Contestant], str | None]] = {
    "one fp32 encoder product": (Product, None),
    "one bf16 encoder product": (HalfProduct, None),
    "saelab": (Saelab, None),
    "saelab, 8-bit moments": (SaelabFloat8, None),
    "saelab, no compiler": (SaelabTorch, None),
    "saelab, dense reference": (SaelabReference, None),
    "sae-lens": (SAELensPeer, "sae_lens"),
    "dictionary-learning": (DictionaryLearningPeer, "dictionary_learning"),
    "sparsify (adam)": (SparsifyPeer, "sparsify"),
}
"""Each contestant and the library it needs."""


class Stages:
    """CPU seconds inside each compiled kernel."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        library = native.library()
        if library is not None:
            for name in ("pack", "encode", "bag", "dot_at", "sum_by_latent", "by_latent", "update"):
                with suppress(AttributeError):
                    setattr(library, f"saelab_{name}", self._timed(name, getattr(library, f"saelab_{name}")))

    def _timed(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            found = kernel(*arguments)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            return found

        return run


def rows_of(d_in: int, batch: int, batches: int) -> list[Tensor]:
    """The batches every contestant sees, and one to hold out at the end."""
    world = SparseWorld(d_in, 4 * d_in, l0=28.0, alpha=-0.2, noise=0.2, seed=0)
    stream = world.batches(batch)
    return [next(stream).x for _ in range(batches)] + [world.draw(world.HELD_OUT)[0][:HELD_OUT]]


def peak_mib() -> float:
    """Most memory this process has held, MiB; 0 where the system does not say."""
    with suppress(OSError):
        for line in open("/proc/self/status", encoding="ascii"):  # noqa: SIM115
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def work(job: dict[str, Any]) -> None:
    """Answer the driver's commands, one JSON line each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    torch.set_num_threads(job["threads"])
    stages = Stages()
    *batches, held_out = rows_of(job["d_in"], job["batch"], job["batches"])
    torch.manual_seed(0)
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")  # the peak counts from here
    contestant = CONTESTANTS[job["name"]][0](job["d_in"], job["n_latents"], job["k"], job["batch"])
    contestant.begin(batches[0])
    number = 0

    def say(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    say(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        stages.seconds.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        if command["do"] == "step":
            for _ in range(command["count"]):
                contestant.step(batches[number % len(batches)], number)
                number += 1
        elif command["do"] == "encode":
            if contestant.encode(batches[0]) is None:
                say(none=True)
                continue
        elif command["do"] == "error":
            x_hat = contestant.reconstruct(held_out)
            error = (
                None
                if x_hat is None
                else (x_hat - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()
            )
            say(fvu=None if error is None else error.item(), mib=peak_mib())
            continue
        say(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall, stages=dict(stages.seconds))


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
