"""Who may ask, and how much: the guard around the web application.

The explorer shows what lies on a disk and runs a model, so a web page of somebody else must not reach it through the
browser of the one who opened it. Every request must name a host that is ours (which defeats DNS rebinding); one that a
browser says comes from another origin is refused; bodies are short and come soon; and no page may load, frame or send
anything from or to elsewhere. How long a request may take to begin is `saelab.explorer.serve`'s to say.
"""

import asyncio
import json
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = 64 << 10
"""Bytes of a request's body, at most."""
BODY_SECONDS = 10.0
"""Within which a body has to come."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
POLICY = (  # plotly sets styles of what it draws
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses foreign hosts, foreign origins, other methods and long bodies.

    Args:
        app: what is guarded.
        hosts: names by which it may be called, beside those of the loopback interface.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()):
        self.app, self.hosts = app, {*LOOPBACK, *hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        complaint = self.complaint(scope["method"], Headers(scope=scope))
        if complaint:
            status, text = complaint
            await PlainTextResponse(text, status, HEADERS)(scope, receive, send)
            return
        await self.app(scope, _limited(receive), _with_headers(send))

    def complaint(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason if a request is refused."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in self.hosts:
            return 403, f"this explorer does not answer to the host '{host[:80]}'; name it with --host"
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return 403, "requests from other origins are refused"
        # Following a link from elsewhere is fine: it shows a page and tells the other side nothing.
        followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed:
            return 403, "requests from other sites are refused"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "only GET, HEAD and POST"
        if method == "POST":
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return 415, "a body must be application/json"
            length = headers.get("content-length", "")
            if not length.isdecimal() or len(length) > 9 or int(length) > BODY:
                return 413, f"a body must have a content-length of at most {BODY}"
        return None


def _limited(receive: Receive) -> Receive:
    seen, waits = 0, True
    loop = asyncio.get_running_loop()
    end = loop.time() + BODY_SECONDS

    async def limited() -> Message:
        nonlocal seen, waits
        try:
            # Once it is here, the next message is that the client is gone, whenever that may be.
            message = await (asyncio.wait_for(receive(), end - loop.time()) if waits else receive())
        except TimeoutError:
            return {"type": "http.disconnect"}
        waits = message["type"] == "http.request" and bool(message.get("more_body"))
        seen += len(message.get("body", b""))
        if seen > BODY:  # whatever the header said
            return {"type": "http.disconnect"}
        return message

    return limited


def _with_headers(send: Send) -> Send:
    extra = [(key.encode(), value.encode()) for key, value in HEADERS.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return sending


def json_in_html(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
