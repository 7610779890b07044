"""Figures show the numbers that they are given, and are written as HTML and SVG."""

import numpy as np
import pytest
import torch

from saelab.scaling.figures import (
    allocation_figure,
    diagnosis_figure,
    growth_figure,
    law_figure,
    manifold_figure,
    tiling_figure,
    write_figure,
    write_panel,
)  # fmt: skip
from saelab.scaling.fit import Points, fit
from saelab.scaling.laws.joint import JointLaw


def allocation():
    return {
        "rows": [{"latents": 100, "found": 50}, {"latents": 1000, "found": 200}],
        "theory": {"n_i": -1.5, "found": 0.75},
        "allocation": {"rank": [1, 10, 100], "count": [300, 20, 1]},
    }


def test_a_law_is_drawn_with_its_cells_and_beyond_them():
    x = np.array([(n, k) for n in (64, 128, 256, 512) for k in (4, 8, 16)], float)
    y = JointLaw().value([-0.50, 0.26, -0.017, -0.042, -1.32, -0.085], x)
    figure = law_figure(fit(JointLaw(), Points(x, y, ["c"] * 12), draws=5, rival=False), "joint")
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in marks] == ["k=4", "k=8", "k=16"]
    assert list(marks[1].x) == [64, 128, 256, 512]
    assert list(marks[1].y) == pytest.approx(y[1::3])
    dashed = [trace for trace in figure.data if trace.line.dash == "dash"]
    assert len(dashed) == 3
    assert max(dashed[0].x) == pytest.approx(8 * 512)


def test_other_figures_show_what_they_are_given(tmp_path):
    figure = allocation_figure(allocation())
    assert list(figure.data[0].y) == [300, 20, 1]
    assert figure.data[1].y[1] == pytest.approx(300 * 100**-1.5)
    write_figure(tmp_path / "allocation.html", figure)
    assert "plotly.min.js" in (tmp_path / "allocation.html").read_text()
    assert (tmp_path / "allocation.svg").read_text().startswith("<svg")
    assert list(growth_figure({"a": allocation()}).data[0].y) == [50, 200]
    curve = {"rows": [{"n": 4, "total": 0.2}, {"n": 8, "total": 0.1}], "floor": 0.09}
    traces = manifold_figure({"circle": curve}).data
    assert list(traces[0].y) == [0.2, 0.1]
    assert list(traces[1].y) == [0.09, 0.09]


def test_tiles_are_arcs_where_a_latent_fires():
    angles = torch.linspace(-3, 3, 7)
    codes = torch.stack([(angles > 0).float(), (angles <= 0).float()], 1)
    figure = tiling_figure(torch.eye(2), codes, angles)
    arcs = [trace for trace in figure.data if trace.name == "latent 0" and trace.mode == "lines"]
    assert np.isnan(np.array(arcs[0].x)).sum() == 4
    arrow = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert (list(arrow.x), list(arrow.y)) == ([0, 1], [0, 0])


def test_a_diagnosis_is_one_panel_and_its_parts(tmp_path):
    spread = {"histogram": [0] * 39 + [4]}
    result = {
        "nearest": {"this": spread, "random": spread},
        "frequencies": {"rank": [1, 2], "density": [0.1, 0.05]},
        "predicted": [{"times": t, "found": t, "found_low": t, "found_high": t} for t in (2, 10)],
        "share_in_clusters": 0.25, "clusters": [1, 2], "verdict": "benign",
    }  # fmt: skip
    write_panel(tmp_path / "d.json", result)
    assert {path.name for path in tmp_path.iterdir()} >= {"d.html", "d-cosines.svg", "d-growth.html", "plotly.min.js"}
    figure = diagnosis_figure(result)
    assert "benign: 25.0% of the latents in 2 tiling clusters" in figure.layout.title.text
    assert figure.data[0].y[-1] == 1
    assert list(figure.data[2].y) == [0.1, 0.05]
