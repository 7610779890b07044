"""The settings of a training run, as `saelab train` has them and a run's config.yaml keeps them.

The parts hold real components; their other defaults are those of the constructors that they are given to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from saelab.core.components import Component
from saelab.data.synthetic.world import World
from saelab.models.subject import Subject
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.sae.losses.auxk import AuxK
from saelab.sae.scale import Scale
from saelab.train.algorithm import Algorithm
from saelab.train.optimizer import Optimizer
from saelab.train.optimizers.adam import Adam
from saelab.train.ramp import Ramp


@dataclass
class SAEConfig:
    """What `SAE` is made from, but for the widths, which the rows have; see there."""

    n_latents: int = 4096
    activation: Activation = field(default_factory=lambda: TopK(k=32))
    losses: Sequence[Loss] = field(default_factory=lambda: [AuxK()])
    dictionary: Dictionary | None = None
    seed: int = 0
    scale: Scale | None = None


@dataclass
class TrainerConfig:
    """What `Trainer` is made from, but for the SAE; see there."""

    lr: float | None = None
    batch: int = 4096
    warmup: int = 100
    decay: float = 0.2
    clip: float | None = None
    average: float | None = None
    bf16: bool = False
    optimizer: Optimizer | None = field(default_factory=Adam)
    algorithms: Sequence[Algorithm] = ()
    ramps: Sequence[Ramp] = ()


@dataclass
class MeshConfig:
    """How the processes that torchrun started share the work; see `Mesh`."""

    replicas: int = 1
    shards: int = 1


@dataclass
class TrainConfig:
    """All that a training run is a function of. One of store, live and world says where rows come from."""

    store: str | None = None
    """Folder of a store of activations."""
    live: Subject | None = None
    """Activations computed on the fly."""
    world: World | None = None
    """A synthetic world."""
    downstream: str | None = None
    """What a live model adds for losses that ask: kl, ce, gradient."""
    rows: int = 2_000_000
    """Rows to train on in all."""
    converge: float | None = None
    """Ends training once the FVU falls by less than this share over a doubling of rows."""
    seed: int = 0
    """Of the order in which a store's rows are seen."""
    window_rows: int = 1 << 17
    """Rows of a store that are shuffled together in memory."""
    device: str = "auto"
    log_every: int = 50
    """Steps between records."""
    save_every: int = 1000
    """Steps between checkpoints."""
    tensorboard: bool = False
    sae: SAEConfig = field(default_factory=SAEConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @classmethod
    def names(cls) -> list[str]:
        """Names of the settings, in the order of config.yaml."""
        return [part.name for part in fields(cls)]

    def settings(self) -> dict[str, Any]:
        """Plain values, as config.yaml keeps them: what is None is left out, a component is its class and arguments."""
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        arguments = {key: getattr(value, key) for key in value.options()}
        arguments = {key: _plain(part) for key, part in arguments.items() if part is not None}
        return {"class_path": type(value).__name__} | ({"init_args": arguments} if arguments else {})
    if is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        return {key: _plain(part) for key, part in parts.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
