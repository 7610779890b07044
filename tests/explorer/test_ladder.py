"""Results of `saelab scaling` on the Scaling page: what the files say, and what is drawn."""

import json

import numpy as np
import pytest
from explorer.results import THETA, allocation, diagnosis, laws, put
from explorer.world import served

from saelab.explorer.pages.ladder import ladder
from saelab.explorer.workspace import Workspace
from saelab.scaling.files import read_fit
from saelab.scaling.laws.joint import JointLaw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return laws(tmp_path_factory.mktemp("laws"))


def test_a_law_is_shown_with_its_interval_within_and_beyond_its_cells(folder):
    found = ladder(Workspace([folder]))
    assert [one["name"] for one in found["law"]] == ["law-joint", "law-tokens"]
    joint, tokens = found["law"]
    assert [line["others"] for line in joint["lines"]] == [[4.0], [8.0], [16.0]]
    line = joint["lines"][1]
    assert (line["x"][0], line["seen_to"]) == (32, 512)
    assert line["x"][-1] == pytest.approx(4 * 512)
    assert line["x"] == sorted(line["x"])
    exact = JointLaw().value(THETA, np.array([[n, 8.0] for n in line["x"]]))
    assert line["y"] == pytest.approx(exact.tolist(), rel=0.02)
    _, low, high = read_fit(folder / "law-joint.json").predict(np.array([[line["x"][40], 8.0]]))
    assert (line["low"][40], line["high"][40]) == (low[0], high[0])
    assert all(a <= b <= c for a, b, c in zip(line["low"], line["y"], line["high"], strict=True))
    assert [cell["y"] for cell in joint["cells"]][:3] == pytest.approx(
        JointLaw().value(THETA, np.array([[32.0, 4], [32, 8], [32, 16]])).tolist()
    )
    assert len(joint["held_out"]["cells"]) == 3
    assert joint["notes"] == ["a note"]
    assert tokens["lines"][0]["others"] == []
    assert set(joint["parameters"]["alpha"]) == {"value", "low", "high", "why"}
    assert found["plan"][0]["rows"][0]["fvu_low"] == 0.15


def test_single_files_are_results_and_equal_names_are_told_apart(tmp_path, folder):
    (tmp_path / "other").mkdir()
    one, two = allocation(tmp_path / "law-joint.json"), allocation(tmp_path / "other" / "a.json")
    found = ladder(Workspace([folder, one, two]))
    assert {part["name"] for part in found["allocation"]} == {f"{tmp_path.name}/law-joint", "a"}
    assert f"{folder.name}/law-joint" in {part["name"] for part in found["law"]}
    assert found["allocation"][0]["allocation"]["expected"] == pytest.approx([300, 300 * 10**-1.5, 0.3])


def test_a_diagnosis_knows_its_run_where_it_is_loaded(tmp_path, runs):
    here = diagnosis(tmp_path / "here.json", str(runs[1]))
    moved = diagnosis(tmp_path / "moved.json", "/elsewhere/run1")
    foreign = diagnosis(tmp_path / "foreign.json", "/elsewhere/run9")
    other = json.loads(moved.read_text()) | {"n_latents": 4096}
    sized = put(tmp_path / "sized.json", other)
    found = ladder(Workspace([*runs, here, moved, foreign, sized]))["diagnosis"]
    assert [one["run"] for one in found] == ["run1", "run1", None, None]


def test_a_damaged_file_is_named_and_the_others_are_shown(tmp_path, folder):
    broken = put(tmp_path / "plan.json", {"format": 1, "kind": "plan"})
    newer = put(tmp_path / "law-x.json", {"format": 99, "kind": "law", "rival": None})
    found = ladder(Workspace([folder, broken, newer]))
    assert len(found["law"]) == 2
    said = [one["error"] for one in found["damaged"]]
    assert said[0] == f"{broken}: budget: expected a table, got nothing; restore it from a copy or make it again"
    assert "law-x.json" in said[1]
    with pytest.raises(ValueError, match="neither a run.*`scaling`"):
        Workspace([put(tmp_path / "else.json", {"kind": "other"})])


def test_the_page_draws_them(chromium, runs, folder, tmp_path):
    files = [allocation(tmp_path / "a.json"), diagnosis(tmp_path / "d.json", str(runs[0]))]
    with served(Workspace([*runs, folder, *files])) as site:
        assert len(site.json("/scaling.json")["results"]["law"]) == 2
        chromium.errors.clear()
        for width in (1280, 390):
            chromium.resize(width)
            chromium.open(site.base + "/scaling?law=law-tokens")
            chromium.until("document.querySelectorAll('.plot .main-svg').length >= 10")
            assert chromium.js("document.documentElement.scrollWidth") <= width
        said = chromium.js("document.getElementById('main').innerText")
        for words in ("TokensLaw", "pathological", "7 min", "a guess: <b>far</b>", "rank^-1.5"):
            assert words in said
        chromium.js(
            "(() => { const one = document.querySelector('select[aria-label=law]'); one.value = 'law-joint';"
            " one.dispatchEvent(new Event('change')); })()"
        )
        chromium.until("document.getElementById('main').innerText.includes('JointLaw')")
        assert "law=law-joint" in chromium.js("location.href")
        chromium.settle()
        assert chromium.errors == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "other"}, None),
        ({"allocation": {"rank": [], "count": []}}, "allocation: expected as many ranks, from 1 on, as counts"),
        ({"allocation": {"rank": [0], "count": [1]}}, "allocation: expected as many ranks, from 1 on, as counts"),
        ({"allocation": {"rank": "x", "count": [1]}}, "allocation.rank: expected a list of whole numbers, got"),
        ({"theory": {"n_i": None}}, "theory.regime: expected a text, got nothing"),
        ({"rows": [{}]}, "rows[0].latents: expected a whole number, got nothing"),
    ],
)
def test_what_an_allocation_lacks_is_said(tmp_path, runs, change, words):
    path = allocation(tmp_path / "a.json")
    put(path, json.loads(path.read_text()) | change)
    if words is None:
        with pytest.raises(ValueError, match="neither a run, a saved SAE or a result"):
            Workspace([path])
        return
    (said,) = ladder(Workspace([path]))["damaged"]
    assert said["error"].startswith(f"{path}: {words}")


def test_what_a_diagnosis_lacks_is_said(tmp_path, runs):
    path = diagnosis(tmp_path / "d.json", str(runs[0]))
    for key in json.loads(path.read_text()).keys() - {"kind", "format", "sae", "typical_firings"}:
        part = put(tmp_path / "part.json", {k: v for k, v in json.loads(path.read_text()).items() if k != key})
        (said,) = ladder(Workspace([part]))["damaged"]
        assert said["error"].startswith(f"{part}: {key}: expected ")
