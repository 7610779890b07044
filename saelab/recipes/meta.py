"""`saelab meta`: what the directions of an SAE are made of."""

from pathlib import Path

import torch

from saelab.analysis.meta import TABLES, Meta, MetaSettings, add_controls, similar_to, train_meta
from saelab.analysis.rows import Rows
from saelab.analysis.tables import read_table, write_table
from saelab.analysis.top_tokens import meta_tokens, top_tokens
from saelab.core.files import whole_folder
from saelab.models.token_text import TokenText
from saelab.recipes.compared import Data, check_show, opened, print_fits, rows_of, token_text_of
from saelab.sae.autoencoder import Autoencoder


def meta_of(
    run: str,
    out: str,
    settings: MetaSettings,
    data: Data,
    against: list[str] | None = None,
    controls: bool = True,
    show: int = 8,
) -> None:
    """Train a meta-SAE on an SAE's decoder directions and print their decompositions.

    Args:
        run: folder of a run or a saved SAE.
        out: folder for the results, new or empty.
        settings: of the meta-SAE and its training.
        data: text or store for the tokens that latents are labelled with; --tokens 0 leaves labels out.
        against: other runs whose latents are compared with meta-latents, such as SAEs of about as many latents.
        controls: whether to train the controls (random and shuffled directions, PCA, k-means) too.
        show: number of decompositions to print.
    """
    check_show(show)
    with whole_folder(out) as folder:
        saes = opened([run, *(against or [])], data.device)
        evaluation = data.evaluation(run) if data.tokens and not saes[run].d_out else None
        rows = rows_of(evaluation, run) if evaluation else None
        fits = print_fits(saes, rows) if rows else {}
        meta = train_meta(saes[run], settings)
        meta.fits = fits
        if controls:
            add_controls(meta)
        meta.similar = similar_to(meta, {name: saes[name] for name in against or []})
        meta.write(folder, run, saes[run].n_latents)
        names = _write_tokens(folder, saes[run], meta, rows, token_text_of(evaluation)) if rows and evaluation else {}
        if saes[run].d_out:
            print(f"skipped top tokens: {run} is a transcoder")
        _print(meta, run, saes[run], names, show)
    print(f"{out}: meta.json, codes.parquet, latents.parquet, metas.parquet, sae/")


def _write_tokens(
    folder: Path, sae: Autoencoder, meta: Meta, rows: Rows, text: TokenText | None
) -> dict[str, list[list[str]]]:
    """Write `latent_tokens.parquet` and `meta_tokens.parquet` (number, rank, token, text); gives the texts."""
    if "token" not in rows.columns or text is None:
        print("skipped top tokens: these rows have no tokens")
        return {}
    tokens, share = top_tokens(sae, rows)
    codes = read_table(folder / "codes.parquet", TABLES["codes"])
    entries = (codes["latent"], codes["meta"], codes["value"])
    found = {}
    for name, part in (("latent", tokens), ("meta", meta_tokens(tokens, share, entries, meta.sae.n_latents))):
        number, rank = (part >= 0).nonzero().unbind(1)
        ids = part[number, rank]
        texts = {token: text.label(token) for token in ids.unique().tolist()}
        own = [texts[token] for token in ids.tolist()]
        write_table(folder / f"{name}_tokens.parquet", {name: number, "rank": rank, "token": ids, "text": own})
        found[name] = [[texts[token] for token in line if token >= 0] for line in part.tolist()]
    return found


def _print(meta: Meta, run: str, sae: Autoencoder, names: dict[str, list[list[str]]], show: int) -> None:
    about = meta.summary(run, sae.n_latents)
    held, trained = about["explained"]["held_out"], about["explained"]["trained"]
    print(
        f"{about['n_meta']} meta-latents for {about['n_alive']:,} directions explain {held:.3f} of the variance of "
        f"directions held out, {trained:.3f} of those trained on; L0 {about['l0']['held_out']:.2f}, "
        f"{about['bits']:.0f} bits, {about['dead']:.3f} dead"
    )
    for name, control in meta.controls.items():
        print(f"  control {name:<16} {control['explained']:7.3f}  at {control['bits']:.0f} bits")
    for line in meta.similar:
        print(f"  mean cosine with {line['name']} ({line['n_latents']:,} latents) {line['mean']:.3f}, ", end="")
        print(f"of random directions {line['random']:.3f}")
    for place in torch.linspace(0, len(meta.latents) - 1, min(show, len(meta.latents))).long().tolist():
        latent = int(meta.latents[place])
        print(meta.sentence(latent))
        if names:
            print(f"    latent {latent}: {_said(names['latent'][latent])}")
            for number, _ in meta.decomposition(latent)[:4]:
                print(f"    meta {number}: {_said(names['meta'][number])}")


def _said(texts: list[str]) -> str:
    return " ".join(repr(text) for text in texts) if texts else "never active on these tokens"
