"""A small hub on this machine, which speaks as much of the Hugging Face hub's protocol as its own library asks for.

It keeps repositories of commits in memory, writes down what it is asked, and can break connections off.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Commits, each all files by name, and what branches and tags name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


class Hub(ThreadingHTTPServer):
    """The server's state."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and Range of every request."""
        self.breaks: dict[str, list[int]] = {}
        """Files of which the next answers end after so many bytes."""
        self.large: dict[str, bytes] = {}
        self.status = 0
        """Instead of any answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes], ref: str = "main") -> str:
        """Add files to a branch, or begin it; the new commit."""
        found = self.repositories.setdefault(repo, Repository())
        whole = found.commits.get(found.refs.get(ref, ""), {}) | files
        sha = hashlib.sha1(repr((sorted(whole.items()), found.refs.get(ref))).encode()).hexdigest()
        found.commits[sha], found.refs[ref] = whole, sha
        return sha

    def add(self, repo: str, folder: Path, below: str = "", ref: str = "main") -> str:
        """Commit a folder's files."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return self.commit(
            repo, {below + path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, ref
        )

    def files(self, method: str = "GET") -> list[str]:
        """The files that were fetched, in order."""
        found = (
            re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path) for what, path, _ in self.asked if what == method
        )
        return [unquote(one[1]) for one in found if one]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        routes = {
            r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self.info,
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
            r"/api/repos/create": self.create,
            r"/api/validate-yaml": lambda: self.say({"errors": [], "warnings": []}),
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self.preupload,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"/lfs/(\w+)": self.store,
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self.commit,
        }
        if self.server.status:
            return self.fail(self.server.status, "")
        for route, method in routes.items():
            if found := re.fullmatch(route, path):
                return method(*(None if part is None else unquote(part) for part in found.groups()))
        return self.fail(404, "")

    # ---- reading ----

    def repository(self, repo: str, ref: str | None) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files; None after an answer that says why not."""
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self.is_known()):
            return self.fail(401 if not self.is_known() else 404, "RepoNotFound")
        sha = found.refs.get(ref or "main", ref or "")
        if sha not in found.commits:
            return self.fail(404, "RevisionNotFound")
        return sha, found.commits[sha]

    def info(self, repo: str, ref: str | None) -> None:
        if found := self.repository(repo, ref):
            about = {"id": repo, "sha": found[0], "private": self.server.repositories[repo].private}
            self.say(about | {"siblings": [{"rfilename": name} for name in found[1]]})

    def resolve(self, repo: str, ref: str, name: str) -> None:
        if not (found := self.repository(repo, ref)):
            return None
        if self.server.repositories[repo].gated and not self.is_known():
            return self.fail(401, "GatedRepo")
        if name not in found[1]:
            return self.fail(404, "EntryNotFound")
        content = found[1][name]
        about = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": found[0],
            "Accept-Ranges": "bytes",
        }
        begin, total = 0, len(content)
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin = int(wanted[1])
            about["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        self.send(206 if begin else 200, content[begin:], about, name)
        return None

    # ---- writing ----

    def create(self) -> None:
        if not self.is_known():
            return self.fail(401, "")
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        made = json.dumps({"url": f"{self.server.url}/{repo}", "name": repo}).encode()
        if repo in self.server.repositories:
            return self.send(409, made, {"Content-Type": "application/json"})
        self.server.commit(repo, {".gitattributes": b""})
        self.server.repositories[repo].private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self.send(200, made, {"Content-Type": "application/json"})

    def preupload(self, repo: str, ref: str) -> None:
        def mode(path: str) -> str:
            return "lfs" if path.endswith((".safetensors", ".parquet", ".pt")) else "regular"

        files = [{"path": one["path"], "uploadMode": mode(one["path"])} for one in json.loads(self.body)["files"]]
        self.say({"files": [file | {"shouldIgnore": False} for file in files]})

    def batch(self, repo: str) -> None:
        found = []
        for one in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
            found.append(one | ({} if one["oid"] in self.server.large else {"actions": upload}))
        self.say({"transfer": "basic", "objects": found}, kind="application/vnd.git-lfs+json")

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.say({})

    def commit(self, repo: str, ref: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {one["value"]["path"]: one["value"] for one in lines if one["key"] in ("file", "lfsFile")}
        held = {
            path: base64.b64decode(one["content"]) if "content" in one else self.server.large[one["oid"]]
            for path, one in files.items()
        }
        sha = self.server.commit(repo, held, ref)
        for one in lines:
            if one["key"] == "deletedFile":
                del self.server.repositories[repo].commits[sha][one["value"]["path"]]
        self.say({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})

    # ---- answers ----

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def fail(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code} if code else {})

    def say(self, value: Any, kind: str = "application/json") -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": kind})

    def send(self, status: int, content: bytes, about: dict[str, str], file: str = "") -> None:
        self.send_response(status)
        for name, value in (about | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = self.server.breaks.get(file)
        self.close_connection = bool(breaks)
        self.wfile.write(content[: breaks.pop(0)] if breaks else content)
