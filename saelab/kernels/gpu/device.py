"""Where kernels run: on the GPU that holds the tensors, or step by step in Triton's interpreter.

With TRITON_INTERPRET=1 in the environment before triton is imported, the same kernels run on tensors in ordinary
memory, slowly, which is how they are tested without a GPU. The interpreter multiplies no bf16 matrices and runs no
machine instructions, so both are replaced there by fp32 with rounded operands and by plain Triton.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels started within run on the device that holds the tensor."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def is_interpreted(tensor: Tensor) -> bool:
    """Whether kernels on the tensor run in the interpreter."""
    return not tensor.is_cuda


def operand(tensor: Tensor) -> Tensor:
    """A matrix rounded to bf16, as the matrix units take it; rows one after another in memory."""
    rounded = tensor.to(torch.bfloat16).contiguous()
    return rounded.float() if is_interpreted(tensor) else rounded


def can_copy_tiles(*matrices: Tensor) -> bool:
    """Whether tiles can be fetched by the copy engine of Hopper GPUs, which wants rows aligned to 16 bytes."""
    first = matrices[0]
    if not first.is_cuda or torch.cuda.get_device_capability(first.device)[0] < 9:
        return False
    return all(m.data_ptr() % 16 == 0 and m.shape[1] * m.element_size() % 16 == 0 for m in matrices)


def column_block(width: int, most: int = 1024) -> int:
    """Columns that a program takes at once: the power of two up to `most` that wastes least, the largest of those."""
    sizes = [size for size in (1024, 512, 256, 128, 64, 32, 16) if size <= most]
    return min(sizes, key=lambda size: (-(-width // size) * size, -size))


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least so large."""
    return 1 << max(0, least - 1).bit_length()
