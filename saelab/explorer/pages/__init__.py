"""What each page shows: functions from a workspace and parameters to JSON-able data, and records of where they are.

A file here lists its addresses as ROUTES, and that is all it takes to be served, to have a tab and to be tested.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from saelab.explorer.route import Page, Route

TABS = ("runs", "latents", "prompt", "manifolds", "meta", "compare", "scaling")
"""Files in the order of their tabs; further ones come after these."""


@cache
def routes() -> tuple[Route, ...]:
    """All addresses, in the order of tabs."""
    others = sorted(found.name for found in iter_modules(__path__) if found.name not in TABS)
    modules = [import_module(f"{__name__}.{name}") for name in (*TABS, *others)]
    return tuple(route for module in modules for route in getattr(module, "ROUTES", ()))


def pages() -> list[Page]:
    """Those that are pages."""
    return [route for route in routes() if isinstance(route, Page)]
