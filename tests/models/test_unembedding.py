"""The linear map from the residual stream to logits, against the model's own last norm and head."""

import pytest
import torch
from torch import nn

from saelab.models.language_model import LanguageModel


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_rows_of_unit_size_get_the_models_own_logits(shift):
    model = LanguageModel("pycode-7m", "model.layers.3")
    with torch.no_grad():
        norm = model.model.base_model.norm
        if shift:  # a norm that has a bias and subtracts the mean
            gain = norm.weight.clone()
            norm = model.model.base_model.norm = nn.LayerNorm(len(gain))
            norm.weight.copy_(gain)
            norm.bias.fill_(shift)
        x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
        x = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
        expected = model.model.lm_head(norm(x)) - model.model.lm_head(norm(torch.zeros(3, 256)))
        found = model.unembedding()
    assert found is not None
    assert torch.allclose(x @ found.T, expected, rtol=1e-3, atol=1e-3)
