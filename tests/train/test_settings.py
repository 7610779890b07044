"""Settings from plain values: every component that is found comes back as it was; what is wrong is one line."""

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from saelab.core.components import Component
from saelab.core.settings import classes_in, component_kinds
from saelab.models.harvest_config import HarvestConfig
from saelab.models.subject import Subject
from saelab.sae.activations import BatchTopK, TopK
from saelab.train import SweepConfig, TrainConfig

NEEDED = {"d_in": 24, "n_features": 16, "l0": 2.0, "setting": "activation.k", "start": 1.0, "steps": 3}
FOUND = [(kind, variant) for kind in component_kinds(TrainConfig) for variant in kind.variants().values()]


def changed(variant: type[Component]) -> Component:
    """A component whose numbers are not the defaults."""
    found = variant(**{key: value for key, value in NEEDED.items() if key in variant.options()})
    for key in variant.options():
        value = getattr(found, key)
        if isinstance(value, int | float):
            object.__setattr__(found, key, not value if isinstance(value, bool) else value * 0.5 + 0.11)
    whole = {key: int(getattr(found, key)) for key, hint in get_type_hints(variant.__init__).items() if hint is int}
    for key, value in whole.items():
        object.__setattr__(found, key, value)
    return found


def holding(kind: type[Component], part: Component) -> TrainConfig:
    """A config in which this component stands wherever one of its kind may."""
    config = TrainConfig()
    for owner in (config, config.sae, config.trainer):
        for name, hint in get_type_hints(type(owner)).items():
            if kind in classes_in(hint):
                setattr(owner, name, [part] if "Sequence" in str(hint) else part)
    return config


@pytest.mark.parametrize(("kind", "variant"), FOUND, ids=[variant.__name__ for _, variant in FOUND])
def test_every_component_comes_back_from_a_config(kind: type[Component], variant: type[Component]) -> None:
    part = changed(variant)
    settings = holding(kind, part).settings()
    assert variant.__name__ in str(settings)
    back = TrainConfig.from_settings(yaml.safe_load(yaml.safe_dump(settings)))
    assert back.settings() == settings
    assert part.config() in [one.config() for one in parts_of(back) if type(one) is variant]


def parts_of(value: Any) -> list[Component]:
    if isinstance(value, Component):
        return [value]
    inside = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return [part for one in inside for part in parts_of(one)]


def test_every_kind_of_component_of_a_run_is_found() -> None:
    names = {kind.__name__ for kind in component_kinds(TrainConfig)}
    assert names >= {"Activation", "Loss", "Dictionary", "Optimizer", "Algorithm", "Ramp", "World"}


@pytest.mark.parametrize(
    "name", ["TopK", "saelab.sae.activations.TopK", "saelab.sae.activations.topk.TopK", "saelab.a.room.before.TopK"]
)
def test_a_component_is_known_by_its_name_and_by_a_path_of_ours(name: str) -> None:
    for written in ({"class_path": name, "init_args": {"k": 5}}, {"class_path": name}, name):
        found = TrainConfig.from_settings({"sae": {"activation": written}}).sae.activation
        assert type(found) is TopK
        assert found.k == (5 if "init_args" in written else 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stor": "acts"}, "unknown option 'stor'; did you mean 'store'?"),
        ({"trainer": {"bach": 3}}, "unknown option 'bach' of trainer; did you mean 'batch'?"),
        ({"live": {"tex": "x"}}, "unknown option 'tex' of live; did you mean 'text'?"),
        ({"rows": "many"}, "rows must be a whole number, got 'many'"),
        ({"rows": 3.5}, "rows must be a whole number, got 3.5"),
        ({"rows": None}, "rows must be a whole number, got None"),
        ({"trainer": {"lr": "fast"}}, "trainer.lr must be a number or null, got 'fast'"),
        ({"trainer": {"lr": float("nan")}}, "trainer.lr must be a number or null, got nan"),
        ({"trainer": {"bf16": 0}}, "trainer.bf16 must be true or false, got 0"),
        ({"live": {"average": "word"}}, "live.average must be 'document' or null, got 'word'"),
        ({"sae": None}, "sae must be a table of settings, got None"),
        ({"sae": {"losses": "AuxK"}}, "sae.losses must be a list of values, got 'AuxK'"),
        ({"sae": {"activation": 3}}, "sae.activation must be a table of settings, got 3"),
        ({"sae": {"activation": {}}}, "sae.activation needs a class_path, the name of a class, got None"),
        ({"sae": {"activation": "TopQ"}}, "sae.activation: unknown component 'TopQ'; did you mean 'TopK'?"),
        ({"sae": {"activation": "other.TopK"}}, "sae.activation: unknown component 'other.TopK'; did you mean 'TopK'?"),
        ({"sae": {"losses": ["TopK"]}}, "sae.losses: unknown component 'TopK'"),
        (
            {"sae": {"activation": {"class_path": "TopK", "init_args": {"kk": 3}}}},
            "unknown option 'kk' of sae.activation: TopK; did you mean 'k'?",
        ),
        (
            {"sae": {"activation": {"class_path": "TopK", "init_args": {"k": None}}}},
            "sae.activation: TopK: k must be a whole number, got None",
        ),
        (
            {"sae": {"activation": {"class_path": "TopK", "init_args": None}}},
            "sae.activation: TopK must be a table of settings, got None",
        ),
        ({"world": "SparseWorld"}, "world: SparseWorld needs d_in, n_features, l0"),
        ({"live": {"class_path": "trapmodule.Trap"}}, "live must be a Subject, got a trapmodule.Trap"),
    ],
)
def test_what_is_wrong_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        TrainConfig.from_settings(settings)
    assert "\n" not in str(caught.value)


def test_numbers_are_of_the_kind_that_a_setting_has() -> None:
    config = TrainConfig.from_settings({"trainer": {"lr": "1e-3", "clip": 1}, "sae": {"activation": BATCH}})
    assert (config.trainer.lr, type(config.trainer.clip)) == (0.001, float)
    assert isinstance(config.sae.activation, BatchTopK)
    assert type(config.sae.activation.k) is float
    assert type(TrainConfig.from_settings({"rows": 3}).rows) is int


BATCH = {"class_path": "BatchTopK", "init_args": {"k": 4}}


def test_an_earlier_subject_with_its_class_opens() -> None:
    live = {"class_path": "saelab.models.subject.Subject", "init_args": {"text": "here"}}
    assert TrainConfig.from_settings({"live": live}).live == Subject(text="here")


@pytest.mark.parametrize(
    "config",
    [
        HarvestConfig(Subject(site="a.b", piece=3), tokens=5, dtype="fp32"),
        SweepConfig(TrainConfig(store="acts"), {"sae.activation": [TopK(k=3), "ReLU"], "trainer.lr": (1e-3, 2)}),
    ],
)
def test_what_stands_beside_the_others_comes_back(config: HarvestConfig | SweepConfig, tmp_path: Path) -> None:
    settings = yaml.safe_load(yaml.safe_dump(config.settings()))
    assert "subject" not in settings
    assert "base" not in settings
    assert type(config).from_settings(settings).settings() == settings
    for key, near in (("tokns", "tokens"), ("sit", "site"), ("stor", "store"), ("vari", "vary")):
        if near in settings:
            with pytest.raises(ValueError, match=f"'{key}'; did you mean '{near}'"):
                type(config).from_settings({key: 1})
