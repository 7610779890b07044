"""Patterns of many latents matched against text at once: the same walk as `n2g.predict`, in steps of all positions.

All trees are one table of nodes. A step looks the children up by binary search in the sorted (node, token) pairs; the
first one goes from a token to the latents that have it at their root, so that latents whose patterns end in certain
tokens cost nothing elsewhere.
"""

# Shape letters: S latents with patterns, N nodes of all trees, E edges with an exact token, P positions, M matches at
# work.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.metrics.n2g.n2g import ANY, Node, Pattern, tree_of

AT_ONCE = 1 << 21
"""Pairs of a position and a latent that are followed at once."""


@dataclass(frozen=True)
class Matches:
    """Where patterns match, one entry for each position and latent; no pair twice."""

    position: Tensor
    """[n] int64."""
    slot: Tensor
    """[n] int64, number of the latent among those with patterns."""
    value: Tensor
    """[n] float32."""


class Patterns:
    """Patterns of S latents.

    Args:
        of: the patterns of each latent.
        vocabulary: number of tokens there are.
    """

    def __init__(self, of: Sequence[Iterable[Pattern]], vocabulary: int):
        self.vocabulary, self.n_slots = vocabulary, len(of)
        nodes: list[Node] = []
        edges: list[tuple[int, int, int]] = []
        for patterns in of:
            _number(tree_of(patterns), nodes, edges)
        none = float("nan")
        self.value = torch.tensor([none if node.value is None else node.value for node in nodes])
        self.start = torch.tensor([none if node.start is None else node.start for node in nodes])
        self.any = torch.full((len(nodes),), -1)
        table = torch.tensor(edges, dtype=torch.int64).view(-1, 3)
        wild = table[:, 1] == ANY
        self.any[table[wild, 0]] = table[wild, 2]
        exact = table[~wild]
        self.keys, order = (exact[:, 0] * vocabulary + exact[:, 1]).sort()
        self.children = exact[order, 2]
        self.root, self._slot_of = _roots(nodes, of)
        self._first(exact)

    def _first(self, exact: Tensor) -> None:
        """The exact edges of roots sorted by token, and the roots where any token goes on."""
        at_root = exact[self._slot_of[exact[:, 0]] >= 0]
        order = at_root[:, 1].sort(stable=True).indices
        self.first_token, self.first_slot = at_root[order, 1], self._slot_of[at_root[order, 0]]
        self.first_node = at_root[order, 2]
        self.wild = (self.any[self.root] >= 0).nonzero().flatten()

    def match(self, tokens: Tensor, before: Tensor) -> Matches:
        """Matches that end at positions.

        Args:
            tokens: of a text or several, one after another; [P] int64.
            before: how many tokens of its own text stand before each position; below 0 where nothing is to be
                predicted; [P] int64.
        """
        wanted = (before >= 0).nonzero().flatten()
        found = [self._follow(tokens, before, part) for part in wanted.split(max(1, AT_ONCE // max(1, len(self.wild))))]
        parts = [torch.cat(part) for part in zip(*found, strict=True)] if found else [torch.empty(0)] * 3
        return Matches(parts[0].long(), parts[1].long(), parts[2].float())

    def _follow(self, tokens: Tensor, before: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, slot, node = self._begun(tokens, wanted)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        back = 0
        while len(node):
            value = self.value[node]
            # At the first token of a text nothing is left to walk to: what holds only there counts.
            at_start = (before[position] == back) & value.isnan()
            value = torch.where(at_start, self.start[node], value)
            done = ~value.isnan()
            found.append((position[done], slot[done], value[done]))
            go_on = ~done & (before[position] > back)
            position, slot, node = position[go_on], slot[go_on], node[go_on]
            back += 1
            node = self._child(node, tokens[position - back])
            alive = node >= 0
            position, slot, node = position[alive], slot[alive], node[alive]
        if not found:
            return position, slot, torch.empty(0)
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]), torch.cat([f[2] for f in found])

    def _begun(self, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, latents and nodes after the last token of the patterns."""
        last = tokens[wanted]
        low = torch.searchsorted(self.first_token, last)
        count = torch.searchsorted(self.first_token, last, right=True) - low
        position = wanted.repeat_interleave(count)
        within = torch.arange(len(position)) - (count.cumsum(0) - count).repeat_interleave(count)
        edge = low.repeat_interleave(count) + within
        slot, node = self.first_slot[edge], self.first_node[edge]
        if not len(self.wild):
            return position, slot, node
        # Where the root takes any token, all positions take part but those at which it has the exact one.
        anywhere, wild = wanted.repeat_interleave(len(self.wild)), self.wild.repeat(len(wanted))
        child = self._child(self.root[wild], tokens[anywhere])
        rest = child == self.any[self.root[wild]]
        return (
            torch.cat([position, anywhere[rest]]),
            torch.cat([slot, wild[rest]]),
            torch.cat([node, child[rest]]),
        )

    def _child(self, node: Tensor, token: Tensor) -> Tensor:
        """The child of nodes [M] for tokens [M]: the exact one, else that of any token, else -1."""
        if not len(self.keys):
            return self.any[node]
        key = node * self.vocabulary + token
        place = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
        return torch.where(self.keys[place] == key, self.children[place], self.any[node])


def _number(root: Node, nodes: list[Node], edges: list[tuple[int, int, int]]) -> None:
    """Append the nodes of a tree, its root first, and its edges (node, token, child)."""
    waiting = [(root, len(nodes))]
    nodes.append(root)
    while waiting:
        node, number = waiting.pop()
        for token, child in node.children.items():
            edges.append((number, token, len(nodes)))
            waiting.append((child, len(nodes)))
            nodes.append(child)


def _roots(nodes: Sequence[Node], of: Sequence[Iterable[Pattern]]) -> tuple[Tensor, Tensor]:
    """Node number of each latent's root [S], and the latent that a node is the root of, else -1; [N]."""
    children = {id(child) for node in nodes for child in node.children.values()}
    root = torch.tensor([number for number, node in enumerate(nodes) if id(node) not in children], dtype=torch.int64)
    assert len(root) == len(of)
    slot = torch.full((len(nodes),), -1)
    slot[root] = torch.arange(len(root))
    return root, slot
