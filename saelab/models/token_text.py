"""Which text tokens stand for: the only place where tokens become text.

    of_text   the source itself, and each token's span in it by the tokenizer's own offsets
    of_ids    tokens whose source is not at hand: their bytes in a row, as the tokenizer decodes them together
    labels    one token by itself, for lists: with its leading blank (" the"), a part of a character as <0xE6>

A token by itself has no text that could be joined: SentencePiece drops its leading blank, and a character may be spread
over several tokens. A span never has the blank in front of the token, unless the token is nothing but blanks; tokens
that are parts of one character have spans that overlap, and `units` puts them together. "Character" is a code point.

From ids alone there is only what the tokenizer keeps: lower case where it lowers, its name for an unknown token, one
blank between words where it splits at blanks. How a text looks on a page is not decided here.
"""

# Shape letters: T tokens, V vocabulary.

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What a decoder gives for bytes that are no whole character."""
NO_TOKEN = "\u25a1"
"""Stands for a number that is no token."""
CONTEXT = 8
"""Tokens before one that it is decoded behind, where it must be decoded."""


@dataclass(frozen=True)
class Unit:
    """A stretch of text that is shown as one: a token, or tokens that are parts of one character."""

    text: str
    """With the blank in front of it."""
    first: int
    last: int
    """Its tokens are first <= t < last; none where no token stands for the text."""

    @property
    def blank(self) -> str:
        """The blank in front of it."""
        return self.text[: len(self.text) - len(self.stripped)]

    @property
    def stripped(self) -> str:
        """The text without the blank in front; all of it where there is nothing else."""
        return self.text.lstrip() or self.text


def units(text: str, start: Sequence[int], end: Sequence[int]) -> list[Unit]:
    """Text in units that joined give it back, from the spans [T] of its tokens."""
    found: list[Unit] = []
    done = waiting = 0
    for token, (first, last) in enumerate(zip(start, end, strict=True)):
        if (last <= done or first < done) and found:
            before = found.pop()
            found.append(Unit(before.text + text[done:last], before.first, token + 1))
        elif last > done:
            between = text[done:first]
            if between.strip():
                bare = between.rstrip()
                found.append(Unit(bare, token, token))
                done += len(bare)
            found.append(Unit(text[done:last], waiting, token + 1))
        else:
            continue  # a token without text in front of all others goes with the next
        done, waiting = max(done, last), token + 1
    if rest := text[done:]:
        if rest.strip() or not found:
            found.append(Unit(rest, len(start), len(start)))
        else:
            before = found.pop()
            found.append(Unit(before.text + rest, before.first, before.last))
    return found


def strongest(values: Sequence[float], of: Sequence[Unit]) -> list[float]:
    """The value of largest size among each unit's tokens, from values [T]; 0 where it has none."""
    return [max((values[token] for token in range(unit.first, unit.last)), key=abs, default=0.0) for unit in of]


def marked(text: str, left: str, right: str) -> str:
    """A unit's text between two marks, which stand behind the blank in front of it."""
    own = text.lstrip() or text
    return f"{text[: len(text) - len(own)]}{left}{own}{right}"


def unit_at(token: int, of: Sequence[Unit]) -> int:
    """The number of the unit that a token belongs to; that of the last one for a token behind all."""
    return next((place for place, unit in enumerate(of) if unit.first <= token < unit.last), len(of) - 1)


@dataclass(frozen=True)
class Spelled:
    """A text and where its tokens are in it."""

    text: str
    ids: list[int]
    start: np.ndarray
    """First character of each token, [T] int64, never falling."""
    end: np.ndarray
    """The one behind its last, [T] int64, never falling."""

    def units(self) -> list[Unit]:
        """The text in units that joined give it back."""
        return units(self.text, self.start.tolist(), self.end.tolist())

    def pieces(self) -> list[str]:
        """A text for each token, [T], that joined give the whole; "" for all parts of a character but the first."""
        found = [""] * len(self.ids)
        for unit in self.units():
            place = min(unit.first, len(found) - 1)
            if found:
                found[place] += unit.text
        return found


class TokenText:
    """What a tokenizer's tokens stand for.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer

    def of_text(self, text: str) -> Spelled:
        """A text's tokens, without those that a tokenizer adds, and their spans in it.

        A tokenizer that has no offsets gives what its tokens decode to instead of the source, where these differ.
        """
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        found: Any = self.tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=fast, verbose=False
        )
        ids: list[int] = found["input_ids"]
        if not fast:
            return self.of_ids(ids)
        spans = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        return Spelled(text, ids, *_without_blanks(text, spans[:, 0], spans[:, 1]))

    def of_ids(self, ids: Sequence[int], begins: bool = True) -> Spelled:
        """The text of tokens that follow each other.

        Args:
            ids: the tokens; numbers that are none are shown as a box.
            begins: whether a text begins with them; else a blank in front of the first is kept.
        """
        ids = list(ids)
        parts = [self._bytes[one] if 0 <= one < len(self._bytes) else NO_TOKEN.encode() for one in ids]
        text, start, end = _joined(parts)
        known = [one for one in ids if 0 <= one < len(self._bytes)]
        whole = self._decode(known) if len(known) == len(ids) else text
        # SentencePiece puts a blank before the first word and takes it away again.
        added = len(whole.lstrip(" ")) - len(whole) - len(text.lstrip(" ")) + len(text)
        if begins and added > 0:
            text, start, end = text[added:], np.maximum(start - added, 0), np.maximum(end - added, 0)
        if BROKEN not in whole + text and text.lstrip(" ") != whole.lstrip(" "):
            text, start, end = self._step_by_step(ids)
        return Spelled(text, ids, *_without_blanks(text, start, end))

    def context(self, before: Sequence[int], at: int, after: Sequence[int]) -> tuple[str, str, str]:
        """The text before, of and after one token among others; the blank in front of it stands before it."""
        found = self.of_ids([*before, at, *after], begins=False).units()
        place = unit_at(len(before), found)
        left, right = ("".join(unit.text for unit in part) for part in (found[:place], found[place + 1 :]))
        return left + found[place].blank, found[place].stripped, right

    def label(self, token: int) -> str:
        """One token by itself; a box for a number that is none."""
        return self.labels[token] if 0 <= token < len(self.labels) else NO_TOKEN

    @cached_property
    def labels(self) -> list[str]:
        """Every token by itself, [V]: what it adds behind another, bytes that are no character as <0xE6>."""
        return [_readable(part) for part in self._bytes]

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; [V]."""
        count = len(self.tokenizer)
        names: list[str | None] = self.tokenizer.convert_ids_to_tokens(list(range(count)))
        behind = self._anchor(count)
        known, found = self._decode(behind), []
        for token, name in enumerate(names):
            text = "" if name is None else self._decode([*behind, token])
            text = text[len(known) :] if text.startswith(known) else self._decode([token])
            found.append(_bytes_named(name, text) if BROKEN in text and name else text.encode("utf-8", "replace"))
        return found

    def _anchor(self, count: int) -> list[int]:
        """A token that others can stand behind, so that their leading blanks are seen."""
        found: Any = self.tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        for token in [*found[-1:], *range(count)]:
            text = self._decode([token])
            if text.strip() and BROKEN not in text and self._decode([token, token]).startswith(text):
                return [token]
        return []

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if len(ids) else ""

    def _step_by_step(self, ids: Sequence[int]) -> tuple[str, np.ndarray, np.ndarray]:
        """Text and spans by decoding each token behind those before it, where tokens have no bytes of their own."""
        pieces = []
        for place in range(len(ids)):
            behind = ids[max(0, place - CONTEXT) : place]
            known, now = self._decode(behind), self._decode([*behind, ids[place]])
            # What a token changes in the text before it cannot be told.
            pieces.append(now[len(known) :] if now.startswith(known) else self._decode([ids[place]]))
        end = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        return "".join(pieces), end - [len(piece) for piece in pieces], end


def _joined(parts: Sequence[bytes]) -> tuple[str, np.ndarray, np.ndarray]:
    """The text of bytes in a row, and the characters that each part has a share in: first and behind the last."""
    text = b"".join(parts).decode("utf-8", "surrogateescape")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_broken = (points >= 0xDC80) & (points <= 0xDCFF)
    width = np.where(is_broken, 1, 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000))
    owner = np.append(np.repeat(np.arange(len(points)), width), len(points))  # of each byte, and of the end
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(parts)]
    start = owner[starts]
    end = np.where(ends > starts, owner[np.maximum(ends - 1, 0)] + 1, start)
    return re.sub("[\udc80-\udcff]", BROKEN, text), start, end


def _without_blanks(text: str, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans that never fall and do not begin with a blank, from a tokenizer's own."""
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for first, last in zip(start.tolist(), end.tolist(), strict=True):
        if last > done and first == last:
            first = done  # nothing but blanks, which some tokenizers leave out of every span
        elif last > done and first >= done:
            own = text[first:last]
            first += len(own) - len(own.lstrip() or own)
        done = max(done, last)
        starts.append(max(min(first, done), starts[-1] if starts else 0))
        ends.append(done)
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _bytes_named(name: str, text: str) -> bytes:
    """The bytes of a token that is no whole text, from its name: <0xE6>, or letters that stand for bytes (GPT-2)."""
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes([int(match[1], 16)])
    if all(sign in _BYTE_OF for sign in name):
        return bytes(_BYTE_OF[sign] for sign in name)
    return text.encode("utf-8", "replace")


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from U+0100 on."""
    own = [byte for byte in range(256) if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def _readable(part: bytes) -> str:
    name: Callable[[re.Match[str]], str] = lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>"  # noqa: E731
    return re.sub("[\udc80-\udcff]", name, part.decode("utf-8", "surrogateescape"))
