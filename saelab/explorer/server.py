"""The web application: addresses, and the same data as a page or as JSON.

    /                                   runs
    /run/NAME                           one SAE: settings, scores, curves          /run/NAME/log.json?after=STEP
    /run/NAME/latents                   the table                                  ?q= &sort= &desc= &filter= &kind=
    /run/NAME/latent/J                  one latent
    /run/NAME/prompt                    a text through this SAE
    /run/NAME/manifolds, /run/NAME/meta
    /compare?a=NAME&b=NAME, /scaling

Every page is also JSON at the same address plus `.json`. A page is a shell with that JSON inside it, which the modules
in web/ draw; nothing is drawn on the server, so no text is ever pasted into markup.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from saelab.core.read import parse_json
from saelab.explorer.pages import compare, latents, manifolds, meta, pattern, prompt, runs, scaling
from saelab.explorer.safety import Guard, json_in_html
from saelab.explorer.search import whole_number
from saelab.explorer.workspace import Workspace

WEB = Path(__file__).parent / "web"
Page = Callable[[Workspace, Request], dict[str, Any]]
Action = Callable[[Workspace, Request, dict[str, Any]], dict[str, Any]]


def _number(request: Request, name: str, default: int | None = None) -> int:
    return whole_number(name, request.path_params.get(name, request.query_params.get(name, default)))


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name


def _query(request: Request) -> dict[str, str]:
    return dict(request.query_params)


PAGES: dict[str, Page] = {
    "/": lambda w, r: runs.runs(w),
    "/run/{name}": lambda w, r: runs.run(w, _name(r)),
    "/run/{name}/latents": lambda w, r: latents.table(w, _name(r), _query(r)),
    "/run/{name}/latent/{latent}": lambda w, r: latents.latent(w, _name(r), _number(r, "latent"), _query(r)),
    "/run/{name}/prompt": lambda w, r: prompt.page(w, _name(r)),
    "/run/{name}/manifolds": lambda w, r: manifolds.manifolds(w, _name(r), _query(r)),
    "/run/{name}/meta": lambda w, r: meta.meta(w, _name(r)),
    "/run/{name}/meta/{latent}": lambda w, r: meta.meta_latent(w, _name(r), _number(r, "latent")),
    "/compare": lambda w, r: compare.compare(w, _query(r)),
    "/scaling": lambda w, r: scaling.scaling(w),
}
DATA: dict[str, Page] = {
    "/run/{name}/log": lambda w, r: runs.log(w, _name(r), _number(r, "after", -1)),
    "/run/{name}/latent/{latent}/examples": lambda w, r: latents.examples(
        w, _name(r), _number(r, "latent"), r.query_params.get("kind", "top"), _number(r, "offset", 0)
    ),
    "/run/{name}/latent/{latent}/context": lambda w, r: latents.context(
        w, _name(r), _number(r, "latent"), _number(r, "row"), _number(r, "before", 100), _number(r, "after", 100)
    ),
    "/run/{name}/latent/{latent}/effects": lambda w, r: prompt.effects(
        w, _name(r), _number(r, "latent"), _number(r, "row")
    ),
    "/run/{name}/latent/{latent}/counterparts": lambda w, r: compare.counterparts(w, _name(r), _number(r, "latent")),
    "/run/{name}/latent/{latent}/meta": lambda w, r: meta.of_latent(w, _name(r), _number(r, "latent")),
    "/run/{name}/latent/{latent}/pattern": lambda w, r: pattern.pattern(w, _name(r), _number(r, "latent")),
    "/run/{name}/map": lambda w, r: manifolds.places(w, _name(r), r.query_params.get("map", "umap"), _query(r)),
    "/run/{name}/norms": lambda w, r: scaling.norms(w, _name(r)),
    "/run/{name}/around": lambda w, r: manifolds.around(w, _name(r), _number(r, "latent")),
    "/run/{name}/cloud": lambda w, r: manifolds.cloud(w, _name(r), _query(r)),
}
ACTIONS: dict[str, Action] = {
    "/run/{name}/prompt": lambda w, r, body: prompt.prompt(w, _name(r), body),
    "/run/{name}/ablate": lambda w, r, body: prompt.ablate(w, _name(r), body),
    "/run/{name}/steer": lambda w, r, body: prompt.steer(w, _name(r), body),
    "/run/{name}/latent/{latent}/note": lambda w, r, body: latents.note(
        w, _name(r), _number(r, "latent"), body, time.time()
    ),
}


class Shell:
    """The HTML around a page's data."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        environment = Environment(loader=FileSystemLoader(WEB), autoescape=True)
        environment.globals["data"] = json_in_html
        self.template = environment.get_template("page.html")

    def html(self, data: dict[str, Any]) -> str:
        """The page."""
        return self.template.render(page=data, names=list(self.workspace.members))


def application(workspace: Workspace, hosts: list[str] | None = None) -> ASGIApp:
    """The web application for a workspace; `hosts` are names it may be called by beside the loopback interface's."""
    shell = Shell(workspace)
    routes = [
        Mount("/web", StaticFiles(directory=WEB / "static"), name="web"),
        Route("/plotly.min.js", _plotly),
        Route("/favicon.ico", lambda request: FileResponse(WEB / "static" / "icon.svg", media_type="image/svg+xml")),
    ]
    for path, action in ACTIONS.items():
        routes.append(Route(f"{path}.json", _acting(workspace, action), methods=["POST"]))
    for path, page in (PAGES | DATA).items():
        routes.append(Route(f"{path}.json" if path != "/" else "/index.json", _as_json(workspace, page)))
    routes += [Route(path, _as_page(workspace, page, shell)) for path, page in PAGES.items()]
    return Guard(Starlette(routes=routes), hosts or [])


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


def _as_json(workspace: Workspace, page: Page) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        try:
            return _answer(await run_in_threadpool(page, workspace, request))
        except WRONG as error:
            return _answer({"error": _said(error)}, _status(error))

    return respond


def _as_page(workspace: Workspace, page: Page, shell: Shell) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        status = 200
        try:
            html = shell.html(await run_in_threadpool(page, workspace, request))
        except WRONG as error:
            status, data = _status(error), {"page": "error", "title": "Not found", "error": _said(error)}
            if "name" in request.path_params and request.path_params["name"] in workspace.members:
                data["run"] = request.path_params["name"]
            html = shell.html(data)
        return HTMLResponse(html, status)

    return respond


def _acting(workspace: Workspace, action: Action) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        try:
            body = parse_json(await request.body(), "the request's body", remedy="send a JSON object")
            return _answer(await run_in_threadpool(action, workspace, request, body))
        except ClientDisconnect:
            return _answer({"error": "the request's body did not come"}, 408)
        except WRONG as error:
            return _answer({"error": _said(error)}, _status(error))

    return respond
