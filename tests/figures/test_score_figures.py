"""Figures: what they show of known scores and tables, that all are written, and the SVG's geometry."""

import csv
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from saelab.figures.scores import FIGURES, ScoredSAE, figures
from saelab.figures.svg import Axis, svg
from saelab.figures.theme import write_figures
from saelab.metrics.base import Score
from saelab.metrics.table import read_columns, write_columns, write_csv

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(name: str, n_latents: int, l0: float, value: float) -> ScoredSAE:
    scores = {
        key: Score(value, value - 0.1, value + 0.2, 10, "u").as_json()
        for key in (
            "fvu",
            "probe_loss",
            "probe_loss_train",
            "probe_loss_channels",
            "n2g_recall",
            "n2g_precision",
            "ablation_sparsity",
        )
    }
    scores["l0"] = Score(l0, None, None, 10, "latents").as_json()
    some = torch.rand(300, generator=torch.Generator().manual_seed(0)).add(0.1).tolist()
    tables = {
        "zf": {"norm_x": some, "norm_f": [0.9 * one for one in some], "nmse": some, "eps_lbo": some,
               "text": ["<b>"] * 300},
        "refinement": {"code": [0.5, 1.0, 2.0], "refined": [0.6, 1.0, 1.9], "n": [3, 3, 3]},
        "test_time": {"reading": ["own", "topk", "topk", "threshold"], "l0": [4.0, 8.0, 2.0, 2.0],
                      "fvu": [0.3, 0.2, 0.5, 0.45]},
    }  # fmt: skip
    return ScoredSAE(name, n_latents, scores, tables, {"density": torch.tensor([0.0, 0.01, 0.01, 0.5])})


@pytest.fixture(scope="module")
def saes() -> list[ScoredSAE]:
    return [drawn("b", 64, 8, 0.4), drawn("a", 64, 4, 0.5), drawn("c", 128, 4, 0.3)]


def test_every_figure_is_drawn_from_what_it_needs(saes):
    assert figures(saes).keys() == FIGURES.keys()
    assert figures([ScoredSAE("bare", 4, {})]) == {}


def test_lines_go_through_saes_of_one_size_in_the_order_of_l0(saes):
    figure = figures(saes)["probe_loss"]
    lines = {one.name: one for one in figure.data}
    assert lines["64 latents"].x == (4, 8)
    assert lines["64 latents"].y == (0.5, 0.4)
    assert lines["64 latents"].text == ("a", "b")
    assert lines["128 latents"].y == (0.3,)
    assert lines["64 latents"].error_y.array == pytest.approx((0.2, 0.2))
    assert lines["64 latents"].error_y.arrayminus == pytest.approx((0.1, 0.1))
    assert lines["best channel"].y == pytest.approx((0.4, 0.4))
    assert figure.layout.xaxis.type == "log"


def test_an_sae_with_the_l0_of_another_stands_beside_its_line(saes):
    control = drawn("control", 64, 4.01, 0.9)
    for name, values in (("probe_loss", lambda one: one.y), ("precision_recall", lambda one: one.x)):
        lines = {one.name: values(one) for one in figures([*saes, control])[name].data}
        assert lines["64 latents"] == (0.5, 0.4)
        assert lines["control"] == (0.9,)
    points = figures(saes)["precision_recall"]
    assert points.data[0].text == ("4", "8")
    assert points.layout.xaxis.type == "log"


def test_known_levels_stand_beside_ablation_sparsity(saes):
    levels = {
        one.name: one.y[0] for one in figures(saes)["ablation_sparsity"].data if one.name in ("Laplace", "Gaussian")
    }
    assert levels == {"Laplace": 0.5, "Gaussian": 2 / math.pi}


def test_the_zf_plot_has_its_bands_and_escapes_text(saes):
    figure = figures(saes)["zf"]
    top = max(saes[0].tables["zf"]["norm_x"])
    slopes = sorted(one.y[1] / top for one in figure.data if one.mode == "lines+text")
    assert slopes == pytest.approx(
        sorted([1, (1 / 1.25) ** 0.5, (1 / 1.5) ** 0.5, 0.5**0.5, (1 / 0.75) ** 0.5, 2**0.5])
    )
    assert figure.data[0].text[0] == "&lt;b>"


def test_the_density_spectrum_counts_every_latent_that_fired(saes):
    line = figures(saes[:1])["density"].data[0]
    assert sum(line.y) == pytest.approx(0.75)
    assert line.x[list(line.y).index(0.5)] == pytest.approx(0.01, rel=0.2)
    assert "25.0% silent" in line.name


def test_the_refined_ratio_and_readings(saes):
    made = figures(saes[:1])
    assert made["refinement"].data[0].y == pytest.approx((1.2, 1, 0.95))
    lines = {one.name: (one.x, one.y) for one in made["test_time"].data}
    assert lines["b, topk"] == ((2, 8), (0.5, 0.2))
    assert lines["b, own"] == ((4,), (0.3,))


def test_violins_end_at_the_99th_percentile_and_are_widest_where_values_are(saes):
    left, right = figures(saes[:1])["violin"].data
    top = torch.tensor(saes[0].tables["zf"]["nmse"]).quantile(0.99).item()
    assert max(left.y) == pytest.approx(top, rel=0.02)
    assert min(left.x) == pytest.approx(-0.4)
    assert max(right.x) == pytest.approx(0.4)
    assert right.yaxis == "y2"


def test_files_are_whole_and_work_without_a_network(saes, tmp_path):
    paths = write_figures(figures(saes), tmp_path)
    assert {path.name for path in paths} == {f"{name}.{ending}" for name in FIGURES for ending in ("html", "svg")}
    page = (tmp_path / "zf.html").read_text()
    assert 'src="plotly.min.js"' in page
    assert not re.search(r'src="https?:', page)
    assert (tmp_path / "plotly.min.js").stat().st_size > 1 << 20
    for name in FIGURES:
        root = ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
        assert root.tag == f"{SPACE}svg"
        assert "nan" not in (tmp_path / f"{name}.svg").read_text()


def test_svg_puts_points_where_the_axes_say():
    trace = {"x": [1, 100], "y": [0.0, 1.0], "mode": "markers+text", "marker": {"color": "red"},
             "name": "a & b", "text": ["", "here"], "error_y": {"array": [0.5, 0], "arrayminus": [0, 0]}}  # fmt: skip
    layout = {"xaxis": {"type": "log", "range": [0, 2]}, "yaxis": {"range": [0, 2]}, "title": {"text": "x < y"}}
    root = ElementTree.fromstring(svg({"data": [trace], "layout": layout}))
    circles = [(float(one.get("cx")), float(one.get("cy"))) for one in root.iter(f"{SPACE}circle")]
    assert circles[:2] == [(70, 420), (560, 230)]  # the last is the legend's
    texts = [one.text for one in root.iter(f"{SPACE}text")]
    assert "x < y" in texts
    assert "a & b" in texts
    assert "10" in texts
    assert "here" in texts
    bars = [one.get("d") for one in root.iter(f"{SPACE}path")]
    assert "M70.0 420.0L70.0 325.0" in bars


def paths(drawn):
    return [path.get("d") for path in ElementTree.fromstring(drawn).iter(f"{SPACE}path")]


def test_svg_breaks_lines_where_points_are_missing():
    trace = {"x": [0, 1, 2, 3, 4], "y": [0, 1, math.nan, 1, 0], "line": {"width": 3, "dash": "dot"}, "opacity": 0.5}
    drawn = svg({"data": [trace], "layout": {"xaxis": {}, "yaxis": {}}})
    (line,) = (path for path in paths(drawn) if path.count("L") > 1)
    assert line.count("M") == 2
    assert 'stroke-width="3" stroke-dasharray="2 3" stroke-opacity="0.5"' in drawn


def test_svg_puts_panels_beside_each_other():
    traces = [{"x": [0, 1], "y": [0, 1], "mode": "markers", "xaxis": f"x{n}", "yaxis": f"y{n}"} for n in ("", "2")]
    layout = {"width": 570, "height": 400, "xaxis": {"domain": [0, 0.4]}, "xaxis2": {"domain": [0.6, 1]}}
    layout |= {"yaxis": {}, "yaxis2": {"title": {"text": "up"}}, "annotations": [{"x": 0.2, "y": 1, "text": "first"}]}
    root = ElementTree.fromstring(svg({"data": traces, "layout": layout}))
    at = [float(dot.get("cx")) for dot in root.iter(f"{SPACE}circle")]
    assert 70 <= at[0] < at[1] <= 70 + 0.4 * 300
    assert 70 + 0.6 * 300 <= at[2] < at[3] <= 370
    words = {text.text: float(text.get("x")) for text in root.iter(f"{SPACE}text")}
    assert words["first"] == 70 + 0.2 * 300
    assert words["up"] == 70 + 0.6 * 300 - 52


def test_svg_keeps_circles_round_where_asked():
    trace = {"x": [-1, 1, 0, 0], "y": [0, 0, -1, 1], "mode": "markers"}
    layout = {"xaxis": {"visible": False}, "yaxis": {"scaleanchor": "x"}}
    drawn = svg({"data": [trace], "layout": layout})
    dots = [(float(d.get("cx")), float(d.get("cy"))) for d in ElementTree.fromstring(drawn).iter(f"{SPACE}circle")]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][1] - dots[3][1], abs=0.2)
    assert all(70 <= x <= 560 and 40 <= y <= 420 for x, y in dots[:4])
    assert paths(drawn) == []


def test_svg_shows_in_the_legend_what_a_trace_looks_like():
    line, band = {"x": [0, 1], "y": [0, 1], "name": "a"}, {"fill": "toself", "line": {"width": 0}, "opacity": 0.5}
    traces = [line | {"line": {"dash": "dash"}}, line | band | {"name": "b"}, line | {"mode": "markers", "name": "c"}]
    drawn = svg({"data": traces, "layout": {"xaxis": {}, "yaxis": {}}})
    assert 'h18" stroke="black" stroke-width="2" stroke-dasharray="6 4"' in drawn
    assert drawn.count('fill-opacity="0.2"') == 2  # the shape and its swatch
    assert drawn.count("<circle") == 3  # two points and their swatch


def test_axes_leave_out_what_they_cannot_show():
    axis = Axis([0.0, 1.0, 10.0], {"type": "log"}, (0, 100))
    assert axis.pixel(0.0) is None
    assert axis.pixel(None) is None
    assert axis.pixel(float("nan")) is None
    assert 0 < axis.pixel(1.0) < axis.pixel(10.0) < 100
    assert [text for _, text in Axis([0.0, 1.0], {}, (0, 100)).ticks()] == ["0", "0.5", "1"]
    assert [text for _, text in Axis([2.0, 2.0], {}, (0, 100)).ticks()]
    ticks = [text for _, text in Axis([9e10, 6e11], {"type": "log"}, (0, 100)).ticks()]
    assert ticks == ["10¹¹", "2·10¹¹", "3·10¹¹", "4·10¹¹", "5·10¹¹", "6·10¹¹"]
    assert [text for _, text in Axis([1e-6, 1e4], {"type": "log"}, (0, 100)).ticks()][::5] == ["10⁻⁶", "0.1", "10,000"]


def test_tables_come_back_as_they_were(tmp_path: Path):
    table = {"number": [1.0, 2.5, None], "text": ['a "b",\nc', "", "ünï"]}
    write_columns(tmp_path / "one.parquet", table)
    assert read_columns(tmp_path / "one.parquet") == table
    write_csv(tmp_path / "one.csv", table)
    with open(tmp_path / "one.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert lines == [["number", "text"], ["1.0", 'a "b",\nc'], ["2.5", ""], ["", "ünï"]]
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet is damaged"):
        read_columns(tmp_path / "bad.parquet")
