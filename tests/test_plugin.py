"""An activation in one new file of another package is in --help, in a run and its config, and in the contract tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saelab.data.store import StoreWriter

ROOT = Path(__file__).parents[1]
ACTIVATION = '''
"""Leaky:  f = pre where it is among the k largest, and a share of it where it is negative."""

from torch.nn import Module

from saelab.core.codes import Codes
from saelab.sae.base import Activation, PreActivations


class Leaky(Activation):
    """Keep the k largest pre-activations of each row, negative ones made smaller.

    Args:
        k: latents kept per row.
        slope: what negative ones are multiplied by.
    """

    def __init__(self, k: int = 32, slope: float = 0.125):
        Module.__init__(self)
        self.k = k
        self.slope = slope

    def forward(self, pre: PreActivations) -> Codes:
        codes = pre.topk(self.k)
        return codes.with_values(codes.values.where(codes.values > 0, self.slope * codes.values))
'''

ONE_BY_ONE = """
import contextlib, json, sys
from saelab.cli import main
for words in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main(["train", *json.loads(words)])
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which a distribution with one more activation is installed."""
    site = tmp_path / "site"
    package = site / "leaky_package" / "activations"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "leaky.py").write_text(ACTIVATION)
    about = site / "leaky_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[saelab.sae.activations]\nleaky = leaky_package.activations\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_found_in_help_in_a_run_and_in_its_config(environment, tmp_path):
    store = StoreWriter(tmp_path / "acts", 8, "fp32", {})
    store.append(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), 1, {})
    store.finish()
    out = str(tmp_path / "run")
    words = ["--store", str(tmp_path / "acts"), "--out", out, "--rows", "600", "--trainer.batch", "200"]
    words += ["--sae.n_latents", "16", "--sae.activation", "Leaky", "--sae.activation.slope", "0.5"]
    commands = [["--help"], ["--sae.activation.help", "Leaky"], [*words, "--sae.activation.k", "3"]]
    said = run(environment, "-c", ONE_BY_ONE, *map(json.dumps, commands))
    assert "leaky_package.activations.leaky.Leaky" in said
    assert "what negative ones are multiplied by" in said
    saved = json.loads((tmp_path / "run" / "sae" / "config.json").read_text())
    assert saved["activation"] == {"name": "Leaky", "k": 3, "slope": 0.5}
    loaded = run(environment, "-c", f"import saelab; print(saelab.load({out!r}))")
    assert "Leaky(k=3, slope=0.5)" in loaded


def test_the_contract_tests_find_it(environment):
    words = ["-m", "pytest", "-vv", "-p", "no:cacheprovider", "tests/sae/test_contract.py", "-k", "Leaky"]
    said = run(environment, *words)
    assert "test_every_parameter_is_reached[Leaky-Dense]" in said
    assert "test_a_component_documents_every_setting[Leaky]" in said


def test_a_plug_in_that_cannot_be_imported_is_named(environment, tmp_path):
    (tmp_path / "site" / "leaky_package" / "activations" / "__init__.py").write_text("import nothing_of_that_name")
    words = [sys.executable, "-m", "saelab", "train", "--help"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the plug-in 'leaky' for saelab.sae.activations cannot be imported" in done.stderr
