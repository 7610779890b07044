"""The options of `saelab train` and `saelab sweep`: a parser's view of `TrainConfig`, from and to plain values."""

import copy
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import saelab
from saelab.core.components import Component, check_kinds
from saelab.core.mesh import Mesh
from saelab.core.read import parse_yaml
from saelab.core.run import FORMAT
from saelab.data.synthetic.world import World
from saelab.models.subject import Subject
from saelab.recipes.options import explained
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale
from saelab.train.algorithm import Algorithm
from saelab.train.config import MeshConfig, SAEConfig, TrainConfig, TrainerConfig
from saelab.train.optimizer import Optimizer
from saelab.train.trainer import Trainer

KINDS: list[type[Component]] = [Activation, Loss, Dictionary, Scale, Algorithm, Optimizer, World]
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


def typed(made: Namespace) -> TrainConfig:
    """Options, components made, as the settings of a run."""
    parts: dict[str, Any] = {"sae": SAEConfig(**vars(made.sae)), "trainer": TrainerConfig(**vars(made.trainer))}
    own: dict[str, Any] = {
        key: getattr(made, key) for key in TrainConfig.names() if key not in ("sae", "trainer", "mesh")
    }
    return TrainConfig(**own, **parts, mesh=MeshConfig(**vars(made.mesh)))


def parsed(settings: dict[str, Any], complaint: str) -> TrainConfig:
    """The parts that settings describe, components made; ValueError that begins with the complaint if they misfit."""
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser)
    try:
        options = parser.parse_object(copy.deepcopy(settings))  # what it is given it changes
    except Exception as error:  # jsonargparse raises its own and argparse's errors
        raise ValueError(f"{complaint}: {explained(parser, str(error))[:400]}") from error
    try:
        check_parts(settings)
        return typed(parser.instantiate(options))
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
