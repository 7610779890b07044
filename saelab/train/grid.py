"""A grid of SAEs on one stream of rows, each in a run of its own; those of one shape are trained as one computation.

Settings that change shapes (`sae.n_latents`, another dictionary, the batch) make groups, which are trained one after
another, each from the same row on. A sweep that is stopped goes on in the group that it was in.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.core.components import Component, near_miss
from saelab.core.files import hint_on_full_disk, whole_folder, write_json
from saelab.core.log import read_training
from saelab.core.run import CONFIG_FILE, SOURCE_FILE, SWEEP, Run, members_of
from saelab.core.settings import Config, plain
from saelab.sae.autoencoder import CONFIG
from saelab.sae.scales import DataScale
from saelab.train.config import TrainConfig
from saelab.train.convergence import Convergence, at_full_rate
from saelab.train.job import Job, as_saved, check_origin
from saelab.train.loop import LoopConfig
from saelab.train.sweep import Sweep

OF_ALL = ("store", "live", "world", "downstream", "seed", "window_rows", "mesh")
"""Settings that make the rows, which all members share, and the processes that read them."""


@dataclass
class SweepConfig(Config):
    """What a sweep is a function of.

    Args:
        base: the settings that all members have.
        vary: for settings, named by dots, the values they take, e.g. {"sae.activation.k": [16, 32, 64]}; a loss is
            named by its class, as in sae.losses.AuxK.weight. Several settings make a grid.
    """

    beside = "base"
    base: TrainConfig
    vary: Mapping[str, Sequence[Any]]

    def members(self) -> dict[str, TrainConfig]:
        """The settings of every member, by its name: what varies, and its value.

        Raises:
            ValueError: if nothing varies, for a setting that there is not, a value that does not fit or comes twice.
        """
        if not self.vary:
            raise ValueError("nothing varies: give a setting its values, such as sae.activation.k=16,32,64")
        for path, values in self.vary.items():
            if path.partition(".")[0] in OF_ALL:
                raise ValueError(f"{path} cannot vary: the members of a sweep see the same rows, in the same order")
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise ValueError(f"{path} varies over a list of values, got {values!r}")
        choices = itertools.product(*([(path, value) for value in values] for path, values in self.vary.items()))
        base, members = as_saved(self.base), dict[str, TrainConfig]()
        for choice in choices:
            settings = base.settings()
            for path, value in choice:
                _set(settings, path, plain(value))
            name = "-".join(f"{path.rpartition('.')[2]}{_word(value)}" for path, value in choice)
            if name in members:
                raise ValueError(f"two members of the sweep are called {name}: a value is given twice")
            try:
                members[name] = TrainConfig.from_settings(settings)
            except ValueError as error:
                raise ValueError(f"the member {name} of the sweep does not fit: {error}") from error
        return members


def sweep_run(config: SweepConfig, out: str | Path) -> list[Run]:
    """Train as `saelab sweep` does: a run for each member, in the folder `out`, a new one or one of the same sweep.

    Raises:
        ValueError: for settings that do not fit, or a folder that holds something else.
    """
    out, members = Path(out), config.members()
    made = list(members.values())
    if (out / SWEEP).exists():
        _check_same(out, members)
        first = _check(made)
    else:
        with whole_folder(out) as folder:
            first = _check(made)
            first.trainer.prepare(first.source)  # reads rows, so that nothing is made in vain
            write_json(folder / SWEEP, {"members": list(members)})
            for name, own in members.items():
                Run.create(folder / name, own.settings(), {SOURCE_FILE: first.origin})
    runs = [Run.open(out / name) for name in members]
    _train(made, runs, first)
    return runs


def resume_sweep(folder: str | Path) -> list[Run]:
    """Go on with a sweep that was stopped, with its own settings.

    Raises:
        ValueError: for a folder that is no sweep, or data that changed since.
    """
    made, runs = _members_of(Path(folder))
    _train(made, runs, _check(made))
    return runs


def _check_same(folder: Path, members: dict[str, TrainConfig]) -> None:
    """ValueError unless a folder holds the sweep of these members, which then is gone on with."""
    made, runs = _members_of(folder)
    found = {run.folder.name: one.settings() for one, run in zip(made, runs, strict=True)}
    wanted = {name: one.settings() for name, one in members.items()}
    differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if differing:
        raise ValueError(
            f"{folder} holds a sweep with other settings, first of {differing[0]}: `saelab sweep --resume {folder}` "
            "resumes it; a new sweep needs another --out"
        )


def _members_of(folder: Path) -> tuple[list[TrainConfig], list[Run]]:
    if not (folder / SWEEP).exists():
        raise ValueError(f"{folder} is not a sweep: it has no {SWEEP}; `saelab sweep --out {folder}` makes one")
    members = members_of(folder)
    for member in members:
        if not (member / CONFIG_FILE).exists():
            why = f"it lacks {member.name}; remove it, begin anew"
            raise ValueError(f"{folder} was stopped while it was being made: {why}")
    runs = [Run.open(member) for member in members]
    return [TrainConfig.of_run(run) for run in runs], runs


def _check(made: list[TrainConfig]) -> Job:
    """The first member, after every other was made once, alone, to see that it can be: wide ones fill the memory."""
    first = Job(made[0])
    Sweep([first.trainer])
    for one in made[1:]:
        Sweep([Job(one, source_from=first).trainer])
    return first


def _shape(made: TrainConfig) -> str:
    """What SAEs that compute as one have in common, as text."""
    kinds = [type(part).__name__ for part in (made.sae.activation, *made.sae.losses)]
    dictionary = made.sae.dictionary.config() if made.sae.dictionary else None
    run = [getattr(made, key) for key in ("rows", "converge", "log_every", "save_every", "device")]
    scale = (made.sae.scale or DataScale()).config()
    return json.dumps([made.sae.n_latents, kinds, dictionary, scale, made.trainer.batch, made.trainer.bf16, run])


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
        jobs = [first if number == 0 else Job(made[number], source_from=first) for number in numbers]
        title = f"train {count}/{len(groups)}" if len(groups) > 1 else "train"
        _train_group(jobs, [runs[number] for number in numbers], title)
    print(f"{folder}: trained; `saelab measure {folder}/*/` compares them")


def _train_group(jobs: list[Job], runs: list[Run], title: str) -> None:
    made = jobs[0].made
    print(f"{len(jobs)} SAEs in one computation: {', '.join(run.folder.name for run in runs)}")
    for note in {note for job in jobs for note in job.notes()}:
        print(f"note: {note}")
    config = LoopConfig(made.log_every, made.save_every, made.tensorboard, True, jobs[0].criterion, title)
    with hint_on_full_disk(f"`saelab sweep --resume {runs[0].folder.parent}` resumes it"):
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


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    return type(value).__name__ if isinstance(value, Component) else str(value)


def _set(settings: dict[str, Any], path: str, value: Any) -> None:
    """Give a setting, named by dots, a value; a loss is named by its class, as in sae.losses.AuxK.weight."""
    place: Any = settings
    *steps, last = path.split(".")
    for step in steps:
        if isinstance(place, list):
            named = {part["class_path"].rpartition(".")[2]: part for part in place}
        else:
            named = place.get("init_args", {}) if "class_path" in place else place
        if step not in named or named[step] is None:
            raise ValueError(f"{path}: there is no {step} in these settings{near_miss(step, named)}")
        place = named[step]
    if isinstance(place, dict) and "class_path" in place:
        place = place.setdefault("init_args", {})
    if not isinstance(place, dict):
        raise ValueError(f"{path}: {last} is no setting of a {type(place).__name__}")
    place[last] = value  # whether there is such a setting is said when the settings are read
