"""Every reconstruction error against its formula, worked out by numpy in float64 and in closed form."""

import numpy as np
import pytest
import torch
from sweeps import Rows, fed, random_sae, sae_of_width, values

from saelab.metrics import measure
from saelab.metrics.base import Score
from saelab.metrics.reconstruction import Reconstruction


def reconstruction(x: torch.Tensor, x_hat: torch.Tensor, document=None, chunk: int = 50) -> dict[str, Score]:
    return fed(Reconstruction(), x, x_hat, document, chunk).scores(sae_of_width(x.shape[1]))


def rows(n: int = 330, d: int = 7, offset: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.5, 3, d) + offset


def by_hand(x: torch.Tensor, x_hat: torch.Tensor, chunk: int) -> dict[str, float]:
    x, x_hat = x.double().numpy(), x_hat.double().numpy()
    error = ((x - x_hat) ** 2).sum(1)
    lengths, lengths_hat = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    pieces = [slice(start, start + chunk) for start in range(0, len(x), chunk)]
    return {
        "fvu": error.sum() / ((x - x.mean(0)) ** 2).sum(),
        "mse": ((x - x_hat) ** 2).mean(),
        "mse_sum": error.mean(),
        "nmse_zero": (error / lengths**2).mean(),
        "fvu_per_batch": np.mean([error[p].sum() / ((x[p] - x[p].mean(0)) ** 2).sum() for p in pieces]),
        "cosine": ((x * x_hat).sum(1) / lengths / lengths_hat).mean(),
        "l2_ratio": (lengths_hat / lengths).mean(),
        "relative_bias": (x_hat**2).sum() / (x * x_hat).sum(),
    }


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("chunk", [330, 50])
def test_all_scores_equal_their_formulas(offset, chunk):
    x = rows(offset=offset)
    x_hat = x + 0.3 * rows(seed=1)
    found, expected = values(reconstruction(x, x_hat, chunk=chunk)), by_hand(x, x_hat, chunk)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def test_fvu_is_about_the_mean_of_all_rows_and_not_of_a_chunk():
    """Rows in order of size: within a chunk nothing varies, over all much does."""
    x = torch.arange(100.0)[:, None].repeat(1, 3)
    x_hat = x + 1
    spread = ((np.arange(100) - 49.5) ** 2).sum()
    scores = values(reconstruction(x, x_hat, chunk=2))
    assert scores["fvu"] == pytest.approx(100 / spread, rel=1e-9)
    assert scores["fvu_per_batch"] == pytest.approx(2 / 0.5, rel=1e-9)


def test_a_perfect_reconstruction():
    scores = values(reconstruction(rows(offset=2.0), rows(offset=2.0)))
    for name, value in scores.items():
        assert value == pytest.approx(1.0 if name in ("cosine", "l2_ratio", "relative_bias") else 0.0, abs=1e-12), name


def test_always_predicting_the_mean_has_an_fvu_of_one():
    x = rows(offset=2.0)
    scores = values(reconstruction(x, x.double().mean(0).float().expand_as(x)))
    assert scores["fvu"] == pytest.approx(1, rel=1e-6)
    assert scores["mse"] == pytest.approx(x.var(0, correction=0).mean().item(), rel=1e-5)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5])
def test_a_shrunken_reconstruction(factor):
    scores = values(reconstruction(rows(offset=1.0), factor * rows(offset=1.0)))
    assert scores["nmse_zero"] == pytest.approx((1 - factor) ** 2, rel=1e-5)
    assert scores["l2_ratio"] == pytest.approx(factor, rel=1e-6)
    assert scores["relative_bias"] == pytest.approx(factor, rel=1e-6)
    assert scores["cosine"] == pytest.approx(1, rel=1e-6)


def test_zero_reconstructions_of_centred_rows():
    x = torch.cat([rows(), -rows()])
    scores = values(reconstruction(x, torch.zeros_like(x)))
    assert [scores[name] for name in ("fvu", "nmse_zero", "l2_ratio")] == pytest.approx([1, 1, 0])


def test_a_zero_row_does_no_harm():
    x = rows()
    x[3] = 0
    assert all(np.isfinite(value) for value in values(reconstruction(x, x + 0.1)).values())


def test_the_interval_of_fvu_resamples_documents():
    """Against a bootstrap over documents in numpy that recomputes the errors from the rows of each draw."""
    x, document = rows(600), torch.arange(600) // 15
    x_hat = x + (0.2 + 0.4 * (document % 5))[:, None] * rows(600, seed=1)
    score = reconstruction(x, x_hat, document)["fvu"]
    error = ((x - x_hat).double().numpy() ** 2).sum(1).reshape(40, 15).sum(1)
    spread = ((x - x.mean(0)).double().numpy() ** 2).sum(1).reshape(40, 15).sum(1)
    draws = np.random.default_rng(0).integers(0, 40, (4000, 40))
    low, high = np.quantile(error[draws].sum(1) / spread[draws].sum(1), [0.025, 0.975])
    assert [score.low, score.high] == pytest.approx([low, high], rel=0.05)
    assert score.n == 600


def test_the_scores_of_an_sae_are_those_of_its_forward_pass():
    sae, x = random_sae(), torch.randn(230, 16, generator=torch.Generator().manual_seed(3)) + 0.5
    found = measure({"one": sae}, Rows(x, torch.arange(230) // 10), ["Reconstruction"], show=False)["one"].scores
    with torch.no_grad():
        expected = by_hand(x, sae(x), 50)
    assert values(found) == pytest.approx(expected, rel=1e-5)
