"""The pass over tokens: codes of every row, kept as triples on disk, and what a sample of rows tells beside them.

In the sample, which is spread over the text, the codes are kept by row as well, for co-activation, and each latent's
pre-activations are looked at where it is silent: the largest are its near misses.
"""

# Shape letters: n rows of a piece, B rows of a chunk, D width, L latents, M near misses kept of a piece.

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.files import sha256
from saelab.core.progress import progress
from saelab.core.read import Row, parse_json
from saelab.explorer.corpus import Corpus, Piece
from saelab.explorer.triples import Array, Triples
from saelab.sae.autoencoder import CONFIG, Autoencoder
from saelab.sae.base import Dictionary
from saelab.sae.ensemble import MEMBERS

FORMAT = 2
CHUNK_ROWS = 4096
SAMPLE_ROWS, SAMPLE_RUN = 1 << 15, 128
"""About how many rows are sampled, and how many in a stretch."""
NEAR = 4
PARTS = ".explorer-parts"


def checksums(weights: Path) -> dict[str, str]:
    """Checksums by name of an SAE's files, or of an ensemble's members': weights, and the settings beside them."""
    folder = weights.parent
    every = [(one / name) for one in (folder, *sorted(folder.glob(MEMBERS))) for name in (weights.name, CONFIG)]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in every if path.exists()}


def identity_of(weights: Path, corpus: Corpus) -> dict[str, Any]:
    """What the triples of an SAE on a corpus depend on."""
    return {"format": FORMAT, "sae": checksums(weights), "corpus": corpus.identity()}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other programs from collecting into a folder meanwhile; ValueError if one does already."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"another explorer collects for {folder} now: wait until it is done, then start this one again"
            raise ValueError(said) from None
        yield
    finally:
        os.close(held)


@torch.no_grad()
def gather(sae: Autoencoder, corpus: Corpus, triples: Triples, show: bool = True) -> None:
    """Keep the codes of all rows; goes on after the last complete part.

    Raises:
        ValueError: for rows of another width than the SAE reads, or codes that are not finite.
        KeyboardInterrupt: that says how far it came.
    """
    if corpus.d_in != sae.d_in:
        raise ValueError(f"the SAE reads rows {sae.d_in} wide, these are {corpus.d_in}")
    done = len(triples.parts)
    before = int(sum(len(part) for part in triples.columns("token")))
    every = max(1, corpus.tokens // SAMPLE_ROWS)
    try:
        with progress("collect", corpus.tokens, "tokens", done=before, show=show) as bar:
            for number, piece in enumerate(corpus.pieces(done), done):
                _append(sae, piece, triples, number, before, every)
                before += len(piece.rows)
                bar.advance(len(piece.rows))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped after {before:,} tokens; the same command resumes it") from None


@dataclass
class _Kept:
    """What is put together over the chunks of a piece."""

    latent: list[Array] = field(default_factory=list)
    row: list[Array] = field(default_factory=list)
    value: list[Array] = field(default_factory=list)

    def add(self, codes: Codes, rows: Tensor) -> None:
        active = codes.active
        self.latent.append(codes.indices[active].cpu().numpy())
        self.row.append(rows[:, None].expand_as(active)[active.cpu()].numpy())
        self.value.append(codes.values[active].float().cpu().numpy())

    def arrays(self) -> tuple[Array, Array, Array]:
        latent, row, value = (np.concatenate(part) for part in (self.latent, self.row, self.value))
        return latent, row, value


def _append(sae: Autoencoder, piece: Piece, triples: Triples, number: int, start: int, every: int) -> None:
    kept, sample, device = _Kept(), _Kept(), sae.device
    near = Near(sae.n_latents)
    rows = torch.arange(start, start + len(piece.rows))
    for x, at in zip(piece.rows.split(CHUNK_ROWS), rows.split(CHUNK_ROWS), strict=True):
        codes = sae.encode(x.float().to(device))
        if not torch.isfinite(codes.values).all():
            raise ValueError("the codes are not finite: check the SAE's weights and the activations")
        kept.add(codes, at)
    chosen = (rows // SAMPLE_RUN) % every == 0
    for x, at in zip(piece.rows[chosen].split(SAMPLE_RUN), rows[chosen].split(SAMPLE_RUN), strict=True):
        codes = sae.encode(x.float().to(device))
        sample.add(codes, at)
        near.look(sae, x.float().to(device), codes, at)
    columns = {name: getattr(piece, name).numpy() for name in ("token", "document", "position")}
    if sample.latent:
        latent, row, value = sample.arrays()
        columns |= {"sample_latent": latent.astype(np.int32), "sample_row": row.astype(np.int32), "sample_value": value}
    columns |= {"near_row": near.row.numpy(), "near_value": near.value.numpy()}
    columns["names"] = _as_bytes(piece.names)
    if piece.spans is not None:
        columns |= {"spans": piece.spans.numpy(), "texts": _as_bytes(piece.texts)}
    triples.append(number, *kept.arrays(), columns)


class Near:
    """For each latent, rows in which it is silent although its pre-activation is large: one of a stretch of rows.

    An SAE that has no pre-activations to look at (an ensemble) has none.
    """

    def __init__(self, n_latents: int):
        self.row = torch.full((n_latents, NEAR), -1, dtype=torch.int32)
        self.value = torch.full((n_latents, NEAR), -torch.inf)

    def look(self, sae: Autoencoder, x: Tensor, codes: Codes, rows: Tensor) -> None:
        """Take in a stretch of rows."""
        if not isinstance(sae.dictionary, Dictionary):
            return
        pre = sae.dictionary.pre(sae.scale.apply_to(x)).dense().float().clone()
        active = codes.active
        owner = torch.arange(len(x), device=pre.device)[:, None].expand_as(active)[active]
        pre[owner, codes.indices[active]] = -torch.inf
        value = pre.amax(0).cpu()  # its place is looked up only where it counts: a search down columns is slow
        least, slot = self.value.min(1)
        better = (value > least).nonzero().flatten()
        self.value[better, slot[better]] = value[better]
        self.row[better, slot[better]] = rows[pre[:, better].argmax(0).cpu()].int()


def _as_bytes(by_document: list[tuple[int, str]]) -> Array:
    """Names or texts of documents as bytes, because a part holds tensors only."""
    return np.frombuffer(json.dumps(by_document).encode(), np.uint8).copy()


def by_document(parts: Iterable[Array]) -> dict[int, str]:
    """The other way round, for all parts."""
    return {
        number: text
        for part in parts
        for number, text in parse_json(part.tobytes(), "texts of a part", [Row(int, str)])
    }
