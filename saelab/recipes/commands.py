"""What the command line does with the words after a command: an option for every parameter of what it calls.

Imported for one command at a time, because it takes as long as torch does. The commands and their help lines are
listed in `saelab.recipes.table`.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

from jsonargparse import set_parsing_settings

from saelab.core.components import near_miss
from saelab.recipes.options import add_config, add_train_options, add_vary, parse, parser_for, settings_of, varied


def quickstart(words: list[str]) -> None:
    from saelab.recipes.quickstart import quickstart

    parser = parser_for("quickstart")
    parser.add_function_arguments(quickstart)
    quickstart(**vars(parse(parser, words)))


def harvest(words: list[str]) -> None:
    from saelab.models.harvest_config import HarvestConfig
    from saelab.models.subject import Subject
    from saelab.recipes.harvest import harvest_to

    parser = parser_for("harvest")
    add_config(parser, "a YAML file of these options")
    parser.add_argument("--out", type=str, required=True, help="the store's folder")
    parser.add_class_arguments(HarvestConfig, skip={"subject"}, as_group=False)
    parser.add_class_arguments(Subject)
    options = parse(parser, words)
    harvest_to(options.out, HarvestConfig.from_settings(settings_of(options)))


def train(words: list[str]) -> None:
    from saelab.train.config import TrainConfig
    from saelab.train.job import resume_run, train_run

    parser = parser_for("train")
    add_train_options(parser)
    others = [word for word in words if word.startswith("-") and not word.startswith("--resume")]
    if others and any(word.startswith("--resume") for word in words):
        raise ValueError(f"--resume takes every setting from the run; leave out {', '.join(others)}")
    options = parse(parser, words)
    settings = settings_of(options)
    if options.resume:
        resume_run(options.resume)
        return
    if not options.out:
        raise ValueError("--out is missing: the folder for the new run (or --resume RUN to resume one)")
    train_run(TrainConfig.from_settings(settings), options.out)


def sweep(words: list[str]) -> None:
    from saelab.train.grid import SweepConfig, resume_sweep, sweep_run

    parser = parser_for("sweep")
    add_train_options(parser)
    add_vary(parser)
    options = parse(parser, _bracketed(words, ["--vary"]))
    settings = settings_of(options)
    if options.resume:
        resume_sweep(options.resume)
        return
    if not options.out:
        raise ValueError("--out is missing: the folder for the sweep's runs (or --resume DIR to resume one)")
    if not options.vary:
        raise ValueError("--vary is missing: which setting takes which values, e.g. --vary sae.activation.k=16,32,64")
    sweep_run(SweepConfig.from_settings(settings | {"vary": varied(options.vary)}), options.out)


def measure(words: list[str]) -> None:
    from saelab.recipes.measure import Suite, measure_runs

    parser = parser_for("measure")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs, sweeps or saved SAEs")
    words_each = {
        "metrics": "class names of the metrics; `default` stands for those that run if none are named",
        "options": "settings of metrics, METRIC.SETTING=VALUE",
        "tasks": "files of labelled tasks; `python`, the default for the bundled model, makes them from the library",
    }
    for name, text in words_each.items():
        parser.add_argument(f"--{name}", nargs="+", type=str, help=text)
    parser.add_function_arguments(measure_runs, skip={"runs", "suite"})
    made = vars(parser.instantiate(parse(parser, words)))
    measure_runs(suite=Suite(**{name: made.pop(name) for name in words_each}), **made)


def check(words: list[str]) -> None:
    from saelab.recipes.check import check_sae

    parser = parser_for("check")
    parser.add_argument("sae", type=str, help="folder or name of a run or a saved SAE")
    parser.add_function_arguments(check_sae, skip={"sae"})
    check_sae(**vars(parse(parser, words)))


def tasks(words: list[str]) -> None:
    from saelab.recipes.tasks import make_tasks

    parser = parser_for("tasks")
    parser.add_function_arguments(make_tasks)
    make_tasks(**vars(parse(parser, words)))


def scaling(words: list[str]) -> None:
    from saelab.recipes import capacity, scaling

    actions: dict[str, tuple[Callable[..., None], dict[str, str]]] = {
        "fit": (scaling.fit_laws, {"runs": "folders of sweeps or runs, or a cells.parquet"}),
        "plan": (scaling.plan, {"folder": "of `saelab scaling fit`"}),
        "allocate": (capacity.allocate, {}),
        "diagnose": (capacity.diagnose, {"runs": "runs, sweeps or saved SAEs of one ladder; the widest is diagnosed"}),
    }
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<10}{str(action.__doc__).partition(chr(10))[0]}" for name, (action, _) in actions.items()]
        print("\n".join(["usage: saelab scaling ACTION [options]", "", *lines]))
        return
    if words[0] not in actions:
        raise ValueError(f"saelab scaling: unknown action '{words[0]}'{near_miss(words[0], actions)}")
    action, listed = actions[words[0]]
    parser = parser_for("scaling")
    parser.prog = f"saelab scaling {words[0]}"
    for name, text in listed.items():
        parser.add_argument(name, nargs="+" if name == "runs" else None, type=str, help=text)
    parser.add_function_arguments(action, skip=set(listed), as_positional=False)
    several = [f"--{name}" for name, kind in get_type_hints(action).items() if "list" in str(kind)]
    action(**vars(parse(parser, _bracketed(words[1:], several))))


def _bracketed(words: list[str], options: list[str]) -> list[str]:
    """`--k 16 32` as `--k [16, 32]`, for these options; what has brackets already stays."""
    found, at = list[str](), 0
    while at < len(words):
        option, _, first = words[at].partition("=")
        at += 1
        if option not in options:
            found.append(words[at - 1])
            continue
        values = [first] if first else []
        while not first and at < len(words) and not words[at].startswith("--"):
            values.append(words[at])
            at += 1
            if values[0].startswith("["):
                break
        inside = ", ".join(value if re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", value) else repr(value) for value in values)
        found += [option, *(values if not values or values[0].startswith("[") else [f"[{inside}]"])]
    return found


def explain(words: list[str]) -> None:
    from saelab.recipes.explain import ExplainerSettings, explain_run

    parser = parser_for("explain")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_function_arguments(explain_run, skip={"run", "asking"})
    parser.add_class_arguments(ExplainerSettings)
    options = vars(parse(parser, words))
    asking = ExplainerSettings(**{key: options.pop(key) for key in ExplainerSettings.__dataclass_fields__})
    explain_run(asking=asking, **options)


def stitch(words: list[str]) -> None:
    from saelab.analysis.stitch import StitchSettings
    from saelab.recipes.stitch import stitch_runs

    _compare(
        "stitch", stitch_runs, StitchSettings, words, "folders of runs or saved SAEs of one site, from small to large"
    )


def meta(words: list[str]) -> None:
    from saelab.analysis.meta import MetaSettings
    from saelab.recipes.meta import meta_of

    _compare("meta", meta_of, MetaSettings, words, "folder of a run or a saved SAE")


def match(words: list[str]) -> None:
    from saelab.recipes.match import MatchSettings, match_runs

    _compare(
        "match", match_runs, MatchSettings, words, "folders of runs or saved SAEs; the first is matched with the others"
    )


def manifolds(words: list[str]) -> None:
    from saelab.analysis.manifolds import ManifoldSettings
    from saelab.recipes.manifolds import manifolds_of

    _compare("manifolds", manifolds_of, ManifoldSettings, words, "folder of a run or a saved SAE")


def _compare(command: str, function: Callable[..., None], settings: Any, words: list[str], runs: str) -> None:
    """A command on SAEs that are named first; the settings of two dataclasses are options of their own."""
    from saelab.recipes.compared import Data

    several = "runs" in inspect.signature(function).parameters
    parser = parser_for(command)
    parser.add_argument("runs" if several else "run", nargs="+" if several else None, type=str, help=runs)
    if "against" in inspect.signature(function).parameters:
        parser.add_argument("--against", nargs="+", type=str, help="other runs to compare meta-latents with latents of")
    parser.add_function_arguments(function, skip={"run", "runs", "settings", "data", "against"})
    parser.add_class_arguments(settings)
    parser.add_class_arguments(Data)
    options = vars(parser.instantiate(parse(parser, words)))
    made = {
        name: kind(**{key: options.pop(key) for key in kind.__dataclass_fields__})
        for name, kind in (("settings", settings), ("data", Data))
    }
    function(**options, **made)


def figures(words: list[str]) -> None:
    from saelab.recipes.figures import draw_runs

    parser = parser_for("figures")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs that were measured")
    parser.add_function_arguments(draw_runs, skip={"runs"})
    draw_runs(**vars(parse(parser, words)))


def convert(words: list[str]) -> None:
    from saelab.recipes.convert import convert

    parser = parser_for("convert")
    parser.add_argument("path", type=str, help="folder or file that another library wrote, or a run of saelab")
    parser.add_argument("out", type=str, help="output folder; must not exist")
    only = "of a folder of several SAEs, which: names as the complaint lists them, * standing for anything; one becomes"
    parser.add_argument("--only", nargs="+", type=str, default=[], help=f"{only} OUT, several a folder each in it")
    parts = "encoder, decoder, encoder_bias, bias (subtracted before encoding too) or output_bias, threshold, skip"
    what = f"what the tensors of a file of no known library are, WORD=NAME each: {parts}"
    parser.add_argument("--map", nargs="+", type=str, default=[], help=f"{what}; .T behind a name turns it")
    parser.add_function_arguments(convert, skip={"path", "out", "only", "map"})
    convert(**vars(parse(parser, words)))


def published(words: list[str]) -> None:
    from saelab.recipes.published import list_published

    parser = parser_for("published")
    parser.add_argument("words", nargs="*", type=str, help="words of the name, the model or the site")
    parser.add_function_arguments(list_published, skip={"words"})
    list_published(**vars(parse(parser, words)))


def publish(words: list[str]) -> None:
    from saelab.recipes.publish import publish_run

    parser = parser_for("publish")
    parser.add_argument("run", type=str, help="folder of a run or a saved SAE")
    parser.add_argument("to", type=str, help="repository on the hub, org/name; it is made if it is not there")
    parser.add_argument("--also", nargs="+", type=str, help="libraries to write files for as well, such as sae_lens")
    parser.add_function_arguments(publish_run, skip={"run", "to", "also"})
    publish_run(**vars(parse(parser, words)))


def explore(words: list[str]) -> None:
    from saelab.recipes.explore import explore

    # In a process that has trained, only components may be named; here it is the kinds of export.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["saelab.recipes.explore"])
    parser = parser_for("explore")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs, of saved SAEs, and of results")
    parser.add_function_arguments(explore, skip={"runs"})
    made = parser.instantiate(parse(parser, words))
    explore(**vars(made))


def bench(words: list[str]) -> None:
    from saelab.recipes.bench import bench

    parser = parser_for("bench")
    parser.add_argument("--only", nargs="+", type=str, help="names of contestants, as in the table")
    parser.add_function_arguments(bench, skip={"only"})
    bench(**vars(parse(parser, words)))


def show(words: list[str]) -> None:
    from saelab.recipes.show import show

    parser = parser_for("show")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs")
    show(**vars(parse(parser, words)))
