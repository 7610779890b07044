"""`saelab train`: train an SAE on a store or on a live model, into a run folder."""

import copy
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import saelab
from saelab.core.components import Component, check_kinds
from saelab.core.files import hint_on_full_disk, write_json
from saelab.core.memory import check_fits
from saelab.core.mesh import Mesh, device_named, world_size
from saelab.core.read import parse_yaml
from saelab.core.run import FORMAT, Run
from saelab.data.source import Source
from saelab.data.store import Store, StoreSource
from saelab.data.synthetic.world import World
from saelab.models.contexts import ContextSource
from saelab.models.harvest import LiveSource
from saelab.models.subject import Subject
from saelab.recipes.options import explained
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.sae import SAE
from saelab.train.algorithm import Algorithm
from saelab.train.convergence import Convergence
from saelab.train.optimizer import Optimizer
from saelab.train.trainer import Trainer

KINDS: list[type[Component]] = [Activation, Loss, Dictionary, Algorithm, Optimizer, World]
DEFAULTS = {
    "sae.n_latents": 4096,
    "sae.activation": {"class_path": "TopK", "init_args": {"k": 32}},
    "sae.losses": [{"class_path": "AuxK"}],
    "trainer.optimizer": {"class_path": "Adam"},
}


def add_options(parser: ArgumentParser) -> None:
    """The options of `saelab train`."""
    # A config may come from anyone: what it names is looked up among our own classes, never imported.
    known = ["saelab.sae", "saelab.models", "saelab.train", *(home for kind in KINDS for home in kind.homes())]
    known += [f"saelab.{name}" for name in saelab.__all__]  # the package shows some of them itself
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=known)
    for kind in KINDS:
        kind.variants()  # imports every variant, so that each is an option by its name
    add = parser.add_argument
    add("--config", action="config", help="a YAML file of these options, such as a run's config.yaml")
    add("--out", type=str | None, help="the run's folder, new or empty")
    add("--resume", type=str | None, help="go on with this run, with its own settings, from its newest checkpoint")
    add("--store", type=str | None, help="train on this store of activations")
    add("--live", type=Subject | None, help="train on activations computed on the fly")
    add("--world", type=World | None, help="train on a synthetic world, whose features are known")
    add("--downstream", type=str | None, help="what a live model adds for those that ask: kl, ce, gradient")
    add("--rows", type=int, default=2_000_000, help="rows (tokens) to train on in all")
    text = "end before --rows once the mean FVU falls by less than this share over a doubling of rows, e.g. 0.02"
    add("--converge", type=float | None, help=text)
    add("--seed", type=int, default=0, help="of the order in which a store's rows are seen")
    add("--window_rows", type=int, default=1 << 17, help="rows of a store that are shuffled together in memory")
    add("--device", type=str, default="auto", help="where to train; auto is the GPU if there is one")
    add("--log_every", type=int, default=50, help="steps between records in log.jsonl")
    add("--save_every", type=int, default=1000, help="steps between checkpoints")
    add("--tensorboard", type=bool, default=False, help="write TensorBoard's event files into the run's folder too")
    add("--format", type=int, default=FORMAT, help="of the config file; written by saelab")
    parser.add_class_arguments(SAE, "sae", skip={"d_in", "d_out", "mesh"}, instantiate=False)
    parser.add_class_arguments(Trainer, "trainer", skip={"sae"}, instantiate=False)
    parser.add_class_arguments(Mesh, "mesh", instantiate=False)
    parser.set_defaults(DEFAULTS)


def train_from_options(parser: ArgumentParser, options: Namespace) -> None:
    """What `saelab train` does with its options."""
    if options.format > FORMAT:
        raise ValueError(f"the config has format {options.format}, newer than {FORMAT}; update saelab")
    if options.resume:
        resume(Run.open(options.resume))
        return
    if not options.out:
        raise ValueError("--out is missing: the folder for the new run (or --resume RUN to go on with one)")
    if options.store:
        options.store = str(Path(options.store).resolve())  # so that a resume finds it from anywhere
    settings = dumped(parser, options)
    check_parts(options.as_dict())  # the dump leaves out what is null
    job = Job(parser.instantiate(options))
    job.train(job.new_run(options.out, saved(settings)))


def resume(run: Run) -> None:
    """Go on with a run from its newest checkpoint, or from its beginning if it has none."""
    job = Job(parsed(run.config(), f"{run.config_file} is not the config of a training run"))
    check_origin(run, job.origin)
    job.train(run)


def check_origin(run: Run, origin: dict[str, Any]) -> None:
    """ValueError if a run began on other data than is at hand; one that does not say is taken to have begun on it."""
    if not run.source_file.exists():  # killed while the folder was being made
        write_json(run.source_file, origin)
    found = run.source()
    for key in {**found, **origin}:
        if found.get(key) != origin.get(key):
            raise ValueError(f"the data of {run.folder} changed: {key} was {found.get(key)!r}, is {origin.get(key)!r}")


def parsed(settings: dict[str, Any], complaint: str) -> Namespace:
    """The parts that settings describe, components made; ValueError that begins with the complaint if they misfit."""
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser)
    try:
        options = parser.parse_object(copy.deepcopy(settings))  # what it is given it changes
    except Exception as error:  # jsonargparse raises its own and argparse's errors
        raise ValueError(f"{complaint}: {explained(parser, str(error))[:400]}") from error
    try:
        check_parts(settings)
        return parser.instantiate(options)
    except ValueError as error:
        raise ValueError(f"{complaint}: {error}") from error


def check_parts(settings: dict[str, Any]) -> None:
    """ValueError for a component's option that is of another kind, or null where that means nothing."""
    for name in ("sae", "trainer", "mesh"):
        if not isinstance(settings.get(name, {}), dict):
            raise ValueError(f"{name} must be a table of settings, got {settings[name]!r}")
    variants = {name: variant for kind in KINDS for name, variant in kind.variants().items()}
    parts: list[Any] = [settings]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            variant = variants.get(str(part.get("class_path")).rpartition(".")[2])
            if variant and isinstance(part.get("init_args"), dict):
                check_kinds(variant, part["init_args"])
        if isinstance(part, dict | list):
            parts += part.values() if isinstance(part, dict) else part


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of all others, as a run keeps them."""
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser)
    return saved(dumped(parser, parser.parse_object(settings)))


def dumped(parser: ArgumentParser, options: Namespace) -> dict[str, Any]:
    """Options as plain values."""
    found: dict[str, Any] = parse_yaml(parser.dump(options), "the options", remedy="mend that option")
    return found


class Job:
    """The parts that the settings of a run describe, put together.

    Args:
        made: the settings, components made.
        shared: a job with the same source, which is then used.
    """

    def __init__(self, made: Namespace, shared: "Job | None" = None):
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
        found = (shared.source, shared.origin) if shared else _source(made, self.mesh.rank)
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
            Run.create(out, settings, {"source.json": self.origin})
        self.mesh.wait()
        return Run.open(out)

    @property
    def criterion(self) -> Convergence | None:
        """What ends training early, if anything does."""
        return Convergence(self.made.converge) if self.made.converge is not None else None

    def notes(self) -> list[str]:
        """What to know about these settings before training."""
        parts = [*self.made.sae.losses, *self.trainer.algorithms]
        if not self.mesh.is_first:
            return []
        found = [part.no_effect_warning(self.made.rows) for part in parts]
        passes = self.passes(self.made.rows)
        found += [f"{self.made.rows:,} rows are {passes}: what is seen often may be learned by heart"] if passes else []
        return [note for note in found if note]

    def passes(self, rows: int) -> str:
        """How often so many rows go through all that the source has, in words; empty if no row comes again."""
        held = self.source.held(self.made.rows)
        return f"{rows / held:,.3g} passes over the {held:,} that there are" if held and rows > held else ""

    def train(self, run: Run) -> None:
        made = self.made
        for note in self.notes():
            print(f"note: {note}")
        every = (made.log_every, made.save_every, made.tensorboard)
        with hint_on_full_disk(f"`saelab train --resume {run.folder}` goes on"):
            self.trainer.fit(self.source, made.rows, run, *every, converge=self.criterion)
        if self.mesh.is_first:
            passes = self.passes(self.trainer.rows_seen)
            seen = f"{self.trainer.rows_seen:,} rows{f', {passes}' if passes else ''}"
            print(f"{run.folder}: trained on {seen}; `saelab measure {run.folder}` tells how well")


def _check_memory(made: Namespace, source: Source) -> None:
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


def _mesh(made: Namespace) -> Mesh:
    mesh = Mesh(**vars(made.mesh))
    if world_size() != mesh.replicas * mesh.shards:
        raise ValueError(f"there are {world_size()} processes: give --mesh.replicas or --mesh.shards to share the work")
    return mesh


def _source(made: Namespace, rank: int) -> tuple[Source, dict[str, Any]]:
    """The rows to train on, and what they were made from."""
    if made.store:
        store = Store(made.store)
        if not store.manifest.complete:
            print(f"note: the harvest of {made.store} was not finished; training on its {len(store):,} rows")
        return StoreSource(store, made.seed, window_rows=made.window_rows), store.manifest.origin
    if made.world:
        return made.world, {"world": made.world.config()}
    if made.downstream not in (None, "gradient") and made.mesh.replicas > 1:
        raise ValueError("--downstream needs whole contexts, which replicas would share: leave --mesh.replicas out")
    model = made.live.language_model(rank)
    source: LiveSource | ContextSource = LiveSource(made.live, model=model)
    if made.downstream:
        source = ContextSource(made.live, made.downstream, model=model)
    return source, made.live.origin(source.model, source.split)


def saved(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a run keeps them: without the place of the run, classes by their names."""
    kept = {key: value for key, value in settings.items() if key not in ("out", "resume", "config", "format")}
    return _short(kept)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        value = {key: _short(part) for key, part in value.items()}
        if "class_path" in value:
            value["class_path"] = value["class_path"].rsplit(".", 1)[-1]
    return [_short(part) for part in value] if isinstance(value, list) else value
