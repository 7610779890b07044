"""Where in a block of a model its named places are, found by running the model once: there is no table of classes.

    hook_resid_pre     what the block is given
    hook_attn_out      what attention adds to the stream, behind a norm of its own where there is one
    hook_resid_mid     pre + attn_out
    hook_mlp_out       what the MLP adds, likewise
    hook_resid_post    mid + mlp_out (pre + attn_out + mlp_out side by side), before a norm that may end the block
    attn.hook_z        what the projection that ends attention is given; mlp.hook_post that of the MLP
    attn.hook_out      what attention itself gives, before such a norm; mlp.hook_out likewise
    mlp.hook_in        what the MLP is given

A value is a sum where it is equal to it, to rounding in every element. Places that are not certain are absent, each
with its reason. `site_called` goes from other libraries' names to sites, `names_of` the other way; the names by
themselves are in `saelab.core.site_names`. Left out: what lies inside attention.
"""

# Shape letters: R rows of tokens, T tokens a row, n = R T, H width of the residual stream.

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelab.core.site_names import DOUBTFUL, PLACES, RENAMED, as_nnsight, as_nnterp, as_site, hook_parts

TRIAL = (2, 3)
"""Texts and tokens on which a model is tried."""
ROUNDINGS = 8
"""How many roundings of its terms a sum may be off."""


@dataclass
class BlockPlaces:
    """A block's named places.

    Attributes:
        path: of the block.
        sites: by name, what follows the path, such as `.mlp:in`.
        absent: by name, why there is no such place.
    """

    path: str
    sites: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def lack(self, why: str, *names: str) -> None:
        """Say of names that have no site yet, by default of all, why there is none."""
        for name in names or PLACES:
            if name not in self.sites:
                self.absent.setdefault(name, why)


def trial_of(model: Any) -> Tensor:
    """Token ids [R, T] that a model knows, on its device."""
    known = model.get_input_embeddings().num_embeddings
    return torch.arange(1, 1 + TRIAL[0] * TRIAL[1], device=model.device).view(TRIAL) % known


def in_lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every member of a list of modules that does not itself lie in one."""
    lists: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists.append(path)
            yield from ((f"{path}.{child}", inner) for child, inner in module.named_children())


@torch.no_grad()
def blocks_of(model: Any) -> list[str]:
    """Paths of a model's blocks: the list of modules whose member runs last; empty where none runs."""
    ran: list[str] = []
    with ExitStack() as hooks:
        for path, module in in_lists(model):
            hooks.callback(module.register_forward_hook(lambda *_, path=path: ran.append(path)).remove)
        model(input_ids=trial_of(model), use_cache=False)
    stack = ran[-1].rpartition(".")[0] if ran else ""
    return [f"{stack}.{child}" for child, _ in model.get_submodule(stack).named_children()] if ran else []


@torch.no_grad()
def block_at(model: Any, path: str) -> BlockPlaces:
    """The named places of the block at a path."""
    seen: list[_Seen] = []

    def note(inner: str, side: str, module: nn.Module, value: Any) -> None:
        value = next(iter(value), None) if isinstance(value, tuple | list) else value
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:-1] in (TRIAL, (ids.numel(),)):
            seen.append(_Seen(inner, side, module, value.reshape(ids.numel(), -1).clone()))

    ids = trial_of(model)
    with ExitStack() as hooks:
        for inner, module in model.get_submodule(path).named_modules():

            def before(module: nn.Module, args: Any, named: dict[str, Any], inner: str = inner) -> None:
                note(inner, "in", module, args or tuple(named.values()))

            def after(module: nn.Module, args: Any, output: Any, inner: str = inner) -> None:
                note(inner, "out", module, output)

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        model(input_ids=ids, use_cache=False)
    return _Found(BlockPlaces(path), seen).block


def site_called(model: Any, model_name: str, name: str) -> str:
    """The site that a name means, of ours or of another library.

    Args:
        model: a model of transformers.
        model_name: what errors call it.
        name: a site, a hook of TransformerLens, or a path of nnsight or nnterp.

    Raises:
        ValueError: for a hook that the model has no place for, saying why.
    """
    modules = {path for path, _ in model.named_modules()}
    if name.partition(":")[0] in modules:
        return name
    if hook := hook_parts(name):
        return _hooked(model, model_name, *hook)
    site = as_site(name)
    path, colon, side = site.partition(":")
    for own in (path, path.removeprefix("model."), f"{model.base_model_prefix}.{path}"):
        if own in modules:
            return own + colon + side
    if found := re.fullmatch(r"(?:model\.)?layers\.(\d+)(?:\.(\w+))?", path):  # by nnterp's names
        block = _block(model, model_name, int(found[1]))
        for inner in RENAMED.get(found[2], ()) if found[2] else ("",):
            if (own := f"{block}.{inner}".rstrip(".")) in modules:
                return own + colon + side
    return name


def names_of(model: Any, site: str) -> dict[str, str]:
    """What other libraries call a site, by library: `TransformerLens`, `nnsight`, `nnterp`, those that have a name."""
    names = {"nnsight": as_nnsight(site)}
    path = site.removesuffix(":out")
    for block in blocks_of(model):
        if path.partition(":")[0] == block or path.startswith(f"{block}."):
            inner, number = path.removeprefix(block), block.rpartition(".")[2]
            sites = block_at(model, block).sites
            if hook := next((name for name in PLACES if sites.get(name) == inner), None):
                names["TransformerLens"] = f"blocks.{number}.{hook}"
            if own := as_nnterp(block, path):
                names["nnterp"] = own
    return names


def _hooked(model: Any, model_name: str, number: int, place: str) -> str:
    path = _block(model, model_name, number)
    if place in DOUBTFUL:
        raise ValueError(f"'{place}' is not one place: {DOUBTFUL[place]}")
    if place not in PLACES:
        raise ValueError(f"no site is known for the hook '{place}'; known are {', '.join(PLACES)}, or name a module")
    block = block_at(model, path)
    if place not in block.sites:
        known = ", ".join(block.sites)
        raise ValueError(f"{model_name} has no {place} in {path}: {block.absent[place]}; it has {known}")
    return path + block.sites[place]


def _block(model: Any, model_name: str, number: int) -> str:
    blocks = blocks_of(model)
    if number >= len(blocks):
        raise ValueError(f"{model_name} has {len(blocks)} blocks, numbered from 0, and no block {number}")
    return blocks[number]


class _Seen(NamedTuple):
    """What one side of a module held."""

    path: str
    """Within the block; empty for the block itself."""
    side: str
    module: nn.Module
    value: Tensor
    """[n, width]"""

    @property
    def site(self) -> str:
        return (f".{self.path}" if self.path else "") + (":in" if self.side == "in" else "")


class _Part(NamedTuple):
    """What is added to a stream: scale x what a module gives."""

    seen: _Seen
    scale: float = 1.0


class _Found:
    """What was seen in a block, and which of it is the sum of what else."""

    def __init__(self, block: BlockPlaces, seen: list[_Seen]):
        self.block, self._all = block, seen
        ends = {one.side: one for one in seen if not one.path}
        if len(ends) < 2 or ends["in"].value.shape != ends["out"].value.shape:
            block.lack("the block hands on something else than a residual stream")
            return
        self.pre, self.out = ends["in"], ends["out"]
        self.stream = [one for one in seen if one.value.shape == self.pre.value.shape]
        self.outputs = [one for one in self.stream if one.side == "out" and one.path]
        self._values = torch.stack([one.value for one in self.outputs] or [torch.zeros_like(self.pre.value)])
        block.sites |= {"hook_resid_pre": ":in", "hook_in": ":in", "hook_out": ""}
        self._sums()
        block.lack("the block does not end with a norm", "hook_normalized_resid_post")
        block.lack("no module of the block holds it")

    def _sums(self) -> None:
        """Find the sum that the block ends with, and name what it is made of."""
        # The outputs of norms and of attention that adds the stream to its own count as well.
        mids = [(one, part) for one in self.stream if (part := self._added(self.pre, one))]
        for end in (self.out, *self._normed(self.out)):
            for mid, first in mids:
                for base in (mid, *self._norms_of(mid)):
                    if base is not end and (last := self._added(base, end)):
                        self._ends_at(end)
                        self.block.sites["hook_resid_mid"] = self._named(mid.value, self.stream).site
                        self._name("attn", first)
                        return self._name("mlp", last)
            if alone := next((part for mid, part in mids if mid is end), None):
                return self._only(end, alone)
            for one, other in combinations(self.outputs, 2):
                if _is_sum(end.value, self.pre.value, one.value, other.value):
                    return self._side_by_side(end, one, other)
        return self.block.lack("what it adds to the residual stream cannot be told")

    def _only(self, end: _Seen, part: _Part) -> None:
        self._ends_at(end)
        shown = f"{part.seen.path} ({type(part.seen.module).__name__})"
        if self._is_attention(part.seen):
            self._name("attn", part)
        self.block.lack(f"the block adds one thing to the stream, what {shown} gives")

    def _side_by_side(self, end: _Seen, one: _Seen, other: _Seen) -> None:
        self._ends_at(end)
        self.block.lack("attention and MLP run side by side, so that no stream lies between them", "hook_resid_mid")
        if self._is_attention(one) == self._is_attention(other):
            return self.block.lack("which of the two things that it adds is attention cannot be told")
        attention, mlp = (one, other) if self._is_attention(one) else (other, one)
        self._name("attn", _Part(attention))
        return self._name("mlp", _Part(mlp))

    def _ends_at(self, end: _Seen) -> None:
        self.block.sites["hook_resid_post"] = end.site
        if end is not self.out:
            self.block.sites["hook_normalized_resid_post"] = ""

    def _name(self, what: str, part: _Part) -> None:
        """The places of attention ("attn") or of the MLP ("mlp")."""
        names = [name for name in PLACES if what in name]
        shown = f"{part.seen.path} ({type(part.seen.module).__name__})"
        if self._is_attention(part.seen) != (what == "attn"):
            return self.block.lack(f"{shown} stands in its place", *names)
        added = self._named(part.seen.value, self.outputs)
        raw = self._raw(part.seen)
        given = self._named(raw.value, self.outputs)
        if part.scale == 1:
            self.block.sites[f"hook_{what}_out"] = added.site
        else:
            self.block.lack(f"what {shown} gives is scaled before it is added", f"hook_{what}_out")
        self.block.sites[f"{what}.hook_out"] = given.site
        inner = f"{what}.hook_{'z' if what == 'attn' else 'post'}"
        if raw.path in self._entered:
            self.block.sites[inner] = f".{raw.path}:in"
        if what == "mlp" and given is not raw and any(o.path == given.path and o.side == "in" for o in self.stream):
            self.block.sites["mlp.hook_in"] = f".{given.path}:in"
        return self.block.lack("no one projection of the block writes it", inner)

    @property
    def _entered(self) -> set[str]:
        """Paths of the projections whose input is one row for each token."""
        return {one.path for one in self._all if one.side == "in" and _is_projection(one.module)}

    def _raw(self, part: _Seen) -> _Seen:
        """The projection that writes a part, before a norm of its own; the module that gives it if there is none."""
        same = [one for one in self.outputs if torch.equal(one.value, part.value)]
        before = [one for norm in same for one in self._given(norm)]
        for one in (*same, *before):
            if _is_projection(one.module):
                return one
        return min(before or same, key=_outermost)

    def _given(self, norm: _Seen) -> list[_Seen]:
        """What gave a norm its input."""
        if not _is_norm(norm.module):
            return []
        inputs = [one.value for one in self.stream if one.path == norm.path and one.side == "in"]
        return [one for one in self.outputs for value in inputs if torch.equal(one.value, value)]

    def _is_attention(self, part: _Seen) -> bool:
        same = [one for one in self.outputs if torch.equal(one.value, part.value)]
        parts = [*same, *(one for norm in same for one in self._given(norm))]
        return any("att" in f"{one.path} {type(one.module).__name__}".lower() for one in parts)

    def _normed(self, end: _Seen) -> list[_Seen]:
        """What is given to a norm that gives a value."""
        paths = [one.path for one in self.outputs if _is_norm(one.module) and torch.equal(one.value, end.value)]
        return [one for one in self.stream if one.side == "in" and one.path in paths]

    def _norms_of(self, mid: _Seen) -> list[_Seen]:
        """What norms make of a value."""
        paths = [one.path for one in self.stream if one.side == "in" and torch.equal(one.value, mid.value)]
        return [one for one in self.outputs if one.path in paths and _is_norm(one.module)]

    def _added(self, base: _Seen, total: _Seen) -> _Part | None:
        """What is added to a base to give a total, as it is or scaled."""
        if torch.equal(base.value, total.value):
            return None
        values = self._values
        exact = (base.value + values == total.value).flatten(1).all(1)
        y, rest = values.double().flatten(1), (total.value.double() - base.value.double()).flatten()
        scales = torch.where(exact, 1.0, y @ rest / y.square().sum(1).clamp_min(1e-30))
        scaled = (scales[:, None] * y).view(len(y), *total.value.shape)
        for found in (exact, _is_sum(total.value, base.value, scaled) & (scales != 0)):
            if found.any():
                first = int(found.int().argmax())
                scale = float(scales[first])
                return _Part(self.outputs[first], 1.0 if abs(scale - 1) < 1e-3 else scale)
        return None

    def _named(self, value: Tensor, among: Sequence[_Seen]) -> _Seen:
        """The outermost module, and of those the first, that holds a value."""
        return min((one for one in among if torch.equal(one.value, value)), key=_outermost)


def _outermost(one: _Seen) -> int:
    return one.path.count(".")


def _is_sum(total: Tensor, *terms: Tensor) -> Tensor:
    """Whether terms [..., n, H] add up to a total [n, H], to rounding in every element; bool [...]."""
    off = total.double() - sum(term.double() for term in terms)
    size = sum((term.abs().double() for term in terms), torch.zeros_like(off))
    return (off.abs() <= ROUNDINGS * torch.finfo(total.dtype).eps * size).flatten(-2).all(-1)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _is_projection(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not list(module.children())
