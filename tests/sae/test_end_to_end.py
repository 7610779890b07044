"""EndToEnd hands the reconstruction, in the data's own units, to the model's loss."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.end_to_end import EndToEnd

D, L = 6, 24


def rows(seed: int = 0, width: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(9, width, generator=generator, dtype=torch.float64) + torch.arange(width)


def model(x_hat: Tensor) -> Tensor:
    """Stands for a model: any scalar function of the rows."""
    return (x_hat.sin() * torch.arange(x_hat.numel()).view_as(x_hat)).sum()


def test_value_and_gradients_are_those_of_the_model_on_the_reconstruction():
    sae = SAE(D, L, TopK(3), [EndToEnd(weight=0.2)]).double()
    sae.initialise(rows())
    terms, _ = sae.objective(rows(1), downstream=model)
    terms["EndToEnd"].backward()
    found = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    expected = 0.2 * model(sae(rows(1)))
    expected.backward()
    torch.testing.assert_close(terms["EndToEnd"], expected)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
        assert (found[name] != 0).any(), name


def test_a_transcoders_reconstruction_is_in_the_units_of_its_target():
    sae = SAE(D, L, TopK(3), [EndToEnd()], d_out=4).double()
    sae.initialise(rows(), target=10 * rows(2, 4))
    seen = []
    sae.objective(rows(1), rows(3, 4), downstream=lambda x_hat: (seen.append(x_hat), x_hat.sum())[1])
    torch.testing.assert_close(seen[0], sae(rows(1)))


def test_without_a_model_it_says_what_is_missing():
    sae = SAE(D, L, TopK(3), [EndToEnd()]).double()
    with pytest.raises(ValueError, match="EndToEnd needs a live model"):
        sae.objective(rows())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_named(weight):
    with pytest.raises(ValueError, match="EndToEnd: weight"):
        SAE(D, L, TopK(3), [EndToEnd(weight)])
