"""Text that latents are explained from and explanations are tried on.

Windows of some dozen tokens around places at which a latent fires, from one half of the documents to explain it and
from the other half to try the explanation, and windows at random places for contrast.
"""

# Shape letters: S latents, W tokens of a window, M windows drawn.

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.data.source import generator_for
from saelab.metrics.evaluation import TextEvaluation
from saelab.metrics.n2g.windows import NONE, Firings, Windows
from saelab.models.token_text import TokenText, marked, strongest
from saelab.sae.autoencoder import Autoencoder

SIDE = 12
"""Tokens of a window before and after its place."""
DRAWN_WINDOWS = 200
SHOWN, TRIED = 8, 6
"""Windows that a latent is explained from, and of each kind that an explanation is tried on."""
ACTIVE = 0.1
"""Share of a window's largest activation from which a token is marked."""


@dataclass(frozen=True)
class Window:
    """A piece of text and how strongly a latent fires on its tokens."""

    tokens: list[str]
    """Joined they give the text; tokens that are parts of one character are one."""
    values: list[float]

    def marks(self) -> list[bool]:
        """Which tokens the latent marks."""
        largest = max(self.values, default=0.0)
        return [value > 0 and value >= ACTIVE * largest for value in self.values]

    def text(self, marks: list[bool] | None = None) -> str:
        """The text on one line, marked tokens between << and >>, which stand behind the token's leading blank."""
        chosen = marks or [False] * len(self.tokens)
        said = "".join(marked(one, "<<", ">>") if mark else one for one, mark in zip(self.tokens, chosen, strict=True))
        return said.replace("\n", "\\n")


@dataclass(frozen=True)
class Material:
    """Of one latent."""

    latent: int
    shown: list[Window]
    tried: list[Window]
    silent: list[Window]
    """Windows on which it does not fire."""


class Random:
    """Windows at places drawn from all, with the activations of all latents looked at."""

    def __init__(self, n_slots: int, most: int, seed: int):
        self.generator, self.n_slots, width = generator_for(seed, 17), n_slots, 2 * SIDE + 1
        self.priority = torch.full((most,), -1.0)
        self.tokens = torch.full((most, width), NONE, dtype=torch.int32)
        self.values = torch.zeros(most, n_slots, width)

    def update(self, read: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], places: Tensor) -> None:
        """Take in the places of a chunk [n]; `read` gives tokens and activations around positions for latents."""
        chance = torch.rand(len(places), generator=self.generator)
        both = torch.cat([self.priority, chance])
        best = both.topk(len(self.priority)).indices
        fresh = best[best >= len(self.priority)] - len(self.priority)
        gone = torch.ones(len(self.priority), dtype=torch.bool)
        gone[best[best < len(self.priority)]] = False
        free = gone.nonzero().flatten()
        if not len(fresh):
            return
        positions = places[fresh]
        every = torch.arange(self.n_slots)
        tokens, values = read(positions.repeat_interleave(self.n_slots), every.repeat(len(positions)))
        width = tokens.shape[1]
        self.tokens[free] = tokens.view(len(positions), self.n_slots, width)[:, 0]
        self.values[free] = values.view(len(positions), self.n_slots, width)
        self.priority[free] = chance[fresh]


@torch.no_grad()
def collect(
    sae: Autoencoder, evaluation: TextEvaluation, latents: Tensor, seed: int = 0
) -> tuple[list[Material], list[int]]:
    """Material of latents [S], and those of them that fire at too few places to be explained."""
    slot_of = torch.full((sae.n_latents,), NONE)
    slot_of[latents] = torch.arange(len(latents))
    shown = Windows(len(latents), SHOWN // 2, SHOWN - SHOWN // 2, SIDE, SIDE, seed)
    tried = Windows(len(latents), 0, TRIED, SIDE, SIDE, seed + 1)
    drawn = Random(len(latents), DRAWN_WINDOWS, seed)
    for chunk in evaluation.chunks(False):
        if chunk.places is None:
            raise ValueError(evaluation.why_no_model or "rows have no place in the text")
        tokens, keep = chunk.places.tokens, chunk.places.keep
        firings = Firings.from_codes(sae.encode(chunk.x.to(sae.device, sae.dtype)), keep, slot_of)
        places = keep.flatten().nonzero().flatten()
        group = torch.full((keep.numel(),), -1)
        group[places] = chunk.group
        even = (group % 2 == 0).view_as(keep)
        shown.update(tokens, firings, even & keep)
        tried.update(tokens, firings, ~even & keep)
        drawn.update(tried.reader(tokens, firings), places[chunk.group % 2 == 1])
    spelling = evaluation.model.token_text
    found, few = [], []
    for slot, latent in enumerate(latents.tolist()):
        one = Material(
            latent, _windows(shown, slot, spelling), _windows(tried, slot, spelling), _silent(drawn, slot, spelling)
        )
        if len(one.shown) >= SHOWN // 2 and len(one.tried) >= TRIED // 2 and len(one.silent) >= TRIED:
            found.append(one)
        else:
            few.append(latent)
    return found, few


def _windows(windows: Windows, slot: int, spelling: TokenText) -> list[Window]:
    """The windows kept of a latent, each once."""
    found: dict[tuple[int, ...], Window] = {}
    for place in (windows.priority[slot] > -torch.inf).nonzero().flatten().tolist():
        tokens, values = windows.tokens[slot, place], windows.values[slot, place]
        found.setdefault(tuple(tokens.tolist()), _window(tokens, values, spelling))
    return list(found.values())


def _silent(drawn: Random, slot: int, spelling: TokenText) -> list[Window]:
    none = ((drawn.values[:, slot] == 0).all(1) & (drawn.priority >= 0)).nonzero().flatten()
    # Another part for each latent, so that not all are tried on the same few.
    chosen = none.roll(-7 * slot)[: 2 * TRIED] if len(none) else none
    return [_window(drawn.tokens[one], drawn.values[one, slot], spelling) for one in chosen.tolist()]


def _window(tokens: Tensor, values: Tensor, spelling: TokenText) -> Window:
    there = tokens != NONE
    units = spelling.of_ids(tokens[there].tolist(), begins=False).units()
    return Window([unit.text for unit in units], strongest(values[there].tolist(), units))
