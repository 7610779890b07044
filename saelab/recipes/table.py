"""The table of commands. Imports nothing heavy, because the overview is printed from it.

What a command does with the words after it is the function of its name in `saelab.recipes.commands`.
"""

from dataclasses import dataclass

GROUPS = ("make", "train", "measure", "compare", "explore", "share")
"""In the order of the overview."""
TRAINED = "--trainer.batch, --window_rows or --sae.n_latents"


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    group: str
    """One of GROUPS."""
    help: str
    """What it does, in one line."""
    shares_work: bool = False
    """Whether several processes share its work."""
    lower: str = "--tokens"
    """Options that its memory depends on."""


ROWS = (
    Command("harvest", "make", "write a model's activations into a store", lower="--seq_len"),
    Command("tasks", "make", "write labelled probing tasks about Python code into a file"),
    Command("quickstart", "train", "train and measure an SAE on the bundled model, and show its latents"),
    Command("train", "train", "train an SAE on a store, a live model or a synthetic world", True, TRAINED),
    Command("sweep", "train", "train a grid of SAEs on one pass over the rows", lower=TRAINED),
    Command("measure", "measure", "compute all metrics of SAEs and print one table"),
    Command("check", "measure", "say whether an SAE fits a model's rows at a site", lower="--rows"),
    Command("explain", "measure", "generate explanations with a language model and score them"),
    Command("figures", "measure", "draw measured scores and tables as HTML and SVG"),
    Command("bench", "measure", "time a training step, beside other libraries", lower="--n_latents or --batch"),
    Command("stitch", "compare", "find novel latents of larger SAEs and interpolate from one SAE to the next"),
    Command("meta", "compare", "train a meta-SAE on an SAE's decoder directions"),
    Command("match", "compare", "match the latents of one SAE with those of others"),
    Command("manifolds", "compare", "find clusters of close directions: manifolds, absorption, duplicates"),
    Command("scaling", "compare", "fit scaling laws, plan training, allocate capacity, diagnose manifolds"),
    Command("explore", "explore", "open runs in a local web application"),
    Command("show", "explore", "print the settings and scores of runs"),
    Command("published", "share", "list the SAEs that others have published, by model, site, width and L0"),
    Command("publish", "share", "put a run on the Hugging Face hub, with a model card"),
    Command("convert", "share", "convert SAEs of other libraries into runs, and runs into their files"),
)
COMMANDS = {row.name: row for row in ROWS}


def overview() -> str:
    """The commands by group, a line each."""
    lines = ["usage: saelab COMMAND [options]"]
    for group in GROUPS:
        lines += ["", f"{group}:", *(f"  {row.name:<12}{row.help}" for row in ROWS if row.group == group)]
    return "\n".join([*lines, "", "saelab COMMAND --help lists its options."])
