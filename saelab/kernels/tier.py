"""Which version of the kernels runs. Callers never ask: each public function of this folder looks here.

    reference    plain autograd over dense products, to compare with
    torch        sparse, hand-written gradients, from PyTorch's own operations; on any device and precision
    native       compiled C++ for float32 on a CPU, where there is a compiler
    gpu          Triton for CUDA devices

By default (`auto`) the fastest that fits the tensors is taken. SAELAB_KERNELS in the environment, or `using` in Python,
names one; what it cannot do falls to `torch`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
        ValueError: for an unknown tier, or `native` where nothing could be compiled.
    """
    global _chosen
    if tier not in TIERS:
        raise ValueError(f"kernels must be one of {', '.join(TIERS)}, got '{tier}'")
    if tier == "native" and native.library() is None:
        raise ValueError(f"the native kernels cannot be had: {native.why_not()}")
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
