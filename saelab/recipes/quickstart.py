"""`saelab quickstart`: a real sparse autoencoder on a real language model, from nothing, in a few minutes.

The bundled model reads the Python standard library of this machine; its residual stream after layer 3 is harvested into
a store; a TopK SAE is trained on it, measured on files neither has seen, and saved.
"""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saelab.core.files import write_json
from saelab.core.log import read_training
from saelab.core.read import Row, read_json
from saelab.core.run import CONFIG_FILE, Run
from saelab.metrics import TextEvaluation, measure
from saelab.metrics.keep import keep_scores
from saelab.models.harvest import blocks_of, harvest
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.models.text import Document
from saelab.models.tokens import pack
from saelab.recipes.python_readings import TokenizedText, choose, contexts
from saelab.recipes.score_table import value_and_interval
from saelab.sae.activations.topk import TopK
from saelab.sae.files import load_sae
from saelab.sae.losses.auxk import AuxK
from saelab.sae.sae import SAE
from saelab.tasks.python_tasks import python_windows
from saelab.train.config import SAEConfig, TrainConfig, TrainerConfig
from saelab.train.job import resume_run

SUBJECT = Subject(model="pycode-7m", site="model.layers.3", text="stdlib", piece=2000, seq_len=256)
SHOWN = ("Density", "DeadLatents", "Downstream", "L0", "NearestCosine", "Reconstruction")
"""What is measured at once; `saelab measure` does the whole suite."""
READING = {"latent": int, "label": str, "f1": float, "density": float, "contexts": [Row(str, str, str)]}
READINGS = {"latents": [READING]}
READ_FILES = 60
"""Files whose windows the latents shown are chosen on: about 60,000 tokens."""


def quickstart(
    out: str = "saelab-quickstart",
    tokens: int = 800_000,
    rows: int = 1_600_000,
    n_latents: int = 4096,
    k: int = 32,
    measure_tokens: int = 16_384,
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on the bundled model, measure it and show what some latents respond to.

    The same command resumes an interrupted quickstart, and prints the results of a finished one.

    Args:
        out: the run's folder.
        tokens: tokens of the standard library to harvest.
        rows: rows to train on; more than `tokens` sees some more than once.
        n_latents: latents of the SAE.
        k: latents active per token.
        measure_tokens: held-out tokens to measure on.
        seed: of weights and order.
    """
    folder = Path(out)
    config = TrainConfig(
        store=str((folder / "acts").resolve()),
        rows=rows,
        seed=seed,
        # Dead means silent for an eighth of the run: ten million rows, the usual horizon, is longer than all of it.
        sae=SAEConfig(n_latents, TopK(k), [AuxK(dead_after=max(1, rows // 8))], seed=seed),
        trainer=TrainerConfig(lr=4e-3, batch=1024, decay=0.7),
    )
    run = _run(folder, config, {"tokens": tokens, "measure_tokens": measure_tokens})
    if not run.measured_file.exists():  # the last that is written
        _make(run, tokens, measure_tokens)
    _show(run, Console())


def _run(folder: Path, config: TrainConfig, amounts: dict[str, int]) -> Run:
    """A new run, or the one in the folder if it has the same settings."""
    own = folder / "quickstart.json"
    if not (folder / CONFIG_FILE).exists():
        return Run.create(folder, config.settings(), {own.name: amounts})
    run = Run.open(folder)
    if TrainConfig.of_run(run).settings() != config.settings() or (own.exists() and read_json(own) != amounts):
        raise ValueError(f"{folder} holds a run with other settings; choose another --out, or remove that folder")
    return run


def _make(run: Run, tokens: int, measure_tokens: int) -> None:
    """Harvest, train, measure; each part goes on from where it was interrupted."""
    model = SUBJECT.language_model()
    store = harvest(SUBJECT, run.folder / "acts", tokens, model=model)
    write_json(run.source_file, store.manifest.origin)
    resume_run(run.folder)
    sae = load_sae(run.folder)
    evaluation = TextEvaluation(SUBJECT, measure_tokens, model=model)
    measured = measure({"sae": sae}, evaluation, SHOWN)["sae"]
    write_json(run.folder / "latents.json", {"latents": _latents(sae, model)})
    keep_scores(run, measured, evaluation.origin())


@torch.no_grad()
def _latents(sae: SAE, model: LanguageModel) -> list[dict[str, Any]]:
    """Ten latents that a Python programmer recognises, with the code that excites them most."""
    windows = list(python_windows(SUBJECT.text, READ_FILES))
    documents = [Document(window.file.name, window.text) for window in windows]
    blocks = list(pack(documents, model.tokenizer, SUBJECT.seq_len, blocks_of(SUBJECT), spans=True))
    codes = sae.encode(torch.cat([model.activations(block.ids)[block.keep].float() for block in blocks]))
    text = TokenizedText.of(windows, blocks)
    density = codes.counts() / len(codes)
    return [
        {
            "latent": reading.latent,
            "label": reading.label,
            "f1": reading.f1,
            "density": density[reading.latent].item(),
            "contexts": contexts(codes, text, reading.latent),
        }
        for reading in choose(codes, text)
    ]


def _rate(run: Run) -> float:
    """Rows per second that training went through, from its log: the median over its records."""
    rates = sorted(record["rows_per_second"] or 0 for record in read_training(run.log_file))
    return rates[len(rates) // 2] if rates else 0.0


def _show(run: Run, console: Console) -> None:
    scores, found = run.scores(), read_json(run.folder / "latents.json", READINGS)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    lines = {
        "fvu": "FVU, held-out files",
        "l0": "L0",
        "dead": "dead latents",
        "ce_clean": "CE of the model",
        "ce_sae": "CE with the SAE",
        "ce_zero": "CE with zeros",
        "ce_recovered": "CE recovered",
    }
    for metric, title in lines.items():
        score = scores.get(metric)
        if score is None:  # measured again since, and otherwise
            continue
        interval = value_and_interval(score)[1]
        interval = f"[{interval}]" if interval else ""
        table.add_row(title, f"{score['value']:.4g}", Text(interval, style="dim"), score["unit"])
    rate = _rate(run)
    table.add_row("training", f"{rate:,.0f}" if rate else "?", "", "tokens per second")
    console.print()
    console.print(table)
    console.print(
        "\nTen latents, each with the code that excites it most; the token between [bold]«[/] and [bold]»[/]:\n"
    )
    for latent in found["latents"]:
        console.print(
            f"[bold]latent {latent['latent']}[/]  {latent['label']}"
            f"  [dim]F1 {latent['f1']:.2f}, on {latent['density']:.2%} of tokens[/]",
            highlight=False,
        )
        for before, token, after in latent["contexts"]:
            line = Text("    ") + Text(before) + Text(f"«{token}»", style="bold") + Text(after)
            console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)
    console.print(
        f'\nSaved in {run.folder}. Next: `saelab show {run.folder}`, or in Python `saelab.load("{run.folder}")`.',
        highlight=False,
    )
