"""Options of commands: how they are parsed, and what is said of a wrong one.

Their types and help come from the signatures and docstrings of the functions and classes they belong to. A wrong
setting is one line that names it and the nearest right one. What is parsed is plain values, of which settings are made
(`saelab.core.settings`) as they are of a file.
"""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import saelab
from saelab.core.components import Component, near_miss
from saelab.core.read import parse_yaml, read_yaml
from saelab.core.run import FORMAT
from saelab.core.settings import component_kinds
from saelab.recipes.quick import near_option
from saelab.recipes.table import COMMANDS

CALL = re.compile(r"\[?\s*[A-Za-z_]\w*\(")
"""How a component, or a list of them, begins that is written as in Python: `TopK(k=8)`."""
HELD = ("--sae.", "--trainer.", "--world")
"""Beginnings of the options that take components."""


def parser_for(command: str) -> ArgumentParser:
    """The parser of a command, without options yet."""
    return ArgumentParser(
        prog=f"saelab {command}", description=COMMANDS[command].help, exit_on_error=False, allow_abbrev=False
    )


def add_train_options(parser: ArgumentParser) -> None:
    """The options of `saelab train`: the settings of a `TrainConfig`, explained where they are used."""
    from saelab.core.mesh import Mesh
    from saelab.sae.sae import SAE
    from saelab.train.config import TrainConfig
    from saelab.train.trainer import Trainer

    # A config may come from anyone: what it names is looked up among our own classes, never imported.
    known = ["saelab.sae", "saelab.models", "saelab.train", *(home for kind in _kinds() for home in kind.homes())]
    known += [f"saelab.{name}" for name in saelab.__all__]  # the package shows some of them itself
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=known)
    for kind in _kinds():
        kind.variants()  # imports every variant, so that each is an option by its name
    add_config(parser, "a YAML file of these options, such as a run's config.yaml")
    parser.add_argument("--out", type=str | None, help="the run's folder, new or empty")
    text = "resume this run, with its own settings, from its newest checkpoint"
    parser.add_argument("--resume", type=str | None, help=text)
    parser.add_class_arguments(TrainConfig, skip={"sae", "trainer", "mesh"}, as_group=False)
    parser.add_argument("--format", type=int, default=FORMAT, help="of the config file; written by saelab")
    parser.add_class_arguments(SAE, "sae", skip={"d_in", "d_out", "mesh"}, instantiate=False)
    parser.add_class_arguments(Trainer, "trainer", skip={"sae"}, instantiate=False)
    parser.add_class_arguments(Mesh, "mesh", instantiate=False)
    for action in parser._actions:
        action.required = False  # what has no default where it is used has one in a config
    defaults = TrainConfig().settings()
    groups = [(group, defaults[group]) for group in ("sae", "trainer", "mesh")]
    parser.set_defaults({f"{group}.{key}": value for group, own in groups for key, value in own.items()})


def add_config(parser: ArgumentParser, text: str) -> None:
    """The option that reads others from a file."""
    parser.add_argument("--config", action="config", help=text)


def settings_of(options: Namespace) -> dict[str, Any]:
    """Options as plain values, without those that say where results go.

    Raises:
        ValueError: if they are of a config that a newer saelab wrote, or whose format is no number.
    """
    found = options.as_dict()
    made_by = found.pop("format", FORMAT)
    if made_by is None:  # the parser takes a null for any option
        raise ValueError(f"the config's format is null; it is {FORMAT} where saelab wrote the file")
    if made_by > FORMAT:
        raise ValueError(f"the config has format {made_by}, newer than {FORMAT}; update saelab")
    return {key: value for key, value in found.items() if key not in ("out", "resume")}


def add_vary(parser: ArgumentParser) -> None:
    """The option that says what varies between the members of a sweep."""
    text = "a setting and its values, such as sae.activation.k=16,32,64; several make a grid"
    parser.add_argument("--vary", type=list[str] | dict[str, list[Any]], default=[], help=text)


def varied(vary: list[str] | dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Settings and their values; from "sae.activation.k=16,32", or as a config has them already."""
    if isinstance(vary, dict):
        return vary
    found = dict[str, list[Any]]()
    for text in vary:
        path, _, values = text.partition("=")
        if not path or not values:
            raise ValueError(f"--vary takes SETTING=VALUE,VALUE,..., such as sae.activation.k=16,32; got '{text}'")
        found[path] = [parse_yaml(value, f"--vary {path}", Any, "mend that value") for value in values.split(",")]
    return found


def parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse options; ValueError of one line that names the wrong one, and the near miss if there is one."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--config" or word.startswith("--config="):
            _check_config(Path(word.partition("=")[2] or following))
    try:
        options = parser.parse_args(_with_components(words))
    except Exception as error:  # jsonargparse raises its own and argparse's errors
        raise ValueError(explained(parser, str(error))) from error
    options.pop("config", None)
    return options


def _with_components(words: list[str]) -> list[str]:
    """The words, with components that are written as in Python, `TopK(k=8)`, in the parser's own form."""
    found, option = list[str](), ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (option, "", word)
        if name.startswith(HELD) and CALL.match(value):
            word = name * bool(equals) + equals + _component(value, name.removesuffix("+"))
        option = word if word.startswith("--") else ""
        found.append(word)
    return found


def _component(text: str, option: str) -> str:
    """What a component, or a list of them, stands for in a config, as JSON; ValueError that names the option."""
    known = {name: variant for kind in _kinds() for name, variant in kind.variants().items()}
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        parts = tree.elts if isinstance(tree, ast.List) else [tree]
        found = [_called(part, known) for part in parts]
        return json.dumps(found if isinstance(tree, ast.List) else found[0])
    except (SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{option}: {text}: {str(error).partition(' (<')[0]}") from None


def _called(tree: ast.expr, known: dict[str, type[Component]]) -> dict[str, Any]:
    name = tree.func if isinstance(tree, ast.Call) else tree
    if not isinstance(name, ast.Name):
        raise ValueError("expected a component such as TopK(k=8)")
    if name.id not in known:
        raise ValueError(f"unknown component '{name.id}'{near_miss(name.id, known)}")
    given: list[Any] = [ast.literal_eval(value) for value in tree.args] if isinstance(tree, ast.Call) else []
    named = {key.arg or "**": ast.literal_eval(key.value) for key in getattr(tree, "keywords", ())}
    for key in named:
        if key not in known[name.id].options():
            raise ValueError(f"unknown option '{key}' of {name.id}{near_miss(key, known[name.id].options())}")
    arguments = inspect.signature(known[name.id]).bind_partial(*given, **named).arguments
    return {"class_path": name.id, "init_args": dict(arguments)}


def _check_config(path: Path) -> None:
    """ValueError that names a config file which cannot be read or is no table of settings."""
    read_yaml(path, remedy="mend it, or leave --config out")


def _kinds() -> list[type[Component]]:
    from saelab.train.config import TrainConfig

    return list(component_kinds(TrainConfig))


def explained(parser: ArgumentParser, message: str) -> str:
    """A parser's complaint as one line, with the near miss."""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        option = found[1].partition("=")[0]
        if not option.startswith("-"):
            return f"'{option}' is one word too many, or belongs to no option"
        return f"unknown option {option}{near_option(option, _spelled(parser))}"
    key = re.search(r'key "([^"]+)"', message)
    message = re.sub(r"\n\s+- Expected a <class 'NoneType'>", "", message)  # an option that may also be left out
    if found := re.search(
        r"class_path '([^']+)':\s+(the following arguments are required: .+|'NoneType' object.+)", message
    ):
        needs = found[2].rpartition("required: ")[2] if "required" in found[2] else "a table of init_args, not null"
        return f"--{key[1] if key else ''}: {found[1].rpartition('.')[2]} needs {needs}"
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
