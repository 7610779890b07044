"""Resampling: dead latents start anew along rows that are reconstructed badly.

At the end of each of the first `times` rounds of `every` rows, for every latent that was active on none of the last
`dead_after` rows:

    row       drawn with probability proportional to  (||target - x_hat||^2)^2
    decoder   the row minus the decoder's bias, at unit norm
    encoder   the row as it is encoded, at `size` times the mean norm of the encoder rows of latents that are not dead
    bias 0; what the optimizer keeps of these weights is forgotten; the latent counts as having just been active

Bricken et al. 2023, "Towards monosemanticity" (transformer-circuits.pub), as we read it: there every 25,000 steps, four
times, dead after 12,500 steps, size 0.2. Two things differ here. Rows are drawn from the step's own batch instead of
a sample taken for the purpose, and no row is drawn twice, because latents that start equal stay equal; latents for
which the batch has no row left wait for the next round. Thresholds of an activation stay as they are.
"""

# Shape letters: B rows of the batch, D width, L latents.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.data.source import generator_for
from saelab.sae.base import Forward
from saelab.sae.sae import SAE
from saelab.train.algorithm import Algorithm, Training, all_rows


class Resampling(Algorithm):
    """Start dead latents anew along badly reconstructed rows, a few times in a run.

    Args:
        every: rows between two rounds of resampling.
        times: rounds in all, after which latents are left alone.
        dead_after: rows without firing after which a latent counts as dead; half of `every` by default.
        size: norm of a new encoder row, in units of the mean norm of the others.
    """

    def __init__(self, every: int = 10_000_000, times: int = 4, dead_after: int | None = None, size: float = 0.2):
        Module.__init__(self)
        self.every = every
        self.times = times
        self.dead_after = dead_after
        self.size = size

    def setup(self, sae: SAE) -> None:
        self.check_every()
        if self.times < 1:
            raise ValueError(f"Resampling: times must be at least 1, got {self.times}")
        if self.dead_after is not None and self.dead_after < 1:
            raise ValueError(f"Resampling: dead_after must be at least 1 row, got {self.dead_after}")
        if not 0 < self.size < float("inf"):
            raise ValueError(f"Resampling: size must be positive and finite, got {self.size}")
        nothing = torch.zeros(0, dtype=torch.int64, device=sae.variance.device)
        read, written = (sae.variance.new_zeros(0, width) for width in (sae.d_in, sae.d_out or sae.d_in))
        sae.dictionary.reset_latents(nothing, read, written, self.size)  # says now if it cannot be done

    def no_effect_warning(self, rows: int) -> str | None:
        if rows >= self.every:
            return None
        return f"Resampling has no effect: {rows:,} rows are less than one round of every = {self.every:,} rows"

    @torch.no_grad()
    def after_step(self, trainer: Training, step: Forward) -> None:
        number = self.round(trainer, step)
        if number is None or number > self.times:
            return
        sae, mesh = step.sae, step.sae.mesh
        dead_after = self.dead_after or max(1, self.every // 2)
        dead = mesh.gather_latents(sae.firing.dead(dead_after).to(torch.uint8)).bool()
        if not dead.any():
            return
        norms = mesh.gather_latents(sae.dictionary.encoder.norm(dim=1))
        size = self.size * float(norms[~dead].mean() if not dead.all() else norms.mean())
        drawn, read, written = draw(step, int(dead.sum()), generator_for(sae.seed, trainer.step_number))
        numbers = dead.nonzero().squeeze(1)[: len(drawn)]
        # Every process draws the same; each takes the rows of its own latents.
        first, own = mesh.shard * len(sae.firing.since), len(sae.firing.since)
        mine = (numbers >= first) & (numbers < first + own)
        latents, rows = numbers[mine] - first, drawn[mine]
        sae.dictionary.reset_latents(latents, read[rows], written[rows], size)
        sae.firing.since[latents] = 0
        trainer.forget(latents)


def draw(step: Forward, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a batch with probability proportional to their squared losses, none twice.

    Returns:
        Numbers of at most `count` rows, in the order in which they were drawn; and of all rows, over all replicas, what
        is encoded and what latents have to reconstruct, [B, D] each.
    """
    sae, mesh = step.sae, step.sae.mesh
    skipped = sae.dictionary.skip(step.x)
    wanted = step.target - sae.dictionary.bias()
    read = all_rows(mesh, step.pre.centred)
    written = all_rows(mesh, wanted if skipped is None else wanted - skipped)
    loss = all_rows(mesh, (step.target - step.x_hat).double().square().sum(1))
    loss = loss * ((read != 0).any(1) & (written != 0).any(1))
    weights = (loss / loss.max().clamp_min(torch.finfo(loss.dtype).tiny)).square().cpu()
    count = min(count, int((weights > 0).sum()))
    if not count:
        return torch.zeros(0, dtype=torch.int64, device=read.device), read, written
    drawn = torch.multinomial(weights, count, replacement=False, generator=generator)
    return drawn.to(read.device), read, written
