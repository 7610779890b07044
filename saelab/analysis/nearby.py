"""A site of a model and those around it, and the rows of one text at all of them, from one pass.

Around a site are the residual stream before, between and after attention and MLP, what both add, and what the MLP is
given, in its block and those beside it, and what all other blocks give. Where several sites are read, or a target is,
they are the same ones of the blocks beside theirs. Those that hold the same rows are one.
"""

# Shape letters: R rows of tokens, T tokens a row, n rows, D width that is read, D_out of what is reconstructed.

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from saelab.models.harvest import averaged, keep_rows, norm_limit
from saelab.models.language_model import LanguageModel
from saelab.models.sites import sites_of
from saelab.models.structure import block_at, blocks_of, trial_of
from saelab.models.subject import Subject

FEWER_ROWS, TOKENS = 1024, 2048
"""Rows of sites around, and tokens that the model reads at once."""
NEARBY = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_in")


class SitePair(NamedTuple):
    """A site, or several, and the target of a transcoder."""

    site: str
    target: str | None = None

    def __str__(self) -> str:
        return f"{self.site} -> {self.target}" if self.target else self.site

    @property
    def singles(self) -> list[str]:
        """Every site, those that are read first."""
        return [name.strip() for part in self if part for name in part.split(",")]


@dataclass(frozen=True)
class SiteRows:
    """Rows that are read and, of a transcoder, that are to be reconstructed."""

    x: Tensor
    """[n, D]"""
    target: Tensor | None = None
    """[n, D_out]"""

    def first(self) -> "SiteRows":
        """As many as there are of sites around."""
        return SiteRows(self.x[:FEWER_ROWS], None if self.target is None else self.target[:FEWER_ROWS])

    def shuffled(self) -> "SiteRows":
        """With the coordinates of what is read in another order, about their mean."""
        order = torch.randperm(self.x.shape[1], generator=torch.Generator().manual_seed(0))
        mean = self.x.mean(0)
        return SiteRows(mean + (self.x - mean)[:, order], self.target)


class Neighbourhood:
    """A model, what was asked of it, and what lies around."""

    def __init__(self, model: LanguageModel):
        self.model, self.own = model, SitePair(model.site, model.target)
        self._seen: dict[str, Tensor] = {}
        self._try(self.own.singles)

    def widths(self, place: SitePair) -> tuple[int, int | None]:
        """Width of what is read and, of a transcoder, of what is reconstructed."""
        read = sum(self._seen[name].shape[-1] for name in SitePair(place.site).singles)
        return read, sum(self._seen[name].shape[-1] for name in SitePair(place.target or "").singles) or None

    @torch.no_grad()
    def nearby(self) -> list[SitePair]:
        """Other places, each with other rows; only the blocks beside this one where several sites are read."""
        inner, blocks = self.model.model, blocks_of(self.model.model)
        own = self.own.singles
        inside = [number for number, block in enumerate(blocks) if f"{own[0]}.:".startswith((f"{block}.", f"{block}:"))]
        beside = [number for at in inside for number in (at - 1, at, at + 1) if 0 <= number < len(blocks)]
        found: list[SitePair] = []
        if len(own) > 1:
            for number in beside:
                here, there = blocks[inside[0]], blocks[number]
                moved = [part and part.replace(here, there) for part in self.own]
                if moved[0] and all(name.startswith(here) for name in own):
                    found.append(SitePair(moved[0], moved[1]))
        else:
            found += [SitePair(block) for block in blocks]  # first, because one's output is the next one's input
            for number in beside:
                places = block_at(inner, blocks[number])
                found += [SitePair(places.path + places.sites[name]) for name in NEARBY if name in places.sites]
        self._try([name for place in found for name in place.singles])
        return self._different(found)

    def _different(self, places: Sequence[SitePair]) -> list[SitePair]:
        kept = [self.own]
        for place in places:
            values = [self._seen[name] for name in place.singles]
            same = (all(map(_equal, values, (self._seen[name] for name in one.singles))) for one in kept)
            if not any(same):
                kept.append(place)
        return kept[1:]

    @torch.no_grad()
    def _try(self, names: Sequence[str]) -> None:
        """Note what sites hold for a trial's tokens."""
        ids = trial_of(self.model.model)
        new = list(dict.fromkeys(name for name in names if name not in self._seen))
        sites = [sites_of(self.model.model, self.model.name, name)[0] for name in new]

        def note(name: str, value: Tensor) -> None:
            self._seen[name] = value.clone()

        with ExitStack() as hooks:
            for name, site in zip(new, sites, strict=True):
                hooks.callback(site.hook(ids.shape, partial(note, name)).remove)
            self.model.model(input_ids=ids, use_cache=False)

    def rows(
        self, subject: Subject, others: Sequence[SitePair], wanted: int, split: str
    ) -> Iterator[tuple[SitePair, SiteRows]]:
        """The rows of the own place, and the first of them at others; ValueError where there are none."""
        names = list(dict.fromkeys(name for place in (self.own, *others) for name in place.singles))
        every = LanguageModel(self.model.model, ",".join(names), tokenizer=self.model.tokenizer)
        width = sum(part or 0 for part in self.widths(self.own))
        limit, count, parts = 0.0, 0, list[Tensor]()
        for block in subject.token_rows(self.model, split, max(1, TOKENS // subject.seq_len)):
            values = every.activations(block.ids)
            limit = limit or norm_limit(values[..., : self.model.d_in], block)
            kept = keep_rows(values, block, limit, self.model.d_in)
            kept = averaged(kept) if subject.average else kept
            parts.append((kept.rows if count < FEWER_ROWS else kept.rows[:, :width]).float())
            count += len(kept.rows)
            if count >= wanted:
                break
        own = torch.cat([part[:, :width] for part in parts] or [torch.zeros(0, width)])[:wanted]
        if len(own) < 2 or not own.isfinite().all():
            what = "NaN or infinity" if len(own) > 1 else f"{len(own)} rows"
            raise ValueError(
                f"{self.model.name} gives {what} at {self.own} on {subject.text} ({split}): give other text"
            )
        few = torch.cat(
            [part for part in parts if part.shape[1] > width or len(names) == len(self.own.singles)] or [own]
        )
        columns = dict(
            zip(names, few[:wanted].split([self._seen[name].shape[-1] for name in names], dim=1), strict=True)
        )
        yield self.own, _cut(own, self.model.d_in)
        for place in others:
            stacked = torch.cat([columns[name] for name in place.singles], dim=1)
            yield place, _cut(stacked, self.widths(place)[0])


def _cut(rows: Tensor, d_in: int) -> SiteRows:
    return SiteRows(rows[:, :d_in].contiguous(), rows[:, d_in:] if rows.shape[1] > d_in else None)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
