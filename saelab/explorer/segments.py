"""Statistics and choices for many latents at once: entries are sorted once, and a latent is a segment of them.

No function loops over latents. "Largest" goes by absolute value, because subspace codes are signed; ties go to the
earlier row.
"""

# Shape letters: l latents of a block, E entries of the block, N rows of the corpus, V vocabulary, I intervals,
# M chosen.

from dataclasses import dataclass

import numpy as np

from saelab.explorer.triples import Array, Block, order_by

BINS = 40
INTERVALS = 10


@dataclass(frozen=True)
class Ranked:
    """A block's entries with the order by size within each latent."""

    block: Block
    latent: Array
    """[E] int32, counted from the block's first."""
    size: Array
    """Absolute value of each entry, [E]."""
    order: Array
    """Entry numbers latent by latent, largest first; [E]."""
    largest: Array
    """Absolute value of each latent's largest entry, 0 for a silent latent; [l]."""


def ranked(block: Block) -> Ranked:
    """Sort a block's entries by size within each latent."""
    latent, size = block.latent, np.abs(block.value)
    # The bits of positive floats rise with their values: two rounds of radix sort, four times as fast as by comparing.
    by_size = order_by(~size.view(np.uint32), 1 << 32)
    order = by_size[order_by(latent[by_size], block.last - block.first)]
    largest = np.zeros(block.last - block.first, np.float32)
    some = block.count > 0
    largest[some] = size[order[block.offsets[:-1][some]]]
    return Ranked(block, latent, size, order, largest)


def moments(of: Ranked, rows: int) -> dict[str, Array]:
    """Numbers per latent, [l] each.

    count: rows in which it is active; density: their share; mean, median: of its non-zero values; mean_square: E[a^2],
    skew: E[a^3] / E[a^2]^1.5, kurtosis: E[a^4] / E[a^2]^2 over all rows, zeros too, as OpenAI's viewer has them;
    largest: the value of largest size, with its sign; negative: share of its non-zero values that are below zero.
    """
    block, value = of.block, of.block.value.astype(np.float64)
    latents, count = block.last - block.first, block.count

    def total(power: int) -> Array:
        return np.bincount(of.latent, value**power, latents)

    some = np.maximum(count, 1)
    square = total(2) / rows
    safe = np.where(square > 0, square, 1)
    at = np.minimum(block.offsets[:-1], max(len(value) - 1, 0))
    middle = np.minimum(block.offsets[:-1] + (count - 1) // 2, max(len(value) - 1, 0))

    def picked(place: Array) -> Array:
        return np.where(count > 0, block.value[of.order[place]], 0.0) if len(value) else np.zeros(latents)

    return {
        "count": count,
        "density": count / rows,
        "mean": total(1) / some,
        "median": picked(middle),
        "mean_square": square,
        "skew": total(3) / rows / safe**1.5,
        "kurtosis": total(4) / rows / safe**2,
        "largest": picked(at),
        "negative": np.bincount(of.latent, value < 0, latents) / some,
    }


def binned(of: Ranked, bins: int) -> Array:
    """How many entries of each latent lie in each of `bins` equal parts of (0, largest]; [l, bins] int64.

    Part b holds what is above b / bins and at most (b + 1) / bins of the largest.
    """
    share = of.size.astype(np.float64) / of.largest[of.latent]
    number = np.clip(np.ceil(share * bins).astype(np.int64) - 1, 0, bins - 1)
    latents = of.block.last - of.block.first
    return np.bincount(of.latent.astype(np.int64) * bins + number, minlength=latents * bins).reshape(latents, bins)


def strata(start: Array, count: Array, wanted: int, draw: np.random.Generator) -> Array:
    """`wanted` distinct places of each stretch [start, start + count), one from each of its equal parts at random.

    Returns:
        [..., wanted] int64; -1 where a stretch is shorter than `wanted`.
    """
    steps = np.arange(wanted)
    low, high = (part * count[..., None] // wanted for part in (steps, steps + 1))
    place = low + np.floor(draw.random(low.shape) * (high - low)).astype(np.int64)
    place = np.where(count[..., None] >= wanted, place, steps)
    return np.where(steps < count[..., None], start[..., None] + place, -1)


def top_entries(of: Ranked, wanted: int, apart: int) -> Array:
    """Entries of each latent's largest values, no two within `apart` rows of each other; [l, wanted], -1 for none.

    Only the 4 * wanted largest are looked at, so that a latent that fires in long stretches may have fewer.
    """
    candidates = 4 * wanted
    rank = np.arange(candidates)
    here = rank < of.block.count[:, None]
    place = np.where(here, of.block.offsets[:-1, None] + rank, 0)
    entry = np.where(here, of.order[place] if len(of.order) else 0, -1)
    row = np.where(here, of.block.row[entry] if len(of.order) else 0, -(1 << 30)).astype(np.int64)
    keep = here.copy()
    for number in range(1, candidates):
        close = (np.abs(row[:, :number] - row[:, number, None]) <= apart) & keep[:, :number]
        keep[:, number] &= ~close.any(1)
    return _first(entry, keep, wanted)


def _first(values: Array, keep: Array, wanted: int) -> Array:
    """The first `wanted` kept values of each row, -1 where there are fewer."""
    order = np.argsort(~keep, axis=1, kind="stable")[:, :wanted]
    return np.where(np.take_along_axis(keep, order, 1), np.take_along_axis(values, order, 1), -1)


def interval_entries(of: Ranked, wanted: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """Entries drawn from each of INTERVALS equal parts of (0, largest], and how many each holds.

    Returns:
        [l, I, wanted] entries, -1 for none, and counts [l, I]; interval 0 is that of the smallest values.
    """
    counts = binned(of, INTERVALS)
    # Largest first: the last interval stands at the beginning of a latent's segment.
    behind = counts[:, ::-1].cumsum(1)[:, ::-1] - counts
    place = strata(of.block.offsets[:-1, None] + behind, counts, wanted, draw)
    return np.where(place >= 0, of.order[np.maximum(place, 0)] if len(of.order) else -1, -1), counts


def random_entries(of: Ranked, wanted: int, draw: np.random.Generator) -> Array:
    """Entries drawn evenly over the text; [l, wanted], -1 for none."""
    return strata(of.block.offsets[:-1], of.block.count, wanted, draw)


@dataclass(frozen=True)
class TokenShares:
    """The tokens on which latents are active, most weight first; [l, M] each, token -1 for none."""

    token: Array
    share: Array
    """Of the sum of the latent's absolute values."""
    count: Array
    """How often the latent is active on it."""


def top_tokens(of: Ranked, tokens: Array, vocabulary: int, wanted: int) -> TokenShares:
    """The tokens that carry most of each latent's activation, from the tokens [N] of the corpus."""
    block, latents = of.block, of.block.last - of.block.first
    empty = np.full((latents, wanted), -1, np.int64)
    if not len(block.row) or tokens.max() < 0:
        return TokenShares(empty, np.zeros((latents, wanted)), np.zeros((latents, wanted), np.int64))
    token = np.maximum(tokens[block.row], 0).astype(np.int64)
    by_token = order_by(token, vocabulary)
    order = by_token[order_by(of.latent[by_token], latents)]
    key = of.latent[order].astype(np.int64) * vocabulary + token[order]
    begins = np.flatnonzero(np.diff(key, prepend=-1))
    weight = np.add.reduceat(of.size[order].astype(np.float64), begins)
    count = np.diff(np.append(begins, len(key)))
    owner, word = key[begins] // vocabulary, key[begins] % vocabulary
    by_weight = np.lexsort((word, -weight, owner))
    starts = np.searchsorted(owner, np.arange(latents + 1))
    rank = np.arange(wanted)
    here = rank < np.diff(starts)[:, None]
    group = by_weight[np.where(here, starts[:-1, None] + rank, 0)]
    whole = np.maximum(np.bincount(of.latent, of.size, latents), 1e-30)
    return TokenShares(
        np.where(here, word[group], -1),
        np.where(here, weight[group] / whole[:, None], 0),
        np.where(here, count[group], 0),
    )


def is_active(block: Block, latent: Array, row: Array, rows: int) -> Array:
    """Whether latents (counted from the block's first) are active in rows; both of one shape, `rows` in all."""
    keys = block.latent.astype(np.int64) * rows + block.row
    wanted = latent.astype(np.int64) * rows + row
    if not len(keys):
        return np.zeros(wanted.shape, bool)
    return keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted


def silent_on_token(block: Block, shares: TokenShares, tokens: Array, wanted: int, draw: np.random.Generator) -> Array:
    """Rows with one of a latent's two foremost tokens on which it is silent; [l, wanted], -1 for none."""
    latents = block.last - block.first
    if not len(tokens) or tokens.max() < 0 or not latents:
        return np.full((latents, wanted), -1, np.int64)
    by_token = np.argsort(tokens, kind="stable")
    begins = np.searchsorted(tokens[by_token], np.arange(tokens.max() + 2))
    token = np.maximum(shares.token[:, :2], 0)
    place = strata(begins[token], np.where(shares.token[:, :2] >= 0, np.diff(begins)[token], 0), 4 * wanted, draw)
    place = place.reshape(latents, -1)
    row = np.where(place >= 0, by_token[np.maximum(place, 0)], -1)
    row = draw.permuted(row, axis=1)
    latent = np.broadcast_to(np.arange(latents)[:, None], row.shape)
    return _first(row, (row >= 0) & ~is_active(block, latent, np.maximum(row, 0), len(tokens)), wanted)
