"""`saelab convert`: SAEs of other libraries into runs of ours, and ours into files that they load."""

from pathlib import Path
from typing import Any

from saelab.core.files import whole_folder
from saelab.core.run import Run
from saelab.interchange import Description, read, write
from saelab.runs import open_run
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.files import is_saved
from saelab.sae.sae import SAE

ROUNDING = 1e-3
"""How far norms may be from 1."""
README = """# A converted SAE

It was read from files of {family} by `saelab convert`; `config.yaml` says from which and what they said of themselves.
`saelab measure {name}` measures it, `saelab.load("{name}")` opens it.
"""


def convert(path: str, out: str, to: str | None = None, unit_norm: bool = False) -> None:
    """Convert an SAE of another library into a run, or a run into another library's files; the format is detected.

    Args:
        path: folder or file that another library wrote, or a run or saved SAE of saelab.
        out: output folder; must not exist.
        to: write it for this library: sae_lens, dictionary_learning or sparsify; by default it becomes a run of saelab,
            to be measured, explored and compared like any other.
        unit_norm: bring directions to unit norm, codes being multiplied by the norms they had, as dictionary_learning's
            loader does by default; otherwise both are as the file has them. Reconstructions are the same.
    """
    is_own = is_saved(path)
    if is_own and not to:
        raise ValueError(f"{path} is saelab's own already: say which library to convert it to, e.g. --to sae_lens")
    with whole_folder(out) as folder:
        sae, found = _own(path) if is_own else read(path)
        notes = list(found.notes)
        if "dictionary_learning" in (found.family, to) and not unit_norm:
            notes += _norms(sae)
        if unit_norm:
            _bring_to_unit_norm(sae, path)
            notes.append("directions were brought to unit norm, and codes are larger by the norms that they had")
        if to:
            notes += write(sae, folder, to, found.source)
        else:
            _write_run(folder, sae, found, str(path), Path(out).name)
    print(f"{out}: {_sentence(sae, found)}")
    for note in notes:
        print(f"note: {note}")
    if not to:
        print(_next(out, found))


def _norms(sae: Autoencoder) -> list[str]:
    """What dictionary_learning's loader does to directions that are not of unit norm: to those of its AutoEncoder."""
    if not isinstance(sae, SAE) or type(sae.activation) is not ReLU:
        return []
    norms = sae.dictionary.directions().norm(dim=1)
    if (norms - 1).abs().max() <= ROUNDING:
        return []
    kept = f"directions keep the norms that they have, {norms.min():.3g} to {norms.max():.3g}"
    theirs = "dictionary_learning's own loader brings them to 1, unless it is told not to, and codes are then larger by"
    return [f"{kept}; {theirs} these norms: --unit_norm true does the same here"]


def _bring_to_unit_norm(sae: Autoencoder, path: str) -> None:
    """ValueError where latents are chosen by size among others, and would be others; or have no direction."""
    if not isinstance(sae, SAE) or type(sae.activation) not in (ReLU, JumpReLU, Gated):
        name = type(getattr(sae, "activation", sae)).__name__
        raise ValueError(f"{path}: {name} may keep other latents of directions of unit norm; leave --unit_norm out")
    if (sae.dictionary.directions().norm(dim=1) == 0).any():
        raise ValueError(f"{path} has latents whose directions are zero; leave --unit_norm out")
    sae.unit_directions()


def _own(path: str) -> tuple[Autoencoder, Description]:
    """An SAE of ours, and what its folder says of it."""
    run = open_run(path)
    sae, origin = run.load(), run.origin
    source = {key: origin.get(key) for key in ("model", "site", "target", "seq_len")}
    name = type(getattr(sae, "activation", sae)).__name__
    return sae, Description("saelab", name, source if origin.get("model") else {})


def _write_run(folder: Path, sae: Autoencoder, found: Description, path: str, name: str) -> None:
    about = {"from": path, "family": found.family, "architecture": found.architecture, "said": found.said}
    beside = {"source.json": found.source} if found.source else {}
    readme = README.replace("{family}", found.family).replace("{name}", name)
    Run.create(folder, {"convert": about}, beside, readme)
    sae.save(folder / "sae")


def _sentence(sae: Autoencoder, found: Description) -> str:
    widths = f"{sae.d_in:,} -> {sae.n_latents:,} latents -> {sae.d_out or sae.d_in:,}"
    return f"{found.family} {found.architecture}, {widths}, read as {type(sae.activation).__name__}"


def _next(out: str, found: Description) -> str:
    """How it can be measured."""
    asked: dict[str, Any] = found.source or {"model": "MODEL", "site": "SITE"}
    target = asked.get("target") or ("TARGET" if "transcoder" in found.architecture else None)
    words = f"--subject.model {asked['model']} --subject.site {asked['site']}"
    words += f" --subject.target {target}" if target else ""
    text = "hf:NAME, or a file or folder of text"
    if found.source:
        place = f"{asked['model']}, {asked['site']}, on this machine's Python library"
        return f"`saelab measure {out}` measures it at {place}; for other text add {words} --subject.text ({text})"
    said = ", ".join(f"{key} {value}" for key, value in found.said.items()) or "nothing"
    return f"the file says {said}: measure it with `saelab measure {out} {words} --subject.text TEXT` (TEXT: {text})"
