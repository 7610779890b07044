"""Help and unknown options of a command, answered without importing what the command needs (torch takes seconds).

The help texts and the names of options are in assets/help.json, which `python tools/make_help.py` writes from the
commands themselves; a test fails when it is stale. Where plug-ins are installed the commands are asked, as plug-ins add
options.
"""

import difflib
import importlib.metadata
from pathlib import Path
from typing import Any

from saelab.core.read import read_json

FILE = Path(__file__).parents[1] / "assets" / "help.json"
PLUG_INS = (
    "saelab.sae.activations", "saelab.sae.dictionaries", "saelab.sae.losses", "saelab.train.optimizers",
    "saelab.train.algorithms", "saelab.data.synthetic", "saelab.metrics", "saelab.scaling.laws",
)  # fmt: skip
"""Groups of entry points."""


def answer(words: list[str]) -> str | None:
    """The help that is asked for; None if the command has to be run.

    Raises:
        ValueError: for an option that the command does not have, with the near miss.
    """
    known = _known(words)
    if known is None:
        return None
    rest = words[len(known["command"].split()) :]
    if rest in (["--help"], ["-h"]):
        return str(known["help"])
    for word in rest:
        option = word.partition("=")[0].removesuffix("+")
        if option.startswith("--") and len(option) > 2 and not _is_known(option, known["options"]):
            raise ValueError(f"unknown option {option}{near_option(option, known['options'])}")
    return None


def _known(words: list[str]) -> dict[str, Any] | None:
    """What is kept of a command; None where it is not, or may not be all."""
    if any(importlib.metadata.entry_points(group=group) for group in PLUG_INS) or not FILE.exists():
        return None
    commands = read_json(FILE, {str: {"help": str, "options": [str]}}, remedy="install saelab again")
    name = " ".join(words[:2]) if words[0] == "scaling" else words[0]
    return {"command": name} | commands[name] if name in commands else None


def _is_known(option: str, options: list[str]) -> bool:
    if option in options:
        return True
    above = max((name for name in options if option.startswith(f"{name}.")), key=len, default="")
    # What stands below a component is for the parser to judge; what is in a group is listed.
    inside = [name for name in options if name.startswith(f"{above}.") and name != f"{above}.help"]
    return bool(above) and not inside


def near_option(option: str, known: list[str]) -> str:
    """The words "; did you mean --trainer.lr?" for an option close to a known one."""
    # First the end of a dotted name: `--lr` is meant for `--trainer.lr`.
    close = [name for name in known if name.rsplit(".", 1)[-1] == option.lstrip("-")][:1]
    close = close or difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "; --help lists the options"
