"""A result of `saelab match` on the Compare page, from either side."""

import base64
import shutil

import numpy as np
import pytest
from explorer.world import served

from saelab.analysis.match import KINDS, match
from saelab.core.run import Run
from saelab.explorer.pages.compare import compare
from saelab.explorer.workspace import Workspace
from saelab.sae.files import load


@pytest.fixture(scope="module")
def matched(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("matched")
    found = match(load(runs[0]), load(runs[1]), tuple(map(str, runs)), threshold=0.3)
    found.write(folder)
    return folder, found


def numbers(packed, kind):
    return np.frombuffer(base64.b64decode(packed), kind)


@pytest.mark.parametrize("turned", [False, True])
def test_a_result_of_matching_is_the_pages_whichever_side_comes_first(workspace, runs, matched, turned):
    folder, truth = matched
    names = {"a": "run1", "b": "run0"} if turned else {"a": "run0", "b": "run1"}
    found = compare(Workspace([*runs, folder]), names)["match"]
    for side, other in (("a", truth.b), ("b", truth.a)) if turned else (("a", truth.a), ("b", truth.b)):
        for key in ("partner", "group", "nearest", "kind"):
            assert numbers(found[side][key], np.int32).tolist() == getattr(other, key).tolist()
        for key in ("cosine", "nearest_cosine"):
            assert np.allclose(numbers(found[side][key], np.float32), getattr(other, key).numpy(), equal_nan=True)
    assert found["curve_of"] == ("b" if turned else "a")
    assert found["kinds"] == KINDS
    assert found["threshold"] == 0.3


def test_a_result_of_other_saes_is_not_theirs(runs, matched, tmp_path, workspace):
    assert compare(workspace, {})["match"] is None
    matched[1].write(tmp_path)
    file = tmp_path / "match.json"
    file.write_text(file.read_text().replace('"n_a": 48', '"n_a": 96'))
    assert compare(Workspace([*runs, tmp_path]), {})["match"] is None


def test_the_page_sorts_as_matched_or_by_the_slider(chromium, runs, matched):
    folder, truth = matched
    with served(Workspace([*runs, folder])) as site:
        chromium.errors.clear()
        for width in (390, 1280):
            chromium.resize(width)
            chromium.open(site.base + "/compare")
            chromium.until("document.querySelectorAll('.plot .main-svg').length >= 2")
            assert chromium.js("document.documentElement.scrollWidth") <= width
        counts = chromium.js("[...document.querySelectorAll('tbody')[0].rows].map((row) => row.cells[1].innerText)")
        assert [int(one.split()[0]) for one in counts] == list(truth.a.counts().values())
        shared = truth.b.of_kind("shared").tolist()
        chromium.js("document.querySelectorAll('tbody')[0].rows[0].cells[2].querySelector('a').click()")
        links = chromium.js(
            "[...document.querySelectorAll('.thirds .line')].map((one) => one.innerText.split('\\n')[0])"
        )
        assert {int(one) for one in links} == set(shared[:60])
        partner = chromium.js("document.querySelector('.thirds .line a.small').innerText")
        assert int(partner) == truth.b.partner[int(links[0])]
        chromium.js(
            "[...document.querySelectorAll('button')].find((one) => one.innerText === 'by nearest cosine').click()"
        )
        assert "classes=cosine" in chromium.js("location.href")
        assert chromium.js("document.querySelectorAll('tbody')[0].rows.length") == 4
        chromium.settle()
        assert chromium.errors == []


def test_differences_of_scores_have_error_bars_to_scale(chromium, runs, tmp_path):
    copies = []
    for run, (fvu, l0) in zip(runs, ((0.3, 10.0), (0.2, 10.1)), strict=True):
        copies.append(shutil.copytree(run, tmp_path / run.name))
        score = {"n": 9, "unit": ""}
        scores = {"fvu": score | {"value": fvu, "low": fvu - 0.03, "high": fvu + 0.03}}
        scores |= {"l0": score | {"value": l0, "low": l0 - 0.4, "high": l0 + 0.4}}
        Run(copies[-1]).write_scores(scores | {"alone": score | {"value": 1.0, "low": None, "high": None}})
    with served(Workspace(copies)) as site:
        lines = {line["metric"]: line for line in site.json("/compare.json")["scores"]}
        assert lines["fvu"]["difference"] == pytest.approx(-0.1)
        assert lines["fvu"]["margin"] == pytest.approx(0.03 * 2**0.5)
        assert "margin" not in lines["alone"]
        chromium.resize(1280)
        chromium.open(site.base + "/compare")
        found = chromium.js(
            "[...document.querySelectorAll('svg[role=img]')].map((one) =>"
            " [one.querySelector('circle').cx.baseVal.value,"
            " one.querySelector('rect').x.baseVal.value, one.querySelector('rect').width.baseVal.value,"
            " one.querySelector('.warm') !== null])"
        )
    (fvu, fvu_low, fvu_width, fvu_apart), (l0, l0_low, l0_width, l0_apart) = found
    assert (fvu_apart, l0_apart) == (True, False)
    assert fvu_low + fvu_width < 60 < l0_low + l0_width
    assert l0_low < 60 < l0
    assert (60 - fvu) / fvu_width == pytest.approx(0.1 / (2 * 0.03 * 2**0.5), rel=1e-3)
