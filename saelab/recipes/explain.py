"""`saelab explain`: explanations of latents by a language model, and their scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.core.files import write_json
from saelab.core.progress import progress
from saelab.data.source import generator_for
from saelab.explain.material import Material, collect
from saelab.explain.scoring import Explained, explain_all, summary
from saelab.explain.writers import Counter, Endpoint, NoAnswerError, ReplyCache, Writer
from saelab.metrics import TextEvaluation
from saelab.models.writer import LocalWriter
from saelab.recipes.score_table import print_scores
from saelab.runs import open_run
from saelab.sae.autoencoder import Autoencoder

FORMAT = 1
FOLDER, ANSWERS, FOUND = "explain", "answers.jsonl", "explanations.json"


@dataclass(frozen=True)
class ExplainerSettings:
    """The language model that explains and scores.

    Args:
        model: its name at the endpoint or, without one, a `transformers` model on this machine: a folder, a hub name or
            the bundled `pycode-7m`, which is too small to give useful explanations.
        endpoint: URL of an OpenAI-compatible endpoint, such as `http://localhost:8000/v1`.
        timeout: seconds to wait for an answer of the endpoint.
        key_variable: environment variable that holds the endpoint's key.
        price_in: price of a million tokens of questions, for the estimate.
        price_out: price of a million tokens of answers, for the estimate.
    """

    model: str
    endpoint: str | None = None
    timeout: float = 60.0
    key_variable: str = "OPENAI_API_KEY"
    price_in: float | None = None
    price_out: float | None = None

    def writer(self) -> Writer:
        """Who answers."""
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
        if self.endpoint:
            return Endpoint(self.endpoint, self.model, self.timeout, self.key_variable)
        return LocalWriter(self.model)


def explain_run(
    run: str, asking: ExplainerSettings, latents: int = 50, tokens: int = 32_768, seed: int = 0, dry_run: bool = False
) -> None:
    """Generate explanations of latents with a language model and score them (detection, fuzzing, intruder, simulation).

    Answers are kept: the same command asks only what has no answer yet.

    Args:
        run: folder of a run.
        asking: the language model.
        latents: number of latents to explain, drawn at random.
        tokens: held-out tokens to take examples from.
        seed: of the random choice of latents and examples.
        dry_run: only estimate the number of requests and their cost.
    """
    if latents < 1 or tokens < 1:
        raise ValueError(f"latents and tokens must be at least 1, got {latents} and {tokens}")
    writer, opened = asking.writer(), open_run(run)
    folder = opened.folder / FOLDER
    evaluation = TextEvaluation(opened.needed_subject(), tokens)
    materials, few = _materials(opened.load(), evaluation, latents, seed)
    for line in _estimate(asking, materials, seed):
        print(line)
    if few:
        of = len(materials) + len(few)
        print(f"left out {len(few)} of {of} latents: they fire at too few places in {tokens:,} tokens")
    if dry_run:
        return
    kept = ReplyCache(writer, folder / ANSWERS)
    about = {"writer": kept.name, "tokens": tokens, "seed": seed, "asked": len(materials) + len(few), "few": few}
    found = _explained(kept, materials, about, folder)
    scores = summary(found, len(materials) + len(few))
    print_scores({run: {key: score.as_json() for key, score in scores.items()}})
    unanswered = sum(one.unanswered for one in found) + len(materials) - len(found)
    if unanswered:
        print(f"{unanswered} questions had no usable answer and are not counted; the same command asks them again")
    print(f"{folder / FOUND} has every phrase with its scores")


def _materials(
    sae: Autoencoder, evaluation: TextEvaluation, latents: int, seed: int
) -> tuple[list[Material], list[int]]:
    chosen = torch.randperm(sae.n_latents, generator=generator_for(seed, 19))[:latents].sort().values
    materials, few = collect(sae, evaluation, chosen, seed)
    if not materials:
        raise ValueError(f"none of {len(chosen)} latents fires at enough places to be explained; give more --tokens")
    return materials, few


def _estimate(asking: ExplainerSettings, materials: list[Material], seed: int) -> list[str]:
    """What asking everything will cost at most, in words."""
    counter = Counter()
    explain_all(counter, materials, seed=seed)
    line = (
        f"{len(materials)} latents: at most {counter.calls:,} questions, about {counter.tokens_in:,} tokens in and "
        f"{counter.tokens_out:,} out"
    )
    if asking.price_in is None and asking.price_out is None:
        return [line]
    cost = counter.tokens_in * (asking.price_in or 0) / 1e6 + counter.tokens_out * (asking.price_out or 0) / 1e6
    return [f"{line}; {cost:.2f} at these prices"]


def _explained(writer: ReplyCache, materials: list[Material], about: dict[str, Any], folder: Path) -> list[Explained]:
    """Ask everything; what was found is in the file whatever happens."""
    done: list[Explained] = []
    try:
        with progress("explain", len(materials), "latents") as bar:

            def note(one: Explained) -> None:
                done.append(one)
                bar.advance(1)

            explain_all(writer, materials, seed=about["seed"], note=note)
    except NoAnswerError as error:
        raise OSError(
            f"{error}; {len(done)} of {len(materials)} latents are finished and every answer so far is kept in "
            f"{folder}: the same command resumes it"
        ) from None
    finally:
        _keep(done, about, folder)
    return done


def _keep(done: list[Explained], about: dict[str, Any], folder: Path) -> None:
    scores = {key: score.as_json() for key, score in summary(done, about["asked"]).items()}
    found = {"format": FORMAT, **about, "scores": scores, "latents": [one.as_json() for one in done]}
    write_json(folder / FOUND, found)
