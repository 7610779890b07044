"""A causal language model with one site: read the activations there, or run it with others in their place.

A site is a module's path and a side: `model.layers.3` or `model.layers.3:out` is what the module gives (the first
element if it gives several), `model.layers.3:in` what it is given. Generating text and training are left out.
"""

# Shape letters: R rows of tokens, T tokens a row, D width at the site, V vocabulary.

import difflib
import hashlib
import importlib.resources
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelab.core.components import near_miss
from saelab.core.mesh import device_named

BUNDLED = "pycode-7m"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SIDES = ("in", "out")
# Of a config: what changes with the library, the place or the way of loading, but not with the model.
VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
SAMPLED = 64  # values of each parameter in the fingerprint


class LanguageModel:
    """A causal language model in evaluation mode, without gradients.

    Args:
        name: a folder, a name on the hub, or `pycode-7m`, the model that comes with saelab.
        site: where to read and replace activations, `module.path`, `module.path:in` or `module.path:out`.
        device: e.g. `cpu`, `cuda:1`.
        dtype: of its weights and activations: float32, bfloat16, float16 or float64.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        d_in: width D of the activations at the site.
        n_layers: number of its blocks, None if its config does not say.
        context: the longest row it takes, None if its config does not say.
        fingerprint: hex digest of its config and of a sample of every parameter; the same wherever it was loaded
            from, another for other weights.

    Raises:
        ValueError: for a model that cannot be loaded, or a site it has not or whose value is no [R, T, D] tensor.
    """

    def __init__(self, name: str, site: str, device: str = "cpu", dtype: str = "float32"):
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype '{dtype}'{near_miss(dtype, DTYPES)}")
        self.name, self.site = name, site
        self.device, self.dtype = device_named(device), DTYPES[dtype]
        path, self._side = _parsed(site)
        # A hook sees every pass of the model, also one that another thread runs (a live source's, say).
        self._one_pass = threading.Lock()
        self.model, self.tokenizer = _loaded(name, self.dtype)
        self.model.to(self.device).eval().requires_grad_(False)
        self._module = _module(self.model, name, path)
        config = self.model.config.get_text_config()
        self.n_layers: int | None = getattr(config, "num_hidden_layers", None)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.d_in = self._probe()
        self.fingerprint = _fingerprint(self.model)

    @torch.no_grad()
    def activations(self, ids: Tensor) -> Tensor:
        """Activations [R, T, D] at the site for token ids [R, T]; layers above the site are not run."""

        def stop(value: Tensor) -> None:
            raise _Reached(value)

        ids = self._checked(ids)
        try:
            with self._at_site(ids, stop):
                self._logits(ids)
        except _Reached as reached:
            return reached.value
        raise AssertionError(f"{self.site} was run in the probe, but not now")

    @torch.no_grad()
    def run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, T, V] and activations [R, T, D] for token ids [R, T], in one full pass."""
        seen: list[Tensor] = []
        ids = self._checked(ids)
        # A copy, because some models go on to add to their residual stream in place.
        with self._at_site(ids, lambda value: seen.append(value.clone())):
            logits = self._logits(ids)
        assert len(seen) == 1, f"{self.site} was run {len(seen)} times"
        return logits, seen[0]

    @torch.no_grad()
    def run_with(self, ids: Tensor, activations: Tensor) -> Tensor:
        """Logits [R, T, V] for token ids [R, T] with `activations` [R, T, D] in place of those at the site."""
        ids = self._checked(ids)
        expected = [*ids.shape, self.d_in]
        if list(activations.shape) != expected:
            raise ValueError(f"expected activations of shape {expected}, got {list(activations.shape)}")
        replacement = activations.to(device=self.device, dtype=self.dtype, copy=True)
        with self._at_site(ids, lambda value: replacement.to(value.dtype)):
            return self._logits(ids)

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.is_floating_point():
            raise ValueError(f"expected token ids of shape [R, T], got {ids.dtype} of shape {list(ids.shape)}")
        if self.context is not None and ids.shape[1] > self.context:
            raise ValueError(
                f"rows of {ids.shape[1]} tokens are longer than the {self.context} that {self.name} takes: use a "
                f"seq_len of at most {self.context}"
            )
        return ids.to(self.device, torch.int64)

    @contextmanager
    def _at_site(self, ids: Tensor, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """While inside, call `see` with the site's value; a tensor it gives takes the value's place."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Some callers name even the first input.
            key = None if args else next(iter(inspect.signature(module.forward).parameters), None)
            new = see(self._value(args[0] if args else kwargs.get(key or ""), ids))
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {key: new})

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            many = isinstance(output, tuple)
            new = see(self._value(output[0] if many else output, ids))
            return (new, *output[1:]) if many and new is not None else new

        with self._one_pass:
            if self._side == "in":
                handle = self._module.register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = self._module.register_forward_hook(after)
            try:
                yield
            finally:
                handle.remove()

    def _value(self, value: Any, ids: Tensor) -> Tensor:
        found = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            if value.ndim == 3 and value.shape[:2] == ids.shape and value.is_floating_point():
                return value
            found = f"{value.dtype} of shape {list(value.shape)}"
        raise ValueError(
            f"the site '{self.site}' of {self.name} holds {found} for token ids of shape {list(ids.shape)}, "
            f"expected floats [R, T, D]: choose another module or side ({' or '.join(SIDES)})"
        )

    @torch.no_grad()
    def _probe(self) -> int:
        """Width D at the site, from a full pass over two rows of two tokens."""
        widths: list[int] = []
        ids = torch.zeros(2, 2, dtype=torch.int64, device=self.device)
        with self._at_site(ids, lambda value: widths.append(value.shape[-1])):
            self._logits(ids)
        if len(widths) == 1:
            return widths[0]
        if widths:
            raise ValueError(f"'{self.site}' of {self.name} is run {len(widths)} times in a pass: choose another site")
        path = self.site.partition(":")[0]
        inside = [f"{path}.{child}" for child, _ in self._module.named_children()][:3]
        hint = f"; choose a module inside it, such as {', '.join(inside)}" if inside else "; choose another site"
        raise ValueError(f"the module of the site '{self.site}' of {self.name} is never run itself{hint}")


class _Reached(Exception):
    """Ends a forward pass at the site."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value


def bundled_folder() -> Path:
    """The folder of the model that comes with saelab; ValueError if this installation lacks it."""
    folder = Path(str(importlib.resources.files("saelab"))) / "assets" / BUNDLED
    if not (folder / "config.json").exists():
        raise ValueError(f"the bundled model {BUNDLED} is missing from {folder}: install saelab again")
    return folder


def _parsed(site: str) -> tuple[str, str]:
    """Module path and side of a site."""
    path, colon, side = site.partition(":")
    if colon and side not in SIDES:
        raise ValueError(f"the side '{side}' of the site '{site}' is neither {' nor '.join(SIDES)}")
    return path, side or "out"


def _module(model: nn.Module, name: str, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = {key: module for key, module in model.named_modules() if key}
    if path not in modules:
        close = difflib.get_close_matches(path, modules, n=4, cutoff=0.0)
        raise ValueError(f"{name} has no module '{path}'; closest: {', '.join(close)}")
    return modules[path]


# ---- loading ----


def _loaded(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The transformers model and its tokenizer."""
    import transformers

    place = str(bundled_folder()) if name == BUNDLED else str(Path(name).expanduser())
    is_folder = Path(place).is_dir()
    if not is_folder and (Path(place).is_absolute() or name.startswith(".") or place.count("/") > 1):
        raise ValueError(f"there is no folder '{name}' with a model in it")
    try:
        with _quiet():
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # a damaged folder or a missing network surfaces as almost anything
        raise ValueError(f"cannot load the model '{name}': {_reason(error, is_folder)}") from error
    model, report = loaded
    # transformers fills gaps with random numbers and only logs it.
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"the model '{name}' lacks {len(missing)} of its weights: {shown}; get a whole copy")
    return model, tokenizer


def _reason(error: Exception, is_folder: bool) -> str:
    first = _first_line(error)
    if is_folder:
        return f"its folder is damaged or incomplete ({first})"
    bundled = f"(the bundled model is '{BUNDLED}')"
    if "couldn't connect" in first.lower() or isinstance(error, ConnectionError):
        return f"there is no folder of that name and the hub cannot be reached {bundled}"
    if "not a valid model identifier" in first:
        return f"there is no folder of that name and the hub has no such model {bundled}"
    return f"there is no folder of that name, and the hub's copy gives: {first}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and logging warnings; its settings come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _fingerprint(model: Any) -> str:
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        stride = -(-parameter.numel() // SAMPLED) or 1
        sample = parameter.detach().flatten()[::stride].float().cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
