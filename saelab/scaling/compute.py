"""What training an SAE costs: arithmetic, memory and disk, from its sizes.

    FLOP a row, forward and backward     2 L D + 10 K D     where only the K listed latents are touched
                                         12 L D             where all are
    memory      16 bytes a parameter (weight, gradient, two moments of Adam) + rows of a batch and their codes
    disk        4 bytes a parameter for the SAE, 12 for each of the two checkpoints that are kept

There are 2 L D + L + D parameters. One product is 2 L D: the encoder's; the other five of six touch the active latents
only (decoding, the gradients of codes, of both weights and of the bias). What is left out: the language model that
makes the rows, the optimizer's own arithmetic, and the slack of memory allocators.
"""

# Shape letters: D input width, L latents, K active, B rows of a batch.

from saelab.train.checkpoint import KEPT

BLOCK_ENTRIES = 1 << 22
"""Pre-activations that are held at once where only the largest are kept; a rough figure."""


def parameters(d_in: int, n_latents: int) -> int:
    """Numbers that are trained."""
    return 2 * n_latents * d_in + n_latents + d_in


def flops_a_row(d_in: int, n_latents: int, k: float, sparse: bool = True) -> float:
    """Floating-point operations of one row's forward and backward pass."""
    if sparse:
        return 2.0 * n_latents * d_in + 10.0 * min(k, n_latents) * d_in
    return 12.0 * n_latents * d_in


def training_bytes(d_in: int, n_latents: int, k: float, batch: int, sparse: bool = True) -> int:
    """Memory that training holds at its peak, roughly."""
    codes = 3 * 12 * batch * min(k, n_latents) if sparse else 3 * 4 * batch * n_latents
    block = 4 * min(batch * n_latents, BLOCK_ENTRIES)
    return int(16 * parameters(d_in, n_latents) + 5 * 4 * batch * d_in + codes + block)


def disk_bytes(d_in: int, n_latents: int) -> int:
    """Disk that a run's folder takes."""
    return (4 + 12 * KEPT) * parameters(d_in, n_latents)
