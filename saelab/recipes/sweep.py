"""`saelab sweep`: SAEs that differ in settings, trained as one computation on one stream of rows."""

import itertools
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from saelab.core.components import near_miss
from saelab.core.files import is_vacant, read_json, write_json
from saelab.core.run import Run
from saelab.recipes.train import Job, add_options, parsed, saved
from saelab.train.loop import Habits
from saelab.train.sweep import Sweep

MEMBERS = "sweep.json"


def add_sweep_options(parser: ArgumentParser) -> None:
    """The options of `saelab sweep`: those of `saelab train`, and what varies."""
    add_options(parser)
    text = "a setting and its values, such as sae.activation.k=16,32,64; several make a grid"
    parser.add_argument("--vary", nargs="+", type=str, default=[], help=text)


def sweep_from_options(parser: ArgumentParser, options: Namespace) -> None:
    """What `saelab sweep` does with its options."""
    vary = options.pop("vary")
    if options.resume:
        jobs, runs = _members_of(Path(options.resume))
        _train(Sweep([job.trainer for job in jobs]), jobs, runs)
        return
    if not options.out:
        raise ValueError("--out is missing: the folder for the sweep's runs (or --resume DIR to go on with one)")
    if not vary:
        raise ValueError("--vary is missing: which setting takes which values, e.g. --vary sae.activation.k=16,32,64")
    out = Path(options.out)
    if not is_vacant(out):
        raise ValueError(f"{out} is not an empty folder; choose another --out, or go on with --resume {out}")
    if options.store:
        options.store = str(Path(options.store).resolve())
    settings = saved(yaml.safe_load(parser.dump(options)))
    grid = [_values(one) for one in vary]
    members = {}
    for choice in itertools.product(*grid):
        own = yaml.safe_load(yaml.safe_dump(settings))
        for path, value in choice:
            _set(own, path, value)
        name = "-".join(f"{path.rpartition('.')[2]}{value}" for path, value in choice)
        if name in members:
            raise ValueError(f"two members of the sweep are called {name}: a value is given twice")
        members[name] = own
    jobs = _jobs([parsed(own, f"the member {name} of the sweep does not fit") for name, own in members.items()])
    sweep = Sweep([job.trainer for job in jobs])
    runs = [job.new_run(str(out / name), own) for job, (name, own) in zip(jobs, members.items(), strict=True)]
    write_json(out / MEMBERS, {"members": list(members)})
    _train(sweep, jobs, runs)


def _members_of(folder: Path) -> tuple[list[Job], list[Run]]:
    if not (folder / MEMBERS).exists():
        raise ValueError(f"{folder} is not a sweep: it has no {MEMBERS}; `saelab sweep --out {folder}` makes one")
    runs = [Run.open(folder / name) for name in read_json(folder / MEMBERS)["members"]]
    return _jobs([parsed(run.config(), f"{run.config_file} is damaged") for run in runs]), runs


def _jobs(made: list[Namespace]) -> list[Job]:
    first = Job(made[0])
    return [first, *(Job(one, shared=first) for one in made[1:])]


def _train(sweep: Sweep, jobs: list[Job], runs: list[Run]) -> None:
    made = jobs[0].made
    print(f"{len(jobs)} SAEs in one computation: {', '.join(run.folder.name for run in runs)}")
    for note in {note for job in jobs for note in job.notes()}:
        print(f"note: {note}")
    habits = Habits(made.log_every, made.save_every, made.tensorboard)
    sweep.fit(jobs[0].source, made.rows, runs, habits)
    folder = runs[0].folder.parent
    print(f"{folder}: trained; `saelab measure {folder}/*/` compares them")


def _values(text: str) -> list[tuple[str, Any]]:
    """The setting and each of its values, from "sae.activation.k=16,32"."""
    path, equals, values = text.partition("=")
    if not equals or not values or not path:
        raise ValueError(f"--vary takes SETTING=VALUE,VALUE,..., such as sae.activation.k=16,32; got '{text}'")
    return [(path, yaml.safe_load(value)) for value in values.split(",")]


def _set(settings: dict[str, Any], path: str, value: Any) -> None:
    """Give a setting, named by dots, a value; a loss is named by its class, as in sae.losses.AuxK.weight."""
    place: Any = settings
    *steps, last = path.split(".")
    for step in steps:
        if isinstance(place, list):
            named = {part["class_path"].rpartition(".")[2]: part for part in place}
        else:
            named = place["init_args"] if "class_path" in place else place
        if step not in named or named[step] is None:
            raise ValueError(f"--vary {path}: there is no {step} in these settings{near_miss(step, named)}")
        place = named[step]
    if isinstance(place, dict) and "class_path" in place:
        place = place.setdefault("init_args", {})
    if not isinstance(place, dict):
        raise ValueError(f"--vary {path}: {last} is no setting of a {type(place).__name__}")
    place[last] = value  # whether there is such a setting is said when the settings are read
