"""The command line: `saelab COMMAND [options]`.

Options, their types and their help come from the signatures and docstrings of the functions and classes they belong
to. A wrong setting is one line that names it and the nearest right one, and exit status 2.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from saelab.core.components import Component, near_miss

Command = Callable[[list[str]], None]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 1 (failed), 2 (wrong input) or 130 (interrupted)."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    if words[0] == "--version":
        import saelab

        print(f"saelab {saelab.__version__}")
        return
    try:
        if words[0] not in COMMANDS:
            raise ValueError(f"unknown command '{words[0]}'{near_miss(words[0], COMMANDS)}")
        COMMANDS[words[0]][1](words[1:])
    except (ValueError, OSError) as error:
        print(f"saelab: {_said(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt as stop:
        print(f"saelab: {stop or 'interrupted'}", file=sys.stderr)
        sys.exit(130)


def _said(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _overview() -> str:
    lines = [f"  {name:<12}{text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(["usage: saelab COMMAND [options]", "", *lines, "", "saelab COMMAND --help lists its options."])


def _quickstart(words: list[str]) -> None:
    from saelab.recipes.quickstart import quickstart

    parser = _parser("quickstart")
    parser.add_function_arguments(quickstart)
    quickstart(**vars(parse(parser, words)))


def _harvest(words: list[str]) -> None:
    from saelab.models.subject import Subject
    from saelab.recipes.harvest import harvest_to

    parser = _parser("harvest")
    parser.add_function_arguments(harvest_to, skip={"subject"})
    parser.add_class_arguments(Subject)
    options = vars(parse(parser, words))
    subject = Subject(**{key: options.pop(key) for key in Subject.__dataclass_fields__})
    harvest_to(subject=subject, **options)


def _train(words: list[str]) -> None:
    from saelab.recipes.train import add_options, train_from_options

    parser = _parser("train")
    add_options(parser)
    others = [word for word in words if word.startswith("-") and not word.startswith("--resume")]
    if others and any(word.startswith("--resume") for word in words):
        raise ValueError(f"--resume takes every setting from the run; leave out {', '.join(others)}")
    train_from_options(parser, parse(parser, words))


def _sweep(words: list[str]) -> None:
    from saelab.recipes.sweep import add_sweep_options, sweep_from_options

    parser = _parser("sweep")
    add_sweep_options(parser)
    sweep_from_options(parser, parse(parser, words))


def _measure(words: list[str]) -> None:
    from saelab.recipes.measure import Suite, measure_runs

    parser = _parser("measure")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs, or of saved SAEs")
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


def _tasks(words: list[str]) -> None:
    from saelab.recipes.tasks import make_tasks

    parser = _parser("tasks")
    parser.add_function_arguments(make_tasks)
    make_tasks(**vars(parse(parser, words)))


def _scaling(words: list[str]) -> None:
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
    parser = _parser("scaling")
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


def _explain(words: list[str]) -> None:
    from saelab.recipes.explain import Asking, explain_run

    parser = _parser("explain")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_function_arguments(explain_run, skip={"run", "asking"})
    parser.add_class_arguments(Asking)
    options = vars(parse(parser, words))
    asking = Asking(**{key: options.pop(key) for key in Asking.__dataclass_fields__})
    explain_run(asking=asking, **options)


def _stitch(words: list[str]) -> None:
    from saelab.analysis.stitch import StitchSettings
    from saelab.recipes.stitch import stitch_runs

    _compare(
        "stitch", stitch_runs, StitchSettings, words, "folders of runs or saved SAEs of one site, from small to large"
    )


def _meta(words: list[str]) -> None:
    from saelab.analysis.meta import MetaSettings
    from saelab.recipes.meta import meta_of

    _compare("meta", meta_of, MetaSettings, words, "folder of a run or a saved SAE")


def _match(words: list[str]) -> None:
    from saelab.recipes.match import MatchSettings, match_runs

    _compare(
        "match", match_runs, MatchSettings, words, "folders of runs or saved SAEs; the first is matched with the others"
    )


def _manifolds(words: list[str]) -> None:
    from saelab.analysis.manifolds import ManifoldSettings
    from saelab.recipes.manifolds import manifolds_of

    _compare("manifolds", manifolds_of, ManifoldSettings, words, "folder of a run or a saved SAE")


def _compare(command: str, function: Callable[..., None], settings: Any, words: list[str], runs: str) -> None:
    """A command on SAEs that are named first; the settings of two dataclasses are options of their own."""
    from saelab.recipes.compared import Data

    several = "runs" in inspect.signature(function).parameters
    parser = _parser(command)
    parser.add_argument("runs" if several else "run", nargs="+" if several else None, type=str, help=runs)
    if "against" in inspect.signature(function).parameters:
        parser.add_argument("--against", nargs="+", type=str, help="other runs to compare meta-latents with")
    parser.add_function_arguments(function, skip={"run", "runs", "settings", "data", "against"})
    parser.add_class_arguments(settings)
    parser.add_class_arguments(Data)
    options = vars(parser.instantiate(parse(parser, words)))
    made = {
        name: kind(**{key: options.pop(key) for key in kind.__dataclass_fields__})
        for name, kind in (("settings", settings), ("data", Data))
    }
    function(**options, **made)


def _figures(words: list[str]) -> None:
    from saelab.recipes.figures import draw_runs

    parser = _parser("figures")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs that were measured")
    parser.add_function_arguments(draw_runs, skip={"runs"})
    draw_runs(**vars(parse(parser, words)))


def _convert(words: list[str]) -> None:
    from saelab.recipes.convert import convert

    parser = _parser("convert")
    parser.add_argument("path", type=str, help="folder or file that another library wrote, or a run of saelab")
    parser.add_argument("out", type=str, help="folder for what it becomes; must not exist")
    parser.add_function_arguments(convert, skip={"path", "out"})
    convert(**vars(parse(parser, words)))


def _explore(words: list[str]) -> None:
    from saelab.recipes.explore import explore

    # In a process that has trained, only components may be named; here it is the kinds of export.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["saelab.recipes.explore"])
    parser = _parser("explore")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs, of saved SAEs, and of results")
    parser.add_function_arguments(explore, skip={"runs"})
    made = parser.instantiate(parse(parser, words))
    explore(**vars(made))


def _bench(words: list[str]) -> None:
    from saelab.recipes.bench import bench

    parser = _parser("bench")
    parser.add_argument("--only", nargs="+", type=str, help="names of contestants, as they stand in the table")
    parser.add_function_arguments(bench, skip={"only"})
    bench(**vars(parse(parser, words)))


def _show(words: list[str]) -> None:
    from saelab.recipes.show import show

    parser = _parser("show")
    parser.add_argument("runs", nargs="+", type=str, help="folders of runs")
    show(**vars(parse(parser, words)))


COMMANDS: dict[str, tuple[str, Command]] = {
    "quickstart": ("the bundled model, the Python standard library: train, measure, show", _quickstart),
    "harvest": ("write a model's activations into a store", _harvest),
    "train": ("train an SAE on a store or a live model", _train),
    "sweep": ("train SAEs that differ in settings, as one computation", _sweep),
    "measure": ("every metric of any number of SAEs, in one table", _measure),
    "tasks": ("labelled tasks about Python, for probes, as a file", _tasks),
    "explain": ("a language model says what latents stand for, and is tried on it", _explain),
    "stitch": ("what larger SAEs know that smaller ones do not; the way from one to the next", _stitch),
    "meta": ("what the directions of an SAE are made of: an SAE of directions", _meta),
    "match": ("which latent of one SAE is which of another: seeds, layers, widths", _match),
    "manifolds": ("clusters of directions: tiles of a manifold, absorbed parents, duplicates", _manifolds),
    "figures": ("draw what was measured of runs, as HTML and SVG", _figures),
    "convert": ("SAEs of other libraries into runs, and ours into their files", _convert),
    "explore": ("look at what SAEs learned, in a browser", _explore),
    "show": ("print a run's config and scores", _show),
    "bench": ("how fast a training step is here, beside other libraries", _bench),
    "scaling": ("fit laws to a ladder, plan with them, say where capacity goes", _scaling),
}


def _parser(command: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"saelab {command}", description=COMMANDS[command][0], exit_on_error=False, allow_abbrev=False
    )


def parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse options; ValueError of one line that names the wrong one, and the near miss if there is one."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--config" or word.startswith("--config="):
            _check_config(Path(word.partition("=")[2] or following))
    try:
        options = parser.parse_args(words)
    except Exception as error:  # jsonargparse raises its own and argparse's errors
        raise ValueError(explained(parser, str(error))) from error
    options.pop("config", None)
    return options


def _check_config(path: Path) -> None:
    """ValueError that names a config file which cannot be read or is no table of settings."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"the config {path} is not a table of settings but a {type(config).__name__}")


def _kinds() -> list[type[Component]]:
    from saelab.data.synthetic.world import World
    from saelab.sae.base import Activation, Dictionary, Loss
    from saelab.train.algorithm import Algorithm
    from saelab.train.optimizer import Optimizer
    from saelab.train.ramp import Ramp

    return [Activation, Dictionary, Loss, Algorithm, Optimizer, Ramp, World]


def explained(parser: ArgumentParser, message: str) -> str:
    """A parser's complaint as one line, with the near miss."""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        option = found[1].partition("=")[0]
        if not option.startswith("-"):
            return f"'{option}' is one word too many, or belongs to no option"
        return f"unknown option {option}{_near_option(option, _spelled(parser))}"
    key = re.search(r'key "([^"]+)"', message)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        name = found[1].rstrip(".,")
        kind = next((kind for kind in _kinds() if key and kind.__name__.lower() in key[1]), None)
        known_names = kind.variants() if kind else {name: kind for kind in _kinds() for name in kind.variants()}
        return f"--{key[1] if key else ''}: unknown component '{name}'{near_miss(name, known_names)}"
    if found := re.search(r"Importing '([^']+)' is not allowed", message):
        known_names = {name: kind for kind in _kinds() for name in kind.variants()}
        return f"unknown component '{found[1]}'{near_miss(found[1], known_names)}"
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        path = re.search(r"class_path '([^']+)'", message)
        variants = {v.__name__: v for kind in _kinds() for v in kind.variants().values()}
        variant = variants.get(path[1].rsplit(".", 1)[-1]) if path else None
        if not variant:
            return f"unknown option '{found[1]}' in the config{near_miss(found[1], _top_level(parser))}"
        return f"--{key[1] if key else ''}: unknown option '{found[1]}'{near_miss(found[1], variant.options())}"
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        own = [name.removeprefix(f"--{found[1]}.") for name in _spelled(parser) if name.startswith(f"--{found[1]}.")]
        return f"unknown option '{found[2]}' of {found[1]}{near_miss(found[2], own)}"
    keys = re.findall(r'[Kk]ey "([^"]+)"', message)
    if found := re.search(r"Expected an? (.+)", message):
        wanted = re.sub(r"<class '([^']+)'>", r"\1", found[1])
        return f"--{'.'.join(keys)}: expected {wanted}"
    return " ".join(dict.fromkeys(line.strip() for line in message.splitlines() if line.strip()))


def _spelled(parser: ArgumentParser) -> list[str]:
    """Every option of a parser as it is written."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def _top_level(parser: ArgumentParser) -> set[str]:
    return {name.removeprefix("--").partition(".")[0] for name in _spelled(parser)}


def _near_option(option: str, known: list[str]) -> str:
    # First the end of a dotted name: `--lr` is meant for `--trainer.lr`.
    close = [name for name in known if name.rsplit(".", 1)[-1] == option.lstrip("-")][:1]
    close = close or difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "; --help lists the options"
