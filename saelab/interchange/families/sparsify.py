"""sparsify: a folder a hookpoint, such as `layers.10`, with `cfg.json` and `sae.safetensors`.

    f = k largest of relu((x - b_dec) W.T + b)        a transcoder (`transcode`) encodes x itself
    x_hat = f W_dec + b_dec + x W_skip.T              W_dec [L, D], W_skip where there is a skip connection

The hookpoint is the folder's name, a module of the base model; the model and the length of a row are in the
`config.json` of the folder above, where there is one. `groupmax` is refused, and so are the signed codes of an early
version. Written are the two files of a hookpoint.
"""

import re
from pathlib import Path
from typing import Any

from saelab.core.files import write_json, write_tensors
from saelab.interchange.family import Description, Family
from saelab.interchange.files import Files, Settings
from saelab.interchange.plain import Plain, laid_out, plain_from
from saelab.interchange.sites import module_path, source

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
LAYOUT = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
SKIP = {"W_skip": "W_skip"}


class Sparsify(Family):
    """Files of sparsify."""

    title = "sparsify"
    weights = (WEIGHTS,)

    def claims(self, files: Files) -> bool:
        return files.has(CONFIG, WEIGHTS)

    def read(self, files: Files) -> tuple[Plain, Description]:
        config, tensors = files.settings(CONFIG), files.tensors(WEIGHTS)
        how = config.get("activation", str, "topk")
        if how != "topk":
            raise config.refuse(f"the activation {how}", "topk is read")
        if config.get("signed", bool, False):
            raise config.refuse("signed", "unsigned codes are read")
        is_transcoder = config.get("transcode", bool, False)
        width = config.need("d_in", int)
        tensors.sizes = {"D": width, "O": width}
        n_latents = config.get("num_latents", int) or width * config.get("expansion_factor", int, 0)
        tensors.sizes |= {"L": n_latents} if n_latents else {}
        layout = LAYOUT | (SKIP if config.get("skip_connection", bool, False) else {})
        plain = plain_from(tensors, layout, "topk", is_transcoder)
        plain.k = config.need("k", int)
        if "W_skip" in layout and not is_transcoder:
            # Only our transcoders have a skip connection, and they subtract nothing.
            plain.shift(-1)
            plain.is_transcoder = True
            plain.notes.append("folded b_dec into the encoder's bias: with a skip connection it is a transcoder to us")
        found, said = _source_of(files, is_transcoder)
        if plain.is_transcoder and not is_transcoder:
            found = {}  # what it reads and writes is one site, which a transcoder of ours is not measured on
        kind = "skip " * ("W_skip" in layout) + ("transcoder" if is_transcoder else "SAE")
        return plain, Description(self.title, f"TopK {kind}", found, said)

    def write(self, plain: Plain, folder: Path, source: dict[str, Any]) -> list[str]:
        if plain.kind != "topk":
            raise self.no_form(f"an SAE that reads with {plain.kind}: it has TopK only")
        n_latents, d_in, d_out = plain.sizes
        if d_in != d_out:
            raise self.no_form(
                f"a transcoder from rows {d_in} wide to rows {d_out} wide: both widths have to be the same"
            )
        norms = plain.matrices["W_dec"].norms()
        config = {
            "activation": "topk",
            "expansion_factor": n_latents // d_in,
            "normalize_decoder": bool((norms - 1).abs().max() < 1e-3),
            "num_latents": n_latents,
            "k": plain.k,
            "multi_topk": False,
            "skip_connection": "W_skip" in plain.matrices,
            "transcode": plain.is_transcoder,
            "d_in": d_in,
        }
        write_tensors(folder / WEIGHTS, laid_out(plain, LAYOUT | (SKIP if "W_skip" in plain.matrices else {})))
        write_json(folder / CONFIG, config)
        return ["sparsify keeps the model in the folder above and the module in the folder's name: neither is written"]


def _source_of(files: Files, is_transcoder: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source where it is certain, and what was said."""
    folder = files.folder.resolve()
    if re.fullmatch(r"seed\d+", folder.name):  # several seeds have a folder each
        folder = folder.parent
    path = folder.parent / RUN
    run = Settings.of(path) if path.is_file() else Settings(path, {})
    said = {"hookpoint": folder.name} | run.said("model", "dataset")
    model = run.get("model", str)
    site = module_path(model, folder.name) if model else None
    if not site:
        return {}, said
    read, written = (f"{site}:in", site) if is_transcoder else (site, None)
    return source(model, read, written, run.get("ctx_len", int)), said
