"""Random small models of every family that transformers has: what is read, replaced, promoted and left out is right.

Each trial makes a model of a random family, size and seed, its weights enlarged and the gains of its norms moved away
from 1, and compares with hooks set by hand:

    rows       what is read at a random site of a random block            the same bits
    put back   the logits with random rows in their place                 to rounding
    promoted   (f(r) - f(-r)) / 2, r put behind the last block of a text  to rounding, and the same top tokens
    harvest    rows, padding and BOS of a random text                     rows to rounding, the same counts

Left out: families whose random models do not run in transformers, and weights of any use.
"""

# Shape letters: R texts, T tokens of each, D width at the site, H width of the stream, n rows.

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from campaigns.architectures import FAMILIES, made
from campaigns.trials import run_campaign
from saelab.data.store import Store
from saelab.models.harvest import OUTLIER, harvest
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject

CLOSE = 1e-4
"""How far two ways to a number may lie apart, as a share of the largest."""
WORDS = 60
"""Words that tokenizers know beside their special tokens."""


def trial(draw: random.Random, folder: Path) -> str | None:
    """A random family."""
    return family_trial(draw.choice(sorted(FAMILIES)), draw, folder)


def family_trial(family: str, draw: random.Random, folder: Path) -> str | None:
    """All comparisons for one model of a family; what differs, None if nothing does."""
    model, blocks = made(family, draw)
    tokenizer = _tokenizer(draw)
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    ids = torch.randint(3, len(tokenizer), (draw.randint(1, 3), draw.randint(3, 9)), generator=generator)
    path, side = draw.choice(_sites(model, f"{blocks}.{draw.randrange(len(model.get_submodule(blocks)))}", ids))
    read = LanguageModel(model, f"{path}:{side}", tokenizer=tokenizer)
    about = f"{family}, {path}:{side}"
    by_hand, _ = _run(model, path, side, ids)
    if not torch.equal(read.activations(ids), by_hand) or not torch.equal(read.run(ids)[1], by_hand):
        return f"{about}: rows differ from a hook's"
    rows = torch.randn(by_hand.shape, generator=generator) * by_hand.std()
    if not _close(read.forward_with(ids, rows), _run(model, path, side, ids, rows)[1]):
        return f"{about}: replaced rows give other logits than a hook's"
    if broken := _promoted(model, read, blocks, ids, generator):
        return f"{about}: {broken}"
    broken = _harvested(model, read, (path, side), draw, folder)
    return broken and f"{about}: {broken}"


# ---- by hand ----


@torch.no_grad()
def _run(model: Any, path: str, side: str, ids: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What stands at a place, [R, T, D], and the logits, with rows in its place if there are any."""
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = next(iter(named), "") if not args else ""
        seen.append((args[0] if args else named[key]).clone())
        if rows is not None:
            return ((rows, *args[1:]), named) if args else (args, named | {key: rows})
        return None

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        is_one = isinstance(output, Tensor)
        seen.append((output if is_one else output[0]).clone())
        if rows is None:
            return None
        return rows if is_one else type(output)([rows, *output[1:]])

    module = model.get_submodule(path)
    hook = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "in"
        else module.register_forward_hook(after)
    )
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return seen[0], logits


def _sites(model: nn.Module, block: str, ids: Tensor) -> list[tuple[str, str]]:
    """Places in a block that hold one row for every token, once in a pass."""
    found: dict[tuple[str, str], int] = {}
    hooks = []

    def note(place: tuple[str, str], value: Any) -> None:
        value = value[0] if isinstance(value, tuple | list) and value else value
        fits = isinstance(value, Tensor) and value.ndim == 3 and value.shape[:2] == ids.shape
        found[place] = found.get(place, 0) + (1 if fits and value.is_floating_point() else 2)

    def after(path: str) -> Callable[..., None]:
        return lambda _, args, output: note((path, "out"), output)

    def before(path: str) -> Callable[..., None]:
        return lambda _, args, named: note((path, "in"), args[0] if args else next(iter(named.values()), None))

    for name, module in model.get_submodule(block).named_modules():
        path = f"{block}.{name}" if name else block
        hooks.append(module.register_forward_hook(after(path)))
        hooks.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return sorted(place for place, times in found.items() if times == 1)


def _promoted(model: Any, read: LanguageModel, blocks: str, ids: Tensor, generator: torch.Generator) -> str | None:
    """Directions behind the last block of a whole text, at its last token."""
    last = f"{blocks}.{len(model.get_submodule(blocks)) - 1}"
    stream, _ = _run(model, last, "out", ids)
    r = torch.randn(8, stream.shape[2], generator=generator)
    r *= stream.norm(dim=2).mean() / r.norm(dim=1, keepdim=True)
    expected = []
    for row in r:
        sides = []
        for sign in (1, -1):
            put = stream.clone()
            put[0, -1] = sign * row
            sides.append(_run(model, last, "out", ids, put)[1][0, -1])
        expected.append((sides[0] - sides[1]) / 2)
    found, right = read.head.promoted(r), torch.stack(expected)
    if not _close(found, right):
        return f"what directions promote is off by {(found - right).abs().max() / right.abs().max():.1e} of the largest"
    return None if torch.equal(found.argmax(1), right.argmax(1)) else "directions promote other tokens"


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


# ---- harvests ----


def _tokenizer(draw: random.Random) -> Any:
    """A word a token; with BOS, with EOS only, or with neither."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_words())}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = draw.choice([{"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}, {}])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", **special)


def _words() -> list[str]:
    return ["<s>", "</s>", "?", *(f"w{number}" for number in range(WORDS))]


def _harvested(model: Any, read: LanguageModel, site: tuple[str, str], draw: random.Random, folder: Path) -> str | None:
    """Rows of a random text in a store, against a count by hand."""
    tokenizer, seq_len = read.tokenizer, draw.randint(4, 12)
    join = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    words = _words()
    # Every now and then a text spells a special token out.
    documents = [
        [draw.choice([draw.randrange(3, len(words)), draw.randrange(len(words))]) for _ in range(draw.randint(1, 25))]
        for _ in range(draw.randint(3, 12))
    ]
    lines = [json.dumps({"text": " ".join(words[token] for token in document)}) for document in documents]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    ids, kept, padding = _packed(documents, seq_len, join, 0 if join is None else tokenizer.eos_token_id)
    if len(ids) == 1 and padding:
        return None  # too little text for one row, which is refused
    values, _ = _run(model, *site, ids)
    norms = values.norm(dim=2)
    outlier = kept & (norms > OUTLIER * norms[kept].median())
    subject = Subject(model=read.name, site=read.site, text=str(folder / "text.jsonl"), seq_len=seq_len)
    store: Store = harvest(subject, folder / "acts", 10**6, "all", "fp32", read, show=False)
    rows = torch.cat([store.rows(number) for number in range(len(store.manifest.shards))])
    counts = {"bos": int((~kept).sum()) - padding, "padding": padding, "outlier": int(outlier.sum())}
    if store.manifest.dropped != counts:
        return f"left out were {store.manifest.dropped}, by hand {counts}"
    if not _close(rows, values[kept & ~outlier]):
        return "harvested rows differ from a hook's"
    return None


def _packed(documents: list[list[int]], seq_len: int, join: int | None, pad: int) -> tuple[Tensor, Tensor, int]:
    """Token ids [R, T], which of them are kept, and how many are padding."""
    flat: list[tuple[int, bool]] = []
    for document in documents:
        first = True
        for token in document:
            # Each row and each document begins with the joining token, one that fills a row being followed by another.
            while join is not None and (first or not len(flat) % seq_len):
                flat.append((join, False))
                first = not len(flat) % seq_len
            flat.append((token, token != join))
            first = False
    padding = -len(flat) % seq_len
    flat += [(pad, False)] * padding
    ids, kept = (torch.tensor(column).view(-1, seq_len) for column in zip(*flat, strict=True))
    return ids, kept, padding


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    torch.set_num_threads(1)
    promise = "What is read, replaced, promoted and left out is right in every family of models."
    return run_campaign("families", promise, trial, 500, arguments)


if __name__ == "__main__":
    sys.exit(main())
