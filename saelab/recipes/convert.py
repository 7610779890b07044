"""`saelab convert`: SAEs of other libraries into runs of ours, and ours into files that they load."""

from pathlib import Path
from typing import Any

from saelab.core.files import whole_folder
from saelab.core.run import Run
from saelab.interchange import Description, read, write
from saelab.runs import open_run
from saelab.sae.sae import SAE, is_saved

README = """# A converted SAE

It was read from files of {family} by `saelab convert`; `config.yaml` says from which and what they said of themselves.
`saelab measure {name}` measures it, `saelab.load("{name}")` opens it.
"""


def convert(path: str, out: str, to: str | None = None) -> None:
    """Convert an SAE; which library wrote it is found out.

    Args:
        path: folder or file that another library wrote, or a run or saved SAE of saelab.
        out: folder for what it becomes; must not exist.
        to: write it for this library: sae_lens, dictionary_learning or sparsify; by default it becomes a run of saelab,
            to be measured, explored and compared like any other.
    """
    is_own = is_saved(path)
    if is_own and not to:
        raise ValueError(f"{path} is saelab's own already: say which library to convert it to, e.g. --to sae_lens")
    with whole_folder(out) as folder:
        sae, found = _own(path) if is_own else read(path)
        notes = list(found.notes)
        if to:
            notes += write(sae, folder, to, found.source)
        else:
            _write_run(folder, sae, found, str(path), Path(out).name)
    print(f"{out}: {_sentence(sae, found)}")
    for note in notes:
        print(f"note: {note}")
    if not to:
        print(_next(out, found))


def _own(path: str) -> tuple[SAE, Description]:
    """An SAE of ours, and what its folder says of it."""
    run = open_run(path)
    sae, origin = run.load(), run.origin
    source = {key: origin.get(key) for key in ("model", "site", "target", "seq_len")}
    name = type(getattr(sae, "activation", sae)).__name__
    return sae, Description("saelab", name, source if origin.get("model") else {})


def _write_run(folder: Path, sae: SAE, found: Description, path: str, name: str) -> None:
    about = {"from": path, "family": found.family, "architecture": found.architecture, "said": found.said}
    beside = {"source.json": found.source} if found.source else {}
    readme = README.replace("{family}", found.family).replace("{name}", name)
    Run.create(folder, {"convert": about}, beside, readme)
    sae.save(folder / "sae")


def _sentence(sae: SAE, found: Description) -> str:
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
