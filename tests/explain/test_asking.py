"""Explanations in words: parts with a writer that knows the truth, endpoints that misbehave, a real local model."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from metrics.sweeps import constant, random_sae
from recipes.world import SITE

from saelab.explain import questions, writers
from saelab.explain.material import SHOWN, TRIED, Window, collect
from saelab.explain.scoring import collision, explain_all, summary
from saelab.explain.writers import Counter, Endpoint, NoAnswerError, ReplyCache, UnusableAnswerError
from saelab.metrics import TextEvaluation
from saelab.models.subject import Subject
from saelab.models.writer import LocalWriter

pytest_plugins = ["models.conftest", "recipes.small_world"]

SHARED = Path(__file__).parents[3] / "shared" / "models"


@pytest.fixture(scope="module")
def materials(tiny_llama: Path, text_folder: Path):
    text = TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=1500, split="all")
    return collect(random_sae(n_latents=40), text, torch.arange(0, 40, 4))


class Knowing:
    """Answers as one that knows which texts the latents fire in, where the phrase is its own."""

    name = "knowing"

    def __init__(self, materials):
        self.own = {}
        self.true_text, self.true_marks = set(), set()
        for material in materials:
            self.own[questions.numbered([w.text(w.marks()) for w in material.shown])] = f"phrase {material.latent}"
            self.true_text |= {(material.latent, w.text()) for w in material.tried}
            self.true_marks |= {(material.latent, w.text(w.marks())) for w in material.tried}
        self.windows = {(m.latent, tuple(w.tokens)): w for m in materials for w in [*m.tried, *m.silent]}

    def text(self, prompt: str, most: int) -> str:
        return next((phrase for shown, phrase in self.own.items() if shown in prompt), "nothing at all 999")

    def picks(self, prompt, options, count):
        lines = prompt.split("\n")
        texts = [line.partition(". ")[2] for line in lines if line[:1].isdigit() and ". " in line[:4]]
        if "does not belong" in prompt:
            return ["1"]
        latent = int(lines[0].rsplit(" ", 1)[1])
        if "how strongly" in prompt:
            tokens = prompt.partition("one a line.\n\n")[2].partition("\n\nFor each")[0].split("\n")
            key = (latent, tuple(token.replace("\\n", "\n") for token in tokens))
            values = self.windows[key].values if key in self.windows else [0.0] * count
            return [str(round(9 * value / max(max(values), 1e-9))) for value in values]
        known = self.true_marks if "marked tokens" in prompt else self.true_text
        return ["1" if (latent, text) in known else "0" for text in texts]


def test_windows_are_of_their_latent_and_of_different_documents(materials):
    found, few = materials
    assert len(found) >= 5
    assert len(found) + len(few) == 10
    for material in found:
        assert SHOWN // 2 <= len(material.shown) <= SHOWN
        assert TRIED // 2 <= len(material.tried) <= TRIED
        assert all(max(window.values) > 0 for window in [*material.shown, *material.tried])
        assert all(max(window.values) == 0 for window in material.silent)
        assert all(len(window.tokens) == len(window.values) for window in material.shown)


def test_a_writer_that_knows_gets_full_marks_and_controls_do_not(materials):
    found, without = explain_all(Knowing(materials[0]), materials[0])
    assert without == []
    scores = {name: score.value for name, score in summary(found, 10).items()}
    assert scores["detection"] == 1
    assert scores["fuzzing"] == 1
    assert scores["simulation"] > 0.95
    assert scores["explained"] == len(found) / 10
    for scorer in ("detection", "fuzzing"):
        for kind in ("random", "permuted"):
            assert scores[f"{scorer}_{kind}"] < 0.75
    assert scores["simulation_permuted"] < 0.5
    assert 0 <= scores["intruder"] <= 0.5  # always "1": right about one time in five
    assert "intruder_permuted" in scores
    assert "intruder_random" not in scores
    assert scores["label_identity"] == pytest.approx(1)
    assert scores["label_reuse"] == 1
    assert all(one.unanswered == 0 for one in found)


def test_labels_are_compared_without_case_articles_and_punctuation():
    found = {name: score.value for name, score in collision(["The word 'def'.", "word def", "import", "class"]).items()}
    assert found["label_shared"] == 0.5
    assert found["label_reuse"] == pytest.approx(4 / 3)
    assert found["label_identity"] == pytest.approx((0.5 * 1 + 0.5 * 2) / 2)
    assert collision([]) == {}


def test_correlation_against_the_textbook():
    one, other = [1.0, 2, 3, 5], [2.0, 1, 4, 4]
    table = torch.corrcoef(torch.tensor([one, other], dtype=torch.float64))
    assert questions.correlation(one, other) == pytest.approx(table[0, 1].item())
    assert questions.correlation([1.0, 1], [0.0, 3]) == 0


def test_marks_are_those_near_the_largest_and_wrong_ones_are_elsewhere():
    window = Window(["a", "b", "\n", "d"], [0.0, 1.0, 0.05, 0.2])
    assert window.text(window.marks()) == "a<<b>>\\n<<d>>"
    assert window.text() == "ab\\nd"
    moved = questions._moved(window.marks(), questions.random.Random(0))
    assert moved == [True, False, True, False]


# ---- an endpoint ----


class Fake(BaseHTTPRequestHandler):
    """Answers as the test's list of replies says: a text, a status, a body, or a wait."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, dict(self.headers), body))
        reply = self.server.replies(body["messages"][0]["content"])
        if isinstance(reply, float):
            time.sleep(reply)
            reply = "late"
        status, content = (reply, b"") if isinstance(reply, int) else (200, reply)
        if isinstance(content, str):
            content = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[Callable[..., Endpoint]]:
    monkeypatch.setattr(writers, "WAITS", (0.01,))
    servers = []

    def start(replies, timeout=5.0):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
        server.replies, server.bodies = replies, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        made = Endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "small", timeout)
        made.server = server
        return made

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def in_turn(*replies):
    rest = list(replies)
    return lambda prompt: rest.pop(0)


def test_an_endpoint_is_asked_as_the_kind_is(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    one = endpoint(in_turn("  the word\n def ", "1, 0,1", "Texts 1. The answers are: 0, 1"))
    assert one.text("what?", 7) == "the word def"
    assert one.picks("which?", ["0", "1"], 3) == ["1", "0", "1"]
    path, headers, body = one.server.bodies[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "small", "temperature": 0, "max_tokens": 7, "messages": [{"role": "user", "content": "what?"}]
    }  # fmt: skip


@pytest.mark.parametrize(
    "reply", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', " ", b"[1]"]
)
def test_rubbish_is_told(endpoint, reply):
    with pytest.raises(UnusableAnswerError, match="small at http"):
        endpoint(in_turn(reply)).text("what?", 7)


@pytest.mark.parametrize("said", ["", "yes", "1", "1, 0, 1, 1", "10, 01, 11"])
def test_answers_of_another_number_are_rubbish(endpoint, said):
    with pytest.raises(UnusableAnswerError, match="3 were asked for"):
        endpoint(in_turn(said)).picks("which?", ["0", "1"], 3)


def test_an_endpoint_that_is_busy_is_asked_again(endpoint):
    assert endpoint(in_turn(503, "at last")).text("what?", 7) == "at last"


def test_an_endpoint_that_fails_is_one_clear_line(endpoint):
    with pytest.raises(NoAnswerError, match="answers with HTTP 503"):
        endpoint(in_turn(503, 503)).text("what?", 7)
    refused = endpoint(in_turn(401))
    with pytest.raises(NoAnswerError, match="answers with HTTP 401"):
        refused.text("what?", 7)
    assert len(refused.server.bodies) == 1
    with pytest.raises(NoAnswerError, match="gave no answer within 0.1 s"):
        endpoint(in_turn(0.5, 0.5), timeout=0.1).text("what?", 7)
    with pytest.raises(NoAnswerError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:1/v1", "small").text("what?", 7)
    with pytest.raises(ValueError, match="must begin with http"):
        Endpoint("localhost:80", "small")


def test_rubbish_costs_the_question_and_not_the_rest(endpoint, materials):
    replies = iter(range(10**6))

    def reply(prompt):
        if "Phrase:" in prompt:
            return "some words"
        return "???" if next(replies) % 2 else ", ".join("0" * prompt.count(". "))

    found, _ = explain_all(endpoint(reply), materials[0][:3], ["detection"])
    assert len(found) == 3
    assert sum(one.unanswered for one in found) > 0


# ---- what is kept ----


def test_what_was_answered_is_not_asked_again_and_a_cut_line_is_left_out(tmp_path, materials):
    path = tmp_path / "explain" / "answers.jsonl"
    first = ReplyCache(Knowing(materials[0]), path)
    found, _ = explain_all(first, materials[0][:3])
    assert first.asked > 10
    again = ReplyCache(Knowing([]), path)
    assert explain_all(again, materials[0][:3])[0] == found
    assert again.asked == 0
    text = path.read_text()
    path.write_text(text[: len(text) - 20])
    cut = ReplyCache(Knowing(materials[0]), path)
    assert explain_all(cut, materials[0][:3])[0] == found
    assert cut.asked == 1
    assert len(ReplyCache(Knowing([]), path).known) == first.asked


def test_another_writer_is_asked_anew(tmp_path, materials):
    one = ReplyCache(Counter(), tmp_path / "a.jsonl")
    one.text("what?", 3)
    other = Counter()
    other.name = "other"
    kept = ReplyCache(other, tmp_path / "a.jsonl")
    kept.text("what?", 3)
    assert kept.asked == 1


def test_the_estimate_is_what_is_asked(materials):
    counter = Counter()
    explain_all(counter, materials[0])
    asked = ReplyCache(Knowing(materials[0]), Path("/nowhere"))
    asked.path = Path("/dev/null")
    explain_all(asked, materials[0])
    assert asked.asked <= counter.calls <= 1.2 * asked.asked
    assert counter.tokens_in > 100 * len(materials[0])


# ---- a model on this machine ----


@pytest.mark.parametrize("name", ["pycode-7m", "craftgpt-5m", "stories260K"])
def test_a_local_model_answers_every_question(name, materials):
    folder = SHARED / name
    if name != "pycode-7m" and not folder.exists():
        pytest.skip(f"needs the model in {folder}")
    writer = LocalWriter(name if name == "pycode-7m" else str(folder), device="cpu")
    found, without = explain_all(writer, materials[0][:1], ["detection", "intruder"])
    assert len(found) + len(without) == 1
    picked = writer.picks("x = [1, 0, 1, 0,", ["0", "1"], 4)
    assert len(picked) == 4
    assert set(picked) <= {"0", "1"}


def test_picks_of_a_local_model_are_its_likeliest_options():
    writer = LocalWriter("pycode-7m", device="cpu")
    prompt, options = "for i in range(", ["0", "1", "def"]
    picked, ids = [], writer.tokenizer.encode(prompt)
    wanted = [writer.tokenizer.encode(f" {option}", add_special_tokens=False)[-1] for option in options]
    for _ in range(3):
        logits = writer.model(input_ids=torch.tensor([ids])).logits[0, -1]
        best = int(logits[wanted].argmax())
        picked.append(options[best])
        ids.append(wanted[best])
    assert writer.picks(prompt, options, 3) == picked


def test_latents_that_do_not_fire_are_named(tiny_llama: Path, text_folder: Path):
    text = TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=100)
    assert collect(constant(torch.zeros(16)), text, torch.arange(4)) == ([], [0, 1, 2, 3])
