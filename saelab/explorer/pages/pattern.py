"""The token patterns (N2G) of one latent, worked out when they are asked for; see `saelab.metrics.n2g.n2g`."""

from typing import Any

from saelab.explorer.route import Route
from saelab.explorer.workspace import Workspace
from saelab.metrics.n2g.last_token import LastToken
from saelab.metrics.n2g.n2g import Asked, Example, find_patterns

EXAMPLES, CONTEXT = 8, 12
"""Top examples that patterns are made from, and tokens of each up to the one that fires."""
ROUTES = (Route("/run/{name}/latent/{latent}/pattern", lambda w, r: pattern(w, r.name, r.latent)),)


def pattern(workspace: Workspace, name: str, number: int) -> dict[str, Any]:
    """The different patterns of a latent's top examples, the strongest first; None in one stands for any token."""
    member = workspace[name]
    if member.database.latent(number) is None:
        raise LookupError(f"{name} has no latent {number}")
    member.need_text()
    lens = workspace.lens(member)
    at, values = member.database.activations(number)
    value_at = dict(zip(at.tolist(), values.tolist(), strict=True))
    examples = []
    for row in member.database.details(number).get("top", [])[:EXAMPLES]:
        first = max(0, row - CONTEXT + 1)
        corpus = member.database.corpus(first, row + 1)
        own = corpus["document"] == corpus["document"][-1]
        examples.append(Example(corpus["token"][own].tolist(), value_at[row]))
    read = LastToken(lens.model, lens.sae)

    def ask(asked: list[tuple[int, Asked]]) -> list[float]:
        return read([number] * len(asked), [tokens for _, tokens in asked])

    pad = int(lens.model.tokenizer.encode(" _", add_special_tokens=False)[-1])
    found = find_patterns([example for example in examples if example.activation > 0], ask, pad)
    best: dict[tuple[int, ...], list[float]] = {}
    starts = {one.tokens for one in found if one.at_start}
    for one in found:
        best.setdefault(one.tokens, []).append(one.activation)
    texts = {one.tokens: one.texts(lens.model.token_text) for one in found}
    return {
        "patterns": [
            {
                "tokens": texts[tokens],
                "at_start": tokens in starts,
                "activation": round(max(activations), 3),
                "examples": len(activations),
            }
            for tokens, activations in sorted(best.items(), key=lambda pair: -max(pair[1]))
        ]
    }
