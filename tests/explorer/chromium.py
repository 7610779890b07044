"""Drive a headless Chromium over its DevTools protocol, for the explorer's browser tests and screenshots.

One page, the few commands that are needed, and a record of what went wrong in it: console errors, exceptions, failed
requests, and every address it asked for.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 90.0
"""Seconds to wait for what should happen at once."""


def binary() -> str | None:
    """Where Chromium is, or None; the environment variable CHROMIUM names another."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """A browser with one page; a context manager."""

    def __init__(self, width: int = 1280, height: int = 800, dark: bool = False):
        self.size, self.dark = (width, height), dark
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._open = ExitStack()

    def __enter__(self) -> "Chromium":
        program = binary()
        assert program, "there is no Chromium here"
        self._profile = tempfile.mkdtemp(prefix="saelab-chromium-")
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"]
        words += ["--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"]
        words += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
        words += ["--remote-debugging-port=0", f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = self._port()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            address = pages[0]["webSocketDebuggerUrl"]
            self._socket = self._open.enter_context(connect(address, max_size=None, open_timeout=PATIENCE))
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
            self.resize(*self.size, dark=self.dark)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._open.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _port(self) -> str:
        path, deadline = Path(self._profile) / "DevToolsActivePort", time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if path.exists() and (lines := path.read_text().splitlines()):
                return lines[0]
            time.sleep(0.05)
        raise TimeoutError("Chromium did not start")

    # ---- the protocol ----

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; events that come meanwhile are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def settle(self) -> None:
        """Take in the events that have come."""
        self.call("Runtime.evaluate", expression="0")

    # ---- what a person does ----

    def resize(self, width: int, height: int = 800, dark: bool = False) -> None:
        """Another size of window, another theme of the system."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    def open(self, address: str, ready: str = "document.documentElement.dataset.ready") -> None:
        """Go to an address and wait until the page has drawn itself."""
        self.call("Page.navigate", url=address)
        self.until(f"document.readyState === 'complete' && {ready}")

    def js(self, expression: str) -> Any:
        """The value of an expression; awaited, if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self.js(f"Boolean({expression})"):
                    return
            except RuntimeError:  # between two pages there is none to ask
                pass
            time.sleep(0.03)
        raise TimeoutError(f"it did not come true: {expression}; errors: {self.errors}")

    def press(self, key: str) -> None:
        """Press a key."""
        text = key if len(key) == 1 else ""
        code = {"Enter": 13, "Escape": 27}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)

    def click(self, selector: str, number: int = 0) -> None:
        """Click the middle of an element, as a person would: it must be in sight and not covered."""
        quoted = json.dumps(selector)
        x, y = self.js(
            f"(() => {{ const e = document.querySelectorAll({quoted})[{number}]; e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str, number: int = 0) -> None:
        """Move the pointer onto an element."""
        quoted = json.dumps(selector)
        x, y = self.js(
            f"(() => {{ const e = document.querySelectorAll({quoted})[{number}]; e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, full: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(found["data"]))
