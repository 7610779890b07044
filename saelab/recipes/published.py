"""`saelab published`: which SAEs others have published, from the index that comes with saelab; nothing is fetched."""

import re

from rich.table import Table

from saelab.core.components import near_miss
from saelab.interchange.index import Published, index, latents, published
from saelab.recipes.score_table import wide_console


def list_published(
    words: list[str] | None = None,
    model: str | None = None,
    site: str | None = None,
    width: str | None = None,
    l0: str | None = None,
    loads: bool = False,
    limit: int = 40,
) -> None:
    """Print published SAEs: name, model, site, width and L0, and whether saelab loads them or why not.

    Args:
        words: words of the name, the model or the site; all of them have to be there.
        model: name on the hub, with or without its owner.
        site: a site such as `model.layers.8`, a hook such as `blocks.8.hook_resid_post`, or how one ends: `resid_post`.
        width: number of latents, such as 16384 or 16k.
        l0: a number, or a range such as 40-80.
        loads: leave out those that saelab cannot load.
        limit: lines at most.
    """
    wanted_width, wanted_l0 = latents(width) if width else None, _range(l0) if l0 else None
    known = list(published())
    if model and not any(_is_called(one.model, model) for one in known):
        names = {one.model.rpartition("/")[2] for one in known}
        raise ValueError(f"no published SAE is of the model '{model}'{near_miss(model, names)}")
    found = [
        one
        for one in known
        if (not model or _is_called(one.model, model))
        and (not site or _is_at(one, site))
        and wanted_width in (None, one.width)
        and (not wanted_l0 or (one.l0 is not None and wanted_l0[0] <= one.l0 <= wanted_l0[1]))
        and not (loads and one.reason)
        and all(
            word.lower() in f"{one.name} {one.repo} {one.model} {one.hook} {one.site}".lower() for word in words or ()
        )
    ]
    _print(found[:limit])
    more = f", the first {limit} are shown: give more words, or --limit {len(found)}" if len(found) > limit else ""
    print(f"{len(found):,} of {len(known):,} published SAEs{more}")
    print(f"from {index()['source']}, {index()['date']}; `saelab convert NAME OUT` or saelab.load(NAME) fetches one")


def _range(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+\.?\d*)(?:-(\d+\.?\d*))?", text)
    low, high = (float(found[1]), float(found[2] or found[1])) if found else (1.0, 0.0)
    if low > high:
        raise ValueError(f"--l0 takes a number or a range such as 40-80; got '{text}'")
    return low, high


def _is_called(model: str, name: str) -> bool:
    return name.lower() in (model.lower(), model.lower().rpartition("/")[2])


def _is_at(one: Published, site: str) -> bool:
    return site == one.site or re.search(rf"(^|[._]){re.escape(site)}$", one.hook or "") is not None


def _holds(one: Published, words: list[str]) -> bool:
    text = f"{one.name} {one.repo} {one.model} {one.hook} {one.site}".lower()
    return all(word.lower() in text for word in words)


def _print(found: list[Published]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(("name", "model", "site", "width", "L0", "family, or why it does not load")):
        table.add_column(head, justify="right" if number in (3, 4) else "left", no_wrap=True)
    for one in found:
        width = f"{one.width:,}" if one.width else ""
        site = one.site or one.hook or ""
        table.add_row(one.name, one.model, site, width, f"{one.l0:g}" if one.l0 else "", one.reason or one.family)
    if found:
        wide_console().print(table, markup=False)
