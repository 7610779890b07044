"""The web application: every route as JSON, and pages as HTML.

Which addresses there are, and what answers them, is said by the files in `pages/`. A page is a shell with its JSON
inside it, which the modules in web/ draw; nothing is drawn on the server, so no text is ever pasted into markup.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette import routing
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from saelab.core.read import parse_json
from saelab.explorer.pages import pages, routes
from saelab.explorer.route import Handler, Parameters
from saelab.explorer.safety import Guard, json_in_html
from saelab.explorer.workspace import Workspace

WEB = Path(__file__).parent / "web"


class Shell:
    """The HTML around a page's data."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        environment = Environment(loader=FileSystemLoader(WEB), autoescape=True)
        environment.globals["data"] = json_in_html
        self.template = environment.get_template("page.html")
        self.pages = [page.record for page in pages()]

    def html(self, data: dict[str, Any]) -> str:
        """The page."""
        return self.template.render(page=data, names=list(self.workspace.members), pages=self.pages)


def application(workspace: Workspace, hosts: list[str] | None = None) -> ASGIApp:
    """The web application for a workspace; `hosts` are names it may be called by beside the loopback interface's."""
    shell = Shell(workspace)
    served = [
        routing.Mount("/web", StaticFiles(directory=WEB / "static"), name="web"),
        routing.Route("/plotly.min.js", _plotly),
        routing.Route(
            "/favicon.ico", lambda request: FileResponse(WEB / "static" / "icon.svg", media_type="image/svg+xml")
        ),
    ]
    for route in routes():
        respond = _acting if route.method == "POST" else _as_json
        served.append(routing.Route(route.json_path, respond(workspace, route.handler), methods=[route.method]))
    served += [routing.Route(page.path, _as_page(workspace, page.handler, shell)) for page in pages()]
    return Guard(Starlette(routes=served), hosts or [])


def _plotly(request: Request) -> Response:
    import plotly

    file = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return FileResponse(file, media_type="text/javascript", headers={"cache-control": "max-age=86400"})


def _answer(data: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(data, allow_nan=False), status, media_type="application/json")


WRONG = (ValueError, LookupError, OSError)
"""What pages and actions raise for a request that cannot be answered, or a file that is damaged, gone or locked."""


def _status(error: Exception) -> int:
    if isinstance(error, KeyError | IndexError):  # ours: what a request or a file can do wrong is said in words
        raise error
    return 404 if isinstance(error, LookupError) else 409 if isinstance(error, OSError) else 400


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(said).split())[:1000] or type(error).__name__


def _parameters(request: Request, body: dict[str, Any] | None = None) -> Parameters:
    return Parameters(request.path_params, dict(request.query_params), body or {})


def _as_json(workspace: Workspace, handler: Handler) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        try:
            return _answer(await run_in_threadpool(handler, workspace, _parameters(request)))
        except WRONG as error:
            return _answer({"error": _said(error)}, _status(error))

    return respond


def _as_page(workspace: Workspace, handler: Handler, shell: Shell) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        status = 200
        try:
            html = shell.html(await run_in_threadpool(handler, workspace, _parameters(request)))
        except WRONG as error:
            status, data = _status(error), {"page": "error", "title": "Not found", "error": _said(error)}
            if "name" in request.path_params and request.path_params["name"] in workspace.members:
                data["run"] = request.path_params["name"]
            html = shell.html(data)
        return HTMLResponse(html, status)

    return respond


def _acting(workspace: Workspace, handler: Handler) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        try:
            body = parse_json(await request.body(), "the request's body", remedy="send a JSON object")
            return _answer(await run_in_threadpool(handler, workspace, _parameters(request, body)))
        except ClientDisconnect:
            return _answer({"error": "the request's body did not come"}, 408)
        except WRONG as error:
            return _answer({"error": _said(error)}, _status(error))

    return respond
