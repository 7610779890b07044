"""`saelab sweep`: a grid of SAEs on one stream of rows; those of one shape are trained as one computation.

Settings that change shapes (`sae.n_latents`, another dictionary, the batch) make groups, which are trained one after
another, each from the same row on. A sweep that is stopped goes on in the group that it was in.
"""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from saelab.core.components import near_miss
from saelab.core.files import hint_on_full_disk, whole_folder, write_json
from saelab.core.log import read_training
from saelab.core.read import parse_yaml
from saelab.core.run import SWEEP, Run, members_of
from saelab.recipes.train_options import add_options, dumped, parsed, saved
from saelab.sae.autoencoder import CONFIG
from saelab.train.config import TrainConfig
from saelab.train.convergence import Convergence, at_full_rate
from saelab.train.job import Job, check_origin
from saelab.train.loop import LoopConfig
from saelab.train.sweep import Sweep


def add_sweep_options(parser: ArgumentParser) -> None:
    """The options of `saelab sweep`: those of `saelab train`, and what varies."""
    add_options(parser)
    text = "a setting and its values, such as sae.activation.k=16,32,64; several make a grid"
    parser.add_argument("--vary", nargs="+", type=str, default=[], help=text)


def sweep_from_options(parser: ArgumentParser, options: Namespace) -> None:
    """What `saelab sweep` does with its options."""
    vary = options.pop("vary")
    if options.resume:
        made, runs = _members_of(Path(options.resume))
        _train(made, runs, _check(made))
        return
    if not options.out:
        raise ValueError("--out is missing: the folder for the sweep's runs (or --resume DIR to go on with one)")
    if not vary:
        raise ValueError("--vary is missing: which setting takes which values, e.g. --vary sae.activation.k=16,32,64")
    out = Path(options.out)
    if options.store:
        options.store = str(Path(options.store).resolve())
    settings = saved(dumped(parser, options))
    grid = [_values(one) for one in vary]
    members = {}
    for choice in itertools.product(*grid):
        own = copy.deepcopy(settings)
        for path, value in choice:
            _set(own, path, value)
        name = "-".join(f"{path.rpartition('.')[2]}{value}" for path, value in choice)
        if name in members:
            raise ValueError(f"two members of the sweep are called {name}: a value is given twice")
        members[name] = own
    made = [parsed(own, f"the member {name} of the sweep does not fit") for name, own in members.items()]
    if (out / SWEEP).exists():
        _check_same(out, members)
        first = _check(made)
    else:
        with whole_folder(out) as folder:
            first = _check(made)
            first.trainer.prepare(first.source)  # reads rows, so that nothing is made in vain
            write_json(folder / SWEEP, {"members": list(members)})
            for name, own in members.items():
                Run.create(folder / name, own, {"source.json": first.origin})
    _train(made, [Run.open(out / name) for name in members], first)


def _check_same(folder: Path, members: dict[str, dict[str, Any]]) -> None:
    """ValueError unless a folder holds the sweep of these members, which then is gone on with."""
    found = {run.folder.name: run.config() for run in _members_of(folder)[1]}
    differing = [name for name in {**found, **members} if found.get(name) != members.get(name)]
    if differing:
        raise ValueError(
            f"{folder} holds a sweep with other settings, first of {differing[0]}: `saelab sweep --resume {folder}` "
            "goes on with it; a new sweep needs another --out"
        )


def _members_of(folder: Path) -> tuple[list[TrainConfig], list[Run]]:
    if not (folder / SWEEP).exists():
        raise ValueError(f"{folder} is not a sweep: it has no {SWEEP}; `saelab sweep --out {folder}` makes one")
    members = members_of(folder)
    for member in members:
        if not (member / "config.yaml").exists():
            why = f"it lacks {member.name}; remove it, begin anew"
            raise ValueError(f"{folder} was stopped while it was being made: {why}")
    runs = [Run.open(member) for member in members]
    return [parsed(run.config(), f"{run.config_file} is damaged") for run in runs], runs


def _check(made: list[TrainConfig]) -> Job:
    """The first member, after every other was made once, alone, to see that it can be: wide ones fill the memory."""
    first = Job(made[0])
    Sweep([first.trainer])
    for one in made[1:]:
        Sweep([Job(one, shared=first).trainer])
    return first


def _shape(made: TrainConfig) -> str:
    """What SAEs that compute as one have in common, as text."""
    kinds = [type(part).__name__ for part in (made.sae.activation, *made.sae.losses)]
    dictionary = made.sae.dictionary.config() if made.sae.dictionary else None
    run = [getattr(made, key) for key in ("rows", "converge", "log_every", "save_every", "device")]
    return json.dumps([made.sae.n_latents, kinds, dictionary, made.trainer.batch, made.trainer.bf16, run])


def _train(made: list[TrainConfig], runs: list[Run], first: Job) -> None:
    """Train members of one shape as one computation, one shape after the other, all on the same rows."""
    for run in runs:
        check_origin(run, first.origin)
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(made):
        groups.setdefault(_shape(one), []).append(number)
    start, folder = first.source.state(), runs[0].folder.parent
    for count, numbers in enumerate(groups.values(), 1):
        if all((runs[number].sae / CONFIG).exists() for number in numbers):
            print(f"group {count} of {len(groups)}: was trained before")
            continue
        first.source.restore(start)
        jobs = [first if number == 0 else Job(made[number], shared=first) for number in numbers]
        title = f"train {count}/{len(groups)}" if len(groups) > 1 else "train"
        _train_group(jobs, [runs[number] for number in numbers], title)
    print(f"{folder}: trained; `saelab measure {folder}/*/` compares them")


def _train_group(jobs: list[Job], runs: list[Run], title: str) -> None:
    made = jobs[0].made
    print(f"{len(jobs)} SAEs in one computation: {', '.join(run.folder.name for run in runs)}")
    for note in {note for job in jobs for note in job.notes()}:
        print(f"note: {note}")
    config = LoopConfig(made.log_every, made.save_every, made.tensorboard, True, jobs[0].criterion, title)
    with hint_on_full_disk(f"`saelab sweep --resume {runs[0].folder.parent}` goes on"):
        Sweep([job.trainer for job in jobs]).fit(jobs[0].source, made.rows, runs, config)
    if passes := jobs[0].passes(jobs[0].trainer.rows_seen):
        print(f"  trained on {jobs[0].trainer.rows_seen:,} rows, {passes}")
    for run in runs if made.converge is not None else []:
        assert made.converge is not None
        print(f"  {run.folder.name}: {_ended(run, made.converge)}")


def _ended(run: Run, tolerance: float) -> str:
    """How far a member came, in words."""
    records = read_training(run.log_file)
    first = Convergence(tolerance).first(*at_full_rate(records))
    when = f"converged at {first:,} rows" if first else "not converged"
    return f"{when}, trained on {records[-1]['rows']:,}; FVU of the last batch {records[-1]['fvu']:.4f}"


def _values(text: str) -> list[tuple[str, Any]]:
    """The setting and each of its values, from "sae.activation.k=16,32"."""
    path, equals, values = text.partition("=")
    if not equals or not values or not path:
        raise ValueError(f"--vary takes SETTING=VALUE,VALUE,..., such as sae.activation.k=16,32; got '{text}'")
    return [(path, parse_yaml(value, f"--vary {path}", Any, "mend that value")) for value in values.split(",")]


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
