"""The learning rate over a run:  base * warm-up * decay.

warm-up: rises linearly from base / warmup to base over the first `warmup` steps
decay:   falls linearly from base to 0 over the last `decay` share of the steps
"""

import math


def default_rate(n_latents: int) -> float:
    """2e-4 / sqrt(L / 2^14): the best rate falls as 1 / sqrt(L) (Gao et al. 2024); dictionary_learning's constant."""
    return 2e-4 / math.sqrt(n_latents / 2**14)


def rate_at(step: int, steps: int, base: float, warmup: int, decay: float) -> float:
    """The learning rate of step `step` (from 0) of a run of `steps`."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    tail = decay * steps
    falling = min(1.0, (steps - step) / tail) if tail else 1.0
    return base * rising * max(falling, 0.0)
