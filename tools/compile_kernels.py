"""Compile the GPU kernels for a GPU that is not there:  python tools/compile_kernels.py [--capability 90] [--check]

Runs one training step of `benchmarks/gpu_step.py` and the other kernels with launches left out, and prints registers,
bytes spilled to memory and shared memory of each kernel. Triton's interpreter, in which the tests run kernels, takes
much that the compiler refuses (types above all). With --check, kernels only go through Triton's own front end, but for
the encoder's product with its machine instructions, which is assembled: that takes seconds.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).resolve().parents[1]
N_LATENTS, ROWS, KEPT = 2048, 4, 32


class NoGPU:
    """Says to Triton that there is a GPU of some capability; nothing can be started on it."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class Translated(Exception):
    """Ends the work on a kernel that went through the front end."""


@contextmanager
def compiling(found: dict[str, Any], check: bool) -> Iterator[None]:
    """Within, kernels are compiled where they would be started, and kept by name and number."""
    from saelab.kernels.gpu import device, select

    run, add_stages = JITFunction.run, CUDABackend.add_stages

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = None
        with suppress(Translated):
            kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel is None or kernel not in found.values():
            found[f"{self.__name__.lstrip('_')} {len(found)}"] = kernel

    def stages(self: Any, wanted: dict[str, Any], options: Any, language: Any) -> None:
        add_stages(self, wanted, options, language)
        go_on = wanted["ttir"]

        def only_with_instructions(source: Any, metadata: Any) -> Any:
            if "elementwise_inline_asm" in str(source):
                return go_on(source, metadata)
            raise Translated

        wanted["ttir"] = only_with_instructions

    with ExitStack() as patches:
        # What no kernel fills must not be garbage, since some of it is used as indices.
        patches.enter_context(mock.patch.multiple(torch, empty=torch.zeros, empty_like=torch.zeros_like))
        patches.enter_context(mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros))
        patches.enter_context(mock.patch.object(JITFunction, "run", compiled))
        for module in (device, select):
            patches.enter_context(mock.patch.object(module, "is_interpreted", return_value=False))
        # Where L is a multiple of 128 and D of 64, as on Hopper GPUs.
        patches.enter_context(mock.patch.object(select, "can_copy_tiles", return_value=True))
        if check:
            patches.enter_context(mock.patch.object(CUDABackend, "add_stages", stages))
        yield


def start_everything(width: int, n_latents: int) -> None:
    """Start every kernel: a step with each way to keep averages, and what is in no step."""
    from saelab.kernels.adam import AdamSettings
    from saelab.kernels.gpu import auxk, decode, moments, update

    spec = importlib.util.spec_from_file_location("gpu_step", ROOT / "benchmarks" / "gpu_step.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    directions, x = torch.zeros(n_latents, width), torch.zeros(ROWS, width)
    module.Step(directions, KEPT)(x)
    module.Step(directions, KEPT, touched=True, narrow=True)(x)
    clock, last = update.Clock.start("cpu"), torch.zeros(n_latents, dtype=torch.int32)
    for kind in (torch.float32, torch.int16, torch.uint8):
        averages: moments.Moments = update.fresh(directions, kind)
        update.catch_up(directions, averages, AdamSettings(unit=True), clock, last, directions.bfloat16())
        slots = update.Whole(x, last)
        update.update(directions, averages, [], AdamSettings(), clock, last, slots)
    latents = torch.zeros(ROWS, KEPT, dtype=torch.int64)
    decode.bag(latents, directions, latents.float())
    auxk.keep_largest(torch.zeros(ROWS, 1000), KEPT)


def measured(kernel: Any, capability: int) -> str:
    """Registers, spilled bytes and shared memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        suffix = "a" if capability >= 90 else ""
        words = [triton.knobs.nvidia.ptxas.path, f"-arch=sm_{capability}{suffix}", "-v", "-o", os.devnull, file.name]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    registers, spilled = (int(re.findall(pattern, told)[0]) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill st"))
    return f"{kernel.metadata.num_warps:5} {registers:9} {spilled:7} {kernel.metadata.shared:7}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--check", action="store_true", help="only the front end, but for machine instructions")
    options = parser.parse_args()
    triton.runtime.driver.set_active(NoGPU(options.capability))
    for width, n_latents in ((768, N_LATENTS), (100, N_LATENTS - 1)):
        found: dict[str, Any] = {}
        with compiling(found, options.check):
            start_everything(width, n_latents)
        print(f"D {width}, L {n_latents}: {len(found)} kernels compiled")
        if not options.check:
            print(f"{'kernel':<16} warps registers spilled  shared")
            for name, kernel in found.items():
                print(f"{name:<16} {measured(kernel, options.capability)}")


if __name__ == "__main__":
    main()
