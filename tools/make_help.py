"""Write saelab/assets/help.json: the help of every command and the names of its options.

    python tools/make_help.py

Run it with the Python that requirements.lock is made for: the layout of a help text differs between versions.
"""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

from jsonargparse import ArgumentParser

from saelab.core.files import write_text
from saelab.recipes import commands
from saelab.recipes.table import COMMANDS

ACTIONS = ("fit", "plan", "allocate", "diagnose")
WIDTH = "100"


class Caught(Exception):
    """Carries a command's parser out of it."""


def parser_of(words: list[str]) -> ArgumentParser:
    """The parser that a command makes of its options."""

    def catch(parser: ArgumentParser, options: list[str]) -> None:
        raise Caught(parser)

    with mock.patch.object(commands, "parse", catch):
        try:
            getattr(commands, words[0])(words[1:])
        except Caught as caught:
            parser: ArgumentParser = caught.args[0]
            return parser
    raise AssertionError(f"{words} makes no parser")


def help_of_all() -> dict[str, dict[str, Any]]:
    """Help and options by command."""
    names = [name for name in COMMANDS if name != "scaling"] + [f"scaling {action}" for action in ACTIONS]
    found = {}
    with mock.patch.dict(os.environ, {"COLUMNS": WIDTH}):
        for name in names:
            parser = parser_of(name.split())
            options = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
            found[name] = {"help": parser.format_help().rstrip(), "options": sorted({*options, "--help"})}
    return found


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "saelab" / "assets" / "help.json"
    write_text(path, json.dumps(help_of_all(), indent=1, ensure_ascii=False) + "\n")
    print(path)
