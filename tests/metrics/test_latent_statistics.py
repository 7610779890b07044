"""L0, densities, silent and dead latents by counting; nearest directions by brute force."""

import numpy as np
import pytest
import torch
from sweeps import fed_codes, random_sae, sae_of_width, values

from saelab.core.codes import Codes
from saelab.geometry import nearest
from saelab.metrics.dead import DeadLatents
from saelab.metrics.density import Density
from saelab.metrics.l0 import L0
from saelab.metrics.nearest_cosine import NearestCosine
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE


def sparse(dense: torch.Tensor, k: int) -> Codes:
    """Codes of K entries from [B, L] with at most K non-zero."""
    chosen = dense.abs().topk(k)
    return Codes(dense.gather(1, chosen.indices), chosen.indices, dense.shape[1])


def random_codes(n: int = 300, latents: int = 40, k: int = 6) -> torch.Tensor:
    """Dense codes [n, L] with 0 to K active a row, some of them negative: latent 0 in most rows, 30 and 31 in just
    above one row of a hundred and in just one, the last eight never."""
    draw = torch.Generator().manual_seed(0)
    dense = torch.zeros(n, latents)
    for row in dense:
        active = torch.randperm(latents - 10, generator=draw)[: int(torch.randint(k, (1,), generator=draw))]
        row[active] = torch.randn(len(active), generator=draw)
    dense[: n * 3 // 4, 0] = 2.0
    dense[: n // 100 + 1, 30] = 1.0
    dense[-n // 100 :, 31] = 1.0
    return dense


def test_l0_is_the_mean_number_of_non_zero_latents():
    dense = random_codes()
    score = fed_codes(L0(), [sparse(part, 8) for part in dense.split(70)]).scores(sae_of_width(2))["l0"]
    assert score.value == pytest.approx((dense != 0).sum(1).double().mean().item())
    assert score.low < score.value < score.high
    assert (score.n, score.unit) == (300, "latents")


def test_l0_does_not_depend_on_the_layout_of_codes():
    dense = random_codes()
    full = fed_codes(L0(), [Codes.full(part) for part in dense.split(70)]).scores(sae_of_width(2))
    assert full == fed_codes(L0(), [sparse(dense, 8)]).scores(sae_of_width(2))


def test_densities_are_shares_of_rows():
    dense = random_codes()
    metric = fed_codes(Density(), [sparse(part, 8) for part in dense.split(70)])
    expected = (dense != 0).double().mean(0).numpy()
    assert metric.latents()["density"].numpy() == pytest.approx(expected)
    scores, fired = values(metric.scores(sae_of_width(2))), expected[expected > 0]
    assert scores.pop("silent") == (expected == 0).mean() >= 0.2
    assert scores.pop("density_over_1pc") == pytest.approx((expected > 0.01).mean())
    assert scores.pop("density_over_10pc") == pytest.approx((expected > 0.1).mean())
    for percent in (10, 50, 90):
        assert scores.pop(f"density_p{percent}") == pytest.approx(np.quantile(fired, percent / 100))
    assert not scores


def test_where_nothing_fires_all_is_silent_and_there_are_no_percentiles():
    scores = values(fed_codes(Density(), [Codes.full(torch.zeros(20, 8))]).scores(sae_of_width(2)))
    assert scores == {"silent": 1, "density_over_1pc": 0, "density_over_10pc": 0}


def trained(rows: int, since: list[int]) -> SAE:
    sae = SAE(2, len(since), TopK(k=1))
    sae.firing.rows.fill_(rows)
    sae.firing.since.copy_(torch.tensor(since))
    return sae


@pytest.mark.parametrize(
    ("rows", "horizon"),
    [(40_000_000, 10_000_000), (400_000_000, 10_000_000), (39_999_999, 9_999_999), (4000, 1000), (4, 1)],
)
def test_dead_is_silent_for_ten_million_rows_or_a_quarter_of_the_run(rows, horizon):
    sae = trained(rows, [0, horizon - 1, horizon, rows])
    score = DeadLatents().scores(sae)["dead"]
    assert score.value == 0.5
    assert score.n == 4


def test_an_sae_without_a_training_history_has_no_dead_score():
    for rows in (0, 3):
        with pytest.raises(ValueError, match="no training history"):
            DeadLatents().scores(trained(rows, [rows, 0]))


def test_dead_latents_are_the_same_whatever_was_measured_on():
    sae = trained(4000, [0, 2000])
    assert fed_codes(DeadLatents(), [Codes.full(torch.ones(5, 2))]).scores(sae) == DeadLatents().scores(sae)


# ---- nearest directions ----


def brute_force(directions: torch.Tensor) -> np.ndarray:
    unit = directions.double().numpy() / np.linalg.norm(directions.double().numpy(), axis=1, keepdims=True)
    return np.array([max(unit[i] @ unit[j] for j in range(len(unit)) if j != i) for i in range(len(unit))])


def test_a_random_dictionary_has_the_published_nearest_cosines():
    """methods.md G, A4: mean, 99th percentile and largest of 2304 random directions in 768 dimensions."""
    directions = torch.randn(2304, 768, generator=torch.Generator().manual_seed(0))
    found = nearest(directions, directions, skip_self=True)[0].squeeze(1)
    assert found.mean().item() == pytest.approx(0.1253, abs=0.0004)
    assert found.quantile(0.99).item() == pytest.approx(0.161, abs=0.003)
    assert found.max().item() == pytest.approx(0.174, abs=0.015)


def test_scores_of_a_dictionary():
    sae = random_sae(n_latents=40)
    metric = NearestCosine()
    with torch.no_grad():
        scores = metric.scores(sae)
    expected = brute_force(sae.dictionary.directions().detach())
    assert scores["nearest_cosine"].value == pytest.approx(expected.mean(), abs=1e-6)
    assert scores["nearest_cosine_p99"].value == pytest.approx(np.quantile(expected, 0.99), abs=1e-6)
    assert scores["nearest_cosine_max"].value == pytest.approx(expected.max(), abs=1e-6)
    assert metric.latents()["nearest_cosine"].numpy() == pytest.approx(expected, abs=1e-6)
    assert scores["nearest_cosine"].low < scores["nearest_cosine"].value < scores["nearest_cosine"].high


def test_a_random_dictionary_scores_like_chance_and_a_doubled_one_does_not():
    sae = SAE(16, 400, TopK(k=4))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.randn(400, 16, generator=torch.Generator().manual_seed(5)))
    scores = values(NearestCosine().scores(sae))
    assert scores["nearest_cosine"] == pytest.approx(scores["nearest_cosine_random"], abs=0.01)
    with torch.no_grad():
        sae.dictionary.W_dec[200:] = 3 * sae.dictionary.W_dec[:200]
    assert values(NearestCosine().scores(sae))["nearest_cosine"] == pytest.approx(1, abs=1e-5)


def test_one_latent_has_no_neighbour():
    metric = NearestCosine()
    with pytest.raises(ValueError, match="a single latent has no neighbour"):
        metric.scores(SAE(3, 1, TopK(k=1)))
    assert metric.latents() == {}
