"""`saelab convert`: SAEs of other libraries into runs of ours, and ours into files that they load."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from saelab.core.components import near_miss
from saelab.core.files import whole_folder
from saelab.interchange.family import (
    Description,
    Family,
    family_called,
    members,
    opened,
    opened_by_map,
    write_plain,
)
from saelab.interchange.hub import Fetched
from saelab.interchange.plain import READ_AS, Plain, apart
from saelab.runs import open_run
from saelab.runs.published import fetched, opened_fetched, write_run
from saelab.sae.files import is_saved

ROUNDING = 1e-3
"""How far norms may be from 1."""


def convert(
    path: str,
    out: str,
    to: str | None = None,
    only: Sequence[str] = (),
    map: Sequence[str] = (),
    activation: str = "ReLU",
    k: float | None = None,
    unit_norm: bool = False,
) -> None:
    """Convert an SAE of another library into a run, or a run into another library's files; the format is detected.

    Args:
        path: folder or file that another library wrote, or a run or saved SAE of saelab, or a folder of several; or
            the name of a published SAE.
        out: output folder; must not exist.
        to: write it for this library: sae_lens, dictionary_learning, sparsify, circuit_tracer (transcoders; several go
            into one folder) or circuit_tracer_clt; by default it becomes a run of saelab, to be measured, explored and
            compared like any other.
        only: of a folder of several SAEs, which: names as the complaint lists them, * standing for anything. One
            becomes `out`, several a folder each in it.
        map: what the tensors of a file of no known library are, WORD=NAME each: encoder, decoder, encoder_bias, bias
            (subtracted before encoding too) or output_bias, threshold, skip; .T behind a name for one whose rows are
            not latents. Without it the complaint lists the tensors and a map to start from.
        activation: how such a file's codes come about: ReLU, TopK, AbsTopK, JumpReLU or BatchTopK.
        k: latents a row keeps, where the activation has a k.
        unit_norm: bring directions to unit norm, codes being multiplied by the norms they had, as dictionary_learning's
            loader does by default; otherwise both are as the file has them. Reconstructions are the same.
    """
    family, chosen = family_called(to) if to else None, _chosen(path, only)
    with whole_folder(out) as folder:
        lines = []
        for name, place in chosen.items():
            source = place.path if isinstance(place, Fetched) else place
            if is_saved(source):
                plain, found = _own(source, family)
            elif map:
                plain, found = opened_by_map(source, map, activation, k)
            else:
                plain, found = opened_fetched(place) if isinstance(place, Fetched) else opened(place)
            if unit_norm:
                _bring_to_unit_norm(plain, found, source)
            elif "dictionary_learning" in (found.family, to):
                found.notes += _norms(plain)
            is_apart = len(chosen) > 1 and not (family and family.is_set)
            into = folder / name if is_apart else folder
            if family:
                found.notes += write_plain(plain, into, family, found.source, source)
            else:
                write_run(into, plain, found, place, Path(out, name).name)
            lines += _told(plain, found, Path(out, name), family)
    print("\n".join(lines))


def _chosen(path: str, only: Sequence[str]) -> dict[str, Path | Fetched]:
    """The SAEs to convert, by their names below the output folder."""
    if published := fetched(path):
        if only:
            raise ValueError(f"--only is for folders of this machine: give the name of each SAE of {path}")
        return {"": published}
    if not only:
        return {"": Path(path)}
    found = members(path)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"no SAE in {path} is called {pattern}{near_miss(pattern, found)}")
    wanted: dict[str, Path | Fetched] = {
        name: place for name, place in found.items() if any(fnmatchcase(name, one) for one in only)
    }
    return {"": next(iter(wanted.values()))} if len(wanted) == 1 else wanted


def _told(plain: Plain, found: Description, out: Path, family: Family | None) -> list[str]:
    """What to tell of a conversion."""
    after = [] if family else [_next(str(out), found)]
    return [f"{out}: {_sentence(plain, found)}", *(f"note: {note}" for note in found.notes), *after]


def _bring_to_unit_norm(plain: Plain, found: Description, path: Path) -> None:
    try:
        plain.bring_to_unit_norm()
    except ValueError as error:
        raise ValueError(f"{path}: {error}; leave --unit_norm out") from None
    found.notes.append("directions were brought to unit norm, and codes are larger by the norms that they had")


def _norms(plain: Plain) -> list[str]:
    """What dictionary_learning's loader does to directions that are not of unit norm: to those of its AutoEncoder."""
    if plain.kind != "relu":
        return []
    norms = plain.matrices["W_dec"].norms()
    if (norms - 1).abs().max() <= ROUNDING:
        return []
    kept = f"directions keep the norms that they have, {norms.min():.3g} to {norms.max():.3g}"
    theirs = "dictionary_learning's own loader brings them to 1, unless it is told not to, and codes are then larger by"
    return [f"{kept}; {theirs} these norms: --unit_norm true does the same here"]


def _own(path: Path, family: Family | None) -> tuple[Plain, Description]:
    """An SAE of ours, and what its folder says of it."""
    if not family:
        raise ValueError(f"{path} is saelab's own already: say which library to convert it to, e.g. --to sae_lens")
    run = open_run(path)
    sae, origin = run.load(), run.origin
    source = {key: origin.get(key) for key in ("model", "site", "target", "seq_len")}
    name, plain = type(getattr(sae, "activation", sae)).__name__, apart(sae)
    return plain, Description("saelab", name, source if origin.get("model") else {}, notes=[*plain.notes])


def _sentence(plain: Plain, found: Description) -> str:
    n_latents, d_in, d_out = plain.sizes
    widths = f"{d_in:,} -> {n_latents:,} latents -> {d_out:,}"
    return f"{found.family} {found.architecture}, {widths}, read as {READ_AS[plain.kind]}"


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
