"""Who answers questions about latents: an endpoint of the OpenAI kind over HTTP, or a model on this machine.

Answers are kept in a file as they come, under a checksum of writer and question, so that work that was interrupted goes
on where it was and nothing is paid for twice. Answers that make no sense are not kept.
"""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from saelab.core.read import parse_json

CHARACTERS_A_TOKEN = 4
WAITS = (1.0, 4.0)
"""Seconds before an endpoint that failed is asked again."""
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP errors that may pass."""


class NoAnswerError(OSError):
    """The endpoint cannot be reached, is too slow or refuses: asking on is of no use."""


class UnusableAnswerError(ValueError):
    """An answer that is not what was asked for."""


class Writer(Protocol):
    """Something that answers."""

    name: str

    def text(self, prompt: str, most: int) -> str:
        """A line of text, of at most `most` tokens."""

    def picks(self, prompt: str, options: Sequence[str], count: int) -> list[str]:
        """Exactly `count` answers, each one of the options."""


class Endpoint:
    """A chat endpoint of the OpenAI kind, POST {url}/chat/completions.

    Args:
        url: e.g. `http://localhost:8000/v1`.
        model: its name there.
        timeout: seconds to wait for an answer.
        key_variable: environment variable that holds the key, if the endpoint wants one.
    """

    def __init__(self, url: str, model: str, timeout: float = 60.0, key_variable: str = "OPENAI_API_KEY"):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must begin with http:// or https://, got '{url}'")
        self.url, self.model, self.timeout, self.key_variable = url.rstrip("/"), model, timeout, key_variable
        self.name = f"{model} at {self.url}"

    def text(self, prompt: str, most: int) -> str:
        said = " ".join(self._ask(prompt, most).split())
        if not said:
            raise UnusableAnswerError(f"{self.name} gave an empty answer")
        return said

    def picks(self, prompt: str, options: Sequence[str], count: int) -> list[str]:
        said = self._ask(prompt, 16 + 4 * count)
        words = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
        found = re.findall(rf"(?<![\w.])(?:{words})(?![\w.])", said)
        if len(found) != count:
            raise UnusableAnswerError(f"{self.name} gave {len(found)} answers, {count} were asked for: {said[:80]!r}")
        return found

    def _ask(self, prompt: str, most: int) -> str:
        body = {"model": self.model, "temperature": 0, "max_tokens": most}
        body["messages"] = [{"role": "user", "content": prompt}]
        for wait in (*WAITS, None):
            try:
                return _content(self._post(json.dumps(body).encode()), self.name)
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN or wait is None:
                    raise NoAnswerError(f"{self.name} answers with HTTP {error.code} ({error.reason})") from None
            except (TimeoutError, urllib.error.URLError, ConnectionError) as error:
                if wait is None:
                    reason = getattr(error, "reason", error)
                    late = isinstance(error, TimeoutError) or isinstance(reason, TimeoutError)
                    why = f"gave no answer within {self.timeout:g} s" if late else f"cannot be reached ({reason})"
                    raise NoAnswerError(f"{self.name} {why}") from None
            time.sleep(wait)
        raise AssertionError

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return answer.read()


def _content(body: bytes, name: str) -> str:
    try:
        choices = parse_json(body, name, {"choices": [{"message": {"content": Any}}]}, foreign=True)["choices"]
        content = choices[0]["message"]["content"]
    except (ValueError, IndexError):
        raise UnusableAnswerError(
            f"{name} answered with something other than a chat completion: {body[:80]!r}"
        ) from None
    if not isinstance(content, str):
        raise UnusableAnswerError(f"{name} gave an answer without text")
    return content


class ReplyCache:
    """A writer whose answers are kept in a file, a JSON object a line.

    Args:
        writer: who answers what is not known yet.
        path: the file; a line that was cut off is left out.
    """

    def __init__(self, writer: Writer, path: Path):
        self.writer, self.name, self.path, self.asked = writer, writer.name, path, 0
        self.known: dict[str, Any] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):
                    entry = parse_json(line, path, {"key": str, "answer": (str, [str])})
                    self.known[entry["key"]] = entry["answer"]

    def text(self, prompt: str, most: int) -> str:
        return self._known(["text", prompt, most], lambda: self.writer.text(prompt, most))

    def picks(self, prompt: str, options: Sequence[str], count: int) -> list[str]:
        return self._known(["picks", prompt, list(options), count], lambda: self.writer.picks(prompt, options, count))

    def _known(self, question: list[Any], ask: Callable[[], Any]) -> Any:
        key = hashlib.sha256(json.dumps([self.name, *question]).encode()).hexdigest()
        if key not in self.known:
            answer = ask()
            self.asked += 1
            self.known[key] = answer
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                # A new line first: what stands there may have been cut off.
                file.write("\n" + json.dumps({"key": key, "answer": answer}) + "\n")
        return self.known[key]


class Counter:
    """A writer that answers nothing and counts what asking would cost.

    Attributes:
        calls: questions so far.
        tokens_in, tokens_out: about how many tokens they and their answers have, four characters each.
    """

    name = "counter"

    def __init__(self) -> None:
        self.calls, self.tokens_in, self.tokens_out = 0, 0, 0

    def text(self, prompt: str, most: int) -> str:
        self._count(prompt, most)
        return "x" * (CHARACTERS_A_TOKEN * most)

    def picks(self, prompt: str, options: Sequence[str], count: int) -> list[str]:
        self._count(prompt, 2 * count)
        return [options[0]] * count

    def _count(self, prompt: str, most: int) -> None:
        self.calls += 1
        self.tokens_in += len(prompt) // CHARACTERS_A_TOKEN + 1
        self.tokens_out += most
