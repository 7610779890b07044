"""A labelled task: a yes or no for some texts, or for some places in texts, dealt into a train and a test part.

How tasks are read from files is in `files.py`, how they become rows of a model in `rows.py`.
"""

# Shape letters: n examples.

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = -1
"""Place of an example that is about its text as a whole."""
ENOUGH = 8
"""Examples of each class that each part needs at least."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts that several tasks may share, so that the model reads each once. Compared by identity."""

    texts: tuple[str, ...]
    source: str
    """The file they are from, or what made them."""


@dataclass(frozen=True, eq=False)
class Task:
    """A binary task.

    Attributes:
        name: unique among the tasks of a measurement; what stands before a colon is its family.
        texts: what the examples are about.
        text: number of each example's text, [n] int64.
        at: the character whose token is looked at, [n] int64; WHOLE for the whole text.
        label: whether the answer is yes, [n] bool.
        test: whether the example is kept for scoring, [n] bool.
        group: number of the document each example is from, [n] int64; a document is in one part only.
    """

    name: str
    texts: Texts
    text: Tensor
    at: Tensor
    label: Tensor
    test: Tensor
    group: Tensor

    def __post_init__(self) -> None:
        """ValueError for a part that lacks one of the classes."""
        for part, chosen in (("train", ~self.test), ("test", self.test)):
            for word, labelled in (("positive", self.label), ("negative", ~self.label)):
                found = int((chosen & labelled).sum())
                if found < ENOUGH:
                    raise ValueError(
                        f"the task '{self.name}' has {found} {word} examples to {part} on, fewer than {ENOUGH}; "
                        "it needs both labels, from several documents"
                    )

    @property
    def family(self) -> str:
        """The tasks that belong together: what stands before the colon of the name."""
        return self.name.partition(":")[0]

    @property
    def for_probes(self) -> bool:
        """Whether it is a task of its own; one of a family called "bias ..." is half of a pair for SCR."""
        return not self.family.startswith("bias")

    @property
    def of_tokens(self) -> bool:
        """Whether its examples are places in texts and not whole texts."""
        return bool((self.at != WHOLE).all())

    def __len__(self) -> int:
        return len(self.label)

    def only(self, chosen: Tensor) -> "Task":
        """The task with some of its examples, [n] bool or numbers."""
        parts = (part[chosen] for part in (self.text, self.at, self.label, self.test, self.group))
        return Task(self.name, self.texts, *parts)


def balanced(label: Tensor, test: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Numbers of examples, ascending: as many of each class, and at most half of `most` in each part."""
    taken = []
    for part in (~test, test):
        classes = [(part & wanted).nonzero().flatten() for wanted in (label, ~label)]
        count = min(*map(len, classes), most // 4)
        taken += [one[torch.randperm(len(one), generator=generator)[:count]] for one in classes]
    return torch.cat(taken).sort().values
