"""Settings of worlds: each is described, and a wrong one is named."""

import inspect

import pytest

from saelab.data.synthetic import SparseWorld, World


@pytest.mark.parametrize("kind", World.variants().values(), ids=World.variants())
def test_every_setting_is_described(kind):
    for option in kind.options():
        assert f"\n    {option}: " in inspect.getdoc(kind), option
        assert f"\n        {option}: " in kind.__doc__, option


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("SparseWorld", {"d_in": 0}, "d_in must be at least 1, the dimension of a feature; got 0"),
        ("SparseWorld", {"n_features": 0}, "n_features must be at least 1; got 0"),
        ("SparseWorld", {"l0": 40.0}, "l0 must be above 0 and at most 36 "),
        ("SparseWorld", {"alpha": -2.0}, "alpha must be from -1"),
        ("SparseWorld", {"spread": 1.1}, "spread must be from 0 to 1, got 1.1"),
        ("SparseWorld", {"noise": -0.1}, "noise must be a number of at least 0, got -0.1"),
        ("SparseWorld", {"noise": float("nan")}, "noise must be a number, got nan"),
        ("SparseWorld", {"noise": float("inf")}, "noise must be a number, got inf"),
        ("SparseWorld", {"seed": -1}, "seed must be at least 0, got -1"),
        ("SparseWorld", {"orthogonal": True}, "orthogonal needs n_features <= d_in, got 40 and 16"),
        ("SparseWorld", {"n_featurs": 3}, "unknown key 'n_featurs' of world SparseWorld; did you mean 'n_features'?"),
        ("CorrelatedWorld", {"group": 1}, "group must be at least 2 features, got 1"),
        ("CorrelatedWorld", {"group": 3}, "n_features must be a multiple of 3, "),
        ("CorrelatedWorld", {"chance": 0.0}, "chance must be above 0 and at most 1, got 0.0"),
        ("ExclusiveWorld", {"group": 0}, "group must be at least 2 features, got 0"),
        ("HierarchicalWorld", {"branching": []}, r"branching must be a list .*, got \[\]"),
        ("HierarchicalWorld", {"branching": 3}, "branching must be a list of .*, got 3"),
        ("HierarchicalWorld", {"branching": [4, 0]}, "branching must be numbers of children"),
        ("HierarchicalWorld", {"chance": 0.5, "exclusive": True}, "chance of each of 3 exclusive children"),
        ("ManifoldWorld", {"radial": -0.1}, "radial must be from 0 to 1, got -0.1"),
        ("ManifoldWorld", {"shapes": []}, r"shapes must be a list of names, got \[\]"),
        ("ManifoldWorld", {"shapes": "circle"}, "shapes must be a list of texts, got 'circle'"),
        ("ManifoldWorld", {"shapes": ["cube"]}, "unknown shape 'cube' in shapes"),
        ("ManifoldWorld", {"shapes": ["line", "torus"], "d_in": 3}, "d_in must be at least 4, .* got 3"),
        ("TorusWorld", {}, "unknown world 'TorusWorld'"),
    ],
)
def test_a_wrong_setting_is_named(name, settings, message):
    with pytest.raises(ValueError, match=message.replace("'?", r"'\?")):
        World.build({"name": name, "d_in": 16, "n_features": 40, "l0": 3.0} | settings)


@pytest.mark.parametrize("key", ["d_in", "n_features", "seed"])
def test_sizes_are_whole_numbers(key):
    with pytest.raises(ValueError, match=f"{key} must be a whole number, got 50.0"):
        SparseWorld(**({"d_in": 16, "n_features": 40, "l0": 3.0} | {key: 50.0}))
