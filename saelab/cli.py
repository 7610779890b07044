"""The command line: `saelab COMMAND [options]`.

How a command ends. Which there are stands in `saelab.recipes.table`, what they do in `saelab.recipes.commands`, which
is imported for a command only: the overview, the version and an unknown command are answered without torch.
"""

import os
import re
import sys

from saelab.core.components import near_miss
from saelab.recipes.quick import answer
from saelab.recipes.table import COMMANDS, overview


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 1 (failed), 2 (wrong input) or 130 (interrupted)."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] == "--version":
        import saelab

        print(f"saelab {saelab.__version__}")
        return
    try:
        if words[0] not in COMMANDS:
            raise ValueError(f"unknown command '{words[0]}'{near_miss(words[0], COMMANDS)}")
        _check_alone(words[0])
        if (text := answer(words)) is not None:
            print(text)
            return
        from saelab.recipes import commands

        getattr(commands, words[0])(words[1:])
    except (ValueError, OSError) as error:
        print(f"saelab: {_said(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except (MemoryError, RuntimeError) as error:
        if not (asked := _refused(error)):
            raise
        print(f"saelab: not enough memory for {asked}; lower {COMMANDS[words[0]].lower}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(f"saelab: {stop or 'interrupted'}", file=sys.stderr)
        sys.exit(130)


def _check_alone(command: str) -> None:
    """ValueError where several processes would each do all of a command's work; only the first of them says so."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if COMMANDS[command].shares_work or processes in ("", "0", "1"):
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(2)
    sharing = [name for name, row in COMMANDS.items() if row.shares_work]
    raise ValueError(
        f"`saelab {command}` runs in one process, and {processes} were started: run it without "
        f"torchrun (several share the work of: {', '.join(sharing)})"
    )


def _said(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _refused(error: MemoryError | RuntimeError) -> str | None:
    """What an allocator refused, in words; None for any other error."""
    text = " ".join(str(error).split())
    found = re.search(r"(?:tried to|Tried to|Unable to) allocate ([\d.]+ ?\w*)", text)
    if not (found or isinstance(error, MemoryError) or "out of memory" in text):
        return None
    asked = found[1] if found else ""
    if count := re.fullmatch(r"(\d+) bytes", asked):
        asked = f"{int(count[1]) / 1e9:,.3g} GB"
    return f"{asked} more" if asked else "more"
