"""A served explorer for tests: a small run of the bundled model, collected, and a way to ask it anything."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saelab.analysis.meta import MetaSettings, train_meta
from saelab.cli import main
from saelab.explorer.pages import pages
from saelab.explorer.serve import listening, server_for
from saelab.explorer.workspace import Workspace
from saelab.recipes.explore import collect_member
from saelab.runs import open_run

NASTY = "<script>alert(1)</script> & \"quotes\" 'here' </script><!-- \u2028 ${x}"

ADDRESSES = {page.name: page.path.format(name="run0", latent=3) for page in pages()}
"""Of every page, by its name."""


def make_run(folder: Path, seed: int = 0, k: int = 4) -> Path:
    """A run on text that is markup, of 48 latents, trained for a moment."""
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        for number in range(24):
            (text / f"{number:02d}.txt").write_text(
                f"def f{number}(x):\n    return '{NASTY}' + x\n\nimport os, sys\n" * 6
            )
        main(["harvest", "--out", str(folder / "acts"), "--text", str(text), "--tokens", "6000", "--seq_len", "64"])
    run = folder / f"run{seed}"
    sizes = ["--sae.n_latents", "48", "--sae.activation.k", str(k), "--sae.seed", str(seed), "--log_every", "5"]
    main(
        [
            "train",
            "--store",
            str(folder / "acts"),
            "--out",
            str(run),
            "--rows",
            "12000",
            *sizes,
            "--trainer.batch",
            "256",
        ]
    )
    return run


def make_meta(folder: Path, run: Path) -> Path:
    """A result of `saelab meta` for a run, trained for a moment."""
    (saved,) = open_run(run).members
    train_meta(saved.load(), MetaSettings(ratio=4, k=2, steps=2), show=False).write(folder, str(run), 48)
    return folder


def workspace_of(*runs: Path) -> Workspace:
    """A workspace whose SAEs are collected."""
    workspace = Workspace(runs)
    for member in workspace.members.values():
        if not member.is_collected:
            collect_member(workspace, member, 4000, None)
    return workspace


class Served:
    """An explorer that listens on a port."""

    def __init__(self, port: int):
        self.port = port
        self.base = f"http://127.0.0.1:{port}"

    def ask(
        self, path: str, method: str = "GET", body: Any = None, raw: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; the path is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        if data is not None:
            given = {"content-type": "application/json", **given}
        connection.putrequest(method, path, skip_host="host" in given, skip_accept_encoding=True)
        for key, value in given.items():
            connection.putheader(key, value)
        if data is not None and "content-length" not in given:
            connection.putheader("content-length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        content = b""
        with suppress(ConnectionResetError):  # the server has answered, and closed without reading what else was sent
            content = answer.read()
        found = answer.status, {key.lower(): value for key, value in answer.getheaders()}, content
        connection.close()
        return found

    def json(self, path: str, status: int = 200, **options: Any) -> Any:
        found, headers, body = self.ask(path, **options)
        assert found == status, (path, found, body[:300])
        assert headers["content-type"] == "application/json"
        return json.loads(body)


@contextmanager
def served(workspace: Workspace) -> Iterator[Served]:
    """Serve a workspace while inside."""
    place = listening("127.0.0.1", 0)
    server = server_for(workspace, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(place.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        place.close()
