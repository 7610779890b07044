"""What figures of comparisons draw: values, axes, what hovers."""

import math

import pytest

from saelab.figures.comparisons import bars_figure, clouds_figure, kinds_figure, path_figure, scatter_figure


def test_changes_of_either_sign_are_told_apart_over_orders_of_magnitude():
    delta = [-2e-4, 0.0, 3e-5, 5e-2]
    figure = scatter_figure([0.1, 0.2, 0.3, 0.9], delta, ["novel", "undecided", "undecided", "reconstruction"], "t")
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn) == ["undecided (2)", "reconstruction (1)", "novel (1)"]
    axis = figure.layout.yaxis
    for word, place, value in (("novel", 0, -2e-4), ("undecided", 1, 3e-5), ("reconstruction", 0, 5e-2)):
        name = next(own for own in drawn if own.startswith(word))
        assert drawn[name].customdata[place][1] == value
        near = min(range(len(axis.tickvals)), key=lambda n: abs(float(axis.ticktext[n]) - value))
        far = abs(axis.tickvals[near] - drawn[name].y[place])
        assert far < 1.7  # within a factor of five or so of its nearest tick
    assert [float(text) for text in axis.ticktext] == pytest.approx([-1e-4, 0, 1e-4, 1e-3, 1e-2])
    assert list(axis.tickvals) == sorted(axis.tickvals)
    assert scatter_figure([0.5], [0.0], ["undecided"], "t").layout.yaxis.ticktext == ("0",)
    uneven = scatter_figure([0.5] * 4, [-7e-4, 1e-3, 1e-3, 1e-2], ["undecided"] * 4, "t", 0.4)
    assert list(uneven.layout.yaxis.ticktext) == ["-0.0005", "0", "0.001", "0.01"]
    assert [note.text for note in uneven.layout.annotations] == ["cosine 0.4"]
    crowd = scatter_figure([0.5] * 12_000, [1.0] * 12_000, ["novel"] * 12_000, "t")
    assert (len(crowd.data[2].x), crowd.data[2].name) == (4000, "novel (12,000)")


def test_a_path_has_its_phases_in_their_order_and_sizes_on_its_axis():
    path = {"pair": [0] * 4, "phase": ["small", "insert", "remove", "finish"], "n_latents": [4, 6, 5, 5],
            "fvu": [0.5, 0.6, 0.4, 0.3]}  # fmt: skip
    figure = path_figure(path, [{"n_latents": 4, "fvu": 0.5}, {"n_latents": 5, "fvu": 0.3}], "t")
    assert [trace.name for trace in figure.data] == ["insert", "remove", "finish", "trained"]
    assert list(figure.data[1].x) == [6, 5]  # from where the phase before ended
    assert list(figure.layout.xaxis.ticktext) == ["4", "5"]
    assert figure.layout.xaxis.range[1] > math.log10(6)


def test_pairs_and_clouds_name_what_they_show():
    pairs = {"left": [0, 1], "right": [2, 3], "cosine": [0.8, 0.9], "overlap": [0.0, 0.5]}
    figure = kinds_figure(pairs | {"kind": ["disjoint", "overlapping"]}, 0.7, "t")
    assert {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data} == {
        "disjoint (1)": (0.8, 0.0), "overlapping (1)": (0.9, 0.5)
    }  # fmt: skip
    points = {"cluster": [0, 0, 2], "row": [5, 6, 7], "latent": [1, 2, 3], "value": [1.0, 2.0, 3.0],
              **{axis: [0.0, 1.0, 2.0] for axis in "xyz"},
              "before": ["<b>", "", ""], "at": ["x", "y", "z"], "after": ["", "", ""]}  # fmt: skip
    clusters = [{"size": size, "kind": kind} for size, kind in ((2, "tiling"), (5, "mixed"), (9, "absorption"))]
    figure = clouds_figure(points, clusters, "t")
    assert [len(trace.x) for trace in figure.data] == [2, 1]
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["cluster 0: 2 latents, tiling", "cluster 2: 9 latents, absorption"]
    assert [trace.visible for trace in figure.data] == [True, False]
    assert figure.data[0].text[0].startswith("&lt;b&gt;<b>«x»</b>")
    bar = figure.data[0].marker.colorbar
    assert (list(bar.tickvals), list(bar.ticktext)) == ([0, 1], [1, 2])
    assert list(figure.data[0].marker.color) == [0, 1]


def test_bars_say_their_heights():
    assert list(bars_figure({"a": 0.0287, "b": -0.5}, "t", "y").data[0].text) == ["0.0287", "-0.5"]
