"""Ramps: a setting of an SAE's activation or loss that moves to its value over the first steps of a run.

    value of step t (from 0) = start + (final - start) * min(1, t / steps)

A schedule of k (from many active latents to few) or of a penalty's weight (from none to all). It depends on the number
of the step alone, so a resumed run goes on exactly, and a setting has its own value between steps: that is what
configs, checkpoints and the saved SAE hold. It has to be a setting that is read at every step, as k, l1 and weights
are; one that only sizes something at the start does not change with it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from saelab.core.components import Component, near_miss
from saelab.sae.base import Sizes
from saelab.sae.sae import SAE


class Ramp(Component):
    """Moves a setting from another value to its own over the first steps.

    Args:
        setting: which one, e.g. `activation.k`, `activation.l1` or `losses.AuxK.weight`.
        start: its value at the first step.
        steps: after how many steps it has its own value.
    """

    home = "saelab.train"

    def __init__(self, setting: str, start: float, steps: int):
        self.setting = setting
        self.start = start
        self.steps = steps

    @classmethod
    def variants(cls) -> dict[str, type[Self]]:
        return {cls.__name__: cls}  # one shape, and no package of others

    def setup(self, sae: SAE) -> None:
        """Find the setting in an SAE.

        Raises:
            ValueError: naming the near miss if there is no such setting, or if it cannot have the value `start`.
        """
        found = settings(sae)
        if self.setting not in found:
            raise ValueError(
                f"Ramp: there is no setting '{self.setting}' that is a number{near_miss(self.setting, found)}"
            )
        if self.steps < 1:
            raise ValueError(f"Ramp: steps must be at least 1, got {self.steps}")
        if not math.isfinite(self.start):
            raise ValueError(f"Ramp: start must be finite, got {self.start}")
        self.component, self.option = found[self.setting]
        self.final: int | float = getattr(self.component, self.option)
        self._try(sae)

    def _try(self, sae: SAE) -> None:
        """ValueError if a component with the first value would not fit the SAE; ranges have no gaps."""
        arguments = {key: value for key, value in self.component.config().items() if key != "name"}
        copy: Any = type(self.component)(**arguments | {self.option: self.value_at(0)})
        try:
            copy.setup(Sizes(sae.d_in, sae.d_out or sae.d_in, sae.n_latents, sae.d_out is not None, sae.seed, sae.mesh))
        except ValueError as error:
            raise ValueError(f"Ramp: {self.setting} cannot start at {self.start}: {error}") from None

    def value_at(self, step: int) -> int | float:
        """The setting's value at a step (from 0); whole where the setting is."""
        value = self.start + (self.final - self.start) * min(1.0, step / self.steps)
        return round(value) if isinstance(self.final, int) else value


def settings(sae: SAE) -> dict[str, tuple[Component, str]]:
    """Every setting of the activation and the losses that is a number: where it is, by its path."""
    parts: dict[str, Component] = {"activation": sae.activation}
    parts |= {f"losses.{type(loss).__name__}": loss for loss in sae.losses}  # type: ignore[misc]
    return {
        f"{path}.{option}": (part, option)
        for path, part in parts.items()
        for option in part.options()
        if isinstance(getattr(part, option), (int, float)) and not isinstance(getattr(part, option), bool)
    }


@contextmanager
def ramped(ramps: Sequence[Ramp], step: int) -> Iterator[None]:
    """Inside the block settings have their values of a step; afterwards their own again."""
    try:
        for ramp in ramps:
            setattr(ramp.component, ramp.option, ramp.value_at(step))
        yield
    finally:
        for ramp in ramps:
            setattr(ramp.component, ramp.option, ramp.final)
