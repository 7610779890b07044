"""Copies that need no server, as files."""

import json
import re

import pytest

from saelab.explorer import bundle, export
from saelab.explorer.pages import latents, pages
from saelab.explorer.workspace import Workspace


@pytest.fixture(scope="module")
def folder(workspace, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "site"
    export.folder(workspace, out, show=False)
    return out


def put(file) -> object:
    (found,) = re.findall(r"^SAELAB_PUT\(\"[^\"]+\", (.*)\);$", file.read_text(encoding="utf-8"))
    return json.loads(found)


def test_a_folder_holds_every_latent_as_the_page_has_it(workspace, folder):
    words_of = [put(folder / "data" / "run0" / f"latents-{shard}.js") for shard in range(3)]
    for latent in (0, 17, 47):
        shard = words_of[latent // 16]
        page, own = shard["pages"][latent % 16], latents.latent(workspace, "run0", latent, {})
        for kind, windows in own["examples"].items():
            for window, kept in zip(windows, page["examples"][kind], strict=True):
                assert [shard["words"][word] for word in kept["tokens"]] == window["tokens"]
                assert kept["values"] == window["values"]
        assert page["numbers"] == own["numbers"]
    table = put(folder / "data" / "run0" / "table.js")
    assert table["columns"]["id"] == list(range(48))
    assert len(put(folder / "data" / "run0" / "contexts.js")) == 48


def test_nothing_in_a_folder_asks_for_anything_elsewhere(folder):
    for file in (
        *folder.glob("*.html"),
        folder / "app.js",
        folder / "source.js",
        folder / "theme.js",
        folder / "style.css",
    ):
        found = re.findall(r"https?://[^\s\"')]+", file.read_text(encoding="utf-8"))
        assert set(found) <= {"http://www.w3.org/2000/svg"}, file


def test_a_folder_that_holds_something_is_left_alone(workspace, folder):
    with pytest.raises(ValueError, match="not an empty folder"):
        export.folder(workspace, folder)


def test_some_latents_only(workspace, tmp_path):
    export.folder(workspace, tmp_path / "some", [3, 40], show=False)
    assert put(tmp_path / "some" / "data" / "run1" / "table.js")["columns"]["id"] == [3, 40]
    with pytest.raises(ValueError, match="run0 has no latent 48; it has 48"):
        export.folder(workspace, tmp_path / "none", [48], show=False)


def test_a_single_file_is_complete(workspace, tmp_path):
    export.pages(workspace, tmp_path, [5])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run0-latent-5.html", "run1-latent-5.html"]
    text = (tmp_path / "run0-latent-5.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!#)", text.partition("<script id")[0])
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data) == latents.latent(workspace, "run0", 5, {}) | {"others": []}


def test_neuronpedias_rows_have_its_fields(runs, workspace, tmp_path):
    one = Workspace(runs[:1])
    export.neuronpedia(one, tmp_path / "n.jsonl", [2, 9])
    rows = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["index"] for row in rows] == ["2", "9"]
    own = latents.latent(one, "run0", 9, {})
    row = rows[1]
    wanted = {
        "frac_nonzero", "maxActApprox", "pos_str", "pos_values", "neg_str", "neg_values", "freq_hist_data_bar_heights",
        "freq_hist_data_bar_values", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "topkCosSimIndices",
        "topkCosSimValues", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
        "correlated_neurons_indices", "correlated_features_indices", "decoder_weights_dist",
        "hasVector", "vector", "hookName",
    }  # fmt: skip
    assert wanted <= set(row)
    assert row["frac_nonzero"] == own["numbers"]["density"]
    assert sum(row["freq_hist_data_bar_heights"]) == own["numbers"]["count"]
    assert len(row["vector"]) == 256
    assert sum(value**2 for value in row["vector"]) == pytest.approx(1, abs=1e-3)
    for one_ in row["activations"]:
        assert len(one_["tokens"]) == len(one_["values"])
        assert one_["values"][one_["maxValueTokenIndex"]] == one_["maxValue"]
    inside = [one_ for one_ in row["activations"] if "binMin" in one_]
    assert all(
        one_["binMin"] * 0.999 <= one_["values"][one_["qualifyingTokenIndex"]] <= one_["binMax"] * 1.001
        for one_ in inside
    )
    contains = {one_["binMin"]: one_["binContains"] for one_ in inside}
    assert sum(contains.values()) == pytest.approx(1, abs=1e-2)
    with pytest.raises(ValueError, match="of one SAE, 2 are loaded"):
        export.neuronpedia(workspace, tmp_path / "m.jsonl")


def test_every_module_is_in_the_bundle_once():
    code = bundle.script(page.module for page in pages())
    for file in (bundle.WEB / "static").glob("*.js"):
        if file.stem != "theme":
            assert code.count(f"modules.{file.stem} = ") == 1, file.stem
    assert not re.search(r"^(import|export) ", code, re.MULTILINE)
