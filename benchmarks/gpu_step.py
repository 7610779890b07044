"""How long a training step of a TopK SAE takes on a GPU:  python benchmarks/gpu_step.py [--d 768] [--n 131072] [--k 32]

Times every stage, the whole step and the step as a CUDA graph, each beside one bf16 product of the size of the encoder
([B, D] x [D, L]), for dense Adam in fp32 and for touched rows only with 8-bit averages. Before, it checks the choice of
latents against fp32 on some rows, and that no step waits for the GPU. Times are medians over rounds, in milliseconds.
Without a GPU it says so and ends with status 2.

Rows are sparse sums of the dictionary's own directions, some of which are far more frequent than others, plus noise:
how often latents fire is skewed as in a trained SAE, and a few fire on most rows.
"""

# Shape letters: B rows, D width, L latents, K kept per row.

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

ACTIVE = 48
"""Directions in a row of data."""


class Step:
    """A training step of a TopK SAE with unit directions: squared error, Adam.

    Args:
        directions: [L, D] of unit norm, where encoder and decoder start.
        k: kept per row.
        touched: whether only latents in the batch are updated.
        narrow: whether the averages of the two weights are kept in 8 bits.
        gathered: precision in which rows are summed into gradients.
    """

    def __init__(
        self,
        directions: Tensor,
        k: int,
        touched: bool = False,
        narrow: bool = False,
        gathered: torch.dtype = torch.bfloat16,
    ):
        from saelab.kernels.adam import AdamSettings
        from saelab.kernels.gpu.update import Clock, fresh

        self.k, self.gathered, self.lr = k, gathered, torch.tensor(3e-4, device=directions.device)
        n_latents, width = directions.shape
        zeros = directions.new_zeros
        self.weights = {
            "encoder": directions.clone(),
            "decoder": directions.clone(),
            "bias": zeros(n_latents, 1),
            "centre": zeros(1, width),
        }
        kinds = {"encoder": torch.uint8 if narrow else torch.float32}
        kinds |= {"decoder": kinds["encoder"], "bias": torch.float32, "centre": torch.float32}
        self.moments = {name: fresh(weight, kinds[name]) for name, weight in self.weights.items()}
        self.shadows = {name: self.weights[name].bfloat16() for name in ("encoder", "decoder")}
        self.adam = {name: AdamSettings(unit=name == "decoder", seed=seed) for seed, name in enumerate(self.weights)}
        self.clock = Clock.start(directions.device)
        self.last = {
            name: torch.zeros(n_latents, dtype=torch.int32, device=directions.device) if touched else None
            for name in ("encoder", "decoder", "bias")
        }
        self.redone = torch.zeros((), dtype=torch.int64, device=directions.device)

    def select(self, x: Tensor) -> None:
        from saelab.kernels.gpu.select import topk_linear_forward

        self.x, self.centred = x, x.float() - self.weights["centre"]
        values, self.indices = topk_linear_forward(
            *(self.centred, self.weights["encoder"], self.weights["bias"].squeeze(1), self.k),
            shadow=self.shadows["encoder"],
            redone=self.redone,
        )
        self.values = values.relu()

    def decode(self) -> None:
        from saelab.kernels.gpu.decode import decode_residual

        centre = self.weights["centre"].squeeze(0)
        residual, squares = decode_residual(self.indices, self.values, self.shadows["decoder"], centre, self.x)
        self.loss = squares / residual.numel()
        self.grad = residual.mul_(2 / residual.numel())

    def slope(self) -> None:
        from saelab.kernels.gpu.decode import dot_at

        self.slopes = dot_at(self.indices, self.grad, self.shadows["decoder"]) * (self.values > 0)

    def sort(self) -> None:
        from saelab.kernels.gpu.sort import sort_by_latent

        self.entries = sort_by_latent(self.indices, len(self.weights["encoder"]))

    def move_biases(self) -> None:
        from saelab.kernels.gpu.sums import totals
        from saelab.kernels.gpu.update import SortedTerm, Whole, tick, update

        tick(self.clock, self.lr, self.adam["encoder"])
        by_latent = totals(self.entries, self.slopes)
        # What reaches the centre through the encoder, without a gradient of every row.
        shadow = self.shadows["encoder"]
        centre = self.grad.sum(0) - (by_latent.to(shadow.dtype) @ shadow).float()
        ones = self.grad.new_ones(len(self.grad), 1)
        term = SortedTerm(self.entries, self.slopes, ones)
        update(*self._own("bias"), [term], self.adam["bias"], self.clock, last=self.last["bias"])
        update(*self._own("centre"), [], self.adam["centre"], self.clock, whole=Whole(centre[None]))

    def move_encoder(self) -> None:
        self._move("encoder", self.slopes, self.centred)

    def move_decoder(self) -> None:
        self._move("decoder", self.values, self.grad)

    def _own(self, name: str) -> tuple[Tensor, object]:
        return self.weights[name], self.moments[name]

    def _move(self, name: str, values: Tensor, rows: Tensor) -> None:
        from saelab.kernels.gpu.update import SortedTerm, update

        terms = [SortedTerm(self.entries, values, rows.to(self.gathered))]
        own = {"last": self.last[name], "shadow": self.shadows[name]}
        update(*self._own(name), terms, self.adam[name], self.clock, **own)

    def stages(self, x: Tensor) -> dict[str, Callable[[], None]]:
        """What a step does, in order."""
        return {
            "select": lambda: self.select(x),
            "decode, residual, loss": self.decode,
            "gradient of codes": self.slope,
            "sort by latent": self.sort,
            "biases": self.move_biases,
            "encoder: gradient, Adam": self.move_encoder,
            "decoder: gradient, Adam": self.move_decoder,
        }

    def __call__(self, x: Tensor) -> None:
        for stage in self.stages(x).values():
            stage()


def skewed_rows(directions: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Sparse sums of directions, frequent ones first, with noise; [rows, D] bf16."""
    n_latents, width = directions.shape
    chance = torch.rand(rows, ACTIVE, generator=generator, device=directions.device)
    latents = (n_latents**chance).long().clamp(max=n_latents) - 1
    sizes = 1 + torch.rand(rows, ACTIVE, generator=generator, device=directions.device)
    x = torch.nn.functional.embedding_bag(latents, directions, per_sample_weights=sizes, mode="sum")
    noise = torch.randn(rows, width, generator=generator, device=directions.device)
    return (x + noise / width**0.5).bfloat16()


def median_ms(run: Callable[[], object], rounds: int) -> float:
    """Median time on the GPU over some rounds, after three to warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def product_ms(x: Tensor, weight: Tensor, rounds: int) -> float:
    """Time of one product of the encoder's size, [B, D] x [D, L], with the result in bf16."""
    out = x.new_empty(len(x), len(weight))
    return median_ms(lambda: torch.mm(x, weight.T, out=out), rounds)


def check_choice(step: Step, x: Tensor, rows: int = 256) -> int:
    """Rows, of some, whose latents are not those of fp32."""
    step.select(x[:rows])
    pre = torch.addmm(step.weights["bias"].squeeze(1), step.centred, step.weights["encoder"].T)
    expected = pre.topk(step.k, dim=1).indices.sort(dim=1).values
    return int((step.indices.sort(dim=1).values != expected).any(1).sum())


def captured(step: Step, x: Tensor) -> torch.cuda.CUDAGraph:
    """The step as a graph that can be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x)
    return graph


def report(name: str, step: Step, x: Tensor, rounds: int, product: float) -> None:
    """Check and time one way to train."""
    torch.cuda.reset_peak_memory_stats()
    wrong = check_choice(step, x)
    step(x)  # compiles everything
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step(x)
    torch.cuda.set_sync_debug_mode("default")
    before = int(step.redone)
    print(f"\n{name}: {wrong} of 256 rows choose otherwise than fp32; no step waits")
    for stage, run in step.stages(x).items():
        line(stage, median_ms(run, rounds), product)
    line("step", median_ms(lambda: step(x), rounds), product)
    line("step as a CUDA graph", median_ms(captured(step, x).replay, rounds), product)
    steps = int(step.clock.step)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"  loss {float(step.loss):.4f} after {steps} updates of the same rows, peak memory {peak:.1f} GiB,")
    print(f"  {int(step.redone) - before} rows done again while timing")


def line(name: str, ms: float, product: float) -> None:
    print(f"  {name:<28} {ms:8.3f} ms {ms / product:6.2f} x product")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, value in {"d": 768, "n": 131_072, "k": 32, "batch": 16_384, "rounds": 20}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--gathered", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_step needs a CUDA GPU, and torch sees none here", file=sys.stderr)
        return 2
    generator = torch.Generator("cuda").manual_seed(0)
    directions = torch.randn(options.n, options.d, generator=generator, device="cuda")
    directions /= directions.norm(dim=1, keepdim=True)
    x = skewed_rows(directions, options.batch, generator)
    product = product_ms(x, directions.bfloat16(), options.rounds)
    rate = 2 * options.batch * options.d * options.n / product / 1e9
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, d {options.d}, n {options.n}, k {options.k}, ",
        end="",
    )
    print(f"batch {options.batch}\none bf16 product of the encoder's size: {product:.3f} ms, {rate:.0f} TFLOP/s")
    gathered = getattr(torch, options.gathered)
    report("dense Adam, fp32", Step(directions, options.k, gathered=gathered), x, options.rounds, product)
    torch.cuda.empty_cache()
    step = Step(directions, options.k, touched=True, narrow=True, gathered=gathered)
    report("touched rows, 8-bit averages", step, x, options.rounds, product)
    return 0


if __name__ == "__main__":
    sys.exit(main())
