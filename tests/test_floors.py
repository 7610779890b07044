"""The house rules that a reader of one file cannot see: who may import whom, and how large things may grow.

Works on the syntax trees of the files, so imports inside functions and under ``TYPE_CHECKING`` count too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A folder imports from lower floors only; folders on one floor do not know each other.
FLOORS = {
    "__init__": 11, "cli": 11, "recipes": 11, "__main__": 11,
    "explorer": 10,
    "figures": 9,
    "capacity": 8,
    "analysis": 7, "scaling": 7, "explain": 7,
    "train": 6,
    "metrics": 5,
    "tasks": 4, "runs": 4,
    "models": 3, "interchange": 3, "geometry": 3,
    "sae": 2, "data": 2,
    "kernels": 1,
    "core": 0,
}  # fmt: skip
TOP = max(FLOORS.values())  # the top floor is one room: the public names, the command line and its recipes

# Where a foreign library may be imported: patterns of paths below saelab/, in which * also crosses folders.
FOREIGN = {
    "transformers": ["models/*"],
    "datasets": ["models/*"],
    "tokenizers": ["models/*"],
    "huggingface_hub": ["models/*", "interchange/hub.py", "runs/publish.py"],
    "pyarrow": ["data/parquet.py", "metrics/table.py", "analysis/tables.py", "scaling/cells.py"],
    "triton": ["kernels/*"],
    "torch.distributed": ["core/mesh.py"],
    "sqlite3": ["explorer/*"],
    "starlette": ["explorer/*"],
    "uvicorn": ["explorer/*"],
    "jinja2": ["explorer/*"],
    "plotly": ["explorer/*", "figures/*"],
    "tensorboard": ["core/log.py"],
    "torch.utils.tensorboard": ["core/log.py"],
    "wandb": ["core/log.py"],
    "jsonargparse": ["recipes/commands.py", "recipes/options.py"],
    "rich": ["core/*", "cli.py", "recipes/*"],
}
HEAVY = ["transformers", "datasets", "scipy", "pyarrow", "plotly", "jsonargparse", "rich", "tensorboard"]

# Calls that read a format without saying what is expected, and the one module that may: all others ask that.
UNCHECKED = {
    "json.load": "core/read.py", "json.loads": "core/read.py",
    "yaml.load": "core/read.py", "yaml.safe_load": "core/read.py", "yaml.full_load": "core/read.py",
    "safe_open": "core/files.py", "load_file": "core/files.py",
    "parquet.read_table": "data/parquet.py", "pq.read_table": "data/parquet.py",
    "ParquetFile": "data/parquet.py", "read_schema": "data/parquet.py",
    "torch.load": "interchange/files.py", "np.load": "interchange/files.py", "numpy.load": "interchange/files.py",
    "sqlite3.connect": "explorer/[dn]*.py",  # the database, and the notes beside it
}  # fmt: skip
# Where it is another part of the same program that wrote what is read.
TRUSTED = {
    "core/files.py": "a description as JSON has it, before its checksum is taken",
    "recipes/bench.py": "lines of a child process",
    "recipes/contestants.py": "lines of the parent process",
}

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8
# Files that may be larger than that, each with its reason: {"saelab/train/trainer.py": "one loop, read top to bottom"}.
EXCUSED: dict[str, str] = {
    "saelab/sae/sae.py": "the constructor's signature is the configuration of an SAE",
    "saelab/train/step.py": "the constructor's signature is the configuration of a run",
}
VAGUE_NAMES = {"utils.py", "common.py", "helpers.py", "types.py", "registry.py"}


# --- reading the tree ------------------------------------------------------------------------------------------------


def sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """``("saelab/core/codes.py", its syntax tree)`` for every module below ``root``."""
    for path in sorted((root / "saelab").rglob("*.py")):
        yield path.relative_to(root).as_posix(), parsed(path.read_text(encoding="utf-8"), str(path))


@cache
def parsed(text: str, path: str) -> ast.Module:
    """The syntax tree, which every rule looks at anew; not to be changed."""
    return ast.parse(text, path)


@cache
def walk(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


def imports(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that a module reaches for; ``from a import b`` reaches for ``a.b``."""
    package = file.split("/")[:-1]
    for node in walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parents = package[: len(package) - level + 1] if level else []
                base = ".".join(parents + ([module] if module else []))
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(str(name))]):
                yield node.lineno, name
            case ast.Attribute(value=ast.Name("torch")):  # `import torch` is enough to use torch.distributed
                yield node.lineno, f"torch.{node.attr}"


def folder_of(file: str) -> str:
    """What stands in the table of floors: the folder below ``saelab/``, or the name of a module at its root."""
    return file.split("/")[1].removesuffix(".py")


# --- the rules: each yields its complaints ---------------------------------------------------------------------------


def floor_complaints(root: Path) -> Iterator[str]:
    for file, tree in sources(root):
        here = folder_of(file)
        if here not in FLOORS:
            yield f"{file}:1: {here} has no floor"
            continue
        for line, name in imports(file, tree):
            package, _, rest = f"{name}.".partition(".")
            if package != "saelab":
                continue
            there = rest.split(".")[0]
            there = there if there in FLOORS else "__init__"  # `from saelab import SAE`
            room_mates = FLOORS[here] == FLOORS[there] == TOP
            if there != here and FLOORS[there] >= FLOORS[here] and not room_mates:
                yield f"{file}:{line}: {here} (floor {FLOORS[here]}) may not import {there} (floor {FLOORS[there]})"


def foreign_complaints(root: Path) -> Iterator[str]:
    for file, tree in sources(root):
        for line, name in imports(file, tree):
            for library, places in FOREIGN.items():
                if not f"{name}.".startswith(f"{library}."):
                    continue
                if not any(fnmatch(file, f"saelab/{place}") for place in places):
                    yield f"{file}:{line}: {library} may be imported only in {', '.join(places)}"


def size_complaints(root: Path) -> Iterator[str]:
    for file, tree in sources(root):
        complaints = list(too_large(file, tree, (root / file).read_text(encoding="utf-8")))
        if file not in EXCUSED:
            yield from complaints
        elif not complaints:
            yield f"{file}:1: needs no excuse any more"


def too_large(file: str, tree: ast.Module, text: str) -> Iterator[str]:
    if (lines := len(text.splitlines())) > MAX_FILE:
        yield f"{file}:1: {lines} lines, more than {MAX_FILE}"
    for node in walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION:
            yield f"{file}:{node.lineno}: {node.name} has {lines} lines, more than {MAX_FUNCTION}"
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if (count := len([n for n in names if n not in ("self", "cls")])) > MAX_PARAMETERS:
            yield f"{file}:{node.lineno}: {node.name} has {count} parameters, more than {MAX_PARAMETERS}"


def habit_complaints(root: Path) -> Iterator[str]:
    for file, tree in sources(root):
        if Path(file).name in VAGUE_NAMES:
            yield f"{file}:1: a helper lives with the idea that it serves, not in {Path(file).name}"
        if file.startswith("saelab/assets/"):
            yield f"{file}:1: assets/ holds no Python"
        if not ast.get_docstring(tree):
            yield f"{file}:1: no docstring that says what the module is for"
        for node in walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield f"{file}:{node.lineno}: bare except"


def reading_complaints(root: Path) -> Iterator[str]:
    for file, tree in sources(root):
        for node in walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            read = next((end for end in UNCHECKED if f".{name}".endswith(f".{end}")), None)
            if read and not any(fnmatch(file, f"saelab/{place}") for place in (UNCHECKED[read], *TRUSTED)):
                yield f"{file}:{node.lineno}: {name} is unchecked; {UNCHECKED[read]} reads it for all"


def module_of(file: str) -> str:
    """ "saelab.core.codes" of "saelab/core/codes.py"."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def circle_complaints(root: Path) -> Iterator[str]:
    """Modules that import each other, round any number of corners; imports for type checkers and in functions count."""
    trees = {module_of(file): (file, tree) for file, tree in sources(root)}
    reach: dict[str, set[str]] = {}
    for module, (file, tree) in trees.items():
        names = {name for _, name in imports(file, tree)}
        found = {name if name in trees else name.rpartition(".")[0] for name in names}
        reach[module] = {name for name in found if name in trees and name != module}
    for module, file in ((name, file) for name, (file, _) in trees.items()):
        way = way_back(module, reach)
        if way and module == min(way):
            yield f"{file}:1: a circle of imports: {' -> '.join([*way, module])}"


def way_back(start: str, reach: dict[str, set[str]]) -> list[str]:
    """The shortest way from a module back to itself; empty if there is none."""
    ways = [[start]]
    seen = {start}
    for way in ways:  # which grows
        for name in sorted(reach[way[-1]]):
            if name == start:
                return way
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def name_complaints(root: Path) -> Iterator[str]:
    """Public classes of one name in several files: who searches for a name should find one thing."""
    first: dict[str, str] = {}
    for file, tree in sources(root):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if node.name in first:
                    yield f"{file}:{node.lineno}: there is a class {node.name} in {first[node.name]} already"
                first.setdefault(node.name, file)


RULES = [
    floor_complaints, foreign_complaints, size_complaints, habit_complaints, reading_complaints, circle_complaints,
    name_complaints,
]  # fmt: skip


def listing(complaints: Iterable[str]) -> str:
    """One complaint per line; two names from one import statement make one complaint."""
    return "\n".join(dict.fromkeys(complaints))


# --- the package keeps them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps_the_rule(rule):
    complaints = listing(rule(ROOT))
    assert not complaints, complaints


def test_import_saelab_is_light():
    code = f"import sys, saelab; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "import saelab loads them"


WITHOUT_TORCH = """
import contextlib, sys
from saelab.cli import main
for words in ([], ["--help"], ["--version"], ["frobnicate"]):
    with contextlib.suppress(SystemExit):
        main(words)
print(*[name for name in ("torch", "numpy", "jsonargparse", "rich") if name in sys.modules])
import saelab
assert {"SAE", "Codes", "load"} <= set(dir(saelab)) and not hasattr(saelab, "nothing")
assert saelab.load is saelab.runs.load and isinstance(saelab.SAE, type)
"""


def test_what_needs_no_command_is_said_without_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "", "these words load them"


# --- the rules see what they should ----------------------------------------------------------------------------------


def plant(root: Path, file: str, code: str) -> Path:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""Planted."""\n{dedent(code)}', encoding="utf-8")
    return root


UPWARD = "saelab/core/codes.py:{}: core (floor 0) may not import train (floor 6)"


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("saelab/core/codes.py", "import saelab.train.trainer", UPWARD.format(2)),
        ("saelab/core/codes.py", "from saelab.train import Trainer, Run", UPWARD.format(2)),
        ("saelab/core/codes.py", "from saelab import train", UPWARD.format(2)),
        ("saelab/core/codes.py", "from ..train.trainer import Trainer", UPWARD.format(2)),
        ("saelab/core/codes.py", "from .. import train", UPWARD.format(2)),
        ("saelab/core/codes.py", "def late():\n    from saelab.train import Trainer", UPWARD.format(3)),
        ("saelab/core/codes.py", "if TYPE_CHECKING:\n    import saelab.train", UPWARD.format(3)),
        ("saelab/core/codes.py", "importlib.import_module('saelab.train')", UPWARD.format(2)),
        ("saelab/sae/losses/auxk.py", "from ...data import store",
         "saelab/sae/losses/auxk.py:2: sae (floor 2) may not import data (floor 2)"),
        ("saelab/data/store.py", "from saelab import SAE",
         "saelab/data/store.py:2: data (floor 2) may not import __init__ (floor 11)"),
        ("saelab/scaling/fit.py", "import saelab",
         "saelab/scaling/fit.py:2: scaling (floor 7) may not import __init__ (floor 11)"),
        ("saelab/attic/old.py", "", "saelab/attic/old.py:1: attic has no floor"),
    ],
)  # fmt: skip
def test_planted_import_is_seen(tmp_path, file, code, complaint):
    assert listing(floor_complaints(plant(tmp_path, file, code))) == complaint


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("saelab/train/trainer.py", "import saelab.core.codes\nfrom ..sae import SAE\nfrom . import schedule"),
        ("saelab/__init__.py", "from .sae import SAE\nfrom saelab.recipes.train import train"),
        ("saelab/__main__.py", "from saelab.cli import main"),
        ("saelab/cli.py", "from saelab.recipes import train\nimport sae, cli"),
    ],
)
def test_downward_import_is_fine(tmp_path, file, code):
    assert listing(floor_complaints(plant(tmp_path, file, code))) == ""


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("saelab/sae/sae.py", "from transformers import AutoModel, AutoTokenizer",
         "saelab/sae/sae.py:2: transformers may be imported only in models/*"),
        ("saelab/train/trainer.py", "import torch.distributed as dist",
         "saelab/train/trainer.py:2: torch.distributed may be imported only in core/mesh.py"),
        ("saelab/train/trainer.py", "from torch import distributed",
         "saelab/train/trainer.py:2: torch.distributed may be imported only in core/mesh.py"),
        ("saelab/train/trainer.py", "import torch\ntorch.distributed.barrier()",
         "saelab/train/trainer.py:3: torch.distributed may be imported only in core/mesh.py"),
        ("saelab/scaling/plots.py", "def draw():\n    import plotly.graph_objects as go",
         "saelab/scaling/plots.py:3: plotly may be imported only in explorer/*, figures/*"),
    ],
)  # fmt: skip
def test_planted_foreign_import_is_seen(tmp_path, file, code, complaint):
    assert listing(foreign_complaints(plant(tmp_path, file, code))) == complaint


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("saelab/models/hub/load.py", "import transformers, datasets"),
        ("saelab/figures/scaling.py", "import plotly.graph_objects"),
        ("saelab/core/mesh.py", "from torch.distributed.tensor import DTensor"),
        ("saelab/core/log.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("saelab/sae/sae.py", "import torch.nn, richer\nfrom torch.nn import functional"),
    ],
)
def test_foreign_import_in_its_place_is_fine(tmp_path, file, code):
    assert listing(foreign_complaints(plant(tmp_path, file, code))) == ""


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("saelab/sae/stack.py", "x = 0\n" * 400, "saelab/sae/stack.py:1: 401 lines, more than 400"),
        ("saelab/sae/stack.py", "def long():\n" + "    pass\n" * 60,
         "saelab/sae/stack.py:2: long has 61 lines, more than 60"),
        ("saelab/sae/stack.py", "def wide(self, a, b, c, d, e, /, f, g, h, *, i): ...",
         "saelab/sae/stack.py:2: wide has 9 parameters, more than 8"),
        ("saelab/sae/stack.py", "try:\n    x = 0\nexcept:\n    raise", "saelab/sae/stack.py:4: bare except"),
        ("saelab/sae/utils.py", "",
         "saelab/sae/utils.py:1: a helper lives with the idea that it serves, not in utils.py"),
        ("saelab/assets/make.py", "", "saelab/assets/make.py:1: assets/ holds no Python"),
    ],
)  # fmt: skip
def test_planted_bad_habit_is_seen(tmp_path, file, code, complaint):
    plant(tmp_path, file, code)
    assert listing([*size_complaints(tmp_path), *habit_complaints(tmp_path)]) == complaint


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("saelab/sae/sae.py", "import json\njson.loads(text)",
         "saelab/sae/sae.py:3: json.loads is unchecked; core/read.py reads it for all"),
        ("saelab/core/run.py", "from yaml import safe_load\nimport yaml\nyaml.safe_load(text)",
         "saelab/core/run.py:4: yaml.safe_load is unchecked; core/read.py reads it for all"),
        ("saelab/explorer/triples.py", "with safetensors.safe_open(path) as file:\n    pass",
         "saelab/explorer/triples.py:2: safetensors.safe_open is unchecked; core/files.py reads it for all"),
        ("saelab/models/text.py", "pyarrow.parquet.ParquetFile(path)",
         "saelab/models/text.py:2: pyarrow.parquet.ParquetFile is unchecked; data/parquet.py reads it for all"),
        ("saelab/interchange/files.py", "torch.load(path)\njson.dumps(x)", ""),
    ],
)  # fmt: skip
def test_planted_unchecked_read_is_seen(tmp_path, file, code, complaint):
    assert listing(reading_complaints(plant(tmp_path, file, code))) == complaint


def test_missing_docstring_and_idle_excuse_are_seen(tmp_path, monkeypatch):
    (plant(tmp_path, "saelab/sae/sae.py", "") / "saelab/sae/sae.py").write_text("x = 0\n")
    monkeypatch.setitem(EXCUSED, "saelab/sae/sae.py", "for this test")
    assert listing(habit_complaints(tmp_path)) == "saelab/sae/sae.py:1: no docstring that says what the module is for"
    assert listing(size_complaints(tmp_path)) == "saelab/sae/sae.py:1: needs no excuse any more"


def test_circles_of_imports_are_seen(tmp_path):
    plant(tmp_path, "saelab/sae/a.py", "from saelab.sae.b import B")
    plant(tmp_path, "saelab/sae/b.py", "def late():\n    from saelab.sae import c")
    assert listing(circle_complaints(tmp_path)) == ""
    plant(tmp_path, "saelab/sae/c.py", "if TYPE_CHECKING:\n    from saelab.sae.a import A")
    expected = "saelab/sae/a.py:1: a circle of imports: saelab.sae.a -> saelab.sae.b -> saelab.sae.c -> saelab.sae.a"
    assert listing(circle_complaints(tmp_path)) == expected


def test_two_classes_of_one_name_are_seen(tmp_path):
    plant(tmp_path, "saelab/sae/a.py", "class Shape: ...\nclass _Own: ...")
    plant(tmp_path, "saelab/sae/b.py", "class Shape: ...\nclass _Own: ...")
    expected = "saelab/sae/b.py:2: there is a class Shape in saelab/sae/a.py already"
    assert listing(name_complaints(tmp_path)) == expected
