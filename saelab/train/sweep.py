"""Several SAEs of equal shape, trained as one computation on one stream of batches.

Settings that do not change shapes may differ between them: k, penalties, seeds, learning rates, ramps, algorithms. Each
is left with the weights that training it alone would give, to rounding. What is shared: reading and scaling rows, one
encoder product, one selection, one decode (see `saelab.sae.stack`); losses, hooks and optimizers stay each SAE's own.
"""

# Shape letters: B rows, D input width.

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from saelab.core.run import Run
from saelab.data.source import Batch, Source
from saelab.sae.sae import SAE
from saelab.sae.stack import Stack
from saelab.train.loop import LoopConfig, Passed, run_loop
from saelab.train.trainer import Trainer


class Sweep:
    """Trains SAEs together.

    Args:
        trainers: one an SAE, before their first step; batch and precision are equal.

    Raises:
        ValueError: for SAEs that cannot compute as one (see `Stack`), or trainers that do not go in step.
    """

    def __init__(self, trainers: Sequence[Trainer]):
        self.trainers = list(trainers)
        self.stack = Stack([trainer.sae for trainer in trainers])
        for trainer in self.trainers:
            for key in ("batch", "bf16", "device"):
                own, wanted = getattr(trainer, key), getattr(self.trainers[0], key)
                if own != wanted:
                    raise ValueError(f"SAEs that train together need the same {key}: {own} is not {wanted}")

    def step(self, batch: Batch) -> list[Passed]:
        """One update of every SAE on a batch; see `Trainer.step`."""
        if batch.target is not None or batch.downstream is not None or batch.gradient is not None:
            raise ValueError("SAEs that train together read plain rows: train transcoders and the like one by one")
        lead = self.trainers[0]
        x = lead.checked(batch.x)
        with ExitStack() as settings:
            for trainer in self.trainers:
                settings.enter_context(trainer.ramped())
                trainer.zero_gradients()
            with lead.precision():
                forwards = self.stack.forward_train(x)
                passed = [
                    (trainer.terms(forward), forward) for trainer, forward in zip(self.trainers, forwards, strict=True)
                ]
            losses: list[Tensor] = []
            for trainer, (terms, _) in zip(self.trainers, passed, strict=True):
                losses.append(trainer.loss(terms, x))
            torch.stack(losses).sum().backward()
            for trainer, (_, forward) in zip(self.trainers, passed, strict=True):
                trainer.update(forward, len(batch.x))
        return [
            ({"loss": loss.detach()} | {name: value.detach() for name, value in terms.items()}, forward)
            for loss, (terms, forward) in zip(losses, passed, strict=True)
        ]

    def fit(
        self, source: Source, rows: int, runs: Sequence[Run] | None = None, config: LoopConfig | None = None
    ) -> list[SAE]:
        """Train all on `rows` rows of a source, rounded up to whole batches; see `Trainer.fit`.

        Args:
            source: where rows come from.
            rows: rows to see in all.
            runs: a folder for each, or none.
            config: how often to say and keep where training stands.
        """
        if runs is not None and len(runs) != len(self.trainers):
            raise ValueError(f"{len(self.trainers)} SAEs need as many runs, got {len(runs)}")
        run_loop(self.trainers, self.step, source, rows, runs, config or LoopConfig())
        for trainer in self.trainers:
            trainer.finish()
        for trainer, run in zip(self.trainers, runs or (), strict=False):
            trainer.save(run.sae)
        return self.stack.saes
