"""What the explorer answers, as records: an address, what answers it, and for a page what draws it and where it stands.

Each file in `pages/` lists its own as ROUTES; the server, the tabs, copies and the tests go by these records alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from saelab.explorer.search import whole_number
from saelab.explorer.workspace import Workspace


@dataclass(frozen=True)
class Parameters:
    """What a request asks for beside its address's fixed parts.

    Args:
        path: values of the address's braces.
        query: what follows the `?`.
        body: the JSON object that a POST brings.
    """

    path: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The SAE's name."""
        return self.path["name"]

    @property
    def latent(self) -> int:
        """The latent's number; ValueError where it is none."""
        return self.number("latent")

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number by its name in the path or the query; ValueError where it is none."""
        return whole_number(name, self.path.get(name, self.query.get(name, default)))


Handler = Callable[[Workspace, Parameters], dict[str, Any]]


@dataclass(frozen=True)
class Route:
    """JSON at an address plus `.json`.

    Args:
        path: the address, with `{name}` for an SAE and `{latent}` for a latent's number.
        handler: what answers; ValueError, LookupError and OSError are answers in one line.
        method: POST for what comes with a body.
    """

    path: str
    handler: Handler
    method: Literal["GET", "POST"] = "GET"

    @property
    def json_path(self) -> str:
        """Where its JSON is."""
        return f"{self.path if self.path != '/' else '/index'}.json"


@dataclass(frozen=True, kw_only=True)
class Page(Route):
    """JSON that is also a page at the address itself.

    Args:
        name: the `page` of its JSON, by which `module` knows what to draw.
        title: of its tab; without one it stands under its parent's.
        module: the file in `web/static/` whose `draw` has a function for the name.
        parent: the page whose tab it stands under.
        in_copies: whether a copy that needs no server has it.
    """

    name: str
    module: str
    title: str | None = None
    parent: str | None = None
    in_copies: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """What the browser has to know of it."""
        return {key: getattr(self, key) for key in ("name", "path", "module", "title", "parent")}
