"""What a language model makes of a row after its last block: its own final norm, projection, head, scaling and cap.

    f(r)       the model's logits with r in place of what its last block gives
    promoted   (f(r) - f(-r)) / 2: what the direction of r adds to the logits of a row that is nothing but it

Nothing is known by name: the last block is the module of a list that runs last, and the model is run with rows in place
of its output, each as a text of one token. Biases drop out of `promoted`; a norm's division, a scale and a cap do not,
so that it depends on the norm of r only as far as the model itself does (all of it without a last norm, next to nothing
with one). Everything between a site and the last block is left out: the direct path.
"""

# Shape letters: n rows, R texts, T tokens of each, H width of the residual stream, V vocabulary.

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saelab.models.loading import rounding
from saelab.models.sites import Site, with_first
from saelab.models.structure import in_lists, trial_of


class Head:
    """The part of a model after its last block.

    Args:
        model: a causal language model in evaluation mode.
        name: what errors call it.
        one_pass: held while the model runs.

    Attributes:
        width: H.
        vocabulary: V.
        path: of the last block.

    Raises:
        ValueError: if the model's logits are not a function of what one block gives at the same token.
    """

    def __init__(self, model: Any, name: str, one_pass: threading.Lock):
        self._model, self._name, self._one_pass = model, name, one_pass
        self._trial = trial_of(model)
        with torch.no_grad():
            logits, outputs = self._watched()
            if not outputs:
                raise self._unknown("none of its lists of modules is run")
            self.path = list(outputs)[-1]
            try:
                rows = self.stream(self._trial)
            except ValueError:
                raise self._unknown(f"its last block, {self.path}, gives no floats [R, T, H]") from None
            self.width, self.vocabulary, self._passed = rows.shape[-1], logits.shape[-1], {}
            self._check(rows, logits)
            self._passed = self._passable(outputs, rows.flatten(0, 1))

    def __call__(self, rows: Tensor) -> Tensor:
        """The logits f of rows [n, H], [n, V]; they can be differentiated with respect to the rows."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected rows of shape [n, {self.width}], got {list(rows.shape)}")
        ids = torch.zeros(len(rows), 1, dtype=torch.int64, device=self._model.device)
        with self._one_pass, ExitStack() as undo:
            for block, forward in self._passed.items():
                block.forward = forward
                undo.callback(delattr, block, "forward")
            undo.enter_context(self._at(ids, lambda value: rows[:, None].to(value, copy=True)))
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits[:, 0]

    @torch.no_grad()
    def promoted(self, rows: Tensor) -> Tensor:
        """(f(r) - f(-r)) / 2 of rows [n, H]; [n, V] float32."""
        up, down = self(rows).float(), self(-rows).float()
        return (up - down) / 2

    @torch.no_grad()
    def promoted_by(self, directions: Tensor) -> Tensor:
        """What directions [n, H] promote, each as a row of root mean square 1 (norm sqrt(H)), less its mean over V.

        A shift of all logits changes no probability; [n, V] float32, on the device of the directions.
        """
        size = directions.float().square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        logits = self.promoted(directions.float() / size).to(directions.device)
        return logits - logits.mean(1, keepdim=True)

    @torch.no_grad()
    def stream(self, ids: Tensor) -> Tensor:
        """What the last block gives for token ids [R, T], [R, T, H]."""
        seen: list[Tensor] = []
        with self._one_pass, self._at(ids, lambda value: seen.append(value.clone())):
            self._model(input_ids=ids, use_cache=False)
        return seen[0]

    @contextmanager
    def _at(self, ids: Tensor, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        handle = Site(self._model, self._name, self.path).hook(ids.shape, see)
        try:
            yield
        finally:
            handle.remove()

    def _watched(self) -> tuple[Tensor, dict[str, Any]]:
        """Logits of the trial's texts, and what each module of an outermost list gave, in the order they ran."""
        outputs: dict[str, Any] = {}
        with self._one_pass, ExitStack() as hooks:
            for path, module in in_lists(self._model):

                def note(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
                    outputs.pop(path, None)
                    outputs[path] = output

                hooks.callback(module.register_forward_hook(note).remove)
            logits: Tensor = self._model(input_ids=self._trial, use_cache=False).logits
        return logits, outputs

    def _check(self, rows: Tensor, logits: Tensor) -> None:
        """ValueError unless the rows alone, without their texts, give the model's logits."""
        try:
            own = self(rows.flatten(0, 1))
        except Exception as error:  # whatever a model does with rows that it did not make itself
            raise self._unknown(f"it fails on other rows ({type(error).__name__})") from error
        if not _same(own, logits.flatten(0, 1)):
            raise self._unknown(f"its logits depend on more than the output of {self.path} at the same token")

    def _passable(self, outputs: dict[str, Any], rows: Tensor) -> dict[nn.Module, Callable[..., Any]]:
        """The blocks that need not run for f, each with what stands in for it; none if that changes anything."""
        stack = self.path.rpartition(".")[0]
        blocks = {path: self._model.get_submodule(path) for path in outputs if path.rpartition(".")[0] == stack}
        if any("forward" in vars(block) for block in blocks.values()):  # somebody else's, that must not be lost
            return {}
        expected = self(rows)
        self._passed = {block: _handing_on(outputs[path]) for path, block in blocks.items()}
        try:
            same = _same(self(rows), expected)
        except Exception:  # blocks that hand on something else than the stream fail in any way
            same = False
        return self._passed if same else {}

    def _unknown(self, why: str) -> ValueError:
        return ValueError(f"what a direction promotes cannot be told of {self._name}: {why}")


def _handing_on(output: Any) -> Callable[..., Any]:
    """What gives back the stream it is given, in the form of a block's output."""

    def forward(value: Tensor, *others: Any, **named: Any) -> Any:
        return with_first(output, value)

    return forward


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal to rounding."""
    return bool((first - second).abs().max() <= rounding(second.dtype) * second.abs().max())
