"""Serving the web application on this machine."""

import socket
import sys
import threading
import webbrowser
from contextlib import suppress

import uvicorn

from saelab.explorer.pages.prompt import lens_of
from saelab.explorer.safety import LOOPBACK
from saelab.explorer.server import application
from saelab.explorer.workspace import Workspace

WARM_AFTER = 2.0
"""Seconds from listening to loading a model, so that the first page need not wait for it."""


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
        application(workspace, known), log_level="warning", access_log=False, lifespan="off", ws="none"
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
            lens_of(workspace, member)
            return
