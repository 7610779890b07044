"""The compiled kernels: C++ that is built once on the machine it runs on, and called through ctypes.

Built on first use with the compiler that is there (`CXX`, g++ or clang++) for the processor's best known instructions
(AVX-512, AVX2, or none), into the user's cache folder under a name that depends on the sources, the compiler and those
instructions. Where that cannot be done there is no library, `why_not` says so, and callers use their PyTorch path.

Threads are PyTorch's: the library leaves OpenMP's symbols open and finds those PyTorch brought.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from saelab.core.files import cache_home

SOURCES = ("encode.cpp", "sparse.cpp", "update.cpp")
HEADERS = ("vector.h",)
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fno-math-errno",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
BUILD_SECONDS = 300


class CannotBuild(Exception):
    """There is no compiled library here; the message says why."""


@functools.cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    try:
        return _loaded(), ""
    except (CannotBuild, OSError) as error:
        print(f"saelab: no compiled kernels ({error}); PyTorch's own operations are used instead", file=sys.stderr)
        return None, str(error)


def library() -> ctypes.CDLL | None:
    """The compiled library; None where it cannot be had. The first call may take some seconds."""
    return _found()[0]


def why_not() -> str:
    """Why there is no library; empty where there is one."""
    return _found()[1]


def _loaded() -> ctypes.CDLL:
    compiler = _compiler()
    target, threads = instructions(), ["-fopenmp"]
    for flags in ([*FLAGS, *target, *threads], [*FLAGS, *target]):
        try:
            return ctypes.CDLL(str(_built(compiler, flags)))
        except (CannotBuild, OSError) as error:  # no OpenMP here: one thread
            last = error
    raise CannotBuild(f"the kernels could not be built: {last}")


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise CannotBuild("there is no C++ compiler (g++ or clang++)")


def instructions(flags: frozenset[str] | None = None) -> list[str]:
    """Compiler options for the best instructions among a processor's flags; by default those of this machine."""
    own = _processor_flags() if flags is None else flags
    if own >= {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}:
        options = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]
        return options + (["-mavx512vnni"] if "avx512_vnni" in own else [])
    if own >= {"avx2", "fma"}:
        return ["-mavx2", "-mfma"]
    return []


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())


def _built(compiler: str, flags: list[str]) -> Path:
    here = Path(__file__).parent
    texts = [(here / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=60, check=False).stdout
    key = hashlib.sha256(b"\0".join([*texts, version, " ".join([compiler, *flags, sys.platform]).encode()])).hexdigest()
    folder = _cache()
    target = folder / f"saelab-{key[:24]}.so"
    if target.exists():
        return target
    print("saelab: building the CPU kernels (once, some seconds) ...", file=sys.stderr)
    made = folder / f".{target.name}.{os.getpid()}"
    command = [compiler, *flags, *(str(here / name) for name in SOURCES), "-c"]
    with tempfile.TemporaryDirectory() as work:
        # Objects first: linked without OpenMP's library, so that PyTorch's is found when it is loaded.
        _run(command, Path(work))
        objects = [str(Path(work) / name.replace(".cpp", ".o")) for name in SOURCES]
        _run([compiler, "-shared", *objects, "-o", str(made)], Path(work))
    os.replace(made, target)
    return target


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"{command[0]} did not finish: {error}") from None
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}")


def _cache() -> Path:
    """A folder that only the user can write to: what lies there is executed."""
    folder = cache_home() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _private_folder()


@functools.cache
def _private_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="saelab-kernels-"))


def ptr(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous CPU tensor begins, for a call into the library; null for None."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous(), tensor.shape
    assert tensor.device.type == "cpu", tensor.device
    return ctypes.c_void_p(tensor.data_ptr())


def fits(*tensors: Tensor) -> bool:
    """Whether tensors are of the kind the library works on: float32 on a CPU."""
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
