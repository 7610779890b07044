"""Whatever is asked is answered: with what was asked for, or with a status of 4xx and one line."""

import asyncio
import json
import socket
import time
import urllib.parse
from typing import Any

import pytest
from explorer.world import served
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from saelab.explorer import safety, serve
from saelab.explorer.pages import pages, routes
from saelab.explorer.server import application

HUGE = str(1 << 70)
WORDS = st.sampled_from(
    ["", "0", "1", "7", "47", "48", "-1", "1e400", "nan", "x", "٣", HUGE, "9" * 5000, "umap", "top"]
)
TEXTS = WORDS | st.text(max_size=20) | st.binary(max_size=8).map(lambda raw: raw.decode("latin-1"))
KEYS = st.sampled_from(
    ["q", "sort", "desc", "filter", "kind", "noted", "offset", "limit", "after", "row", "before", "map", "latents",
     "threshold", "a", "b", "show"]
)  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 3, 10**400, -(10**400), 1 << 63, float("nan")])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=9) | st.sampled_from(["\ud800", "def f(x):", "add", ""])
VALUES = st.recursive(
    LEAVES, lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=4), own, max_size=3), max_leaves=6
)
FIELDS = st.sampled_from(
    ["text", "token", "changes", "tokens", "temperature", "seed", "note", "tags", "latent", "mode"]
)
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def _asked(app: Any, method: str, path: str, query: str, body: bytes) -> tuple[int, bytes]:
    found: list[Any] = []
    headers = [(b"host", b"localhost")]
    if method == "POST":
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "root_path": "",
    }
    scope |= {"query_string": query.encode("ascii"), "headers": headers, "scheme": "http", "http_version": "1.1"}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        found.append(message)

    await app(scope, receive, send)
    return found[0]["status"], b"".join(message.get("body", b"") for message in found[1:])


@pytest.fixture(scope="module")
def ask(workspace):
    app = application(workspace)

    def asked(method: str, path: str, query: str = "", body: bytes = b"") -> tuple[int, bytes]:
        return asyncio.run(_asked(app, method, path, query, body))

    return asked


def fine(status: int, answer: bytes) -> None:
    """200, or a refusal in one line."""
    assert status == 200 or 400 <= status < 500, (status, answer)
    if status != 200 and not answer.startswith(b"<!doctype"):
        text = answer.decode()
        said = json.loads(text)["error"] if text.startswith("{") else text
        assert said.strip()
        assert "\n" not in said
        assert len(said) <= 1000


ACTIONS = sorted(one.path for one in routes() if one.method == "POST")
ROUTES = sorted(one.path for one in routes() if one.method == "GET")
PAGES = [page.path for page in pages()]


@QUICK
@given(
    route=st.sampled_from(ROUTES),
    name=st.just("run0") | TEXTS,
    latent=TEXTS,
    query=st.dictionaries(KEYS, TEXTS, max_size=4),
)
@example(route="/run/{name}/latent/{latent}", name="run0", latent=HUGE, query={})
@example(route="/run/{name}/latent/{latent}/effects", name="run0", latent="1", query={"row": HUGE})
@example(route="/run/{name}/latents", name="run0", latent="", query={"offset": HUGE})
@example(route="/run/{name}/latents", name="run0", latent="", query={"filter": "density:0..1," * 3000})
@example(route="/run/{name}/latents", name="run0", latent="", query={"filter": "density:" + "9" * 400 + ".."})
@example(route="/run/{name}/latents", name="run0", latent="", query={"q": '"*()\x00 NEAR(' + "a" * 9000, "noted": "1"})
@example(route="/run/{name}/log", name="run0", latent="", query={"after": HUGE})
@example(route="/run/{name}/cloud", name="run0", latent="", query={"latents": "9" * 5000})
@example(route="/run/{name}/cloud", name="run0", latent="", query={"latents": "²"})
def test_every_page_answers_anything(ask, route, name, latent, query):
    path = route.replace("{name}", name).replace("{latent}", latent)
    fine(*ask("GET", path + ("/index.json" if path == "/" else ".json"), urllib.parse.urlencode(query)))
    if route in PAGES:
        fine(*ask("GET", path, urllib.parse.urlencode(query)))


@QUICK
@given(route=st.sampled_from(ACTIONS), latent=TEXTS, body=st.dictionaries(FIELDS, VALUES, max_size=6))
@example(route="/run/{name}/prompt", latent="0", body={"text": "a\ud800b"})
@example(
    route="/run/{name}/steer",
    latent="0",
    body={"text": "a", "changes": [], "tokens": 1, "temperature": 10**400, "seed": 0},
)
@example(route="/run/{name}/steer", latent="0", body={"text": "a", "changes": [{"mode": []}], "tokens": 1, "seed": 0})
@example(route="/run/{name}/latent/{latent}/note", latent="3", body={"note": "\ud800", "tags": []})
@example(route="/run/{name}/latent/{latent}/note", latent=HUGE, body={"note": "x", "tags": []})
@example(route="/run/{name}/latent/{latent}/note", latent="3", body={"note": "", "tags": [["x"]]})
def test_every_action_answers_anything(ask, route, latent, body):
    path = route.replace("{name}", "run0").replace("{latent}", latent) + ".json"
    fine(*ask("POST", path, "", json.dumps(body).encode()))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 60_000, b'{"text":' * 8000, b'{"text": NaN}', b"9" * 9000,
     b'{"text": "x", "text": "y"}', b'{"text": "' + b"x" * 60_000 + b'"}'],
)  # fmt: skip
def test_bodies_that_are_none_are_refused_in_one_line(ask, body):
    status, answer = ask("POST", "/run/run0/prompt.json", "", body)
    assert status == 400
    fine(status, answer)


@pytest.mark.parametrize("route", sorted([*ROUTES, *ACTIONS]))
def test_wrong_methods_are_refused_in_one_line(ask, route):
    path = route.replace("{name}", "run0").replace("{latent}", "1")
    for method in ("PUT", "DELETE", "OPTIONS", "X" * 50):
        status, answer = ask(method, path + ".json")
        assert status == 405
        fine(status, answer)


# ---- over a socket ----


def talked(port: int, *parts: bytes, wait: float = 0.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=8) as own:
        for part in parts:
            own.sendall(part)
            time.sleep(wait)
        found = b""
        while more := own.recv(1 << 16):
            found += more
        return found


GET = b"GET /run/none.json HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /run/run0/prompt.json HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_half_sent_requests_are_ended_in_time(workspace, monkeypatch):
    monkeypatch.setattr(serve, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(safety, "BODY_SECONDS", 0.4)
    begin = time.monotonic()
    with served(workspace) as site:
        assert talked(site.port) == b""
        assert talked(site.port, GET) == b""
        # What comes a byte at a time ends as well.
        with pytest.raises(OSError):  # noqa: PT011
            talked(site.port, *([b"G"] + [b"E"] * 100), wait=0.05)
        assert talked(site.port, POST + b'Content-Length: 40\r\n\r\n{"text": "x').startswith(b"HTTP/1.1 408")
        # One after another on one connection; and after the last answer it is closed too.
        assert talked(site.port, GET + b"\r\n", GET + b"\r\n" + GET).count(b"HTTP/1.1 400") == 2
        assert site.ask("/index.json")[0] == 200
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize(
    "request_",
    [b"\x00\xff\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", GET.replace(b"none", b"\xff\xfe") + b"\r\n",
     GET.replace(b"none", b"%ff%00%d8") + b"Connection: close\r\n\r\n",
     GET + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
     POST + b"Connection: close\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
     POST + "Connection: close\r\nContent-Length: ²\r\n\r\n".encode("latin-1"),
     GET + b"Connection: close\r\nOrigin: \xff\r\nAccept: \xff\r\n\r\n"],
)  # fmt: skip
def test_requests_that_are_none_get_a_status_of_4xx(site, request_):
    assert talked(site.port, request_).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("error", [KeyError("density"), IndexError("out of bounds")])
def test_a_fault_of_ours_is_no_answer(ask, monkeypatch, error):
    """A KeyError is a mistake in the program, not a page that does not exist: the server's log tells of it."""

    def broken(*words):
        raise error

    monkeypatch.setattr("saelab.explorer.pages.runs.log", broken)
    with pytest.raises(type(error)):
        ask("GET", "/run/run0/log.json")
