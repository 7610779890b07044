"""Every page as HTML and as JSON, what it says against the SAE itself, and errors that say what is wrong."""

import json
import re
import sys
import threading

import numpy as np
import pytest
import torch
from explorer.world import ADDRESSES, NASTY, served

from saelab.data.store import Store
from saelab.explorer import pages as explorer_pages
from saelab.explorer.bundle import WEB
from saelab.explorer.pages import latents, pages, routes
from saelab.explorer.pages import runs as runs_page
from saelab.explorer.search import Query, parse_filters, place_of
from saelab.sae.files import read_config

STATIC = WEB / "static"


def shell_of(body: bytes) -> dict:
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', body.decode(), re.DOTALL)
    return json.loads(found)


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_page_and_its_json_are_the_same(site, name):
    path = ADDRESSES[name]
    status, headers, body = site.ask(path)
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    data = site.json(f"{path}.json" if path != "/" else "/index.json")
    assert shell_of(body) == data
    assert data["page"] == name


def test_records_of_pages_name_what_is_there():
    assert len({(one.path, one.method) for one in routes()}) == len(routes())
    drawn = {}
    for module in {page.module for page in pages()}:
        (found,) = re.findall(r"^export const draw = \{(.*)\};$", (STATIC / f"{module}.js").read_text(), re.MULTILINE)
        drawn |= {part.partition(":")[0].strip(): module for part in found.split(",")}
    assert drawn == {page.name: page.module for page in pages()}
    tabs = {page.name for page in pages() if page.title}
    assert all((page.parent in tabs) is (page.name not in tabs) for page in pages())


def test_a_page_is_one_new_file(workspace, tmp_path, monkeypatch):
    (tmp_path / "hello.py").write_text(
        "from saelab.explorer.route import Page\n"
        "ROUTES = [Page('/run/{name}/hello', lambda w, r: {'page': 'hello', 'title': r.name, 'n': r.number('n')},"
        " name='hello', title='Hello', module='hello')]\n"
    )
    try:
        with monkeypatch.context() as patch:
            patch.setattr(explorer_pages, "__path__", [*explorer_pages.__path__, str(tmp_path)])
            routes.cache_clear()
            with served(workspace) as site:
                assert site.json("/run/run0/hello.json?n=7") == {"page": "hello", "title": "run0", "n": 7}
                body = site.ask("/run/run0/hello?n=7")[2].decode()
    finally:
        routes.cache_clear()
        sys.modules.pop("saelab.explorer.pages.hello", None)
    (tabs,) = re.findall(r'<script id="pages" type="application/json">(.*?)</script>', body)
    record = {"name": "hello", "path": "/run/{name}/hello", "module": "hello", "title": "Hello", "parent": None}
    assert json.loads(tabs) == [*(page.record for page in pages()), record]
    assert '<link rel="modulepreload" href="/web/hello.js">' in body


def busy(site) -> int:
    return site.json("/run/run0/latents.json?sort=count&desc=1")["table"]["rows"][0]["id"]


def test_examples_are_the_texts_tokens_and_the_saes_values(site, workspace, runs):
    latent = busy(site)
    found = site.json(f"/run/run0/latent/{latent}.json")
    store, member = Store(runs[0].parent / "acts"), workspace["run0"]
    rows = store.rows(0)[:4000].float()
    with torch.no_grad():
        values = member.sae.encode(rows).dense()[:, latent].numpy()
    columns, spelling = store.columns(0), workspace.model(member).token_text
    for one in found["examples"]["top"][:4]:
        row = one["row"]
        assert one["value"] == pytest.approx(values[row], rel=1e-3)
        around = range(max(0, row - 16), min(4000, row + 17))
        own = [r for r in around if columns["document"][r] == columns["document"][row]]
        units = spelling.of_ids(columns["token"][own].tolist(), begins=False).units()
        assert one["tokens"] == [unit.text for unit in units]
        assert "".join(one["tokens"]) in (runs[0].parent / "text" / one["document"]).read_text()
        merged = [max(values[own[unit.first : unit.last]], key=abs) for unit in units]
        assert np.allclose(one["values"], merged, rtol=1e-3, atol=1e-6)
        assert own.index(row) in range(units[one["focus"]].first, units[one["focus"]].last)
        assert one["place"] == f"{one['document']}:{one['line']}"
    assert found["numbers"]["count"] == (values != 0).sum()
    wider = site.json(
        f"/run/run0/latent/{latent}/context.json?row={found['examples']['top'][0]['row']}&before=60&after=9"
    )
    assert len(wider["example"]["tokens"]) > len(found["examples"]["top"][0]["tokens"]) - 8
    more = site.json(f"/run/run0/latent/{latent}/examples.json?kind=top&offset=2")
    assert [one["row"] for one in more["examples"]][:3] == [one["row"] for one in found["examples"]["top"]][2:5]


def test_the_table_sorts_filters_and_searches(site, workspace):
    rows = [dict(row) for row in workspace["run0"].database.all("SELECT * FROM latents")]
    assert len(rows) == 48
    for name in ("density", "largest", "cosine"):
        for desc in (0, 1):
            found = site.json(f"/run/run0/latents.json?sort={name}&desc={desc}&limit=7&offset=3")["table"]
            ordered = sorted(rows, key=lambda row: (row[name] * (-1 if desc else 1), row["id"]))
            assert [row["id"] for row in found["rows"]] == [row["id"] for row in ordered[3:10]]
            assert found["total"] == 48
    middle = sorted(row["density"] for row in rows)[24]
    found = site.json(f"/run/run0/latents.json?filter=density:{middle}..,cosine:..0.99&limit=100")["table"]
    assert {row["id"] for row in found["rows"]} == {
        row["id"] for row in rows if row["density"] >= middle and row["cosine"] <= 0.99
    }
    for words, has in (("import", "import"), ("retu", "return"), ("import os", "import")):
        found = site.json(f"/run/run0/latents.json?q={words.replace(' ', '%20')}&limit=100")["table"]
        assert 0 < found["total"] <= 48
        for row in found["rows"][:5]:
            page = site.json(f"/run/run0/latent/{row['id']}.json")
            assert any(has in "".join(one["tokens"]) for one in page["examples"]["top"])
    by_sign = site.json("/run/run0/latents.json?q=%3D")["table"]["rows"]
    assert all("=" in row["tokens"] for row in by_sign)


def test_stepping_goes_through_the_table_in_its_order(workspace):
    database = workspace["run0"].database
    for query in (
        Query(),
        Query(sort="density", desc=True),
        Query(sort="kind"),
        Query(sort="cosine", filters=(("density", 0.01, None),)),
    ):
        where, values = query.where()
        order = [row["id"] for row in database.all(
            f"SELECT id FROM latents WHERE {where} ORDER BY {query.sort} {'DESC' if query.desc else ''}, id", values
        )]  # fmt: skip
        for place, latent in enumerate(order):
            steps = place_of(database, query, latent)
            assert steps["next"] == (order[place + 1] if place + 1 < len(order) else None)
            assert steps["previous"] == (order[place - 1] if place else None)


@pytest.mark.parametrize("text", ["density", "density:x..y", "density:1..2;drop", "den sity:1..", "density:--1.."])
def test_a_filter_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="filter"):
        parse_filters(text)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/run/run0/latents.json?sort=id;drop", 400, "cannot sort by"),
        ("/run/run0/latents.json?sort=rowid%20DESC", 400, "cannot sort by"),
        ("/run/run0/latents.json?filter=secret:1..2", 400, "cannot filter by 'secret'"),
        ("/run/run0/latents.json?limit=100000", 400, "limit"),
        ("/run/run0/latents.json?offset=many", 400, "offset must be a whole number"),
        ("/run/run0/latent/48.json", 404, "has no latent 48"),
        ("/run/run0/latent/x.json", 400, "latent must be a whole number"),
        ("/run/none/latents.json", 400, "there is no SAE 'none'"),
        ("/run/run0/latent/1/context.json?row=99999999", 404, "there is no row"),
        ("/run/run0/cloud.json?latents=1,2,999", 400, "latents must be"),
        ("/run/run0/manifolds.json?threshold=7", 400, "threshold must be from 0.1 to 1"),
        ("/run/run0/latent/1/examples.json?kind=all", 400, "examples are"),
    ],
)
def test_errors_say_what_is_wrong(site, path, status, said):
    assert said in site.json(path, status=status)["error"]


def test_an_unknown_latents_page_is_a_page(site):
    status, _, body = site.ask("/run/run0/latent/4800")
    assert status == 404
    assert shell_of(body)["error"] == "run0 has no latent 4800"


def test_notes_are_kept_found_and_survive_collecting_again(site, workspace, runs):
    from saelab.explorer.workspace import Workspace
    from saelab.recipes.explore import collect_member

    path = "/run/run1/latent/7/note.json"
    kept = site.json(path, method="POST", body={"note": f"quokkas {NASTY}", "tags": ["checked", "odd"]})
    assert kept["note"] == f"quokkas {NASTY}"
    assert kept["tags"] == ["checked", "odd"]
    assert [row["id"] for row in site.json("/run/run1/latents.json?q=quokka")["table"]["rows"]] == [7]
    assert [row["id"] for row in site.json("/run/run1/latents.json?noted=1")["table"]["rows"]] == [7]
    other = Workspace([runs[1]])
    collect_member(other, other["run1"], 3000, None)
    assert site.json("/run/run1/latent/7.json")["note"]["tags"] == ["checked", "odd"]
    assert site.json("/run/run1/latents.json")["rows_seen"] == 3000
    assert [row["id"] for row in site.json("/run/run1/latents.json?q=quokka")["table"]["rows"]] == [7]
    site.json(path, method="POST", body={"note": "", "tags": []})
    assert site.json("/run/run1/latents.json?noted=1")["table"]["total"] == 0
    assert site.json("/run/run1/latents.json?q=quokka")["table"]["total"] == 0


def test_compare_sees_that_an_sae_is_itself(site):
    import base64

    found = site.json("/compare.json?a=run0&b=run0")
    for side in ("a", "b"):
        cosine = np.frombuffer(base64.b64decode(found["nearest"][side]["cosine"]), np.float32)
        latent = np.frombuffer(base64.b64decode(found["nearest"][side]["latent"]), np.int32)
        assert np.allclose(cosine, 1, atol=1e-4)
        assert latent.tolist() == list(range(48))
    counterparts = site.json("/run/run0/latent/5/counterparts.json")["counterparts"]
    assert list(counterparts) == ["run1"]
    assert len(counterparts["run1"]) == 3


def test_a_clouds_points_are_sums_of_values_times_directions(site, workspace):
    from saelab.explorer.directions import directions_of

    first = busy(site)
    second = (first + 1) % 48
    found = site.json(f"/run/run0/cloud.json?latents={first},{second}")
    member = workspace["run0"]
    codes = np.zeros((len(found["rows"]), 2))
    for at, latent in enumerate((first, second)):
        rows, values = member.database.activations(latent)
        where = dict(zip(rows.tolist(), values.tolist(), strict=True))
        codes[:, at] = [where.get(row, 0) for row in found["rows"]]
    points = codes @ directions_of(member.sae)[[first, second]].double().numpy()
    centred = points - points.mean(0)
    placed = np.array(found["points"])
    assert np.allclose(
        np.linalg.norm(placed, axis=1), np.linalg.norm(centred, axis=1), atol=5e-3
    )  # two dimensions in all
    assert found["strongest"] == [(first, second)[int(abs(a) < abs(b))] for a, b in codes]


def test_patterns_are_of_the_latents_own_tokens(site, workspace):
    found = site.json(f"/run/run0/latent/{busy(site)}/pattern.json")["patterns"]
    assert found
    vocabulary = set(workspace["run0"].vocabulary)
    for one in found:
        assert one["tokens"]
        assert all(token is None or token in vocabulary for token in one["tokens"])
        assert one["examples"] >= 1
    assert [one["activation"] for one in found] == sorted((one["activation"] for one in found), reverse=True)


def test_a_run_that_is_still_going_shows_its_curves_and_goes_on(tmp_path):
    from saelab.core.log import Log
    from saelab.core.run import Run
    from saelab.explorer.workspace import Workspace

    run = Run.create(tmp_path / "going", {"sae": {"n_latents": 8, "activation": {"class_path": "TopK"}}})
    log, rest = Log(run.log_file), {"l0": 4.0, "lr": 0.1, "rows_per_second": 1.0}
    for step in (10, 20):
        log.write({"step": step, "rows": 100 * step, "fvu": 0.5, **rest}, {"fired": [2, 6]})
    with served(Workspace([run.folder])) as going:
        (line,) = going.json("/index.json")["runs"]
        assert (line["state"], line["collected"], line["rows"]) == ("training", False, 2000)
        assert [record["step"] for record in going.json("/run/going.json")["log"]] == [10, 20]
        log.write({"step": 30, "rows": 3000, "fvu": 0.4, **rest}, {"fired": [1, 7]})
        log.close()
        assert [one["fired"] for one in going.json("/run/going/log.json?after=20")["records"]] == [[1, 7]]
        assert "there is no" in going.json("/run/going/latents.json", status=400)["error"]


def test_a_model_is_loaded_before_a_page_asks_for_it(tmp_path, runs):
    from saelab.core.run import Run
    from saelab.explorer.serve import warm
    from saelab.explorer.workspace import Workspace

    nothing = Run.create(tmp_path / "nothing", {"sae": {"n_latents": 8, "activation": {"class_path": "TopK"}}})
    found = Workspace([nothing.folder, runs[0]])
    assert not found._models
    warm(found)
    assert list(found._lenses) == ["run0"]


def test_interrupting_it_is_how_it_ends(workspace, monkeypatch):
    from types import SimpleNamespace

    from saelab.explorer import serve as serving

    def interrupted(sockets):
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "server_for", lambda *given: SimpleNamespace(run=interrupted))
    serving.serve(workspace, port=0, browser=False)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_scale_of_each_row_is_named_where_its_codes_are_shown(workspace, monkeypatch):
    config = read_config(workspace["run0"].saved.sae_folder)
    assert latents.latent(workspace, "run0", 3, {})["scale"] == ""
    for scale, words in (("LayerNorm", "LayerNorm()"), ("Identity", "")):
        given = config | {"scale": {"name": scale}}
        monkeypatch.setattr("saelab.explorer.pages.runs.read_config", lambda folder, given=given: given)
        assert latents.latent(workspace, "run0", 3, {})["scale"] == words
        assert runs_page.run(workspace, "run0")["run"]["scale"] == f"{scale}()"
