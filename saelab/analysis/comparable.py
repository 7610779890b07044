"""Whether SAEs may be compared: the same site, width of rows and normalisation, or one error that names both.

Every SAE carries its input scaling (`saelab.sae.scale`). Two SAEs trained on one site's rows have nearly the same mean
and scale, up to the sample these come from, and folding takes them to the data's units exactly. Where they are far
apart the rows cannot have been the same; where one scaling is the identity (a folded or a foreign SAE) the dictionary
alone cannot tell, and rows have to (`check_reads`). SAEs that scale every row by itself compare with their like alone.
Rows also show an SAE that was hardly trained (`poor_fit_warning`): the latents of one that reconstructs nothing can be
compared like any others, and what comes out means nothing.
"""

# Shape letters: D input width, N rows.

from collections.abc import Mapping
from typing import Any

import torch

from saelab.analysis.rows import Rows
from saelab.sae.autoencoder import Autoencoder

HARDLY = 0.9
"""FVU from which an SAE is said to reconstruct next to nothing; our choice."""
BLOCK_ROWS = 4096
SAME = {
    "fingerprint": "models (their weights differ)",
    "site": "sites",
    "target": "targets",
    "average": "kinds of rows (averages)",
    "world": "worlds",
}
"""What of a run's origin must agree, and how its difference is called."""


def check_comparable(
    saes: Mapping[str, Autoencoder], origins: Mapping[str, Mapping[str, Any]] | None = None, across: bool = False
) -> None:
    """Check SAEs before they are compared, each with the first.

    Args:
        saes: by name.
        origins: what each one's rows were made from, as far as it is known (`source.json` of a run).
        across: whether they may be of different sites and scales, as layers that are matched.

    Raises:
        ValueError: that names the two that do not go together and why.
    """
    (first, one), *others = saes.items()
    for name, other in others:
        if other.d_in != one.d_in:
            raise ValueError(f"{first} reads rows {one.d_in} wide, {name} rows {other.d_in} wide: not the same site")
        if other.d_out != one.d_out:
            wants = [f"{sae.d_out} wide targets" if sae.d_out else "what it reads" for sae in (one, other)]
            raise ValueError(f"{first} reconstructs {wants[0]}, {name} {wants[1]}: they cannot be compared")
        if not across:
            check_origins(first, name, origins or {})
            _check_scales(first, one, name, other)


def check_origins(first: str, name: str, origins: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError if two of these, by name, were made from different things, as far as both say."""
    a, b = origins.get(first, {}), origins.get(name, {})
    for key, what in SAME.items():
        if a and b and a.get(key) != b.get(key):
            said = "" if key in ("fingerprint", "world") else f": {a.get(key)} and {b.get(key)}"
            raise ValueError(f"{first} and {name} are of different {what}{said}")


def _check_scales(first: str, one: Autoencoder, name: str, other: Autoencoder) -> None:
    why = one.scale.difference(other.scale)
    if why:
        raise ValueError(f"{first} and {name} {why}")


def check_width(name: str, sae: Autoencoder, rows: Rows) -> None:
    """ValueError if rows are not as wide as those that an SAE reads."""
    if rows.x.shape[1] != sae.d_in:
        raise ValueError(f"{name} reads rows {sae.d_in} wide, the data's are {rows.x.shape[1]}")


@torch.no_grad()
def error_and_l0(sae: Autoencoder, rows: Rows) -> tuple[float, float]:
    """Mean over rows and entries of the squared error of an SAE on rows in the data's units, and its mean L0."""
    error, l0 = 0.0, 0
    for x, _ in rows.blocks(BLOCK_ROWS):
        x = x.to(sae.device, sae.dtype)
        codes = sae.encode(x)
        error += (x - sae.decode(codes, x)).double().square().sum().item()
        l0 += int(codes.l0().sum())
    return error / rows.x.numel(), l0 / len(rows)


def check_reads(fvu: Mapping[str, float]) -> None:
    """ValueError if an SAE reconstructs the rows worse than their mean does: they are not the rows it was made for."""
    best = min(fvu, key=lambda name: fvu[name])
    for name, value in fvu.items():
        if not value < 1:
            beside = f"; {best} has {fvu[best]:.3g}" if fvu[best] < 1 else ""
            raise ValueError(f"{name} {_worse(f'{value:.3g}{beside}')}")


def _worse(fvu: str) -> str:
    return (
        f"reconstructs these rows worse than their mean does (FVU {fvu}): it is broken, was hardly trained, or was "
        "made for another site or normalisation"
    )


def poor_fit_warning(name: str, fvu: float) -> str:
    """One line if an SAE reconstructs the rows hardly better than their mean does, or worse; empty if it does."""
    if fvu < HARDLY:
        return ""
    hardly = f"reconstructs these rows hardly better than their mean does (FVU {fvu:.3g}): it knows little of them"
    return f"{name} {hardly if fvu < 1 else _worse(f'{fvu:.3g}')}; do not rely on what is said of its latents"
