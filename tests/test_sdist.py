"""The source distribution holds what it takes to test it."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "campaigns", "tools", "parity")


def test_tests_of_all_levels_are_in_it(tmp_path):
    copy, out = tmp_path / "copy", tmp_path / "out"
    (copy / "saelab").mkdir(parents=True)
    (copy / "saelab" / "__init__.py").touch()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    expected = {str(file.relative_to(copy)) for part in PARTS for file in (copy / part).rglob("*") if file.is_file()}
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (archive,) = out.iterdir()
    with tarfile.open(archive) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert expected - found == set()
    assert "Makefile" in found
    assert not any(name.endswith(".pyc") for name in found)
