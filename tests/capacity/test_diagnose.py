"""Diagnoses of SAEs that were built by hand to tile a manifold, or not to."""

import json

import numpy as np
import pytest
import torch

from saelab.capacity import hidden
from saelab.capacity.allocate import frequencies
from saelab.capacity.diagnose import FiringPass, _clusters, diagnose, frequency_exponent, what_would_tell
from saelab.core.codes import Codes
from saelab.geometry import Coactivation
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK

PLAIN, ROWS = 160, 12_000


@pytest.fixture(autouse=True)
def _few_hypotheses(monkeypatch):
    monkeypatch.setattr(hidden, "DRAWS", 400)
    monkeypatch.setattr(hidden, "MOST_DRAWS", 800)


def built(tiles, k=6):
    """An SAE with one latent for each of PLAIN axes and `tiles` [n, m] on the axes after them."""
    width = PLAIN + tiles.shape[1]
    directions = torch.zeros(PLAIN + len(tiles), width)
    directions[:PLAIN, :PLAIN] = torch.eye(PLAIN)
    directions[PLAIN:, PLAIN:] = tiles
    sae = SAE(width, len(directions), TopK(k))
    sae.dictionary.W_enc.data.copy_(directions)
    sae.dictionary.W_dec.data.copy_(directions)
    return sae


def rows(alpha, dims, share, total=3.0):
    generator = torch.Generator().manual_seed(0)
    p = torch.from_numpy(np.minimum(frequencies(PLAIN, alpha, total), 0.9)).float()
    x = torch.zeros(ROWS, PLAIN + dims)
    active, size = torch.rand(2, ROWS, PLAIN, generator=generator).unbind()
    x[:, :PLAIN] = (active < p) * (0.8 + 0.4 * size)
    points = torch.nn.functional.normalize(torch.randn(ROWS, dims, generator=generator), dim=1)
    x[:, PLAIN:] = points * (torch.rand(ROWS, 1, generator=generator) < share)
    return x.split(3000)


def circle(n):
    angle = 2 * torch.pi * torch.arange(n) / n
    return torch.stack([angle.cos(), angle.sin()], 1)


def sphere(n, dims):
    return torch.nn.functional.normalize(torch.randn(n, dims, generator=torch.Generator().manual_seed(1)), dim=1)


def test_a_tiled_circle_is_found_and_benign(monkeypatch):
    monkeypatch.setattr(hidden, "MOST_DRAWS", 1200)
    found = diagnose(built(circle(16)), rows(0.2, 2, 0.3))
    assert [len(cluster["latents"]) for cluster in found["clusters"]] == [16]
    assert found["clusters"][0]["latents"] == list(range(PLAIN, PLAIN + 16))
    assert found["share_in_clusters"] == pytest.approx(16 / found["alive"])
    assert 0.8 < found["clusters"][0]["dimension"] < 1.3
    assert found["clusters"][0]["participation"] == pytest.approx(2, abs=0.2)
    assert found["clusters"][0]["beta_low"] < 2 < found["clusters"][0]["beta_high"]
    assert found["verdict"] == "benign"
    assert found["alpha"]["low"] - 0.15 < 0.2 < found["alpha"]["high"] + 0.15
    assert found["nearest"]["this"]["p99"] > found["nearest"]["random"]["p99"]
    json.dumps(found, allow_nan=False)


def test_without_manifolds_there_are_no_clusters():
    found = diagnose(built(circle(4)), rows(0.2, 2, 0.3))  # a basis and its opposite tile nothing
    assert found["clusters"] == []
    assert found["verdict"] == "benign"
    assert 0.9 < found["growth"]["benign"] < 0.99  # tiles that are too far apart to be seen remain possible
    assert found["growth"]["unseen"][1] > 0
    assert found["predicted"][1]["found"] == pytest.approx(10 * found["alive"], rel=0.1)


def test_a_sphere_of_many_tiles_beside_steep_frequencies_is_pathological(monkeypatch):
    monkeypatch.setattr(hidden, "MOST_DRAWS", 2400)
    found = diagnose(built(sphere(300, 9), k=8), rows(1.5, 9, 0.6, 6.0), narrower={"narrow": built(sphere(40, 9))})
    assert found["share_in_clusters"] > 0.6
    assert found["clusters"][0]["dimension"] > 2.5
    assert found["verdict"] == "pathological"
    assert found["growth"]["high"] < 0.9
    ten = found["predicted"][1]
    assert ten["tiling_low"] > 0.6
    assert ten["found_low"] <= ten["found"] <= ten["found_high"] < 10 * found["alive"]
    assert set(found["nearest"]) == {"this", "random", "narrow"}
    assert sum(found["nearest"]["narrow"]["histogram"]) == PLAIN + 40


def test_what_cannot_be_told_is_said():
    few = [block[:150] for block in rows(1.5, 9, 0.6, 6.0)]
    found = diagnose(built(sphere(300, 9), k=8), few)
    assert found["verdict"] == "cannot tell"
    assert found["growth"]["benign"] < 0.9
    assert found["growth"]["pathological"] < 0.9
    assert "what would tell: " in found["why"][-1]


def test_what_would_tell_is_the_least_that_shows_what_may_be_hidden():
    trials = [{"times": 1, "rows": 10, "shown": 0.2}, {"times": 4, "rows": 1, "shown": 0.6}]
    result = {"alpha": {"value": 0.1}, "clusters": [], "tell": [*trials, {"times": 16, "rows": 1, "shown": 0.9}]}
    assert what_would_tell(result) == "an SAE 4 times as wide, which would show 60% of what may be hidden"
    result["tell"][0]["shown"] = 0.55
    assert what_would_tell(result).startswith("10 times the rows, which would show 55%")
    result |= {"tell": [{"times": 1, "rows": 10, "shown": 0.1}], "alpha": {"value": None}}
    assert what_would_tell(result).startswith("more rows, for the frequencies; no SAE up to 16 times as wide")


def test_pairs_that_are_close_but_never_fire_together_are_no_tiles():
    # Opposite halves of one direction's rows: what absorption leaves behind.
    angle = torch.arange(12) * 0.02
    sae = built(torch.stack([angle.cos(), angle.sin()], 1), k=1)
    found = diagnose(sae, rows(0.2, 2, 0.3))
    assert found["clusters"] == []


def test_duplicates_are_counted_apart():
    found = diagnose(built(circle(4).repeat(2, 1), k=8), rows(0.2, 2, 0.3))
    assert found["duplicates"] == 4
    assert found["clusters"] == []


def test_the_frequency_exponent_comes_back():
    found = frequency_exponent(frequencies(3000, 0.4, 8.0), 10**7)
    assert found["alpha"]["value"] == pytest.approx(0.4, abs=1e-6)
    assert found["alpha"]["low"] - 0.05 < 0.4 < found["alpha"]["high"] + 0.05
    assert frequency_exponent(frequencies(3000, 0.4, 8.0), 10)["alpha"]["value"] is None


def test_what_cannot_be_diagnosed_is_refused():
    with pytest.raises(ValueError, match="only 1 latents fired"):
        diagnose(built(circle(16)), [torch.eye(PLAIN + 2)[:1]])
    with pytest.raises(ValueError, match="there are no rows"):
        diagnose(built(circle(16)), [])
    with pytest.raises(ValueError, match="transcoder cannot be diagnosed"):
        diagnose(SAE(4, 8, TopK(1), d_out=4), [])


@pytest.mark.parametrize(
    ("kind", "clusters", "duplicates"), [("by chance", 0, 0), ("always together", 0, 28), ("neighbours", 1, 0)]
)
def test_only_latents_that_fire_together_more_than_by_chance_and_not_always_are_tiles(kind, clusters, duplicates):
    generator, n = torch.Generator().manual_seed(0), 4000
    if kind == "by chance":
        active = torch.rand(n, 8, generator=generator) < 0.3
    elif kind == "always together":
        active = (torch.rand(n, 1, generator=generator) < 0.1).expand(n, 8)
    else:  # each row excites two latents side by side
        place = torch.randint(8, (n, 1), generator=generator)
        active = ((torch.arange(8) - place) % 8 < 2) & (torch.rand(n, 1, generator=generator) < 0.5)
    together = Coactivation(8)
    together.update(Codes.full(active.float()))
    directions = torch.nn.functional.normalize(torch.ones(8, 4) + 0.01 * torch.arange(32).view(8, 4), dim=1)
    found, pairs = _clusters(directions, FiringPass(together, torch.empty(0, 4)), torch.arange(8), 0.5)
    assert (len(found), pairs) == (clusters, duplicates)
