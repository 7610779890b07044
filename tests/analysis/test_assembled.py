"""SAEs taken apart and put together, against their own arithmetic in float64."""

import pytest
import torch
from planted import codes_by_hand, decoded_by_hand, drawn, sae_with

from saelab import load
from saelab.analysis.assembled import assembled, independent
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.sae.ensemble import Ensemble
from saelab.sae.sae import SAE


def trained(activation, seed=0):
    """An SAE with a scaling and directions that are not of unit norm."""
    sae = sae_with(drawn(20, 6, seed=seed), activation, seed=seed)
    sae.scale.set(drawn(6, seed=seed + 7), 2.5)
    with torch.no_grad():
        sae.dictionary.W_dec *= torch.linspace(0.5, 2, 20)[:, None]
    return sae


def batch_topk():
    sae = trained(BatchTopK(k=3))
    sae.activation.threshold.copy_(torch.linspace(0.1, 0.6, 20))
    sae.activation.updates.fill_(5)
    return sae


@pytest.mark.parametrize("make", [lambda: trained(ReLU()), lambda: trained(JumpReLU(threshold=0.3)), batch_topk])
def test_independent_latents_reconstruct_as_the_sae_does_in_the_units_of_the_data(make):
    sae, x = make(), 4 * drawn(50, 6, seed=9)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    one = independent(sae)
    assert torch.allclose(one(x), sae(x), atol=2e-5)
    assert torch.equal(one.encode(x).l0(), sae.encode(x).l0())
    assert torch.allclose(one.dictionary.directions().norm(dim=1), torch.ones(20), atol=1e-6)
    assert one.scale.scale == 1
    assert not one.scale.mean.any()
    for key, value in sae.state_dict().items():
        assert torch.equal(value, before[key]), key
    wanted = decoded_by_hand(one, codes_by_hand(one, x))
    assert torch.allclose(one(x).double(), wanted, atol=1e-5)


def test_topk_is_read_by_the_threshold_with_its_own_mean_l0():
    sae, x = trained(TopK(k=4)), 4 * drawn(400, 6, seed=9)
    one = independent(sae, x)
    assert isinstance(one.activation, JumpReLU)
    assert one.encode(x).l0().float().mean().item() == pytest.approx(sae.encode(x).l0().float().mean().item(), abs=0.01)
    # a code does not change when other latents go
    some = torch.tensor([3, 11, 5])
    part = assembled([(one, some)])
    assert torch.allclose(part.encode(x).dense(), one.encode(x).dense()[:, some], atol=1e-6)


def test_what_cannot_be_taken_apart_is_refused_by_name():
    with pytest.raises(ValueError, match="^narrow: .*AbsTopK"):
        independent(trained(AbsTopK(k=2)), name="narrow")
    with pytest.raises(ValueError, match="Dense.*narrow has Crosscoder"):
        independent(SAE(6, 8, ReLU(), dictionary=Crosscoder(sites=2)), name="narrow")
    with pytest.raises(ValueError, match="narrow is an ensemble"):
        independent(Ensemble([trained(ReLU())]), name="narrow")
    with pytest.raises(ValueError, match="narrow is a transcoder"):
        independent(SAE(6, 8, ReLU(), d_out=5), name="narrow")
    with pytest.raises(ValueError, match="give rows to set its threshold"):
        independent(trained(TopK(k=2)))


def test_all_latents_of_one_with_its_bias_are_that_one_to_the_last_bit():
    a, b = independent(trained(ReLU())), independent(trained(JumpReLU(threshold=0.3), seed=5))
    x, none = 4 * drawn(50, 6, seed=9), torch.empty(0, dtype=torch.int64)
    assert torch.equal(assembled([(a, none), (b, torch.arange(20))], b.dictionary.bias())(x), b(x))


def test_latents_of_two_fire_as_they_did_under_another_bias(tmp_path):
    a, b = independent(trained(ReLU())).double(), independent(trained(JumpReLU(threshold=0.3), seed=5)).double()
    ours, theirs = torch.tensor([0, 4, 7]), torch.tensor([19, 2])
    mixed, x = assembled([(a, ours), (b, theirs)]), 4 * drawn(50, 6, seed=9).double()
    wanted = torch.cat([codes_by_hand(a, x)[:, ours], codes_by_hand(b, x)[:, theirs]], 1)
    assert (wanted > 0).any(0).all()
    assert torch.allclose(mixed.encode(x).dense(), wanted, atol=1e-12)
    weight = torch.cat([a.dictionary.W_dec[ours], b.dictionary.W_dec[theirs]])
    assert torch.allclose(mixed(x), wanted @ weight + a.dictionary.b_dec, atol=1e-12)
    mixed.save(tmp_path / "mixed")
    assert torch.equal(load(tmp_path / "mixed")(x), mixed(x))
    with pytest.raises(ValueError, match="at least one latent"):
        assembled([(a, ours[:0])])
