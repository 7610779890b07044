"""Components are found by looking into their folder, and their configuration is their constructor."""

import gc
import importlib
import sys
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from saelab.core.components import Component, near_miss

HOME = "shapes_of_this_test"
BASE = """
from abc import ABC
from saelab.core.components import Component

class Shape(Component, ABC):
    home = "shapes_of_this_test"
"""
SQUARE = """
from shapes_of_this_test import Shape

class Square(Shape):
    def __init__(self, side: float = 1.0, corners: int = 4):
        self.side, self.corners = side, corners
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a kind of component and one variant, importable until the test ends."""
    package = tmp_path / HOME
    package.mkdir()
    (package / "__init__.py").write_text(BASE)
    (package / "square.py").write_text(SQUARE)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == HOME]:
        del sys.modules[name]
    gc.collect()


@pytest.fixture
def shape(folder: Path) -> type[Component]:
    return importlib.import_module(HOME).Shape


def test_a_variant_is_one_new_file(folder, shape):
    assert list(shape.variants()) == ["Square"]
    (folder / "circle.py").write_text(SQUARE.replace("Square", "Circle"))
    importlib.invalidate_caches()
    assert list(shape.variants()) == ["Circle", "Square"]
    assert shape.named("Circle").__module__ == f"{HOME}.circle"


def test_a_variant_may_live_in_a_folder_below(folder, shape):
    (folder / "round").mkdir()
    (folder / "round" / "__init__.py").write_text("")
    (folder / "round" / "circle.py").write_text(SQUARE.replace("Square", "Circle"))
    importlib.invalidate_caches()
    assert list(shape.variants()) == ["Circle", "Square"]


def test_variants_of_variants_count_and_abstract_ones_do_not(folder, shape):
    square = shape.named("Square")

    class Half(square):
        @abstractmethod
        def missing(self) -> None: ...

    class Whole(Half):
        def missing(self) -> None: ...

    assert list(shape.variants()) == ["Square", "Whole"]


def test_config_is_the_constructors_arguments(shape):
    square = shape.build({"name": "Square", "side": 2.5})
    assert square.config() == {"name": "Square", "side": 2.5, "corners": 4}
    assert shape.build(square.config()).config() == square.config()
    assert type(square).options() == ["side", "corners"]


def test_unknown_name_says_the_near_miss(shape):
    with pytest.raises(ValueError, match="'square'; did you mean 'Square'"):
        shape.build({"name": "square"})
    with pytest.raises(ValueError, match="unknown shape 'Xyz'; there are: Square"):
        shape.named("Xyz")


def test_unknown_key_says_the_near_miss(shape):
    with pytest.raises(ValueError, match="'sides' of shape Square.*'side'"):
        shape.build({"name": "Square", "sides": 3})


def test_missing_name_is_said(shape):
    with pytest.raises(ValueError, match="a shape needs a 'name'"):
        shape.build({"side": 3})


@pytest.mark.parametrize("name", ["this", f"{HOME}.square", f"{HOME}.square.Square", "../square"])
def test_a_name_is_never_imported_as_a_path(shape, name):
    sys.modules.pop("this", None)
    with pytest.raises(ValueError, match="unknown shape"):
        shape.build({"name": name})
    assert "this" not in sys.modules


@pytest.mark.parametrize("config", ["Square", None, ["Square"], {"name": ["Square"]}, {"name": 3}])
def test_a_config_that_is_no_table_of_settings_is_a_value_error(shape, config):
    with pytest.raises(ValueError, match="shape"):
        shape.build(config)


def test_near_miss():
    assert near_miss("k_ax", ["k_aux", "weight"]) == "; did you mean 'k_aux'?"
    assert near_miss("zzz", ["b", "a"]) == "; there are: a, b"
    assert near_miss("zzz", []) == ""


def test_variants_can_be_imported_from_their_package():
    from saelab.sae.activations import JumpReLU, TopK
    from saelab.sae.activations.topk import TopK as Same
    from saelab.sae.dictionaries import Dense
    from saelab.sae.losses import AuxK
    from saelab.train.algorithms import Resampling
    from saelab.train.optimizers import Adam

    assert TopK is Same
    assert {kind.__name__ for kind in (JumpReLU, Dense, AuxK, Resampling, Adam)} == {
        "JumpReLU", "Dense", "AuxK", "Resampling", "Adam"
    }  # fmt: skip


def test_a_variant_that_is_not_there_is_an_import_error_with_the_near_miss():
    import saelab.sae.activations

    with pytest.raises(ImportError, match="TopKK"):
        exec("from saelab.sae.activations import TopKK")  # noqa: S102
    with pytest.raises(AttributeError, match="'TopKK'; did you mean 'TopK'"):
        _ = saelab.sae.activations.TopKK
    assert not hasattr(saelab.sae.activations, "something")
