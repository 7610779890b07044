"""Which version of the kernels runs. Callers never ask: each public function of this folder looks here.

    reference    plain autograd over dense products, to compare with
    torch        sparse, hand-written gradients, from PyTorch's own operations; on any device and precision
    native       compiled C++ for float32 on a CPU, where there is a compiler
    gpu          Triton for CUDA devices

By default (`auto`) that is `native` for float32 on a CPU where there is a compiler, and `torch` for all else: `gpu` has
to be asked for as long as it has been tried in Triton's interpreter only. SAELAB_KERNELS in the environment, or `using`
in Python, names one; what it cannot do falls to `torch`.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from saelab.kernels import native

TIERS = ("auto", "reference", "torch", "native", "gpu")

_chosen = os.environ.get("SAELAB_KERNELS", "auto")


def chosen() -> str:
    """The tier asked for."""
    if _chosen not in TIERS:
        raise ValueError(f"SAELAB_KERNELS must be one of {', '.join(TIERS)}, got '{_chosen}'")
    return _chosen


@contextmanager
def using(tier: str) -> Iterator[None]:
    """Run what is inside with a tier of the kernels.

    Raises:
        ValueError: for an unknown tier, `native` where nothing could be compiled, or `gpu` without triton.
    """
    global _chosen
    if tier not in TIERS:
        raise ValueError(f"kernels must be one of {', '.join(TIERS)}, got '{tier}'")
    if tier == "native" and native.library() is None:
        raise ValueError(f"the native kernels are not available: {native.why_not()}")
    if tier == "gpu" and importlib.util.find_spec("triton") is None:
        raise ValueError("the gpu kernels need triton, which is not installed here")
    before, _chosen = _chosen, tier
    try:
        yield
    finally:
        _chosen = before


def is_reference() -> bool:
    """Whether plain autograd is asked for."""
    return chosen() == "reference"


def is_native(*tensors: Tensor) -> bool:
    """Whether compiled kernels run on these tensors."""
    return chosen() in ("auto", "native") and native.fits(*tensors) and native.library() is not None


def is_gpu(*tensors: Tensor) -> bool:
    """Whether Triton kernels run on these tensors."""
    return chosen() == "gpu" and all(tensor.dtype == torch.float32 and on_gpu(tensor) for tensor in tensors)


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor lies where Triton kernels can reach it."""
    return tensor.is_cuda
