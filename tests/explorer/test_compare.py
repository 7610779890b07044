"""A result of `saelab match` on the Compare page, from either side."""

import base64

import numpy as np
import pytest
from explorer.world import served

from saelab.analysis.match import KINDS, match
from saelab.explorer.pages.compare import compare
from saelab.explorer.workspace import Workspace
from saelab.sae.sae import load


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
