"""`saelab quickstart`: a real sparse autoencoder on a real language model, from nothing, in a few minutes.

The bundled model reads the Python standard library of this machine; its residual stream after layer 3 is harvested into
a store; a TopK SAE is trained on it, measured on files neither has seen, and saved.
"""

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from saelab.core.files import read_json, write_json
from saelab.core.run import Run
from saelab.data.store import Store, StoreSource
from saelab.metrics import TextEvaluation, measure
from saelab.models.harvest import harvest
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.recipes.measure import keep
from saelab.recipes.python_readings import Text, choose, contexts
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.sae import SAE
from saelab.train.trainer import Trainer

SUBJECT = Subject(model="pycode-7m", site="model.layers.3", text="stdlib", piece=2000, seq_len=256)
READ_TOKENS = 60_000
"""Tokens that the latents shown are chosen on."""


def quickstart(
    out: str = "saelab-quickstart",
    tokens: int = 800_000,
    rows: int = 1_600_000,
    n_latents: int = 4096,
    k: int = 32,
    measure_tokens: int = 16_384,
    seed: int = 0,
) -> None:
    """Train a sparse autoencoder on the bundled model, measure it and show what its latents stand for.

    An interrupted quickstart goes on where it stopped when it is run again; a finished one is shown again.

    Args:
        out: the run's folder.
        tokens: tokens of the standard library to harvest.
        rows: rows to train on; more than `tokens` sees some more than once.
        n_latents: latents of the SAE.
        k: latents active per token.
        measure_tokens: held-out tokens to measure on.
        seed: of weights and order.
    """
    console = Console()
    settings = {"quickstart": {"tokens": tokens, "rows": rows, "n_latents": n_latents, "k": k, "seed": seed}}
    run = _run(Path(out), settings)
    if not run.scores_file.exists():
        _make(run, settings["quickstart"], measure_tokens, console)
    _show(run, console)


def _run(folder: Path, settings: dict[str, Any]) -> Run:
    """A new run, or the one in the folder if it has the same settings."""
    if not (folder / "config.yaml").exists():
        return Run.create(folder, settings)
    run = Run.open(folder)
    if run.config() != settings:
        raise ValueError(f"{folder} holds another run; choose another --out, or remove that folder")
    return run


def _make(run: Run, settings: dict[str, int], measure_tokens: int, console: Console) -> None:
    """Harvest, train, measure; each part goes on from where it was interrupted."""
    model = SUBJECT.language_model()
    store = harvest(SUBJECT, run.folder / "acts", settings["tokens"], model=model)
    write_json(run.source_file, store.manifest.origin)
    # Dead means silent for an eighth of the run: ten million tokens, the usual horizon, is longer than all of it.
    losses = [AuxK(dead_after=max(1, settings["rows"] // 8))]
    sae = SAE(store.d_in, settings["n_latents"], TopK(settings["k"]), losses, seed=settings["seed"])
    trainer = Trainer(sae, lr=3e-3, batch=1024, warmup=100, decay=0.5)
    begun, had = time.monotonic(), trainer.rows_seen
    trainer.fit(StoreSource(store, settings["seed"]), settings["rows"], run)
    rate = (trainer.rows_seen - had) / (time.monotonic() - begun)
    measured = measure({"sae": sae}, TextEvaluation(SUBJECT, measure_tokens, model=model))["sae"]
    write_json(run.folder / "latents.json", {"latents": _latents(sae, store, model), "rows_per_second": rate})
    keep(run, measured)


@torch.no_grad()
def _latents(sae: SAE, store: Store, model: LanguageModel) -> list[dict[str, Any]]:
    """Ten latents that a Python programmer recognises, with the code that excites them most."""
    rows, columns = store.rows(0)[:READ_TOKENS], store.columns(0)
    codes = sae.encode(rows.float())
    pieces = [model.tokenizer.decode([token]) for token in range(len(model.tokenizer))]
    tokens = columns["token"][: len(rows)].tolist()
    text = Text([pieces[token] for token in tokens], columns["document"][: len(rows)])
    density = codes.counts() / len(rows)
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


def _show(run: Run, console: Console) -> None:
    scores, found = run.scores(), read_json(run.folder / "latents.json")
    table = Table(box=None, pad_edge=False, show_header=False)
    lines = {
        "fvu": "FVU, held-out files",
        "l0": "L0, active latents per token",
        "dead": "dead latents",
        "ce_clean": "CE of the model",
        "ce_sae": "CE with the SAE in its place",
        "ce_zero": "CE with zeros in its place",
        "ce_recovered": "CE recovered",
    }
    for metric, title in lines.items():
        score = scores[metric]
        interval = f"[{score['low']:.4g} to {score['high']:.4g}]" if score["low"] is not None else ""
        table.add_row(title, f"{score['value']:.4g}", RichText(interval, style="dim"), score["unit"])
    table.add_row("training", f"{found['rows_per_second']:,.0f}", "", "tokens per second")
    console.print()
    console.print(table)
    console.print("\nTen latents, each with the code that excites it most (the token in [bold reverse]reverse[/]):\n")
    for latent in found["latents"]:
        console.print(
            f"[bold]latent {latent['latent']}[/]  {latent['label']}"
            f"  [dim]F1 {latent['f1']:.2f}, on {latent['density']:.2%} of tokens[/]",
            highlight=False,
        )
        for before, token, after in latent["contexts"]:
            line = RichText("    ") + RichText(before) + RichText(token, style="bold reverse") + RichText(after)
            console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)
    console.print(
        f'\nSaved in {run.folder}. Next: `saelab show {run.folder}`, or in Python `saelab.load("{run.folder}")`.',
        highlight=False,
    )
