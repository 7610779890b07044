"""Sites: places in a model whose value can be read and replaced.

A site is a module's path and a side: `model.layers.3` or `model.layers.3:out` is what the module gives (the first
element if it gives several), `model.layers.3:in` what it is given. Several sites are joined by commas; their values
stand side by side in one row, in the order they are named. Names of other libraries, such as `blocks.3.hook_resid_pre`,
are translated (`saelab.models.structure`). A value may come with its rows of tokens one after the other, [R T, D].
"""

# Shape letters: R rows of tokens, T tokens a row, D width at the site.

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saelab.models.structure import site_called

SIDES = ("in", "out")


class Site:
    """One place in a model.

    Args:
        model: the model.
        model_name: what errors call it.
        name: `module.path`, `module.path:in` or `module.path:out`, or another library's name of one of them.

    Attributes:
        name: as a module's path and a side.

    Raises:
        ValueError: for a side that is neither, a module that the model has not, or a hook that it has no place for.
    """

    def __init__(self, model: nn.Module, model_name: str, name: str):
        self.name, self.model_name = site_called(model, model_name, name), model_name
        self.path, colon, side = self.name.partition(":")
        if colon and side not in SIDES:
            raise ValueError(f"the side '{side}' of the site '{self.name}' is neither {' nor '.join(SIDES)}")
        self.side = side or "out"
        self.module = _module(model, model_name, self.path)

    def hook(self, shape: torch.Size, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """From here on, call `see` with the site's value; a tensor it gives takes the value's place.

        Args:
            shape: [R, T] of the token ids, which the value's [R, T, D] has to fit.
            see: what to call.
        """

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Some callers name even the first input.
            key = None if args else next(iter(inspect.signature(module.forward).parameters), None)
            value: Any = args[0] if args else kwargs.get(key or "")
            new = see(self._value(value, shape))
            if new is None:
                return None
            new = new.reshape(value.shape)
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {key: new})

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            value = output[0] if isinstance(output, tuple | list) else output
            new = see(self._value(value, shape))
            return None if new is None else with_first(output, new.reshape(value.shape))

        if self.side == "in":
            return self.module.register_forward_pre_hook(before, with_kwargs=True)
        return self.module.register_forward_hook(after)

    def check_runs(self, times: int) -> None:
        """ValueError unless a pass of the model comes by here exactly once."""
        if times > 1:
            raise ValueError(f"'{self.name}' of {self.model_name} is run {times} times in a pass: choose another site")
        if not times:
            inside = [f"{self.path}.{child}" for child, _ in self.module.named_children()][:3]
            hint = f"; choose a module inside it, such as {', '.join(inside)}" if inside else "; choose another site"
            raise ValueError(f"the module of the site '{self.name}' of {self.model_name} is never run itself{hint}")

    def _value(self, value: Any, shape: torch.Size) -> Tensor:
        found = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.shape[:-1] in (shape, (shape.numel(),)):
                return value.view(*shape, value.shape[-1])
            found = f"{value.dtype} of shape {list(value.shape)}"
        raise ValueError(
            f"the site '{self.name}' of {self.model_name} holds {found} for token ids of shape {list(shape)}, "
            f"expected floats [R, T, D]: choose another module or side ({' or '.join(SIDES)})"
        )


def with_first(output: Any, value: Tensor) -> Any:
    """What a module gives, several values or one, with another as the first."""
    if isinstance(output, list):
        return [value, *output[1:]]
    return (value, *output[1:]) if isinstance(output, tuple) else value


def sites_of(model: nn.Module, model_name: str, names: str) -> list[Site]:
    """The sites of a model that are named, joined by commas; ValueError for one that is named twice or is not there."""
    sites = [Site(model, model_name, name.strip()) for name in names.split(",")]
    places = [(site.path, site.side) for site in sites]
    for site, place in zip(sites, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"the site '{site.name}' is named {places.count(place)} times; name it once")
    return sites


def joined(sites: list[Site], names: str) -> str:
    """The names of sites in one text: as they were given if they are paths of the model, otherwise translated."""
    own = [site.name for site in sites]
    return names if own == [name.strip() for name in names.split(",")] else ",".join(own)


def _module(model: nn.Module, name: str, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = {key: module for key, module in model.named_modules() if key}
    if path not in modules:
        close = difflib.get_close_matches(path, modules, n=4, cutoff=0.0)
        raise ValueError(f"{name} has no module '{path}'; closest: {', '.join(close)}")
    return modules[path]
