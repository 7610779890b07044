"""`saelab figures`: from measured runs to files, and what is said where nothing was measured."""

import shutil
from pathlib import Path

import pytest

from saelab.metrics.table import write_columns

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_measured_runs_are_drawn(saelab, run, tmp_path):
    metrics = ["L0", "Density", "AFA", "TestTime", "Refinement", "Reconstruction"]
    ended = saelab("measure", run, "--tokens", "200", "--metrics", *metrics)
    assert ended.status == 0, ended.err
    assert {path.stem for path in (run / "tables").iterdir()} == {"zf", "test_time", "refinement"}
    ended = saelab("figures", run, "--out", tmp_path / "out")
    assert ended.status == 0, ended.err
    for name in ("zf", "violin", "density", "test_time", "refinement", "l0_error"):
        assert str(tmp_path / "out" / f"{name}.html") in ended.out.splitlines()
        assert (tmp_path / "out" / f"{name}.svg").exists()
    head, first = (tmp_path / "out" / "run-zf.csv").read_text().splitlines()[:2]
    assert head == "norm_x,norm_f,nmse,eps_lbo,l0,text"
    assert float(first.split(",")[0]) > 0
    assert not (tmp_path / "out" / "probe_loss.html").exists()
    table = run / "tables" / "refinement.parquet"
    write_columns(table, {"code": [0.5]})
    assert saelab("figures", run, "--out", tmp_path / "new").complaint == (
        f"saelab: {table} has no column 'refined'; there are: code; restore it from a copy or measure again"
    )
    # Measured on other text, what stood there before goes.
    assert saelab("measure", run, "--tokens", "200", "--split", "all", "--metrics", "TestTime").status == 0
    assert {path.name for path in (run / "tables").iterdir()} == {"test_time.parquet"}


def test_a_run_without_scores_says_what_to_do(saelab, run, tmp_path):
    ended = saelab("figures", run, "--out", tmp_path / "out")
    assert ended.status == 2
    assert "has no scores yet" in ended.complaint
    assert not (tmp_path / "out").exists()


def test_runs_of_one_name_are_told_apart_by_the_folders_they_are_in(saelab, run, tmp_path):
    assert saelab("measure", run, "--tokens", "200", "--metrics", "L0", "Reconstruction", "AFA").status == 0
    runs = [Path(shutil.copytree(run, tmp_path / sweep / "run")) for sweep in ("narrow", "wide")]
    assert saelab("figures", *runs, run, "--out", tmp_path / "out").status == 0
    names = {path.name for path in (tmp_path / "out").glob("*-zf.csv")}
    assert names == {"narrow-run-zf.csv", "wide-run-zf.csv", f"{tmp_path.name}-run-zf.csv"}
    assert "narrow-run" in (tmp_path / "out" / "zf.svg").read_text()
