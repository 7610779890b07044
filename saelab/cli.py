"""The command line: `saelab COMMAND [options]`.

Which commands there are, and how each ends. What they do stands in `saelab.recipes.commands`, which is imported for a
command only: the overview, the version and an unknown command are answered without torch.
"""

import os
import re
import sys

from saelab.core.components import near_miss

COMMANDS = {
    "quickstart": "the bundled model, the Python standard library: train, measure, show",
    "harvest": "write a model's activations into a store",
    "train": "train an SAE on a store or a live model",
    "sweep": "train SAEs that differ in settings, as one computation",
    "measure": "every metric of any number of SAEs, in one table",
    "tasks": "labelled tasks about Python, for probes, as a file",
    "explain": "a language model says what latents stand for, and is tried on it",
    "stitch": "what larger SAEs know that smaller ones do not; the way from one to the next",
    "meta": "what the directions of an SAE are made of: an SAE of directions",
    "match": "which latent of one SAE is which of another: seeds, layers, widths",
    "manifolds": "clusters of directions: tiles of a manifold, absorbed parents, duplicates",
    "figures": "draw what was measured of runs, as HTML and SVG",
    "convert": "SAEs of other libraries into runs, and ours into their files",
    "explore": "look at what SAEs learned, in a browser",
    "show": "print a run's config and scores",
    "bench": "how fast a training step is here, beside other libraries",
    "scaling": "fit laws to a ladder, plan with them, say where capacity goes",
}
SHARED = ("train",)
"""Commands whose work several processes share."""
TRAINED = "--trainer.batch, --window_rows or --sae.n_latents"
LOWER = {"train": TRAINED, "sweep": TRAINED, "harvest": "--seq_len", "bench": "--n_latents or --batch"}
"""Options that memory depends on, where they are not the tokens that are looked at."""


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
        _check_alone(words[0])
        from saelab.recipes.commands import HANDLERS

        HANDLERS[words[0]](words[1:])
    except (ValueError, OSError) as error:
        print(f"saelab: {_said(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except (MemoryError, RuntimeError) as error:
        if not (asked := _refused(error)):
            raise
        print(f"saelab: not enough memory for {asked}; lower {LOWER.get(words[0], '--tokens')}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(f"saelab: {stop or 'interrupted'}", file=sys.stderr)
        sys.exit(130)


def _check_alone(command: str) -> None:
    """ValueError where several processes would each do all of a command's work; only the first of them says so."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if command in SHARED or processes in ("", "0", "1"):
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(2)
    raise ValueError(
        f"`saelab {command}` does not share its work, and {processes} processes were started: run it in one, without "
        f"torchrun (several share the work of: {', '.join(SHARED)})"
    )


def _said(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _overview() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: saelab COMMAND [options]", "", *lines, "", "saelab COMMAND --help lists its options."])


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
