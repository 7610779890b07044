"""A million latents train on a CPU: memory is the parameters and their moments, and nothing of size [B, L]."""

import resource

import pytest
import torch

from saelab.data.source import Batch
from saelab.kernels import native
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.sae import SAE
from saelab.train.optimizers.adam import Adam
from saelab.train.trainer import Trainer

D, L, K, B = 64, 1_000_000, 32, 256


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_a_million_latents():
    if native.library() is None:
        pytest.skip(f"without compiled kernels a step holds more: {native.why_not()}")
    rows = torch.randn(2 * B, D, generator=torch.Generator().manual_seed(0))
    sae = SAE(D, L, TopK(K), [AuxK()])
    sae.initialise(rows)
    trainer = Trainer(sae, batch=B, warmup=0, optimizer=Adam(moments="float8"))
    before = peak_bytes()
    losses = [trainer.step(Batch(part))[0]["loss"].item() for part in (rows[:B], rows[B:], rows[:B])]
    assert losses[2] < losses[0]
    assert (sae.firing.since == 0).sum() > K
    weights, moments, integers = 2 * 4 * L * D, 2 * L * D, L * D
    # What the peak may have grown by: moments, the integers of the screen, some numbers a latent. [B, L] would be 1 GB.
    assert peak_bytes() - before < moments + integers + 200 * L + (100 << 20)
    assert peak_bytes() > weights
