"""Fixtures for tests of whole commands: text in files, a store, a run, the command line.

A plugin and not a conftest, because tests outside this folder use it too:
`pytest_plugins = ["models.conftest", "recipes.small_world"]`.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes.world import SITE, SMALL, Ended

from saelab.cli import main

WORDS = ["def", "return", "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "width", "height"]


@pytest.fixture
def saelab(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command in this process: `saelab("show", run)`."""

    def call(*words: object) -> Ended:
        capsys.readouterr()
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 short documents; some of them are held out."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(3)
    for number in range(120):
        (folder / f"{number:03d}.txt").write_text(" ".join(draw.choices(WORDS, k=draw.randint(5, 40))))
    return folder


@pytest.fixture(scope="session")
def subject_words(tiny_llama: Path, text_folder: Path) -> list[str]:
    """The options of `saelab harvest` that say which model, site and text."""
    return ["--model", str(tiny_llama), "--site", SITE, "--text", str(text_folder), "--seq_len", "16"]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, subject_words: list[str]) -> Path:
    """A store of the tiny Llama's activations, made by the command line. Not to be changed."""
    folder = tmp_path_factory.mktemp("stores") / "acts"
    main(["harvest", "--out", str(folder), "--tokens", "2000", *subject_words])
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A finished run on that store, made by the command line. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    main(["train", "--out", str(folder), "--store", str(store), "--rows", "1280", *SMALL])
    return folder
