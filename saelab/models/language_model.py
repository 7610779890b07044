"""A causal language model with sites: read the activations there, or run it with others in their place.

A site is a module's path and a side, see `saelab.models.sites`. There are sites to read, and there may be target sites,
whose activations are to be reconstructed from those read (a transcoder's: an MLP's input and its output, say). What is
read at several sites stands side by side in one row; what is read at target sites stands behind it. Replaced are the
target sites where there are any. Generating text and training are left out.
"""

# Shape letters: R rows of tokens, T tokens a row, D width of all sites together, V vocabulary; "in" and "out" of the
# sites that are read and of the target sites.

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from saelab.core.components import near_miss
from saelab.core.mesh import device_named
from saelab.models.head import Head
from saelab.models.loading import check_causal, check_tokenizer, fingerprint_of, loaded_model, named, trial_ids
from saelab.models.sites import Site, joined, sites_of
from saelab.models.token_text import TokenText

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class LanguageModel:
    """A causal language model in evaluation mode; its weights take no gradient.

    Args:
        name: a folder, a name on the hub, or `pycode-7m`, the model that comes with saelab; or a model itself, of
            transformers, which is then used as it is: set to evaluation, its weights without gradient.
        site: where to read activations, `module.path`, `module.path:in` or `module.path:out`, or the name that
            TransformerLens, nnsight or nnterp has for such a place; several joined by commas.
        device: e.g. `cpu`, `cuda:1`; by default `cpu` or where a model that is given is.
        dtype: of its weights and activations: float32, bfloat16, float16 or float64; by default float32 or what a model
            that is given has.
        target: site or sites whose activations are to be reconstructed, where those are not the ones that are read.
        tokenizer: of a model that is given; by default the one that is saved with a model of that name.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        d_in: width D_in of the activations that are read, of all sites together.
        d_out: width D_out of the activations to reconstruct; None where there is no target.
        n_layers: number of its blocks, None if its config does not say.
        context: the longest row it takes, None if its config does not say.
        name: of the model.
        site: as paths of modules, joined by commas; target likewise, None where there is none.
        fingerprint: hex digest of its config and of a sample of every parameter; the same wherever it was loaded
            from, another for other weights.

    Raises:
        ValueError: for a model that cannot be loaded or is not causal, a site it has not, that is named twice or whose
            value is no [R, T, D] tensor, or a target that is the site itself.
    """

    def __init__(
        self,
        name: str | Any,
        site: str,
        device: str | None = None,
        dtype: str | None = None,
        target: str | None = None,
        tokenizer: Any = None,
    ):
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"unknown dtype '{dtype}'{near_miss(dtype, DTYPES)}")
        # A hook sees every pass of the model, also one that another thread runs (a live source's, say).
        self._one_pass = threading.Lock()
        if isinstance(name, str):
            self.name, self.device, self.dtype = name, device_named(device or "cpu"), DTYPES[dtype or "float32"]
            self.model, own = loaded_model(name, self.dtype)
            self.tokenizer = own if tokenizer is None else tokenizer
        else:
            self.name, self.model, self.tokenizer = named(name), name, tokenizer
            self.device = device_named(device or str(name.device))
            self.dtype = DTYPES[dtype] if dtype else name.dtype
            self.model.to(self.dtype)
        check_tokenizer(self.model, self.tokenizer, self.name)
        self.model.to(self.device).eval().requires_grad_(False)
        read = sites_of(self.model, self.name, site)
        targets = sites_of(self.model, self.name, target) if target else []
        self.site, self.target = joined(read, site), joined(targets, target) if target else None
        if [(one.path, one.side) for one in read] == [(one.path, one.side) for one in targets]:
            raise ValueError(f"the target '{target}' is the site itself; leave it out, or name another")
        self._sites, self._written = [*read, *targets], targets or read
        config = self.model.config.get_text_config()
        self.n_layers: int | None = getattr(config, "num_hidden_layers", None)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        widths = self._probe()
        self._written_widths = widths[-len(self._written) :]
        self.d_in = sum(widths[: len(read)])
        self.d_out = sum(self._written_widths) if targets else None
        self.fingerprint = fingerprint_of(self.model)

    @cached_property
    def token_text(self) -> TokenText:
        """What its tokens stand for."""
        return TokenText(self.tokenizer)

    @property
    def n_output_sites(self) -> int:
        """How many sites `forward_with` replaces: the target's, or those that are read where there is no target."""
        return len(self._written)

    def output_activations(self, activations: Tensor) -> Tensor:
        """The part of activations [..., D] that `forward_with` replaces: the target's, or all without a target."""
        return activations if self.d_out is None else activations[..., self.d_in :]

    @torch.no_grad()
    def activations(self, ids: Tensor) -> Tensor:
        """Activations [R, T, D_in] or, with a target, [R, T, D_in + D_out] for token ids [R, T].

        Layers above the last of the sites are not run.
        """
        seen: dict[int, Tensor] = {}

        def note(number: int, value: Tensor) -> None:
            if len(seen) == len(self._sites) - 1:
                seen[number] = value
                raise _Reached
            seen[number] = value.clone()  # a copy: see `run`

        ids = self._checked(ids)
        try:
            with self._at(self._sites, ids, note):
                self._logits(ids)
        except _Reached:
            return self._side_by_side(seen)
        raise AssertionError(f"{self.site} was run in the probe, but not now")

    @torch.no_grad()
    def run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, T, V] and activations [R, T, D], as above, for token ids [R, T], in one full pass."""
        seen: dict[int, Tensor] = {}

        def note(number: int, value: Tensor) -> None:
            assert number not in seen, f"{self._sites[number].name} was run twice"
            # A copy, because some models go on to add to their residual stream in place.
            seen[number] = value.clone()

        ids = self._checked(ids)
        with self._at(self._sites, ids, note):
            logits = self._logits(ids)
        assert len(seen) == len(self._sites), f"{len(seen)} of {len(self._sites)} sites were run"
        return logits, self._side_by_side(seen)

    def forward_with(self, ids: Tensor, activations: Tensor, gradient: bool = False, last: int | None = None) -> Tensor:
        """Logits [R, T, V] for token ids [R, T] with other activations in place of the model's own.

        Blocks whose output would be thrown away are not run, see `_passed`.

        Args:
            ids: token ids.
            activations: [R, T, D_out] for the target sites or, where there is no target, [R, T, D_in] for those that
                are read. Every site takes its own, whatever was put in place below it.
            gradient: whether the logits can be differentiated with respect to the activations.
            last: how many of the last tokens' logits are wanted, [R, last, V]; by default all.
        """
        ids = self._checked(ids)
        expected = [*ids.shape, sum(self._written_widths)]
        if list(activations.shape) != expected:
            raise ValueError(f"expected activations of shape {expected}, got {list(activations.shape)}")
        passed = self._passed
        with torch.set_grad_enabled(gradient):
            parts = activations.split(self._written_widths, dim=2)
            # Copies, because some models go on to add to their residual stream in place.
            replacements = [part.to(device=self.device, dtype=self.dtype, copy=True) for part in parts]
            with self._at(self._written, ids, lambda number, value: replacements[number].to(value.dtype)):
                return self._logits(ids, passed, last)

    @cached_property
    def _passed(self) -> Sequence[torch.nn.Module]:
        """The blocks that `forward_with` need not run: those of the stack up to the one site that is replaced.

        Whether a model's blocks do nothing but hand a stream on is not written down anywhere: it is tried.
        """
        path, _, number = self._written[0].path.rpartition(".")
        stack = dict(self.model.named_modules()).get(path)
        if len(self._written) > 1 or not isinstance(stack, torch.nn.ModuleList):
            return ()
        blocks = list(stack)[: int(number) + (self._written[0].side == "out")]
        if any("forward" in vars(block) for block in blocks):  # somebody else's, that must not be lost
            return ()
        ids = torch.arange(6, device=self.device).view(2, 3) % self.model.get_input_embeddings().num_embeddings
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(*ids.shape, self._written_widths[0], generator=generator).to(self.device, self.dtype)
        with torch.no_grad(), self._at(self._written, ids, lambda number, value: rows.to(value.dtype)):
            try:
                same = torch.equal(self._logits(ids), self._logits(ids, blocks))
            except Exception:  # blocks that hand on something else than the stream fail in any way
                same = False
        return blocks if same else ()

    @cached_property
    def head(self) -> Head:
        """What the model makes of its residual stream after the last block; ValueError where that cannot be told."""
        return Head(self.model, self.name, self._one_pass)

    def _logits(self, ids: Tensor, passed: Sequence[torch.nn.Module] = (), last: int | None = None) -> Tensor:
        """Logits of all tokens or the last; blocks in `passed` give what they are given."""
        kept = {} if last is None or not self._keeps_logits else {"logits_to_keep": last}
        with ExitStack() as undo:
            for block in passed:
                block.forward = _same
                undo.callback(delattr, block, "forward")
            logits: Tensor = self.model(input_ids=ids, use_cache=False, **kept).logits
        return logits if last is None else logits[:, -last:]

    @cached_property
    def _keeps_logits(self) -> bool:
        """Whether the model can be asked for the last tokens' logits only."""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.is_floating_point():
            raise ValueError(f"expected token ids of shape [R, T], got {ids.dtype} of shape {list(ids.shape)}")
        if self.context is not None and ids.shape[1] > self.context:
            raise ValueError(
                f"rows of {ids.shape[1]} tokens are longer than the {self.context} that {self.name} takes: use a "
                f"seq_len of at most {self.context}"
            )
        known, largest = self.model.get_input_embeddings().num_embeddings, int(ids.max()) if ids.numel() else 0
        if largest >= known:
            raise ValueError(
                f"the tokenizer does not match {self.name}: it gives the token {largest}, the model knows {known}"
            )
        return ids.to(self.device, torch.int64)

    @contextmanager
    def _at(self, sites: Sequence[Site], ids: Tensor, see: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """While inside, call `see` with number and value of each site; a tensor it gives takes the value's place."""
        with self._one_pass, ExitStack() as hooks:
            for number, site in enumerate(sites):
                hooks.callback(site.hook(ids.shape, partial(see, number)).remove)
            yield

    def _side_by_side(self, seen: dict[int, Tensor]) -> Tensor:
        parts = [seen[number] for number in range(len(self._sites))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @torch.no_grad()
    def _probe(self) -> list[int]:
        """Width at every site, from a full pass over two rows of two tokens, which tries causality as well."""
        widths: list[list[int]] = [[] for _ in self._sites]
        ids = trial_ids(self.model)
        with self._at(self._sites, ids, lambda number, value: widths[number].append(value.shape[-1])):
            check_causal(self._logits(ids), self.name)
        for site, found in zip(self._sites, widths, strict=True):
            site.check_runs(len(found))
        return [found[0] for found in widths]


def _same(value: Tensor, *others: Any, **named: Any) -> Tensor:
    """A block that hands on what it is given."""
    return value


class _Reached(Exception):
    """Ends a forward pass at the last of the sites."""
