"""What the explorer refuses: one test for each promise."""

import json
import re
from pathlib import Path

import pytest
from explorer.world import NASTY

import saelab.explorer
from saelab.explorer.safety import BODY, json_in_html

WEB = Path(saelab.explorer.__file__).parent / "web"


def test_it_binds_to_the_loopback_interface_by_default():
    import inspect

    from saelab.explorer.serve import listening, serve
    from saelab.recipes.explore import explore

    assert inspect.signature(explore).parameters["host"].default == "127.0.0.1"
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    with listening("127.0.0.1", 0) as place:
        assert place.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "127.0.0.2", "localhost.evil"]
)
def test_foreign_hosts_are_refused(site, host):
    status, _, body = site.ask("/run/run0/latents.json", host=host)
    assert status in (400, 403)
    assert b"density" not in body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_our_own_names_are_answered(site, host):
    assert site.ask("/index.json", host=f"{host}:{site.port}")[0] == 200
    assert site.ask("/index.json", host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"])
def test_foreign_origins_are_refused(site, origin):
    body = {"note": "x", "tags": []}
    assert site.ask("/run/run0/latent/1/note.json", "POST", body, origin=origin)[0] == 403
    assert site.ask("/index.json", origin=origin)[0] == 403
    assert site.json("/run/run0/latent/1.json")["note"]["note"] == ""


def test_our_own_origin_is_answered(site):
    body = {"text": "def f(x):"}
    assert site.ask("/run/run0/prompt.json", "POST", body, origin=f"http://127.0.0.1:{site.port}")[0] == 200


def test_requests_that_a_browser_calls_cross_site_are_refused(site):
    assert site.ask("/index.json", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert site.ask("/run/run0/prompt.json", "POST", {"text": "x"}, Sec_Fetch_Site="cross-site")[0] == 403
    # A link from elsewhere may be followed.
    assert site.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


def test_nothing_may_be_loaded_framed_or_run_from_elsewhere(site):
    _, headers, body = site.ask("/run/run0/latent/3")
    policy = headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'self';" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert not re.findall(rb"https?://", re.sub(rb"<script id.*?</script>", b"", body, flags=re.DOTALL))


def test_text_that_is_markup_never_becomes_markup(site):
    template = (WEB / "page.html").read_text(encoding="utf-8")
    found = [site.ask(f"/run/run0/latent/{latent}")[2].decode() for latent in range(48)]
    assert any("\\u003cscript" in page or "\\u003c" in page for page in found)
    for page in found:
        assert page.count("<script") == page.count("</script>") == template.count("<script")
        assert "<!--" not in page
    hidden = json_in_html({"x": NASTY})
    assert not set("<>&\u2028") & set(hidden)
    assert json.loads(hidden) == {"x": NASTY}


def test_the_modules_never_paste_text_into_markup():
    for file in (WEB / "static").glob("*.js"):
        code = file.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in code, (file.name, word)
    assert "autoescape" in (WEB.parent / "server.py").read_text()


@pytest.mark.parametrize(
    "path",
    ["/web/../server.py", "/web/..%2fserver.py", "/web/%2e%2e/server.py", "/web/....//server.py", "/web//etc/passwd",
     "/web/..%5cserver.py", "/run/..%2f..%2fetc/latents", "/web/%00", "/../../etc/passwd"],
)  # fmt: skip
def test_paths_do_not_lead_out(site, path):
    status, _, body = site.ask(path)
    assert status in (400, 404)
    assert b"root:" not in body
    assert b"def " not in body


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(site, method):
    assert site.ask("/run/run0/latents.json", method)[0] == 405


def test_what_is_read_cannot_be_written(site, workspace):
    import sqlite3

    database = workspace["run0"].database
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.connection.execute("DELETE FROM latents")
    assert site.ask("/run/run0/latents.json", "POST", {})[0] == 405
    # Nor does the attempt leave a transaction open, in which the next thing read would keep notes from being written.
    assert database.note(0)["note"] == ""
    assert not database.connection.in_transaction
    assert site.ask("/run/run0/latent/0/note.json", "POST", {"note": "kept", "tags": []})[0] == 200
    assert site.ask("/run/run0/latent/0/note.json", "POST", {"note": "", "tags": []})[0] == 200


def test_a_note_that_cannot_be_written_is_said_so(site, workspace, monkeypatch):
    from saelab.explorer import notes

    def full(file):
        raise OSError(28, "No space left on device")

    site.ask("/run/run0/latent/1/note.json", "POST", {"note": "", "tags": []})
    before = workspace["run0"].database.notes.path.read_bytes()
    monkeypatch.setattr(notes.os, "fsync", full)
    status, _, answer = site.ask("/run/run0/latent/0/note.json", "POST", {"note": "kept", "tags": []})
    assert status == 409
    assert b"nothing is kept: " in answer
    assert b"explorer-notes.jsonl cannot be written to (No space left on device)" in answer
    assert workspace["run0"].database.notes.path.read_bytes() == before
    assert site.json("/run/run0/latent/0.json")["note"]["note"] == ""


def test_a_database_that_another_program_keeps_is_said_so(site, workspace, monkeypatch):
    import sqlite3

    from saelab.explorer import database

    monkeypatch.setattr(database, "BUSY", 0.05)
    other = sqlite3.connect(workspace["run0"].database.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        status, _, answer = site.ask("/run/run0/latents.json")
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert status == 400
    assert b"another program writes to it: try again" in answer


def test_long_bodies_and_bodies_that_are_no_json_are_refused(site):
    path = "/run/run0/prompt.json"
    assert site.ask(path, "POST", raw=b"x" * (BODY + 1))[0] == 413
    assert site.ask(path, "POST", raw=b"{}", content_type="text/plain")[0] == 415
    assert site.ask(path, "POST", raw=b"{}", content_type="application/x-www-form-urlencoded")[0] == 415
    assert site.ask(path, "POST", raw=b"{")[0] == 400
    assert site.ask(path, "POST", raw=b"[1]")[0] == 400
    assert site.ask(path, "POST", raw=b"[" * 50_000)[0] == 400
    assert site.ask(path, "POST", raw=b"0\r\n\r\n", transfer_encoding="chunked", content_length="")[0] in (400, 413)


CHANGE = {"latent": 1, "mode": "add", "value": 1}
STEER = {"text": "def f(x):", "changes": [], "tokens": 2, "temperature": 0.0, "seed": 0}


@pytest.mark.parametrize(
    ("action", "body", "said"),
    [
        ("prompt", {"text": "x" * 5000}, "at most 4,000 are read"),
        ("prompt", {"text": "( " * 1500}, "at most 256 are read"),
        ("prompt", {"text": ""}, "text must be a non-empty text"),
        ("prompt", {"text": 5}, "text must be a non-empty text"),
        ("ablate", {"text": "def f", "token": 99}, "token must be a whole number"),
        ("steer", STEER | {"tokens": 65}, "tokens must be a whole number from 1 to 64"),
        ("steer", STEER | {"tokens": True}, "tokens must be a whole number"),
        ("steer", STEER | {"temperature": 9}, "temperature must be a number from 0 to 2"),
        ("steer", STEER | {"changes": [CHANGE | {"value": 51}]}, "value must be a number from -50 to 50"),
        ("steer", STEER | {"changes": [CHANGE | {"value": "1"}]}, "value must be a number"),
        ("steer", STEER | {"changes": [CHANGE | {"latent": 48}]}, "latent must be a whole number from 0 to 47"),
        ("steer", STEER | {"changes": [CHANGE | {"mode": "eval"}]}, "mode, which is add or scale"),
        ("steer", STEER | {"changes": [CHANGE] * 17}, "at most 16"),
    ],
)  # fmt: skip
def test_prompts_and_steering_have_limits(site, action, body, said):
    assert said in site.json(f"/run/run0/{action}.json", status=400, method="POST", body=body)["error"]


@pytest.mark.parametrize(
    "body",
    [{"note": "x" * 10_001, "tags": []}, {"note": 3, "tags": []}, {"note": "", "tags": ["a b"]},
     {"note": "", "tags": ["a"] * 21}, {"note": "", "tags": "abc"}, {"note": "", "tags": ["y" * 41]}],
)  # fmt: skip
def test_notes_have_limits(site, body):
    assert "must be" in site.json("/run/run0/latent/1/note.json", status=400, method="POST", body=body)["error"]
