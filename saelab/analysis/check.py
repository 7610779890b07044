"""Does an SAE fit the rows that a model gives at a site? One verdict, from one pass over some text.

    fits                            as it is: neither another site nor other rows would do better
    read at the wrong site          a neighbour's rows are reconstructed better than this site's
    rows not normalised as trained  this site's rows are, once they are multiplied by a number or normalised
    another model                   nothing nearby is as wide as what it reads
    does not fit                    rows are reconstructed no better than rows whose coordinates are shuffled

The sites around are those of `saelab.analysis.nearby`. FVU counts errors in the model's own units, whatever is done to
rows before and undone after. More active latents reconstruct more, and an SAE that shrinks does better on larger rows:
what is better with more of them has to be much better. Shuffled are coordinates of rows about their mean, which an SAE
that learned nothing reconstructs as well. The thresholds were measured (`LOG.md`). Left out: two faults at once.
"""

# Shape letters: n rows, D width that is read, D_out of what is reconstructed.

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelab.analysis.nearby import Neighbourhood, SitePair, SiteRows
from saelab.core.mesh import device_named
from saelab.models.language_model import LanguageModel
from saelab.models.structure import names_of
from saelab.models.subject import Subject
from saelab.runs import open_run
from saelab.sae.autoencoder import Autoencoder
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale
from saelab.sae.scales import Identity, LayerNorm, UnitNorm

FITS, WRONG_SITE, WRONG_ROWS, OTHER_MODEL, NO_FIT = VERDICTS = (
    "fits", "read at the wrong site", "rows not normalised as trained", "another model", "does not fit",
)  # fmt: skip
BETTER, MUCH_BETTER = 0.95, 0.6
"""How far FVU has to fall, as a share of what it is, with no more active latents and with more."""
NO_MORE_ACTIVE = 1.1
"""Up to which factor active latents count as no more."""
NOTHING, LEARNED = 0.9, 0.9
"""FVU above which hardly anything is reconstructed, and its share of that of shuffled rows above which nothing is."""
NORMS = 3.0
"""By which factor the norm of rows may differ from that of training."""
FACTORS = tuple(10 ** (step / 4) for step in range(-8, 9) if step)
"""What rows are multiplied by, from a hundredth to a hundred."""
AT_ONCE = 256
"""Rows encoded at once."""


class Read(NamedTuple):
    """How rows are reconstructed."""

    fvu: float
    l0: float


@dataclass(frozen=True)
class SiteCheck:
    """What was found.

    Attributes:
        verdict: one of VERDICTS.
        reason: what it is drawn from, in a line.
        site: the site that was read, and the target of a transcoder behind "->".
        names: what other libraries call the site, by library.
        rows: how many rows.
        fvu: of the rows; None where their width is another, as are the other numbers.
        l0: mean number of active latents; l0_said: what the SAE's own files say, None where they do not.
        silent: share of latents that are active on none of the rows; dead: on none of the last of training.
        norm: mean norm of the rows; norm_expected: about that of those it was trained on, None where nobody knows.
        elsewhere: how the first rows are read at other sites, best first.
        otherwise: how they are here, changed as the name says, best first.
    """

    verdict: str
    reason: str
    site: str
    names: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    fvu: float | None = None
    l0: float | None = None
    l0_said: float | None = None
    silent: float | None = None
    dead: float | None = None
    norm: float | None = None
    norm_expected: float | None = None
    elsewhere: dict[str, Read] = field(default_factory=dict)
    otherwise: dict[str, Read] = field(default_factory=dict)


def check(
    sae: Autoencoder | str | Path,
    subject: Subject | None = None,
    rows: int = 4096,
    split: str = "held-out",
    device: str = "auto",
    model: LanguageModel | None = None,
) -> SiteCheck:
    """Say whether an SAE fits the rows at a site.

    Args:
        sae: an SAE, or a folder or name of one.
        subject: model, site and text; by default what it says that it was trained on.
        rows: how many to read.
        split: which documents of the text: `held-out`, `train` or `all`.
        device: where the SAE runs; auto is the GPU if there is one.
        model: the subject's model, if it is already loaded.

    Raises:
        ValueError: where it does not say what it was trained on and no subject is given, or text is too little.
    """
    said: float | None = None
    if not isinstance(sae, Autoencoder):
        saved = open_run(sae)
        subject, sae, logged = subject or saved.needed_subject(), saved.load(), saved.training_log
        said = logged[-1].get("l0") if logged else None
    if subject is None:
        raise ValueError("an SAE in memory does not say what it was trained on: give Subject(model=, site=, text=)")
    if rows < 2:
        raise ValueError(f"rows must be at least 2, got {rows}")
    said = getattr(sae.activation, "k", said) if isinstance(sae, SAE) else said
    sites = Neighbourhood(model or subject.language_model())
    others = [place for place in sites.nearby() if sites.widths(place) == (sae.d_in, sae.d_out)]
    with torch.no_grad():
        read = dict(sites.rows(subject, others, rows, split))
        return _checked(sae.to(device_named(device)), sites, read, said)


# ---- how they are reconstructed ----


@dataclass(frozen=True)
class _Change:
    """What is done to rows before they are read, and undone after."""

    scale: Scale
    factor: float = 1.0

    def read(self, sae: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction [n, D] of rows [n, D], and their L0 [n]."""
        numbers = self.scale.numbers(x)
        changed = self.scale.apply_to(x, numbers) * self.factor
        codes = sae.encode(changed)
        return self.scale.undo(sae.decode(codes, changed) / self.factor, numbers), codes.l0()


def _changes(sae: Autoencoder) -> dict[str, _Change]:
    """What may have been done to rows in training, by what is done now; nothing of a transcoder's, which has two."""
    if sae.d_out is not None:
        return {}
    changes = {f"multiplied by {factor:.3g}": _Change(Identity().setup(sae.d_in), factor) for factor in FACTORS}
    norms = {"each layer-normalised": LayerNorm(), "each brought to norm 1": UnitNorm()}
    return changes | {name: _Change(scale.setup(sae.d_in).to(sae.device)) for name, scale in norms.items()}


def _read(sae: Autoencoder, rows: SiteRows, change: _Change | None = None) -> Read:
    """FVU and mean L0 of rows."""
    change = change or _Change(Identity().setup(sae.d_in))
    wanted = rows.x if rows.target is None else rows.target
    error, active = 0.0, 0.0
    for x, part in zip(rows.x.split(AT_ONCE), wanted.split(AT_ONCE), strict=True):
        x_hat, l0 = change.read(sae, x.to(sae.device))
        error += float((part.to(sae.device) - x_hat).double().square().sum())
        active += float(l0.double().sum())
    spread = float((wanted - wanted.mean(0)).double().square().sum())
    return Read(error / max(spread, 1e-30), active / len(wanted))


def _norm_expected(sae: Autoencoder) -> float | None:
    """About the mean norm of the rows of training: the root of |mean|^2 + D variance, where scale or loss know them."""
    if sae.d_out is not None or sae.scale.per_row or not isinstance(sae, SAE):
        return None
    variance = float(sae.variance)
    if sae.scale.is_identity and variance == 1:
        return None
    centre = sae.data_bias() if sae.scale.is_identity else sae.scale.fixed().mean
    size = sae.scale.size.square().mean() * variance
    return float((centre.square().sum() + sae.d_in * size).sqrt())


# ---- the verdict ----


def _checked(sae: Autoencoder, sites: Neighbourhood, read: dict[SitePair, SiteRows], said: float | None) -> SiteCheck:
    own = sites.own
    here = read.pop(own)
    elsewhere = _best_first({str(place): _read(sae, rows) for place, rows in read.items()})
    found = SiteCheck("", "", str(own), names_of(sites.model.model, own.site), elsewhere=elsewhere)
    if sites.widths(own) != (sae.d_in, sae.d_out):
        why = f"it reads {_wide(sae.d_in, sae.d_out)}, {own} gives {_wide(*sites.widths(own))}"
        nearest = next(iter(elsewhere), "")
        if not nearest or not elsewhere[nearest].fvu < NOTHING:
            return replace(found, verdict=OTHER_MODEL, reason=f"{why}, and no site nearby fits")
        return replace(found, verdict=WRONG_SITE, reason=f"{why}; at {nearest} FVU is {elsewhere[nearest].fvu:.3f}")
    changes, few = _changes(sae), here.first()
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=sae.device)
    for part in here.x.split(AT_ONCE):
        codes = sae.encode(part.to(sae.device))
        fired[codes.indices[codes.values != 0]] = True
    whole = _read(sae, here)
    found = replace(
        found, rows=len(here.x), fvu=whole.fvu, l0=whole.l0, l0_said=said, silent=float((~fired).float().mean()),
        dead=float((~sae.alive()).float().mean()) if sae.firing.horizon else None,
        norm=float(here.x.norm(dim=1).mean()), norm_expected=_norm_expected(sae),
        otherwise=_best_first({name: _read(sae, few, change) for name, change in changes.items()}),
    )  # fmt: skip

    def learned(read_as: Read, rows: SiteRows, change: _Change | None = None) -> bool:
        return read_as.fvu < LEARNED * _read(sae, rows.shuffled(), change).fvu

    now = _read(sae, few)
    places = {str(place): rows for place, rows in read.items()}
    for verdict, name, better in _better(now, found):
        if learned(better, places.get(name, few), changes.get(name)):
            at = f"at {name}" if verdict == WRONG_SITE else f"with rows {name}"
            return replace(found, verdict=verdict, reason=f"FVU is {now.fvu:.3f} here and {better.fvu:.3f} {at}")
    if not (now.fvu < NOTHING and learned(now, few)):
        why = f"FVU is {now.fvu:.3f}, as of rows whose coordinates are shuffled: not trained, or for another model"
        return replace(found, verdict=NO_FIT, reason=why)
    if other := _wrong_norm(now, found):
        return replace(found, verdict=WRONG_ROWS, reason=other)
    beside = "".join(f"; next best is {name} with {value.fvu:.3f}" for name, value in list(elsewhere.items())[:1])
    return replace(found, verdict=FITS, reason=f"FVU is {now.fvu:.3f}{beside}")


def _better(now: Read, found: SiteCheck) -> list[tuple[str, str, Read]]:
    """What is better than now, best first: the verdict that would be, and the site or change."""
    tried = [(WRONG_SITE, *one) for one in found.elsewhere.items()]
    tried += [(WRONG_ROWS, *one) for one in found.otherwise.items()]
    better = []
    for verdict, name, read in tried:
        no_more = read.l0 <= NO_MORE_ACTIVE * now.l0 or now.fvu >= NOTHING
        if read.fvu < NOTHING and read.fvu < now.fvu * (BETTER if no_more else MUCH_BETTER):
            better.append((verdict, name, read))
    return sorted(better, key=lambda one: one[2].fvu)


def _wrong_norm(now: Read, found: SiteCheck) -> str | None:
    """Why rows have another norm than in training, which rows of that norm are no worse without."""
    if not found.norm_expected or not found.norm:
        return None
    factor = found.norm_expected / found.norm
    nearest = min(FACTORS, key=lambda one: abs(one / factor - 1))
    mended = found.otherwise.get(f"multiplied by {nearest:.3g}")
    if 1 / NORMS < factor < NORMS or mended is None or mended.fvu > now.fvu:
        return None
    return f"the norm of rows is {found.norm:.4g}, of those it was trained on about {found.norm_expected:.4g}"


def _best_first(reads: Mapping[str, Read]) -> dict[str, Read]:
    return dict(sorted(reads.items(), key=lambda item: item[1].fvu))


def _wide(d_in: int, d_out: int | None) -> str:
    return f"rows {d_in} wide" + (f" and reconstructs {d_out}" if d_out else "")
