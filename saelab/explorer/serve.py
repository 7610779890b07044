"""Serving the web application on this machine.

A connection on which no whole request head comes in time, be it that nothing comes or half of one, is closed.
"""

import asyncio
import socket
import sys
import threading
import webbrowser
from contextlib import suppress

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from saelab.explorer.safety import LOOPBACK
from saelab.explorer.server import application
from saelab.explorer.workspace import Workspace

WARM_AFTER = 2.0
"""Seconds from listening to loading a model, so that the first page need not wait for it."""

HEAD_SECONDS = 10.0
"""Within which a request's head has to come, from the connection's beginning or the answer before."""
KEEP_ALIVE = 5
"""Seconds that a connection stays open while nothing at all comes after an answer."""


class Protocol(H11Protocol):
    """HTTP/1.1 by uvicorn, with a time within which the next request has to begin."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        if self._deadline:
            self._deadline.cancel()

    def _wait(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._end)

    def _end(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and not self.transport.is_closing():
            self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError that names the address if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
    except OSError as error:
        found.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port} ({error.strerror}): give another --port") from None
    return found


def server_for(workspace: Workspace, host: str) -> uvicorn.Server:
    """A server that logs nothing but errors."""
    known = [] if host in ("", "0.0.0.0", "::") else [host.lower()]
    if not known:
        known = [socket.gethostname().lower(), socket.getfqdn().lower()]
    config = uvicorn.Config(
        application(workspace, known),
        http=Protocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
    )
    return uvicorn.Server(config)


def serve(workspace: Workspace, host: str = "127.0.0.1", port: int = 8770, browser: bool = True) -> None:
    """Serve until Ctrl-C.

    Args:
        workspace: what is shown.
        host: address to listen on.
        port: 0 takes a free one.
        browser: whether to open a browser.
    """
    place = listening(host, port)
    address = f"http://{host if ':' not in host else f'[{host}]'}:{place.getsockname()[1]}/"
    if host not in LOOPBACK:
        print(f"note: listening on {host}: whoever reaches this address can read everything shown", file=sys.stderr)
    print(f"explore {', '.join(workspace.members)} at {address} (Ctrl-C ends)", flush=True)
    if browser:
        webbrowser.open(address)
    warming = threading.Timer(WARM_AFTER, warm, [workspace])
    warming.daemon = True
    warming.start()
    try:
        with suppress(KeyboardInterrupt):  # how one ends it
            server_for(workspace, host).run(sockets=[place])
    finally:
        place.close()
        warming.cancel()
        warming.join()  # a thread that is cut off inside torch would end the program with an abort


def warm(workspace: Workspace) -> None:
    """Load the model of the first SAE that has one before a page asks for it: seconds, most of them for imports."""
    for member in workspace.members.values():
        with suppress(ValueError, LookupError, OSError):  # the page that needs the model says what is wrong with it
            workspace.lens(member)
            return
