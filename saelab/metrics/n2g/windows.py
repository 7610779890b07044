"""Places at which latents fire, with the text around them: what explanations are made from and tried on.

For each latent the strongest places are kept, at most one of a document's stretch of text in a chunk, and some drawn at
random from all at which it fires. What is held does not grow with the text.
"""

# Shape letters: R packed rows of tokens, T tokens of each, B kept rows of a chunk, S latents looked at, W tokens of a
# window, M places kept of a latent, n firings in a chunk.

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.data.source import generator_for
from saelab.models.tokens import TokenRows

NONE = -1
"""Stands in a window where the document has no token, and for latents that are not looked at."""


def before(tokens: TokenRows) -> Tensor:
    """How many tokens of its document stand before each position of a row; -1 at BOS, joins and padding; [R, T]."""
    real = tokens.position >= 0
    last = torch.nn.functional.pad(tokens.document[:, :-1], (1, 0), value=-2)
    begins = real & ((tokens.document != last) | torch.nn.functional.pad(~real[:, :-1], (1, 0), value=True))
    place = torch.arange(tokens.ids.shape[1]).expand_as(tokens.ids)
    first = place.where(begins, 0).cummax(1).values
    return (place - first).where(real, -1)


@dataclass(frozen=True)
class Firings:
    """Where the latents looked at are active in a chunk, one entry each, sorted by position and then latent."""

    position: Tensor
    """Flat position in the chunk's R * T tokens; [n]."""
    slot: Tensor
    """Number of the latent among those looked at; [n]."""
    value: Tensor
    n_slots: int

    @classmethod
    def from_codes(cls, codes: Codes, keep: Tensor, slot_of: Tensor) -> "Firings":
        """Of codes [B] at the positions `keep` [R, T]; `slot_of` [L] gives a latent's slot or NONE."""
        slot = slot_of[codes.indices.cpu()]
        rows, entries = (codes.active.cpu() & (slot >= 0)).nonzero(as_tuple=True)
        position, slot = keep.flatten().nonzero().flatten()[rows], slot[rows, entries]
        n_slots = int(slot_of.max()) + 1 if len(slot_of) else 0
        order = (position * n_slots + slot).sort().indices
        return cls(position[order], slot[order], codes.values.detach().cpu().float()[rows, entries][order], n_slots)

    @property
    def keys(self) -> Tensor:
        """One number for each pair of position and latent, ascending; [n]."""
        return self.position * self.n_slots + self.slot

    def values_at(self, position: Tensor, slot: Tensor) -> Tensor:
        """Activations of latents at positions, of any one shape; 0 where they are not active."""
        if not len(self.value):
            return torch.zeros(position.shape)
        key = position * self.n_slots + slot
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.value) - 1)
        return self.value[place].where(self.keys[place] == key, 0)


class Windows:
    """The places kept.

    Args:
        n_slots: latents looked at.
        top: strongest places kept of each.
        drawn: places drawn of each.
        left, right: tokens before and after the place that a window has.
        seed: of what is drawn.
    """

    def __init__(self, n_slots: int, top: int, drawn: int, left: int, right: int, seed: int = 0):
        self.n_slots, self.left, self.right = n_slots, left, right
        self.generator = generator_for(seed, 11)
        width = left + 1 + right
        self.tokens = torch.full((n_slots, top + drawn, width), NONE, dtype=torch.int32)
        self.values = torch.zeros(n_slots, top + drawn, width)
        self.priority = torch.full((n_slots, top + drawn), -torch.inf)
        """How much a place wants to be kept; -inf where there is none."""
        self.top = top

    def update(self, tokens: TokenRows, firings: Firings, wanted: Tensor | None = None) -> None:
        """Take in a chunk.

        Args:
            tokens: of the chunk.
            firings: in it.
            wanted: positions that may be kept, [R, T] bool; by default all.
        """
        room = before(tokens)
        chosen = room.flatten()[firings.position] >= 0
        if wanted is not None:
            chosen &= wanted.flatten()[firings.position]
        which = chosen.nonzero().flatten()
        strongest = which[_first_of_each(firings, which, room, tokens)]
        self._keep(slice(0, self.top), firings, strongest, firings.value.abs()[strongest], (tokens, room))
        chance = torch.rand(len(which), generator=self.generator)
        self._keep(slice(self.top, None), firings, which, chance, (tokens, room))

    def _keep(
        self, part: slice, firings: Firings, which: Tensor, priority: Tensor, text: tuple[TokenRows, Tensor]
    ) -> None:
        """Let firings, by number, compete for some of the places."""
        most = self.priority[:, part].shape[1]
        slot = firings.slot[which]
        order = priority.sort(descending=True, stable=True).indices
        order = order[slot[order].sort(stable=True).indices]
        counts = torch.bincount(slot, minlength=self.n_slots)
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[slot[order]]
        order, rank = order[rank < most], rank[rank < most]
        # Those that do not beat the weakest place kept need no window.
        better = priority[order] > self.priority[:, part].amin(1)[slot[order]] if most else order < 0
        order, rank = order[better], rank[better]
        if not len(order):
            return
        windows, values = self._windows(firings.position[which][order], slot[order], firings, text)
        affected, line = slot[order].unique(return_inverse=True)
        fresh = torch.full((len(affected), most), -torch.inf)
        fresh_windows = torch.full((len(affected), most, windows.shape[1]), NONE, dtype=torch.int32)
        fresh_values = torch.zeros(len(affected), most, windows.shape[1])
        fresh[line, rank], fresh_windows[line, rank], fresh_values[line, rank] = priority[order], windows, values
        both = torch.cat([self.priority[affected, part], fresh], 1)
        kept = both.topk(most, dim=1).indices
        self.priority[affected, part] = both.gather(1, kept)
        kept = kept[:, :, None].expand(-1, -1, windows.shape[1])
        self.tokens[affected, part] = torch.cat([self.tokens[affected, part], fresh_windows], 1).gather(1, kept)
        self.values[affected, part] = torch.cat([self.values[affected, part], fresh_values], 1).gather(1, kept)

    def reader(self, tokens: TokenRows, firings: Firings) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Gives tokens and activations [m, W] around positions [m] of a chunk for latents [m] by slot."""
        text = tokens, before(tokens)
        return lambda position, slot: self._windows(position, slot, firings, text)

    def _windows(
        self, position: Tensor, slot: Tensor, firings: Firings, text: tuple[TokenRows, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Tokens and activations around positions, [m, W] each, NONE and 0 beyond the stretch of the document."""
        tokens, room = text
        around = torch.arange(-self.left, self.right + 1)
        there = position[:, None] + around
        flat_room = room.flatten()
        inside = there.clamp(0, len(flat_room) - 1)
        # A position is of the same stretch if as many tokens stand before it as its distance asks for.
        same = (inside == there) & (flat_room[inside] == flat_room[position][:, None] + around)
        same &= flat_room[inside] >= 0
        same &= (inside // tokens.ids.shape[1]) == (position // tokens.ids.shape[1])[:, None]
        ids = tokens.ids.flatten()[inside].where(same, NONE).int()
        values = firings.values_at(inside, slot[:, None].expand_as(inside)).where(same, 0)
        return ids, values


def _first_of_each(firings: Firings, which: Tensor, room: Tensor, tokens: TokenRows) -> Tensor:
    """Of firings by number, the strongest for each latent and stretch of a document; places in `which`."""
    if not len(which):
        return which
    position, slot = firings.position[which], firings.slot[which]
    begin = position - room.flatten()[position]
    order = firings.value.abs()[which].sort(descending=True, stable=True).indices
    key = (begin * firings.n_slots + slot)[order]
    sorted_key, by_key = key.sort(stable=True)
    first = torch.ones(len(key), dtype=torch.bool)
    first[1:] = sorted_key[1:] != sorted_key[:-1]
    return order[by_key[first]].sort().values
