"""`saelab check`: whether an SAE fits the rows of a model at a site, in one line and the numbers behind it."""

from dataclasses import replace

from saelab.analysis.check import SiteCheck, check
from saelab.models.subject import Subject
from saelab.runs import open_run

SHOWN = 5
"""Other sites that are printed."""


def check_sae(
    sae: str,
    model: str | None = None,
    site: str | None = None,
    target: str | None = None,
    text: str | None = None,
    rows: int = 4096,
    split: str = "held-out",
    device: str = "auto",
) -> None:
    """Say whether an SAE fits the rows of a model at a site, is read at the wrong one, or needs other rows.

    Args:
        sae: folder or name of a run or a saved SAE.
        model: folder or hub name of a transformers causal language model; by default what the SAE was trained on, as
            are the others.
        site: where in it rows are read, as a module's path or another library's name, such as blocks.8.hook_resid_pre.
        target: of a transcoder, where the rows that it reconstructs are.
        text: what the model reads, as for `harvest`.
        rows: how many rows are read.
        split: which documents of the text: `held-out`, `train` or `all`.
        device: where model and SAE run; auto is the GPU if there is one.
    """
    run = open_run(sae)
    own = run.subject
    if not own and not (model and site):
        raise ValueError(f"{sae} does not say what it was trained on: give --model and --site")
    subject = replace(own or Subject(), device=device)
    subject = replace(
        subject, model=model or subject.model, site=site or subject.site, target=target or subject.target,
        text=text or subject.text,
    )  # fmt: skip
    print("\n".join(lines(sae, subject, check(sae, subject, rows, split, device))))


def lines(sae: str, subject: Subject, found: SiteCheck) -> list[str]:
    """What was found, as lines to print; the last is the verdict."""
    names = ", ".join(f"{name} in {library}" for library, name in found.names.items())
    table = {
        "SAE": sae,
        "model": subject.model,
        "site": f"{found.site} ({names})" if names else found.site,
        "rows": f"{found.rows:,} of {subject.text}" if found.rows else None,
        "FVU": _number(found.fvu),
        "L0": _beside(found.l0, found.l0_said, "its files say {}"),
        "norm of rows": _beside(found.norm, found.norm_expected, "trained on about {}"),
        "silent": found.silent is not None and f"{found.silent:.1%} of latents on these rows",
        "dead": found.dead is not None and f"{found.dead:.1%} of latents in training",
        "elsewhere": ", ".join(f"{name} {read.fvu:.3f}" for name, read in list(found.elsewhere.items())[:SHOWN]),
    }
    return [*(f"{name:<14}{value}" for name, value in table.items() if value), f"{found.verdict}: {found.reason}"]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _beside(value: float | None, other: float | None, words: str) -> str | None:
    shown = _number(value)
    return shown if other is None or shown is None else f"{shown} ({words.format(_number(other))})"
