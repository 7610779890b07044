"""What a writer is asked about a latent, and what its answers are worth.

    explain     a phrase for what the marked tokens of some windows have in common
    detection   which windows does the phrase describe?               balanced accuracy; 1/2 by guessing
    fuzzing     in which windows are the right tokens marked?         balanced accuracy; 1/2
    intruder    which of five windows is not like the others?         accuracy; 1/5; the phrase is not shown
    simulation  how strongly does the latent fire on each token, 0 to 9?      correlation with what it does; 0

Detection, fuzzing and intruder are our reading of Paulo et al. 2024 (arXiv 2410.13928), simulation of Bills et al.
2023. In fuzzing the wrong windows are ones in which the latent fires, with as many other tokens marked.
"""

# Shape letters: none; windows are lists.

import random
from collections.abc import Sequence

from saelab.explain.material import Window
from saelab.explain.writers import Writer

EXPLANATION_TOKENS = 30
A_PROMPT, INTRUDER_OF = 6, 5
"""Windows in a prompt, and in an intruder's question."""
YES, NO = "1", "0"

ASK_EXPLANATION = """Below are pieces of text. In each, the tokens between << and >> make a unit of a network fire.

{windows}

In one short phrase of at most fifteen words, what do the marked tokens or the text just before them have in common?
Phrase:"""
ASK_DETECTION = """A unit of a neural network fires on: {explanation}

{windows}

For each of the {count} texts, in order, write 1 if the unit fires somewhere in it and 0 if not, separated by commas.
Answers:"""
ASK_FUZZING = """A unit of a neural network fires on: {explanation}
In each text below some tokens are between << and >>.

{windows}

For each of the {count} texts, in order, write 1 if the unit fires on the marked tokens and 0 if not, separated by
commas.
Answers:"""
ASK_INTRUDER = """Below are {count} texts. The tokens between << and >> share something in all of them but one.

{windows}

Write the number of the text that does not belong.
Answer:"""
ASK_SIMULATION = """A unit of a neural network fires on: {explanation}
Below are the tokens of a text, one a line.

{windows}

For each of the {count} tokens, in order, write how strongly the unit fires on it, from 0 (not at all) to 9, separated
by commas.
Answers:"""


def numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def explain(writer: Writer, windows: Sequence[Window]) -> str:
    """A phrase for what a latent fires on."""
    texts = numbered([window.text(window.marks()) for window in windows])
    return writer.text(ASK_EXPLANATION.format(windows=texts), EXPLANATION_TOKENS)


def detection(writer: Writer, phrase: str, active: Sequence[Window], silent: Sequence[Window], seed: int) -> float:
    """Balanced accuracy."""
    labelled = [(window.text(), True) for window in active] + [(window.text(), False) for window in silent]
    return _told_apart(writer, ASK_DETECTION, phrase, labelled, seed)


def fuzzing(writer: Writer, phrase: str, active: Sequence[Window], seed: int) -> float:
    """Balanced accuracy; every second window has other tokens marked."""
    draw, labelled = random.Random(seed), []
    for number, window in enumerate(active):
        marks, is_right = window.marks(), number % 2 == 0
        labelled.append((window.text(marks if is_right else _moved(marks, draw)), is_right))
    return _told_apart(writer, ASK_FUZZING, phrase, labelled, seed)


def _moved(marks: list[bool], draw: random.Random) -> list[bool]:
    """As many marks, on other tokens where there are enough."""
    free = [place for place, mark in enumerate(marks) if not mark]
    chosen = set(draw.sample(free, min(len(free), sum(marks))))
    return [place in chosen for place in range(len(marks))]


def _told_apart(writer: Writer, ask: str, phrase: str, labelled: list[tuple[str, bool]], seed: int) -> float:
    random.Random(seed).shuffle(labelled)
    right = {True: [0, 0], False: [0, 0]}
    for start in range(0, len(labelled), A_PROMPT):
        part = labelled[start : start + A_PROMPT]
        texts = numbered([text for text, _ in part])
        prompt = ask.format(explanation=phrase, windows=texts, count=len(part))
        answers = writer.picks(prompt, [NO, YES], len(part))
        for answer, (_, label) in zip(answers, part, strict=True):
            right[label][0] += (answer == YES) == label
            right[label][1] += 1
    shares = [hits / of for hits, of in right.values() if of]
    return sum(shares) / len(shares)


def intruder(writer: Writer, alike: Sequence[Window], odd: Window, seed: int) -> float:
    """1 if the odd window is found among the others, else 0."""
    draw = random.Random(seed)
    marks = [mark for window in alike for mark in window.marks()]
    share = sum(marks) / max(1, len(marks))
    placed = [False] * len(odd.tokens)
    # The odd one is marked as densely as the others, somewhere.
    for place in draw.sample(range(len(placed)), min(len(placed), max(1, round(share * len(placed))))):
        placed[place] = True
    texts = [window.text(window.marks()) for window in alike[: INTRUDER_OF - 1]]
    place = draw.randrange(len(texts) + 1)
    texts.insert(place, odd.text(placed))
    options = [str(number) for number in range(1, len(texts) + 1)]
    (answer,) = writer.picks(ASK_INTRUDER.format(windows=numbered(texts), count=len(texts)), options, 1)
    return float(answer == options[place])


def simulation(writer: Writer, phrase: str, windows: Sequence[Window]) -> float:
    """Correlation of what the writer expects on each token with what the latent does; 0 if it expects all alike."""
    expected: list[float] = []
    actual: list[float] = []
    for window in windows:
        tokens = "\n".join(token.replace("\n", "\\n") for token in window.tokens)
        prompt = ASK_SIMULATION.format(explanation=phrase, windows=tokens, count=len(window.tokens))
        digits = [str(digit) for digit in range(10)]
        expected += [float(answer) for answer in writer.picks(prompt, digits, len(window.tokens))]
        actual += window.values
    return correlation(expected, actual)


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side does not vary."""
    n = len(one)
    mean_one, mean_other = sum(one) / n, sum(other) / n
    a, b = [x - mean_one for x in one], [y - mean_other for y in other]
    sizes = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / sizes if sizes else 0.0
