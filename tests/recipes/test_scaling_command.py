"""`saelab scaling`, as a user types it."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from saelab.capacity import hidden
from saelab.cli import main
from saelab.recipes import scaling
from saelab.scaling.cells import Cell, write_cells
from saelab.scaling.laws.joint import JointLaw

THETA = [-0.50, 0.26, -0.017, -0.042, -1.32, -0.085]


@pytest.fixture(autouse=True)
def _few_refits(monkeypatch):
    """Intervals have tests of their own (tests/scaling/test_laws.py)."""
    monkeypatch.setattr(scaling, "fit", partial(scaling.fit, draws=40))
    monkeypatch.setattr(hidden, "DRAWS", 400)
    monkeypatch.setattr(hidden, "MOST_DRAWS", 400)


def made(n, k, **changes):
    loss = JointLaw().value(THETA, np.array([[n, k]], float))[0] * np.exp(0.003 * np.sin(n * 7 + k))
    compute = np.geomspace(1e6, 1e10, 60)
    curve = {"rows": (compute / n).tolist(), "compute": compute.tolist(), "lr": [1e-3] * 60}
    curve["loss"] = (loss * (1 + 2e4 * n / compute) ** 0.5).tolist()
    settings = {
        "name": f"n{n}-k{k}", "folder": f"runs/n{n}-k{k}", "n": n, "k": float(k), "seed": 0, "lr": 1e-3, "batch": 256,
        "d_in": 64, "rows": 100_000, "loss": float(loss), "loss_low": None, "loss_high": None, "loss_from": "training",
        "l0": float(k), "converged_rows": int(1000 * n**0.6), "fall": 0.01, "tolerance": 0.02, "compute": 1e5 * 128 * n,
        "rows_per_second": 1e9 / (128 * n), "together": 1, "architecture": "Dense TopK", "data": "site a",
        "normalisation": 1.0, "curve": curve,
    }  # fmt: skip
    return Cell(**(settings | changes))


@pytest.fixture
def table(tmp_path):
    return write_cells(tmp_path, [made(n, k) for n in (256, 512, 1024, 2048, 4096) for k in (4, 8, 16, 32)])


def complaint(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["scaling", *words])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_laws_and_a_plan(table, tmp_path, capsys):
    out = tmp_path / "laws"
    main(["scaling", "fit", str(table), "--out", str(out)])
    said = capsys.readouterr().out
    assert "joint: 20 cells" in said
    assert "held out: " in said
    assert "rate: not fitted: no width has a best learning rate" in said
    names = {path.name for path in out.glob("*.json")}
    assert {"law-joint.json", "law-tokens.json", "law-width-k8.json", "law-compute-k8.json"} <= names
    law = json.loads((out / "law-joint.json").read_text())
    assert law["parameters"]["gamma"]["low"] < -0.042 < law["parameters"]["gamma"]["high"]
    assert len(law["held_out"]["cells"]) == 4
    main(["scaling", "plan", str(out), "--tokens", "200000", "--memory", "16GB", "--k", "16", "8"])
    said = capsys.readouterr().out
    assert said.count("all: the best learning rate is not fitted") == 1
    assert "first: saelab train ... --rows" in said
    assert "the best learning rate is not fitted: lr is 0.001 / sqrt(n / 4,096)" in said
    plan = json.loads((out / "plan.json").read_text())
    assert plan["rows"][0]["tokens"] <= 200_000
    assert plan["rows"][0]["limit"] == "the tokens"


def test_what_cannot_be_fitted_is_refused_with_the_reason(tmp_path, capsys):
    cells = [made(n, k) for n in (256, 512, 1024, 2048) for k in (4, 8, 16)]
    out = ["--out", str(tmp_path / "laws")]
    for number, (change, message) in enumerate(
        [
            ({"data": "site b"}, "mixed sites or data"),
            ({"converged_rows": None}, "1 of 12 cells have not converged"),
            ({"normalisation": 2.0}, "mixed normalisations"),
        ]
    ):
        table = write_cells(tmp_path / str(number), [*cells[:-1], made(2048, 16, **change)])
        assert message in complaint(["fit", str(table), *out], capsys)
    few = write_cells(tmp_path / "few", cells[:5])
    assert "joint: JointLaw has 6 parameters and needs 8 cells" in complaint(
        ["fit", str(few), *out, "--laws", "[joint]"], capsys
    )
    assert "unknown law 'joints'; did you mean 'joint'?" in complaint(
        ["fit", str(few), *out, "--laws", "[joints]"], capsys
    )
    nothing = write_cells(tmp_path / "nothing", cells[:2])
    assert "2 cells are not enough for any law" in complaint(["fit", str(nothing), *out], capsys)
    assert "was given twice" in complaint(["fit", str(few), str(few), *out], capsys)
    main(["scaling", "fit", str(write_cells(tmp_path / "three", cells[:9])), *out])
    assert "planning needs the joint law" in capsys.readouterr().out
    main(["scaling", "fit", str(tmp_path / "1" / "cells.parquet"), *out, "--converged_only", "true"])
    assert "left out, not converged: n2048-k16" in capsys.readouterr().out


def test_cells_of_one_k_have_laws_but_no_plan(tmp_path, capsys):
    table = write_cells(tmp_path, [made(n, 8) for n in (256, 512, 1024, 2048, 4096)])
    out = tmp_path / "laws"
    main(["scaling", "fit", str(table), "--out", str(out), "--hold_out", "0"])
    said = capsys.readouterr().out
    assert "joint: not fitted: JointLaw has 6 parameters and needs 8 cells, got 5" in said
    assert "width-k8: 5 cells" in said
    assert "planning needs the joint law" in said
    assert "has no law-joint.json" in complaint(["plan", str(out), "--tokens", "1e6"], capsys)


def test_a_table_is_judged_by_the_tolerance_that_is_asked_for(tmp_path, capsys):
    table = write_cells(tmp_path, [made(n, k) for n in (256, 512, 1024, 2048) for k in (4, 8, 16)])
    words = ["fit", str(table), "--out", str(tmp_path / "laws"), "--tolerance", "1e-9"]
    assert "12 of 12 cells have not converged to 0.0% a doubling" in complaint(words, capsys)
    message = complaint([*words, "--converged_only", "true"], capsys)
    assert "12 of 12 cells have not converged" in message
    assert message.endswith("train them longer, or raise --tolerance\n")


def test_capacity_is_shared_out(tmp_path, capsys):
    words = ["--alpha", "1", "--beta", "0.5", "--features", "20000", "--latents", "100", "1000"]
    main(["scaling", "allocate", *words, "--discrete", "0.5", "--out", str(tmp_path / "a.json")])
    said = capsys.readouterr().out
    assert "pathological: theory says D ~ N^0.750, L ~ N^-0.500" in said
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["latents"] for row in found["rows"]] == [100, 1000]
    assert 0.5 < found["rows"][1]["share_on_manifolds"] < 1
    assert found["allocation"]["rank"][0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "unknown action 'fitt'; did you mean 'fit'?"),
        (["plan", "nowhere", "--tokens", "1"], "nowhere has no law-joint.json"),
        (["plan", "nowhere"], "give a budget"),
        (["plan", "nowhere", "--target_fvu", "1.5"], "target_fvu must be below 1, which the mean of all rows reaches"),
        (["plan", "nowhere", "--memory", "lots"], "memory must be a size such as 16GB"),
        (["allocate", "--at_zero", "shft"], "unknown at_zero 'shft'; did you mean 'shift'?"),
        (["allocate", "--beta", "0"], "beta must be positive"),
        (["allocate", "--alpha", "-1"], "alpha must be above -1"),
        (["allocate", "--discrete", "2"], "discrete must be a share"),
        (["allocate", "--latents", "[]"], "latents must name at least one number"),
        (["allocate", "--latents", "10", "0"], "at least 1 latent to allocate, got 0"),
        (["allocate", "--out", "."], "out must be a JSON file, . is a folder"),
        (["plan", "nowhere", "--hours", "-1"], "hours must be positive, got -1"),
        (["plan", "nowhere", "--tokens", "0"], "tokens must be positive, got 0"),
        (["plan", "nowhere", "--tokens", "1", "--k", "[]"], "k must name at least one number"),
        (["plan", "file", "--tokens", "1"], "file is a file: give the folder that"),
        (["fit", "nowhere", "--out", "o"], "there is no folder nowhere"),
        (["fit", "nowhere.parquet", "--out", "o"], "there is no file nowhere.parquet"),
        (["fit", "ladder", "--out", "o"], "ladder is no run but holds 2: give ladder/*"),
        (["fit", "ladder", "--out", "file"], "out must be a folder, file is a file"),
        (["fit", "ladder", "--out", "o", "--tolerance", "0"], "converge must be between 0 and 1"),
        (["fit", "ladder", "--out", "o", "--hold_out", "-1"], "hold_out must be a number of widths, 0 or more"),
        (["fit", "ladder", "--out", "o", "--laws", "joint", "widht"], "unknown law 'widht'; did you mean 'width'?"),
        (["fit", "ladder", "--out", "o", "--laws", "[]"], "laws must name at least one of joint, width"),
        (["fit", "ladder"], "the following arguments are required: out"),
        (["diagnose", "nowhere"], "there is no folder nowhere"),
        (["diagnose", "ladder"], "ladder is no run but holds 2"),
        (["diagnose", "ladder", "--out", "."], "out must be a JSON file"),
    ],
)
def test_wrong_words_are_named(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for name in ("n64", "n128"):
        Path("ladder", name).mkdir(parents=True)
        Path("ladder", name, "sweep.json").touch()
    said = complaint(words, capsys)
    assert message in said
    assert said.count("\n") == 1
    main(["scaling", "--help"])
    assert "allocate" in capsys.readouterr().out


def test_the_widest_of_a_sweep_is_diagnosed(tmp_path, capsys):
    world = ["--world", "ManifoldWorld", "--world.d_in", "64", "--world.n_features", "30", "--world.l0", "3"]
    small = ["--rows", "20000", "--trainer.batch", "250", "--trainer.lr", "0.01", "--sae.activation.k", "4"]
    main(["sweep", "--out", str(tmp_path / "s"), *world, *small, "--vary", "sae.n_latents=40,96"])
    out = tmp_path / "diagnosis.json"
    main(["scaling", "diagnose", str(tmp_path / "s"), "--rows", "6000", "--out", str(out)])
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["n_latents"] == 96
    assert found["sae"].endswith("n_latents96")
    assert found["rows"] == 6000
    assert set(found["nearest"]) == {"this", "random", "n=40"}
    assert f"n_latents96: {found['verdict']}" in said
    message = complaint(["diagnose", str(tmp_path / "s" / "n_latents40" / "sae")], capsys)
    assert "does not say what it was trained on: give --store" in message
