"""What `saelab manifolds` found, on the Manifolds page."""

import torch
from explorer.world import served

from saelab.analysis.manifolds import ManifoldSettings
from saelab.analysis.manifolds import manifolds as found_in
from saelab.analysis.rows import Rows
from saelab.explorer.pages.manifolds import manifolds
from saelab.explorer.workspace import Workspace
from saelab.sae.files import load


def result(run, folder, name=None):
    sae = load(run)
    x = torch.randn(400, sae.d_in, generator=torch.Generator().manual_seed(0))
    rows = Rows.independent(x * sae.scale.size + sae.scale.mean)
    found = found_in(sae, rows, ManifoldSettings(threshold=0.2, min_firings=2))
    found.write(folder, str(run) if name is None else name, rows)
    return found


def test_the_page_has_the_clusters_of_a_result_that_knows_the_sae(runs, workspace, tmp_path):
    truth = result(runs[0], tmp_path / "m")
    assert truth.clusters
    with_it = Workspace([*runs, tmp_path / "m"])
    told = manifolds(with_it, "run0", {})["told"]
    assert told["threshold"] == 0.2
    assert told["n"] == len(truth.clusters)
    assert [line["latents"] for line in told["clusters"]] == [part.tolist()[:64] for part in truth.clusters[:60]]
    assert [line["kind"] for line in told["clusters"]] == truth.kinds[:60]
    assert manifolds(with_it, "run1", {})["told"] is None
    assert manifolds(workspace, "run0", {})["told"] is None


def test_a_cluster_of_the_result_opens_as_a_cloud(chromium, runs, tmp_path):
    truth = result(runs[0], tmp_path / "m")
    with served(Workspace([*runs, tmp_path / "m"])) as site:
        chromium.errors.clear()
        chromium.open(site.base + "/run/run0/manifolds")
        title = "What clusters from a cosine of 0.2 on are, by when they fire"
        chromium.until(f"[...document.querySelectorAll('h2')].some((one) => one.innerText === '{title}')")
        chromium.js(
            f"[...document.querySelectorAll('section')].find((one) => one.innerText.startsWith('{title}'))"
            ".querySelector('button').click()"
        )
        chosen = ",".join(map(str, truth.clusters[0].tolist()[:64]))
        chromium.until("document.querySelector('.plot canvas, .plot .gl-container')")
        assert f"latents={chosen}" in chromium.js("decodeURIComponent(location.href)")
        chromium.settle()
        assert chromium.errors == []
