"""What an editor and a type checker see of the package: every variant by name, and snippets that type-check."""

import importlib
import re
from pathlib import Path

import pytest
from mypy import api

import saelab
from saelab.core.components import Component
from saelab.interchange.family import Family
from saelab.recipes.options import add_train_options, parse, parser_for
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.sae.scale import Scale
from saelab.scaling.law import Law
from saelab.train.algorithm import Algorithm
from saelab.train.optimizer import Optimizer

ROOT = Path(__file__).parents[1]
MISSPELT = """
import saelab
from saelab.sae.activations import TopK
from saelab.sae.losses import AuxKK

saelab.SAE(d_in=8, n_latents=16, activation=TopK(kk=4))
saelab.SAE(d_in=8, n_latents=16, activation="topk")
"""


@pytest.mark.parametrize("kind", [Activation, Dictionary, Loss, Scale, Algorithm, Optimizer, Family, Law])
def test_a_package_names_every_variant_that_discovery_finds_in_it(kind: type[Component]):
    package = importlib.import_module(kind.home)
    own = {name for name, variant in kind.variants().items() if variant.__module__.startswith(kind.home + ".")}
    assert set(package.__all__) == own
    assert own <= set(dir(package))
    assert all(vars(package)[name] is variant for name, variant in kind.variants().items() if name in own)


def test_every_public_name_is_there_and_where_it_says():
    assert set(saelab._HOMES) == set(saelab.__all__) <= set(dir(saelab))
    for name, home in saelab._HOMES.items():
        assert getattr(saelab, name) is getattr(importlib.import_module(f"saelab.{home}"), name)
    assert saelab.interchange.read
    for name in ("SAEE", "_nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(saelab, name)


def test_what_the_package_shows_can_still_be_chosen_by_options():
    """jsonargparse names a class by the shortest path to it, and options take only paths that are known."""
    parser = parser_for("train")
    add_train_options(parser)
    for words in (["--world", "SparseWorld", "--world.d_in", "8", "--world.n_features", "9", "--world.l0", "3"],
                  ["--live.text", "here"]):  # fmt: skip
        assert parse(parser, ["--out", "new", *words]).rows


def type_checked(*files: Path) -> str:
    """What mypy prints of files that use the package."""
    options = ["--cache-dir", str(ROOT / ".mypy_cache"), "--config-file", str(ROOT / "pyproject.toml")]
    return api.run([*options, *map(str, files)])[0]


def test_snippets_of_readme_and_docs_type_check(tmp_path):
    files = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)):
            files.append(tmp_path / f"{page.stem.replace('-', '_')}_{number}.py")
            files[-1].write_text(code)
    assert files
    assert "Success" in type_checked(*files)


def test_a_type_checker_sees_what_is_misspelt(tmp_path):
    (tmp_path / "misspelt.py").write_text(MISSPELT)
    printed = type_checked(tmp_path / "misspelt.py")
    assert 'no attribute "AuxKK"' in printed
    assert '"kk"' in printed
    assert 'incompatible type "str"' in printed
