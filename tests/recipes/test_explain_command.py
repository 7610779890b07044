"""`saelab explain`: the estimate, the file it leaves, going on after an endpoint failed, wrong input."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from saelab.explain import writers

pytest_plugins = ["models.conftest", "recipes.small_world"]

SOME = ["--latents", "6", "--tokens", "3000"]


class Fake(BaseHTTPRequestHandler):
    """Answers `good` questions in order with anything that fits, then fails."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.asked += 1
        bad = self.server.asked > self.server.good
        count = prompt.partition("For each of the ")[2].partition(" ")[0] or "1"
        content = "the word fox" if "Phrase:" in prompt else ", ".join(["1"] * int(count))
        self.send_response(500 if bad else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(writers, "WAITS", ())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    server.asked, server.good = 0, 10**6
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def words(server: ThreadingHTTPServer) -> list[str]:
    return ["--endpoint", f"http://127.0.0.1:{server.server_port}/v1", "--model", "small", *SOME]


def test_the_command_leaves_phrases_scores_and_controls(saelab, run, server):
    ended = saelab("explain", run, *words(server), "--price_in", "1", "--price_out", "2")
    assert ended.status == 0, ended.err
    assert "at most" in ended.out.splitlines()[0]
    assert "at these prices" in ended.out.splitlines()[0]
    found = json.loads((run / "explain" / "explanations.json").read_text())
    assert found["writer"].startswith("small at http")
    assert {one["phrase"] for one in found["latents"]} == {"the word fox"}
    for name in ("detection", "detection_random", "detection_permuted", "fuzzing", "simulation", "label_shared"):
        assert name in found["scores"]
        assert name in ended.out
    assert found["scores"]["detection"]["value"] == 0.5  # it says yes to all
    assert found["scores"]["label_shared"]["value"] == 1


def test_a_dry_run_asks_nothing_and_leaves_nothing(saelab, run, server):
    ended = saelab("explain", run, *words(server), "--dry_run", "true")
    assert ended.status == 0
    assert "questions" in ended.out
    assert server.asked == 0
    assert not (run / "explain").exists()


def test_an_endpoint_that_fails_is_one_line_and_the_command_goes_on_later(saelab, run, server):
    server.good = 30
    ended = saelab("explain", run, *words(server))
    assert ended.status == 1
    assert "HTTP 500" in ended.complaint
    assert "the same command resumes it" in ended.complaint
    assert len(ended.complaint.splitlines()) == 1
    before = json.loads((run / "explain" / "explanations.json").read_text())
    server.good, server.asked = 10**6, 0
    ended = saelab("explain", run, *words(server))
    assert ended.status == 0, ended.err
    whole = server.asked
    server.asked = 0
    again = saelab("explain", run, *words(server))
    assert server.asked == 0
    assert again.out == ended.out
    found = json.loads((run / "explain" / "explanations.json").read_text())
    assert found["latents"][: len(before["latents"])] == before["latents"]
    assert whole > 0


def test_wrong_input_is_one_line(saelab, run, tmp_path):
    for given, said in (
        (["--model", "small", "--endpoint", "localhost"], "must begin with http"),
        (["--model", str(tmp_path / "none")], "there is no folder"),
        (["--model", "pycode-7m", "--latents", "0"], "latents and tokens must be at least 1"),
        (["--model", "pycode-7m", "--timeout", "0"], "timeout must be above 0"),
    ):
        ended = saelab("explain", run, *given)
        assert ended.status == 2
        assert said in ended.complaint
    assert not (run / "explain").exists()


def test_a_local_model_goes_the_whole_way(saelab, run):
    ended = saelab("explain", run, "--model", "pycode-7m", "--latents", "2", "--tokens", "3000")
    assert ended.status == 0, ended.err
    assert (run / "explain" / "explanations.json").exists()
