"""Figures show the numbers that they are given, and are written as HTML and SVG."""

import numpy as np
import pytest
import torch

from saelab.figures.scaling import (
    BEYOND,
    Circle,
    allocation_figure,
    curves_figure,
    diagnosis_figure,
    feature_latents_figure,
    growth_figure,
    law_figure,
    manifold_figure,
    tiling_figure,
    title_of,
    write_figure,
    write_panel,
)  # fmt: skip
from saelab.figures.svg import svg
from saelab.scaling.fit import Points, fit
from saelab.scaling.laws.joint import JointLaw


def allocation():
    return {
        "rows": [{"latents": 100, "found": 50}, {"latents": 1000, "found": 200}],
        "theory": {"n_i": -1.5, "found": 0.75},
        "allocation": {"rank": [1, 10, 100], "count": [300, 20, 1]},
    }


def test_a_law_is_drawn_with_its_cells_and_beyond_them():
    x = np.array([(n, k) for n in (64, 128, 256, 512, 1024) for k in (4, 8, 16)], float)
    y = JointLaw().value([-0.50, 0.26, -0.017, -0.042, -1.32, -0.085], x)
    found = fit(JointLaw(), Points(x, y, [f"{a}-{b}" for a, b in x]), x[:, 0] == 1024, draws=5, rival=False)
    figure = law_figure(found, "joint")
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in marks] == ["k=4", "k=8", "k=16", "predicted unseen"]
    assert list(marks[1].x) == [64, 128, 256, 512, 1024]
    assert list(marks[1].y) == pytest.approx(y[1::3])
    assert list(marks[3].x) == [1024] * 3
    assert list(marks[3].y) == [cell["predicted"] for cell in found.held_out["cells"]]
    low = [cell["low"] for cell in found.held_out["cells"]]
    assert np.subtract(marks[3].y, marks[3].error_y.arrayminus) == pytest.approx(low)
    lines = [trace for trace in figure.data if trace.line.dash == "dash"]
    assert len(lines) == 3
    assert max(lines[0].x) == pytest.approx(BEYOND * 1024)
    assert min(lines[0].x) >= 1024
    value = JointLaw().value(found.theta, np.array([[lines[2].x[-1], 16.0]]))[0]
    assert lines[2].y[-1] == pytest.approx(value)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert [trace.showlegend for trace in bands] == [True, False, False]
    assert figure.layout.xaxis.title.text == "latents n"
    assert figure.layout.yaxis.title.text == "FVU"
    assert "4,096" in figure.layout.xaxis.ticktext
    assert title_of("width-k16") == "L(n) at k = 16"


def test_loss_curves_have_a_colour_for_each_width_and_a_stroke_for_each_k(small_cells):
    figure = curves_figure(small_cells, "rows")
    lines = [trace for trace in figure.data if trace.showlegend is False]
    assert {(trace.hovertext, trace.line.dash) for trace in lines} >= {("n64-k4", "solid"), ("n64-k8", "dash")}
    assert lines[0].line.color == lines[1].line.color != lines[2].line.color
    assert list(lines[0].y) == [4.0, 2.0, 1.0]
    assert [trace.name for trace in figure.data if trace.showlegend is None] == ["n=64", "n=128", "k=4", "k=8"]
    assert "nan" not in svg(figure.to_plotly_json())


@pytest.fixture
def small_cells():
    from saelab.scaling.cells import Cell

    curve = {"rows": [1.0, 2.0, 4.0], "compute": [1.0, 2.0, 4.0], "loss": [4.0, 2.0, 1.0], "lr": [1.0] * 3}
    return [
        Cell(
            f"n{n}-k{k}", "", n, float(k), 0, 1e-3, 64, 16, 1000, 0.5, None, None, "training", k, 500, 0.01, 0.02, 1e6,
            100.0, 1, "Dense TopK", "site a", 1.0, curve,
        )
        for n in (64, 128) for k in (4, 8)
    ]  # fmt: skip


def test_allocations_are_shown_with_what_theory_expects(tmp_path):
    figure = allocation_figure({"a": allocation()})
    assert list(figure.data[0].y) == [300, 20, 1]
    assert figure.data[1].y[1] == pytest.approx(300 * 100**-1.5)
    assert figure.layout.title.text == "1,000 latents shared out"
    write_figure(tmp_path / "allocation.html", figure)
    assert "plotly.min.js" in (tmp_path / "allocation.html").read_text()
    assert (tmp_path / "allocation.svg").read_text().startswith("<svg")
    growth = growth_figure({"a": allocation(), "b": allocation()})
    assert list(growth.data[0].y) == [50, 200]
    assert list(growth.data[1].y) == pytest.approx([200 * 10**-0.75, 200])
    assert [trace.name for trace in growth.data] == ["a", "theory, N^0.75", "b", "theory, N^0.75"]


def test_loss_curves_of_manifolds_stand_beside_their_bounds_or_theory():
    curve = {"rows": [{"n": 4, "total": 0.2}, {"n": 8, "total": 0.1}], "floor": 0.09, "dims": 2}
    traces = manifold_figure({"circle": curve, "other": curve}).data
    assert list(traces[0].y) == [0.2, 0.1]
    assert [list(trace.y) for trace in traces if "bound" in trace.name] == [[0.09, 0.09]]
    theory = manifold_figure({"circle": curve | {"floor": None, "expected_beta": 2.0}}).data[1]
    assert theory.name == "n^-2"
    assert theory.y[0] / theory.y[1] == pytest.approx(4)
    assert np.prod(theory.y) == pytest.approx(0.2 * 0.1)  # through the middle of the curve


def test_tiles_are_arcs_where_a_latent_fires():
    angles = torch.linspace(-3, 3, 7)
    codes = torch.stack([(angles > 0).float(), (angles <= 0).float(), 0 * angles], 1)
    one = Circle(2 * torch.eye(3)[:, :2], codes, angles, torch.ones(7, 2))
    figure = tiling_figure({"one": one, "two": one})
    assert [note.text for note in figure.layout.annotations] == ["one", "two"]
    own = [trace for trace in figure.data if trace.xaxis == "x2"]
    arcs = [trace for trace in own if trace.line.width == 4]
    assert len(arcs) == 2  # the third never fires
    assert np.isnan(np.array(arcs[0].x)).sum() == 4
    arrow = own[own.index(arcs[0]) + 1]
    assert (arrow.x[:2], arrow.y[:2]) == ((0, 1), (0, 0))
    drawn = svg(figure.to_plotly_json())
    assert "nan" not in drawn
    assert drawn.count("reconstructions") == 1


def test_latents_of_each_feature_are_means_over_seeds_with_their_range():
    line = {"n": 8, "predicted_latents": [5, 3, 0]}
    lines = [line | {"latents_per_feature": found} for found in ([4, 2, 1], [6, 2, 0], [5, 5, 2])]
    figure = feature_latents_figure(lines, "worlds")
    expected, found = figure.data
    assert list(found.x) == [1, 2, 3]
    assert "trained, 3 seeds" in svg(figure.to_plotly_json())
    assert list(expected.y) == [5, 5, 3, 3, 0, 0]
    assert list(expected.x) == [0.5, 1.5, 1.5, 2.5, 2.5, 3.5]
    assert list(found.y) == [5, 3, 1]
    assert list(found.error_y.array) == [1, 2, 1]
    assert list(found.error_y.arrayminus) == [1, 1, 1]


def test_a_diagnosis_is_one_panel_and_its_parts(tmp_path):
    spread = {"histogram": [0] * 39 + [4]}
    result = {
        "nearest": {"this": spread, "random": spread},
        "frequencies": {"rank": [1, 2, 3], "density": [0.1, 0.05, 0.02], "from": 1, "to": 2},
        "alpha": {"value": 0.5}, "alive": 7,
        "predicted": [{"times": t, "found": t, "found_low": t - 1, "found_high": t + 1} for t in (2, 10)],
        "share_in_clusters": 0.25, "clusters": [1, 2], "verdict": "benign",
    }  # fmt: skip
    write_panel(tmp_path / "d.json", result)
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"d.html", "d.svg", "d-cosines.svg", "d-growth.html", "plotly.min.js"}
    figure = diagnosis_figure(result)
    assert "benign: 25.0% of the latents in 2 tiling clusters" in figure.layout.title.text
    assert figure.data[0].y[-1] == 1
    assert list(figure.data[2].y) == [0.1, 0.05, 0.02]
    assert figure.data[3].y[0] / figure.data[3].y[1] == pytest.approx(2**1.5)
    assert list(figure.data[4].y) == [3, 11, 9, 1]
    assert list(figure.data[6].y) == [7, 70]
    result["alpha"] = {"value": None}
    assert len(diagnosis_figure(result).data) == 6
