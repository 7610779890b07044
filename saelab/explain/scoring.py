"""Explanations of many latents by a writer, tried beside those that should not hold, latent by latent.

    own        the phrase that the writer found for the latent
    permuted   the phrase that it found for another of the latents
    random     a phrase that it found for windows drawn at random with random tokens marked

An explanation is worth what it gains over the other two. For `intruder`, where no phrase is shown, `permuted` mixes
windows of different latents. Scores are means over latents with intervals over latents. Label collision (2605.12874, as
we read it) says how many latents share a phrase:

    label_reuse      latents for each different phrase       label_shared    share of latents with a phrase of several
    label_identity   H(phrase) / log2(latents): which part of a latent's identity its phrase tells

Phrases are compared without case, punctuation and articles.
"""

# Shape letters: none; one latent at a time.

import math
import random
import re
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from saelab.explain import questions
from saelab.explain.material import TRIED, Material, Window
from saelab.explain.writers import UnusableAnswerError, Writer
from saelab.metrics.base import Score, score_of_latents

SCORERS = ("detection", "fuzzing", "intruder", "simulation")
KINDS = ("own", "random", "permuted")
RANDOM_PHRASES = 5


@dataclass
class Explained:
    """One latent's phrase and how it was tried."""

    latent: int
    phrase: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """By scorer and kind."""
    unanswered: int = 0
    """Questions without a usable answer."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain_all(
    writer: Writer,
    materials: Sequence[Material],
    scorers: Sequence[str] = SCORERS,
    seed: int = 0,
    note: Callable[[Explained], None] = lambda one: None,
) -> tuple[list[Explained], list[int]]:
    """Explain latents and try the explanations.

    Args:
        writer: who answers; what it raises when it cannot go on comes out of here.
        materials: of the latents.
        scorers: which of SCORERS.
        seed: of what is drawn.
        note: is called with every latent that is done, its numbers whole.

    Returns:
        What was found, and the latents for which the writer gave no usable phrase.
    """
    phrases: dict[int, str] = {}
    for material in materials:
        try:
            phrases[material.latent] = questions.explain(writer, material.shown)
        except UnusableAnswerError:
            continue
    able = [material for material in materials if material.latent in phrases]
    random_phrases = _random_phrases(writer, materials, seed)
    found = []
    for number, material in enumerate(able):
        other = able[(number + 1) % len(able)]
        drawn = random_phrases[number % len(random_phrases)] if random_phrases else None
        said = {"own": phrases[material.latent], "random": drawn, "permuted": phrases[other.latent]}
        if len(able) == 1:
            said["permuted"] = None
        one = Explained(material.latent, phrases[material.latent])
        for scorer in scorers:
            one.scores[scorer] = {}
            for kind in KINDS:
                _try(one, writer, (scorer, kind), (material, able, said[kind]), seed)
        found.append(one)
        note(one)
    return found, [material.latent for material in materials if material.latent not in phrases]


About = tuple[Material, Sequence[Material], str | None]
"""A latent's material, that of all, and the phrase to try."""


def _try(one: Explained, writer: Writer, what: tuple[str, str], about: About, seed: int) -> None:
    """One score of one latent, if there is one and the writer gives usable answers."""
    scorer, kind = what
    try:
        value = _score(writer, scorer, kind, about, seed)
    except UnusableAnswerError:
        one.unanswered += 1
        return
    if value is not None:
        one.scores[scorer][kind] = value


def _score(writer: Writer, scorer: str, kind: str, about: About, seed: int) -> float | None:
    """None where there is no such control."""
    material, able, phrase = about
    draw = random.Random(f"{seed} {material.latent}").randrange(1 << 30)
    if scorer == "intruder":
        if kind == "random":
            return None
        alike = material.tried
        if kind == "permuted":
            if len(able) < questions.INTRUDER_OF:
                return None
            place = able.index(material)
            alike = [able[(place + step) % len(able)].tried[0] for step in range(questions.INTRUDER_OF - 1)]
        return questions.intruder(writer, alike, material.silent[0], draw)
    if phrase is None:
        return None
    if scorer == "detection":
        return questions.detection(writer, phrase, material.tried, material.silent[: len(material.tried)], draw)
    if scorer == "fuzzing":
        return questions.fuzzing(writer, phrase, material.tried, draw)
    return questions.simulation(writer, phrase, [*material.tried[:2], material.silent[-1]])


def _random_phrases(writer: Writer, materials: Sequence[Material], seed: int) -> list[str]:
    """Phrases for windows that have nothing in common, with random tokens marked."""
    draw, found = random.Random(seed), []
    windows = [window for material in materials for window in material.silent]
    for _ in range(min(RANDOM_PHRASES, len(materials))):
        some = draw.sample(windows, min(len(windows), TRIED))
        marked = [Window(one.tokens, _one_hot(len(one.tokens), draw)) for one in some]
        try:
            found.append(questions.explain(writer, marked))
        except UnusableAnswerError:
            continue
    return found


def _one_hot(length: int, draw: random.Random) -> list[float]:
    place = draw.randrange(length)
    return [float(number == place) for number in range(length)]


def summary(found: Sequence[Explained], latents: int) -> dict[str, Score]:
    """Scores over all latents that were explained.

    Args:
        found: what `explain_all` gives.
        latents: how many were to be explained.
    """
    scores = {"explained": score_of_latents(torch.arange(latents) < len(found), "share of latents asked about")}
    units = {"detection": "balanced accuracy", "fuzzing": "balanced accuracy", "intruder": "accuracy"}
    for scorer in SCORERS:
        for kind in KINDS:
            values = [one.scores[scorer][kind] for one in found if kind in one.scores.get(scorer, {})]
            if values:
                name = scorer if kind == "own" else f"{scorer}_{kind}"
                scores[name] = score_of_latents(torch.tensor(values), units.get(scorer, "correlation"))
    return scores | collision([one.phrase for one in found])


def collision(phrases: Sequence[str]) -> dict[str, Score]:
    """How many latents share a phrase."""
    labels = [_plain(phrase) for phrase in phrases]
    tally, n = Tally(labels), len(labels)
    if not n:
        return {}
    shared = torch.tensor([float(tally[label] > 1) for label in labels])
    found = {
        "label_reuse": Score(n / len(tally), None, None, n, "latents a phrase"),
        "label_shared": score_of_latents(shared, "share of latents"),
    }
    if n > 1:
        bits = sum(count / n * math.log2(n / count) for count in tally.values())
        found["label_identity"] = Score(bits / math.log2(n), None, None, n, "share of bits")
    return found


def _plain(phrase: str) -> str:
    words = re.sub(r"[^\w\s]", " ", phrase.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
