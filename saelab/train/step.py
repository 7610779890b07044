"""One training step. One trainer serves every architecture: what a component needs, it does in its own hooks.

`step(batch)` is one update and can be called from a loop of your own; the loop that is there is `Trainer.fit`.
"""

# Shape letters: B rows, D input width.

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.data.source import Batch, Source
from saelab.sae.base import Forward
from saelab.sae.sae import SAE
from saelab.train.algorithm import Algorithm
from saelab.train.average import WeightAverage
from saelab.train.optimizer import Optimizer
from saelab.train.optimizers.adam import Adam
from saelab.train.ramp import Ramp, ramped
from saelab.train.schedule import default_rate, rate_at

SAMPLE_ROWS = 32_768
SPREAD = 3
"""Rows for `calibrate` are spread over as many times their number: the first alone are not like those seen lately,
which have fewer active latents."""
HUGE = 1e6
"""An entry of so many times the data's scale is no activation like the others."""


class StepTrainer:
    """Trains an SAE; the constructor is the configuration of a run.

    Args:
        sae: what is trained, in place, on the device where it is.
        lr: learning rate; by default 2e-4 / sqrt(n_latents / 2^14).
        batch: rows of a step.
        warmup: steps over which the rate rises from 0; at most a fifth of the run.
        decay: share of the run, at its end, over which the rate falls to 0.
        clip: largest norm of the whole gradient, if it is to be clipped.
        average: momentum of an exponential average of the weights, which then is what is saved; e.g. 0.999.
        bf16: whether matrix products run in bfloat16 (autocast).
        optimizer: how weights follow their gradients; `Adam()` by default.
        algorithms: what else is done to the SAE while it learns, e.g. `[Resampling()]`.
        ramps: settings that move to their values over the first steps, e.g. `[Ramp("activation.l1", 0, 5000)]`.

    Raises:
        ValueError: for a setting out of its range, or an algorithm or ramp that does not fit the SAE.
    """

    def __init__(
        self,
        sae: SAE,
        lr: float | None = None,
        batch: int = 4096,
        warmup: int = 100,
        decay: float = 0.2,
        clip: float | None = None,
        average: float | None = None,
        bf16: bool = False,
        optimizer: Optimizer | None = None,
        algorithms: Sequence[Algorithm] = (),
        ramps: Sequence[Ramp] = (),
    ):
        self.sae = sae
        self.lr = default_rate(sae.n_latents) if lr is None else lr
        self.batch, self.warmup, self.decay, self.clip, self.bf16 = batch, warmup, decay, clip, bf16
        self._check()
        parameters = list(sae.parameters())
        self.device = parameters[0].device
        self.optimizer = Adam() if optimizer is None else optimizer
        sae.dictionary.gradients = None  # an earlier trainer's
        self.steppers = self.optimizer.make(sae, self.lr)
        self.algorithms, self.ramps = list(algorithms), list(ramps)
        self._set_up()
        self.average = WeightAverage(parameters, average) if average is not None else None
        self.step_number = self.began = 0
        self.rows_seen = 0
        self.rows_planned: int | None = None
        self._prepared = False
        self._rows: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have the same."""
        own = {key: getattr(self, key) for key in ("lr", "batch", "warmup", "decay", "clip", "bf16")}
        own |= {"average": self.average.momentum if self.average else None, "optimizer": self.optimizer.config()}
        return own | {key: [part.config() for part in getattr(self, key)] for key in ("algorithms", "ramps")}

    def _set_up(self) -> None:
        for kind, names in (
            ("algorithm", [type(algorithm).__name__ for algorithm in self.algorithms]),
            ("ramp of", [ramp.setting for ramp in self.ramps]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"the {kind} {name} is given {names.count(name)} times; give it once")
        for algorithm in self.algorithms:
            algorithm.setup(self.sae)
        for ramp in self.ramps:
            ramp.setup(self.sae)

    def _check(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1 row, got {self.batch}")
        if self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ValueError(f"need warmup >= 0 and 0 <= decay <= 1, got {self.warmup} and {self.decay}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive, got {self.clip}; leave it out for no clipping")

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], Forward]:
        """One update on a batch (this process's rows of it): forward, backward, hooks, optimizer, hooks.

        Returns:
            The terms of the objective (detached scalars, `loss` their sum) and the forward pass.

        Raises:
            ValueError: if the batch or the loss is not finite; the weights are then as they were before.
        """
        x = self.checked(self.sae.mesh.local_rows(batch.x))
        target, gradient = (
            None if part is None else self.checked(self.sae.mesh.local_rows(part))
            for part in (batch.target, batch.gradient)
        )
        with self.ramped():
            self.zero_gradients()
            with self.precision():
                forward = self.sae.forward_train(x, target, gradient, batch.downstream)
                terms = self.terms(forward)
            loss = self.loss(terms, x)
            loss.backward()
            self.update(forward, len(batch.x))
        return {"loss": loss.detach()} | {name: value.detach() for name, value in terms.items()}, forward

    # ---- the parts of a step, for those who train several SAEs together ----

    def ramped(self) -> AbstractContextManager[None]:
        """Settings have the coming step's values inside."""
        return ramped(self.ramps, self.step_number)

    def precision(self) -> AbstractContextManager[Any]:
        """Matrix products run in the trainer's precision inside."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def terms(self, forward: Forward) -> dict[str, Tensor]:
        """The terms of the objective from a training pass, which is counted."""
        self.sae.observe(forward)
        return self.sae.terms(forward)

    def loss(self, terms: dict[str, Tensor], x: Tensor) -> Tensor:
        """The sum of an objective's terms on rows [B, D]; ValueError if it is not finite."""
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            words = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise ValueError(f"the loss at step {self.step_number} is not finite ({words}); {self._why(x)}")
        return loss

    def _why(self, x: Tensor) -> str:
        """What can have made a loss on rows [B, D] infinite or NaN, and what to do."""
        largest = self.sae.scale.apply_to(x).abs().max().item()
        if largest > HUGE:
            return f"the batch's entries are up to {largest:.2g} times as large as usual: check the source's rows"
        if self.step_number == self.began:
            return "no step was taken yet, so it is the weights that training began with: check where they come from"
        return "lower lr or set clip"

    def zero_gradients(self) -> None:
        """Begin a step, before its forward pass: forget the last one's gradients."""
        for stepper in self.steppers:
            stepper.zero_grad(set_to_none=True)

    def update(self, forward: Forward, rows: int) -> None:
        """Change the weights by their gradients and by what components and algorithms do around it; count the step."""
        if self.clip is not None or self.algorithms or self.sae.mesh.replicas > 1:
            for parameter in self.sae.dictionary.parameters():
                if self.sae.dictionary.gradients:
                    self.sae.dictionary.gradients.settle(parameter)  # these look at whole gradients
        self.sae.mesh.average_gradients(self.sae.parameters())
        self.sae.before_step()
        for algorithm in self.algorithms:
            algorithm.before_step(self, forward)
        if self.clip is not None:
            self._clip_gradient(self.clip)
        for stepper in self.steppers:
            for group in stepper.param_groups:
                group["lr"] = self.rate()
            stepper.step()
        self.sae.after_step()
        for algorithm in self.algorithms:
            algorithm.after_step(self, forward)
        if self.average:
            self.average.update()
        self.step_number += 1
        self.rows_seen += rows

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Zero what the optimizer keeps of the dictionary's weights of some of this shard's latents [n]."""
        sharded = self.sae.sharded_names()
        for name, parameter in self.sae.named_parameters():
            if name.startswith("dictionary.") and name in sharded:
                for stepper in self.steppers:
                    stepper.forget(parameter, latents)

    @torch.no_grad()
    def _clip_gradient(self, largest: float) -> None:
        """Scale the gradient down to a norm of `largest`, counted over the latents of all shards."""
        sharded = self.sae.sharded_names()
        gradients = {name: p.grad for name, p in self.sae.named_parameters() if p.grad is not None}
        own = [grad.square().sum() for name, grad in gradients.items() if name in sharded]
        common = [grad.square().sum() for name, grad in gradients.items() if name not in sharded]
        zero = torch.zeros((), device=self.device)
        norm = (self.sae.mesh.total(sum(own, zero)) + sum(common, zero)).sqrt()
        for grad in gradients.values():
            grad *= (largest / norm).clamp(max=1)

    def checked(self, x: Tensor) -> Tensor:
        """Rows [B, D] where the SAE is, in float32; ValueError for NaN or infinity."""
        x = x.to(self.device, torch.float32, non_blocking=True)
        if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
            row = int((~torch.isfinite(x).all(1)).nonzero()[0])
            raise ValueError(
                f"row {row} of the batch at step {self.step_number} holds NaN or infinity; nothing was changed. "
                "Check the source's rows"
            )
        return x

    def rate(self) -> float:
        """The learning rate of the coming step; without decay while the length of the run is unknown."""
        if self.rows_planned is None:
            return rate_at(self.step_number, 1, self.lr, self.warmup, 0)
        steps = -(-self.rows_planned // self.batch)
        return rate_at(self.step_number, steps, self.lr, min(self.warmup, steps // 5), self.decay)

    def finish(self) -> None:
        """What was put off, or only estimated, is done: the SAE is then as it is to be used."""
        for stepper in self.steppers:
            stepper.finish()
        self.calibrate()

    def calibrate(self) -> None:
        """Set thresholds and the like exactly for the weights as they are, on rows that `prepare` took.

        Which of them is fixed by how many rows were seen; they are among those, where those are enough.
        """
        if self._rows is not None:
            wanted = self.sae.activation.calibration_rows
            rows = self._rows[: max(self.rows_seen, wanted)]
            self.sae.calibrate(rows[:: max(1, len(rows) // wanted)])

    def save(self, folder: Path) -> None:
        """Save the SAE, with the averaged weights where there is an average."""
        with self.average.swapped_in() if self.average else nullcontext():
            if self.average:
                kept = {name: value.clone() for name, value in self.sae.state_dict().items()}
                self.sae.unit_directions()  # an average of unit directions is shorter than one
                self.calibrate()
            self.sae.save(folder)
            if self.average:
                self.sae.load_state_dict(kept)

    def prepare(self, source: Source, sample: Tensor | None = None) -> Tensor | None:
        """Fit an SAE that has seen no row to a sample of the source; `fit` does it, before `step` it is yours to do.

        Rows for `calibrate` are kept too, where the activation asks for any: the same for a run that is gone on with.

        Args:
            source: where rows come from; its place is not moved.
            sample: the sample, where it was taken already.

        Returns:
            The sample, for those that train on the same source.

        Raises:
            ValueError: for a source of another width.
        """
        if source.d_in != self.sae.d_in:
            raise ValueError(f"the source's rows are {source.d_in} wide, the SAE reads {self.sae.d_in}")
        if source.d_out != self.sae.d_out:
            raise ValueError(f"the source's targets are {source.d_out} wide, the SAE has d_out={self.sae.d_out}")
        is_new, kept = not (self._prepared or int(self.sae.firing.rows)), self.sae.activation.calibration_rows
        if sample is None and (is_new or kept):
            # Not a part of a larger window, which would be held with it.
            sample = source.sample(max(SAMPLE_ROWS, SPREAD * kept)).clone()
        if sample is not None and kept:
            self._rows = sample[:, : source.d_in]
        if sample is not None and is_new:
            self._initialise(sample[:SAMPLE_ROWS].to(self.device), source)
        return sample

    def _initialise(self, sample: Tensor, source: Source) -> None:
        statistics = source.statistics()
        scale = tuple(part.to(self.device) for part in statistics) if statistics else None
        target = sample[:, source.d_in :] if source.d_out else None
        self.sae.initialise(sample[:, : source.d_in], scale, target)  # type: ignore[arg-type]
        self._prepared = True
