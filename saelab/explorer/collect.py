"""Collect everything that the pages show of one SAE into its database.

One pass over the tokens keeps all active codes as triples; then every number and every choice of examples is made for
blocks of latents at once, by sorting. Killed at any moment, the pass goes on after the last complete part, and the
database appears whole or not at all.
"""

# Shape letters: N rows of the corpus, L latents, l latents of a block, V vocabulary.

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.core.progress import progress
from saelab.explorer import segments
from saelab.explorer.coactivation import correlated
from saelab.explorer.contents import packed
from saelab.explorer.corpus import Corpus
from saelab.explorer.database import FILE, replacing
from saelab.explorer.directions import directions_of, head_of, logits_of, neighbours_of, principal
from saelab.explorer.gather import NEAR, PARTS, alone, gather, identity_of
from saelab.explorer.layout import layout
from saelab.explorer.record import DictionaryNumbers, look, write
from saelab.explorer.text import text_of, write_text
from saelab.explorer.triples import Array, Triples
from saelab.models.language_model import LanguageModel
from saelab.sae.autoencoder import Autoencoder


def collect(
    sae: Autoencoder, weights: Path, corpus: Corpus, model: LanguageModel | None, out: Path, show: bool = True
) -> Path:
    """Look at an SAE on a corpus and write its database.

    Args:
        sae: the SAE.
        weights: its file, whose checksum says what an interrupted pass, and the database, is about.
        corpus: the tokens.
        model: of the tokens, for their text and for logits; None where rows stand for no tokens.
        out: folder for the database.
        show: whether to show progress.

    Returns:
        The database's path.

    Raises:
        ValueError: if another program collects into the folder at this moment.
    """
    with alone(out):
        return _collect(sae, identity_of(weights, corpus), corpus, model, out, show)


def _collect(
    sae: Autoencoder, identity: dict[str, Any], corpus: Corpus, model: LanguageModel | None, out: Path, show: bool
) -> Path:
    triples = Triples(out / PARTS, sae.n_latents, identity)
    gather(sae, corpus, triples, show)
    text, rows = text_of(triples, model), len(triples.column("token"))
    about, maps, why_no_logits = _dictionary(sae, triples, model)
    with replacing(out / FILE) as connection, progress("write", sae.n_latents, "latents", show=show) as bar:
        for block in triples.blocks():
            found = look(block, text, rows)
            write(connection, block, found, about, text)
            bar.advance(block.last - block.first)
        write_text(connection, text)
        maps["density"] = np.array([row[0] for row in connection.execute("SELECT density FROM latents ORDER BY id")])
        arrays = {name: part.astype(np.int32 if name == "neighbours" else np.float32) for name, part in maps.items()}
        blobs = {"vocabulary": packed(text.vocabulary)} | {name: part.tobytes() for name, part in arrays.items()}
        connection.executemany("INSERT INTO blobs VALUES (?, ?)", list(blobs.items()))
        meta: dict[str, Any] = {
            "n_latents": sae.n_latents,
            "rows": rows,
            "collected": time.time(),
            "has_text": bool(text.vocabulary) and bool((text.token >= 0).any()),
        }
        meta |= {"logits": why_no_logits}
        meta |= {"config": sae.config(), "histogram_bins": segments.BINS} | identity
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(meta[key])) for key in meta])
        triples.remove()  # before the database is there: after it, nobody would look for what a kill left
    return out / FILE


# ---- the dictionary ----


def _dictionary(
    sae: Autoencoder, triples: Triples, model: LanguageModel | None
) -> tuple[DictionaryNumbers, dict[str, Array], str | None]:
    """The second: maps and the like; the third: why there are no logits, None where there are."""
    directions = directions_of(sae)
    cosines, neighbours = neighbours_of(directions)
    head, why_not = head_of(model, directions.shape[1])
    near_row, near_value = _best_near(triples, sae.n_latents)
    sample = [triples.columns(f"sample_{name}") for name in ("latent", "row", "value")]
    latent, row, value = (np.concatenate(part) if part else np.empty(0, np.int32) for part in sample)
    about = DictionaryNumbers(
        norms=sae.dictionary.directions().detach().float().norm(dim=1).cpu().numpy(),
        cosines=cosines.numpy(),
        neighbours=neighbours.numpy(),
        logits=None if head is None else logits_of(directions, head),
        correlated=correlated(latent, row, value, sae.n_latents),
        near_row=near_row,
        near_value=near_value,
    )
    return about, _maps(directions, cosines, neighbours), why_not


def _maps(directions: Tensor, cosines: Tensor, neighbours: Tensor) -> dict[str, Array]:
    """Places of all latents on the two maps, the variance along the components, and the nearest neighbours."""
    pca, share = principal(directions)
    umap = layout(pca[:, :2], cosines, neighbours)
    parts = {"pca": pca, "share": share, "umap": umap, "cosines": cosines, "neighbours": neighbours}
    return {name: part.numpy() for name, part in parts.items()}


def _best_near(triples: Triples, n_latents: int) -> tuple[Array, Array]:
    parts = [triples.columns(name) for name in ("near_row", "near_value")]
    if not parts[0]:
        return np.full((n_latents, NEAR), -1), np.zeros((n_latents, NEAR))
    row, value = (torch.from_numpy(np.concatenate(part, 1)) for part in parts)
    best = value.topk(NEAR, dim=1)
    return row.gather(1, best.indices).numpy(), best.values.numpy()
