"""Dense latents and opposite pairs: planted ones, and all pairs by hand."""

import pytest
import torch
from sweeps import Rows, mirror, random_sae, values, with_weights

from saelab.metrics import dense_latents, measure
from saelab.metrics.dense_latents import antipodality
from saelab.sae.activations.relu import ReLU
from saelab.sae.ensemble import Ensemble
from saelab.sae.sae import SAE


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(sae: SAE, x: torch.Tensor, **setting):
    return measure({"sae": sae}, Rows(x, torch.arange(len(x))), [{"name": "DenseLatents"} | setting], show=False)["sae"]


def test_latents_that_write_one_direction_with_both_signs_are_pairs():
    found = dense(mirror(5), gaussian(200, 5))
    scores = values(found.scores)
    assert scores == {"dense": 1, "antipodality_dense": 1, "dense_paired": 1}
    assert found.tables["dense"]["partner"] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_dense_latents_without_an_opposite_are_no_pairs():
    sae = with_weights(SAE(4, 4, ReLU(l1=0.0)), torch.eye(4), torch.eye(4), torch.zeros(4))
    x = gaussian(400, 4)
    x[:, 2:] = -1.0
    x[::50, 2] = 1.0  # on 2 % of rows: not dense
    found = dense(sae, x)
    assert values(found.scores) == {"dense": 0.5, "antipodality_dense": 0, "dense_paired": 0, "antipodality_other": 0}
    assert found.tables["dense"]["latent"] == [0, 1]
    assert found.tables["dense"]["partner"] == [-1, -1]


@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_antipodality_against_all_pairs(monkeypatch, block):
    monkeypatch.setattr(dense_latents, "BLOCK_ENTRIES", block)
    read, written, which = gaussian(30, 5), gaussian(30, 6, seed=1), torch.tensor([3, 0, 17])
    value, partner = antipodality(read, written, which)
    for number, latent in enumerate(which.tolist()):
        best, best_partner = 0.0, -1
        for other in range(30):
            one = torch.cosine_similarity(read[latent], read[other], dim=0).item()
            two = torch.cosine_similarity(written[latent], written[other], dim=0).item()
            if other != latent and one < 0 and two < 0 and one * two > best:
                best, best_partner = one * two, other
        assert value[number].item() == pytest.approx(best, abs=1e-6)
        assert partner[number].item() == best_partner


def test_the_cut_is_a_setting_and_is_checked():
    sae, x = random_sae(k=4), gaussian(300, 16)
    assert dense(sae, x, cut=0.9).scores["dense"].value < dense(sae, x, cut=0.01).scores["dense"].value
    assert "cut must be between 0 and 1" in dense(sae, x, cut=1.0).skipped["DenseLatents"]


def test_an_ensemble_has_directions_only():
    ensemble = Ensemble([random_sae(seed=0), random_sae(seed=1)])
    found = dense(ensemble, gaussian(200, 16)).scores
    assert 0 <= found["antipodality_dense"].value <= 1
