"""The shared L1 penalty, by loops."""

import pytest
import torch

from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.sparsity import weighted_l1

B, D, L = 4, 3, 6


def test_it_is_the_mean_over_rows_of_weighted_magnitudes_over_norms():
    generator = torch.Generator().manual_seed(0)
    sae = SAE(D, L, ReLU()).double()
    with torch.no_grad():
        sae.dictionary.W_dec *= torch.rand(L, 1, generator=generator) + 0.5
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    magnitudes = torch.randn(B, L, generator=generator, dtype=torch.float64)
    _, step = sae.objective(x)
    expected = 0.0
    for b in range(B):
        weighed = sum(abs(magnitudes[b, i].item()) * sae.dictionary.W_dec[i].norm().item() for i in range(L))
        expected += weighed / x[b].norm().item() / B
    assert weighted_l1(step, magnitudes).item() == pytest.approx(expected, rel=1e-12)


def test_it_is_the_penalty_of_a_relu():
    sae = SAE(D, L, ReLU(l1=0.7)).double()
    terms, step = sae.objective(torch.randn(B, D, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(0.7 * weighted_l1(step, step.codes.dense()), terms["sparsity"])


def test_a_row_of_zeros_keeps_it_finite():
    sae = SAE(D, L, ReLU())
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(1e-6)
    _, step = sae.objective(torch.zeros(2, D))
    assert torch.isfinite(weighted_l1(step, step.codes.dense()))
    assert weighted_l1(step, torch.zeros(2, L)) == 0
