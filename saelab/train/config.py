"""The settings of a training run, as `saelab train` has them and a run's config.yaml keeps them.

The parts hold real components; their other defaults are those of the constructors that they are given to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from saelab.core.run import Run
from saelab.core.settings import Config
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
    optimizer: Optimizer = field(default_factory=Adam)
    algorithms: Sequence[Algorithm] = ()
    ramps: Sequence[Ramp] = ()


@dataclass
class MeshConfig:
    """How the processes that torchrun started share the work; see `Mesh`."""

    replicas: int = 1
    shards: int = 1


@dataclass
class TrainConfig(Config):
    """All that a training run is a function of. One of store, live and world says where rows come from.

    Args:
        store: train on this store of activations.
        live: train on activations computed on the fly.
        world: train on a synthetic world, whose features are known.
        downstream: what a live model adds for those that ask: kl, ce, gradient.
        rows: rows (tokens) to train on in all.
        converge: end before --rows once the mean FVU falls by less than this share over a doubling of rows, e.g. 0.02.
        seed: of the order in which a store's rows are seen.
        window_rows: rows of a store that are shuffled together in memory.
        device: where to train; auto is the GPU if there is one.
        log_every: steps between records in log.jsonl.
        save_every: steps between checkpoints.
        tensorboard: write TensorBoard's event files into the run's folder too.
        sae: the SAE.
        trainer: how it is trained.
        mesh: how processes share the work.
    """

    store: str | None = None
    live: Subject | None = None
    world: World | None = None
    downstream: str | None = None
    rows: int = 2_000_000
    converge: float | None = None
    seed: int = 0
    window_rows: int = 1 << 17
    device: str = "auto"
    log_every: int = 50
    save_every: int = 1000
    tensorboard: bool = False
    sae: SAEConfig = field(default_factory=SAEConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """The settings that a run keeps in its config.yaml; ValueError that names the file if it is of another kind."""
        try:
            return cls.from_settings(run.config())
        except ValueError as error:
            raise ValueError(f"{run.config_file} is not the config of a training run: {error}") from error
