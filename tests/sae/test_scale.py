"""Scaling is two visible buffers, and undoing it gives the rows back."""

import pytest
import torch

from saelab.sae.scales import DataScale

D = 3


def test_it_is_the_identity_until_it_is_set():
    x = torch.randn(4, D)
    assert torch.equal(DataScale().setup(D).apply_to(x), x)
    assert torch.equal(DataScale().setup(D).undo(x), x)


def test_rows_are_centred_and_divided():
    scale = DataScale().setup(D)
    scale.set(torch.tensor([1.0, 2.0, 3.0]), 2.0)
    x = torch.tensor([[3.0, 2.0, 1.0]])
    assert scale.apply_to(x).tolist() == [[1.0, 0.0, -1.0]]
    assert torch.equal(scale.undo(scale.apply_to(x)), x)
    assert sorted(scale.state_dict()) == ["mean", "scale"]


def test_reset_is_the_identity_again():
    scale = DataScale().setup(D)
    scale.set(torch.ones(D), torch.tensor(3.0))
    scale.reset()
    assert torch.equal(scale.apply_to(torch.ones(1, D)), torch.ones(1, D))


def test_rows_come_out_in_the_buffers_precision():
    assert DataScale().setup(D).apply_to(torch.ones(1, D, dtype=torch.bfloat16)).dtype == torch.float32
    assert DataScale().setup(D).double().apply_to(torch.ones(1, D)).dtype == torch.float64


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(size):
    scale = DataScale().setup(D)
    with pytest.raises(ValueError, match="scale positive, got scale"):
        scale.set(torch.zeros(D), size)
    assert scale.scale == 1


def test_a_mean_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="mean must be finite"):
        DataScale().setup(D).set(torch.tensor([0.0, float("nan"), 0.0]), 1.0)


def test_sites_have_a_scale_each():
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1000, 6, generator=generator) * torch.tensor([1.0, 1, 1, 5, 5, 5]) + 2
    scale = DataScale().setup(6, sites=2)
    scale.fit(sample)
    scaled = scale.apply_to(sample)
    torch.testing.assert_close(scaled[:, :3].square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(scaled[:, 3:].square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(scale.undo(scaled), sample)
    assert scale.scale.shape == (2,)
    torch.testing.assert_close(scale.size[2] / scale.size[3], scale.scale[0] / scale.scale[1])


def test_rows_that_cannot_be_cut_into_sites_are_refused():
    with pytest.raises(ValueError, match="7 wide cannot be cut into 2 sites"):
        DataScale().setup(7, sites=2)
