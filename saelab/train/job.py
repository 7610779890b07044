"""A training run as a whole: source, processes, SAE and trainer put together from its settings, in a run folder."""

from pathlib import Path
from typing import Any

from saelab.core.files import hint_on_full_disk, write_json
from saelab.core.memory import check_fits
from saelab.core.mesh import Mesh, device_named, world_size
from saelab.core.run import SOURCE_FILE, Run
from saelab.data.source import Source
from saelab.data.store import Store, StoreSource
from saelab.models.contexts import ContextSource
from saelab.models.harvest import LiveSource
from saelab.sae.base import Loss
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.sae import SAE
from saelab.train.algorithm import Algorithm
from saelab.train.config import TrainConfig
from saelab.train.convergence import Convergence
from saelab.train.trainer import Trainer


def train_run(config: TrainConfig, out: str | Path) -> Run:
    """Train as `saelab train` does, into a new run folder.

    Raises:
        ValueError: for settings that do not fit, or a folder that is not empty.
    """
    config = as_saved(config)
    job = Job(config)
    run = job.new_run(str(out), config.settings())
    job.train(run)
    return run


def resume_run(folder: str | Path) -> Run:
    """Go on with a run, with its own settings, from its newest checkpoint, or its beginning if it has none.

    Raises:
        ValueError: for a folder that is not a training run's, or data that changed since.
    """
    run = Run.open(folder)
    job = Job(TrainConfig.of_run(run))
    check_origin(run, job.origin)
    job.train(run)
    return run


def as_saved(config: TrainConfig) -> TrainConfig:
    """The config as it comes back from a run's folder: checked, and with a store that is found from anywhere."""
    settings = config.settings()
    if config.store:
        settings["store"] = str(Path(config.store).resolve())
    return TrainConfig.from_settings(settings)


def check_origin(run: Run, origin: dict[str, Any]) -> None:
    """ValueError if a run began on other data than is at hand; one that does not say is taken to have begun on it."""
    if not run.source_file.exists():  # killed while the folder was being made
        write_json(run.source_file, origin)
    found = run.source()
    for key in {**found, **origin}:
        if found.get(key) != origin.get(key):
            raise ValueError(f"the data of {run.folder} changed: {key} was {found.get(key)!r}, is {origin.get(key)!r}")


class Job:
    """The parts that the settings of a run describe, put together.

    Args:
        made: the settings of the run.
        source_from: a job whose source is used, so that rows are opened once.
    """

    def __init__(self, made: TrainConfig, source_from: "Job | None" = None):
        if sum(map(bool, (made.store, made.live, made.world))) != 1:
            raise ValueError(
                "give --store DIR (from `saelab harvest`), or --live.model, --live.site and --live.text, or --world"
            )
        for name in ("rows", "log_every", "save_every"):
            if getattr(made, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(made, name)}")
        if made.downstream and not made.live:
            raise ValueError("--downstream needs the model: give --live.model, ... instead of --store or --world")
        if made.seed and not made.store:
            raise ValueError("--seed orders the rows of a store; otherwise give --live.seed or --world.seed")
        self.made = made
        _ = self.criterion  # a wrong one is said before anything is made
        self.mesh = _mesh(made)
        found = (source_from.source, source_from.origin) if source_from else _source(made, self.mesh.rank)
        self.source: Source = found[0]
        self.origin: dict[str, Any] = found[1]
        _check_memory(made, self.source)
        self.sae = SAE(self.source.d_in, **vars(made.sae), mesh=self.mesh, d_out=self.source.d_out)
        self.sae.to(device_named(made.device, self.mesh.rank))
        self.trainer = Trainer(self.sae, **vars(made.trainer))

    def new_run(self, out: str, settings: dict[str, Any]) -> Run:
        """A new run's folder, made by the first process once rows could be read, so that nothing is made in vain."""
        self.trainer.prepare(self.source)
        if self.mesh.is_first:
            Run.create(out, settings, {SOURCE_FILE: self.origin})
        self.mesh.wait()
        return Run.open(out)

    @property
    def criterion(self) -> Convergence | None:
        """What ends training early, if anything does."""
        return Convergence(self.made.converge) if self.made.converge is not None else None

    def notes(self) -> list[str]:
        """What to know about these settings before training."""
        parts: list[Loss | Algorithm] = [*self.made.sae.losses, *self.trainer.algorithms]
        if not self.mesh.is_first:
            return []
        found = [part.no_effect_warning(self.made.rows) for part in parts]
        passes = self.passes(self.made.rows)
        found += [f"{self.made.rows:,} rows are {passes}: what is seen often may be learned by heart"] if passes else []
        return [note for note in found if note]

    def passes(self, rows: int) -> str:
        """How often so many rows go through all that the source has, in words; empty if no row comes again."""
        held = self.source.distinct_rows(self.made.rows)
        return f"{rows / held:,.3g} passes over the {held:,} that there are" if held and rows > held else ""

    def train(self, run: Run) -> None:
        made = self.made
        for note in self.notes():
            print(f"note: {note}")
        every = (made.log_every, made.save_every, made.tensorboard)
        with hint_on_full_disk(f"`saelab train --resume {run.folder}` resumes it"):
            self.trainer.fit(self.source, made.rows, run, *every, converge=self.criterion)
        if self.mesh.is_first:
            passes = self.passes(self.trainer.rows_seen)
            seen = f"{self.trainer.rows_seen:,} rows{f', {passes}' if passes else ''}"
            print(f"{run.folder}: trained on {seen}; `saelab measure {run.folder}` tells how well")


def _check_memory(made: TrainConfig, source: Source) -> None:
    """ValueError if this machine can never hold the weights, or a batch of rows."""
    width, device = source.d_in + (source.d_out or source.d_in), device_named(made.device)
    dictionary = made.sae.dictionary or Dense()
    if type(dictionary) is Dense:
        latents = made.sae.n_latents // made.mesh.shards
        weights = 4 * latents * (source.d_in if dictionary.tied else width)
        # What an optimizer keeps, and gradients, make it about four times that; how much less depends on settings.
        words = f"{made.sae.n_latents:,} latents of {source.d_in:,} entries, with gradients and an optimizer's state,"
        check_fits(2 * weights, 4 * weights, device, words, "--sae.n_latents")
    rows = 4 * (made.trainer.batch // made.mesh.replicas) * width
    words = f"a batch of {made.trainer.batch:,} rows of {source.d_in:,} entries"
    check_fits(rows, 2 * rows, device, words, "--trainer.batch")


def _mesh(made: TrainConfig) -> Mesh:
    mesh = Mesh(**vars(made.mesh))
    if world_size() != mesh.replicas * mesh.shards:
        raise ValueError(f"there are {world_size()} processes: give --mesh.replicas or --mesh.shards to share the work")
    return mesh


def _source(made: TrainConfig, rank: int) -> tuple[Source, dict[str, Any]]:
    """The rows to train on, and what they were made from."""
    if made.store:
        store = Store(made.store)
        if not store.manifest.complete:
            print(f"note: the harvest of {made.store} was not finished; training on its {len(store):,} rows")
        return StoreSource(store, made.seed, window_rows=made.window_rows), store.manifest.origin
    if made.world:
        return made.world, {"world": made.world.config()}
    assert made.live is not None
    if made.downstream not in (None, "gradient") and made.mesh.replicas > 1:
        raise ValueError("--downstream needs whole contexts, which replicas would share: leave --mesh.replicas out")
    model = made.live.language_model(rank)
    source: LiveSource | ContextSource = LiveSource(made.live, model=model)
    if made.downstream:
        source = ContextSource(made.live, made.downstream, model=model)
    return source, made.live.origin(source.model, source.split)
