"""What campaigns that run commands share: imports, laws of a made-up ladder, the explorer without a network."""

import asyncio
import importlib
import json
import pkgutil
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import saelab.recipes
from saelab.explorer.workspace import Workspace
from saelab.scaling.cells import Cell, write_cells
from saelab.scaling.files import write_fit
from saelab.scaling.fit import Points, fit
from saelab.scaling.laws.joint import JointLaw
from saelab.scaling.laws.tokens import TokensLaw

WARM = [
    "pyarrow.parquet", "plotly.graph_objects", "saelab.explorer.server", "torch._dynamo",
    "transformers.models.auto.modeling_auto", "saelab.train.grid",
    *(f"saelab.recipes.{module.name}" for module in pkgutil.iter_modules(saelab.recipes.__path__)),
]  # fmt: skip
"""What forks would each import for themselves."""


def warm() -> None:
    """Import what forks would each import for themselves."""
    for name in WARM:
        importlib.import_module(name)


THETA = [-0.50, 0.26, -0.017, -0.042, -1.32, -0.085]
"""Of the joint law that the ladder follows."""


def write_laws(folder: Path) -> None:
    """A folder as `saelab scaling fit` leaves it, of 15 cells that follow a joint law."""
    x = np.array(list(product((32, 64, 128, 256, 512), (4, 8, 16))), float)
    y, names = JointLaw().value(THETA, x), [f"n{n:g}-k{k:g}" for n, k in x]
    about: dict[str, Any] = {"seed": 0, "lr": 1e-3, "batch": 256, "d_in": 16, "rows": 100_000, "fall": 0.01, "l0": 4.0}
    about |= {"loss_low": None, "loss_high": None, "loss_from": "training", "converged_rows": 50_000}
    about |= {"tolerance": 0.02, "compute": 1e9, "rows_per_second": 1e4, "together": 1, "architecture": "Dense TopK"}
    about |= {"data": "made up", "normalisation": 1.0}
    curve = {"rows": [5e4, 1e5], "compute": [5e8, 1e9], "loss": [0.3, 0.2], "lr": [1e-3, 1e-3]}
    cell = partial(Cell, **about, curve=curve)
    lines = zip(names, x.tolist(), y.tolist(), strict=True)
    cells = [cell(name=name, folder=f"ladder/{name}", n=int(n), k=k, loss=loss) for name, (n, k), loss in lines]
    folder.mkdir()
    write_cells(folder, cells)
    write_fit(folder / "law-joint.json", fit(JointLaw(), Points(x, y, names), x[:, 0] == 512, draws=6))
    widths = x[::3, :1]
    rows = Points(widths, 1e4 * widths[:, 0] ** 0.6, names[::3])
    write_fit(folder / "law-tokens.json", fit(TokensLaw(), rows, draws=6))


def asked(workspace: Workspace, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and answer of the explorer's application to a request, POST where there is a body.

    An exception that the application does not answer itself comes out, as a server would print it.
    """
    from saelab.explorer.server import application

    sent: list[Any] = []
    data = b"" if body is None else json.dumps(body).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers.append((b"content-length", str(len(data)).encode()))
    path, _, query = path.partition("?")
    scope: dict[str, Any] = {"type": "http", "scheme": "http", "http_version": "1.1", "headers": headers}
    scope |= {"method": "GET" if body is None else "POST", "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": query.encode()}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await application(workspace)(scope, receive, send)

    asyncio.run(ask())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])
