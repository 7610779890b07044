"""Cells read from runs, what may not be mixed, and what is read off several cells."""

import json
from dataclasses import replace

import numpy as np
import pytest

from saelab.cli import main
from saelab.core.log import read_log
from saelab.runs import open_run
from saelab.scaling.cells import Cell, check_alike, check_converged, points, read_cell, read_cells, write_cells
from saelab.scaling.compute import disk_bytes, flops_a_row, parameters, training_bytes
from saelab.scaling.envelope import best_rates, envelope
from saelab.scaling.fit import fit
from saelab.scaling.laws.compute import ComputeLaw
from saelab.scaling.laws.joint import JointLaw
from saelab.train.convergence import Convergence, at_full_rate


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    out = tmp_path_factory.mktemp("ladder") / "sweep"
    world = ["--world", "SparseWorld", "--world.d_in", "8", "--world.n_features", "12", "--world.l0", "2"]
    words = ["--rows", "3000", "--trainer.batch", "50", "--log_every", "1", "--sae.activation.k", "2"]
    main(["sweep", "--out", str(out), *world, *words, "--vary", "sae.n_latents=24,40", "sae.seed=0,1"])
    return out


def cell(name="a", n=64, k=8.0, loss=0.5, **changes):
    curve = changes.pop("curve", {})
    made = Cell(
        name, name, n, k, 0, 1e-3, 64, 16, 1000, loss, None, None, "training", k, 500, 0.01, 0.02, 1e6, 100.0, 1,
        "Dense TopK", "site a", 1.0, curve,
    )  # fmt: skip
    return replace(made, **changes)


def test_a_run_becomes_a_cell(ladder):
    found = read_cell(open_run(ladder / "n_latents24-seed1"))
    log = read_log(ladder / "n_latents24-seed1" / "log.jsonl")
    assert (found.n, found.k, found.seed, found.d_in, found.batch, found.rows) == (24, 2, 1, 8, 50, 3000)
    assert found.loss == pytest.approx(np.mean([record["fvu"] for record in log[-3:]]))  # 5 % of 60 records
    assert found.loss_from == "training"
    assert found.compute == 3000 * (2 * 24 * 8 + 10 * 2 * 8)
    assert found.curve["rows"] == [record["rows"] for record in log]
    assert found.curve["compute"][-1] == found.compute
    assert found.converged_rows == Convergence(0.02).first(*at_full_rate(log))
    assert read_cell(open_run(ladder / "n_latents24-seed1"), tolerance=0.9).converged_rows < 3000
    assert "SparseWorld" in found.data
    assert found.architecture == "Dense TopK AuxK"
    assert found.normalisation > 0


def test_a_scaling_that_is_not_the_datas_is_part_of_the_architecture(ladder, tmp_path):
    import shutil

    shutil.copytree(ladder / "n_latents24-seed0", tmp_path / "run")
    config = tmp_path / "run" / "sae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scale": {"name": "LayerNorm"}}))
    assert read_cell(open_run(tmp_path / "run")).architecture == "Dense TopK AuxK LayerNorm"


def test_a_measured_run_has_the_measured_loss(ladder, tmp_path):
    import shutil

    shutil.copytree(ladder / "n_latents24-seed0", tmp_path / "run")
    score = {"value": 0.3, "low": 0.2, "high": 0.4, "n": 10, "unit": "share"}
    (tmp_path / "run" / "scores.json").write_text(json.dumps({"fvu": score}))
    found = read_cell(open_run(tmp_path / "run"))
    assert (found.loss, found.loss_low, found.loss_high, found.loss_from) == (0.3, 0.2, 0.4, "held-out")
    with pytest.raises(ValueError, match="mixed kinds of loss"):
        check_alike([found, read_cell(open_run(ladder / "n_latents24-seed1"))])
    (tmp_path / "run" / "sae" / "config.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        read_cell(open_run(tmp_path / "run"))


def test_cells_survive_their_tables(ladder, tmp_path):
    cells = read_cells([ladder])
    assert [c.name for c in cells] == [f"n_latents{n}-seed{s}" for n in (24, 40) for s in (0, 1)]
    assert [c.together for c in cells] == [2, 2, 2, 2]
    assert read_cells([write_cells(tmp_path, cells)]) == cells
    (tmp_path / "cells.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cells.parquet is damaged or not Parquet"):
        read_cells([tmp_path / "cells.parquet"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "site b"}, "mixed sites or data: a has 'site a', b has 'site b'"),
        ({"d_in": 8}, "mixed widths of rows"),
        ({"architecture": "Dense ReLU"}, "mixed architectures"),
        ({"loss_from": "held-out"}, "mixed kinds of loss"),
        ({"normalisation": 1.5}, "mixed normalisations: a divides rows by 1, b by 1.5"),
    ],
)
def test_cells_that_do_not_go_together_are_refused(changes, message):
    check_alike([cell("a"), cell("b")])
    with pytest.raises(ValueError, match=message):
        check_alike([cell("a"), cell("b", **changes)])
    check_alike([cell("a"), cell("b", **changes)], but=list(changes))


def test_cells_that_have_not_converged_are_refused():
    check_converged([cell()])
    with pytest.raises(ValueError, match=r"1 of 2 cells .*2.0% .*: b \("):
        check_converged([cell("a"), cell("b", converged_rows=None, fall=0.07)])


def test_points_are_columns_of_cells():
    found = points([cell("a", 64, 8.0, 0.5), cell("b", 128, 4.0, 0.4)], JointLaw())
    assert found.x.tolist() == [[64, 8], [128, 4]]
    assert found.y.tolist() == [0.5, 0.4]
    assert found.names == ["a", "b"]


def test_costs():
    assert parameters(10, 100) == 2 * 1000 + 110
    assert flops_a_row(10, 100, 5) == 2 * 1000 + 500
    assert flops_a_row(10, 100, 5, sparse=False) == 12 * 1000
    assert disk_bytes(10, 100) == 28 * 2110
    assert training_bytes(768, 2**20, 32, 4096) == pytest.approx(16 * 2 * 768 * 2**20, rel=0.01)


def curve(n, exponent=-0.3, floor=0.1, lr=1e-3):
    """Loss against compute of a width: it levels off at a loss that falls with n, later for larger n."""
    compute = np.geomspace(1e3, 1e8, 400)
    loss = floor + ((n * 50.0) ** exponent) * (1 + (n * 1e3 / compute) ** 1.5) ** 0.5
    return {"compute": compute.tolist(), "rows": compute.tolist(), "loss": loss.tolist(), "lr": [lr] * 400}


def test_the_envelope_lies_below_every_curve_and_follows_its_law():
    cells = [cell(f"n{n}", n, curve=curve(n)) for n in (64, 128, 256, 512, 1024, 2048)]
    found = envelope(cells)
    for x, y in zip(found.x[:, 0], found.y, strict=True):
        for one in cells:
            assert y <= np.interp(np.log(x), np.log(one.curve["compute"]), one.curve["loss"]) * 1.01
    assert not {"n64", "n2048"} & set(found.names)  # a wider or a narrower one might have been better there
    law = fit(ComputeLaw(), found)
    assert law.estimates["b"].value == pytest.approx(-0.3, abs=0.04)
    assert law.estimates["e"].value == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="at least 3 widths"):
        envelope(cells[:2])
    with pytest.raises(ValueError, match="choose one with --k"):
        envelope([*cells, cell(k=4.0)])


def test_what_the_falling_rate_gains_is_not_on_the_envelope():
    cells = [cell(f"n{n}", n, curve=curve(n)) for n in (64, 128, 256, 512, 1024, 2048)]
    before = envelope(cells).y
    falling = cells[3].curve
    falling["loss"][-80:] = [0.5 * loss for loss in falling["loss"][-80:]]
    falling["lr"][-80:] = [1e-5] * 80
    after = envelope(cells)
    assert after.y.min() >= before.min() * 0.99


def test_best_rates_are_the_bottoms_of_parabolas():
    cells = []
    for n in (64, 256, 1024, 4096):
        best = 0.1 * n**-0.5
        for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
            loss = 0.3 * np.exp(0.1 * np.log(rate / best) ** 2)
            cells.append(cell(f"{n}-{rate}", n, loss=float(loss), lr=rate))
    found, left = best_rates(cells)
    np.testing.assert_allclose(found.y, 0.1 * np.array([64, 256, 1024, 4096]) ** -0.5, rtol=1e-6)
    assert left == []
    with pytest.raises(ValueError, match="the last one on its side"):
        best_rates([c for c in cells if c.lr < 2e-3 and c.n < 300])
