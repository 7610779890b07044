"""A trained SAE read with another k or with one threshold: same weights, and the L0 that was asked for."""

import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.mesh import Mesh
from saelab.sae import SAE, reading, reread, threshold_for
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Sizes
from saelab.sae.losses.auxk import AuxK

D, L, N = 6, 40, 300


def rows(n: int = N, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1


def make(k: int = 4) -> SAE:
    sae = SAE(D, L, TopK(k), [AuxK()])
    sae.initialise(rows())
    with torch.no_grad():
        sae.dictionary.b_enc.copy_(torch.linspace(-0.5, 0.2, L))
    return sae


def pre_activations(sae: SAE, x: Tensor) -> Tensor:
    """All of them [n, L], written out."""
    dictionary = sae.dictionary
    scaled = (x - sae.scale.mean) / sae.scale.scale
    return ((scaled - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc).detach()


def test_another_k_is_read():
    sae, x = make(), rows()
    pre = pre_activations(sae, x)
    for k in (1, 7, L):
        largest = pre.topk(k)
        expected = torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu())
        torch.testing.assert_close(reread(sae, TopK(k)).encode(x).dense(), expected)


def test_the_same_k_reads_the_same():
    sae, x = make(), rows()
    assert torch.equal(reread(sae, TopK(4))(x), sae(x))


def test_a_threshold_is_read():
    sae, x = make(), rows()
    pre = pre_activations(sae, x)
    expected = pre * (pre > 0.3)
    torch.testing.assert_close(reread(sae, JumpReLU(threshold=0.3)).encode(x).dense(), expected)


def test_no_weight_is_copied():
    sae = make()
    other = reread(sae, TopK(2))
    own = {name: value.data_ptr() for name, value in sae.state_dict().items()}
    assert {name: value.data_ptr() for name, value in other.state_dict().items()} == own
    assert other.dictionary is sae.dictionary
    assert other.scale is sae.scale
    assert other.firing is sae.firing


def test_the_original_keeps_its_activation_and_its_losses():
    sae = make()
    before, config = sae(rows()), sae.config()
    other = reread(sae, JumpReLU(threshold=0.5))
    assert sae.config() == config
    assert torch.equal(sae(rows()), before)
    assert [type(loss) for loss in sae.losses] == [AuxK]
    assert len(other.losses) == 0
    assert set(other.objective(rows())[0]) == {"reconstruction", "sparsity"}


def test_it_is_saved_with_its_own_activation(tmp_path):
    sae = make()
    other = reread(sae, JumpReLU(threshold=0.25))
    other.save(tmp_path / "sae")
    again = saelab.load(tmp_path / "sae")
    assert again.config() == sae.config() | {"activation": other.activation.config(), "losses": []}
    with torch.no_grad():
        assert torch.equal(again(rows()), other(rows()))
        assert not torch.equal(again(rows()), sae(rows()))


def test_the_activation_has_the_saes_precision_and_mode():
    other = reread(make().double().eval(), JumpReLU(threshold=0.25))
    assert other.activation.log_threshold.dtype == torch.float64
    assert not other.activation.training
    assert other.encode(rows()).values.dtype == torch.float64


def test_a_transcoder_is_reread(monkeypatch):
    sae = SAE(D, L, TopK(4), d_out=3)
    sae.initialise(rows(), target=rows(seed=1)[:, :3])
    seen = []
    monkeypatch.setattr(TopK, "setup", lambda self, sizes: seen.append(sizes))
    other = reread(sae, TopK(9))
    assert seen == [Sizes(D, 3, L, is_transcoder=True)]
    assert other(rows()).shape == (N, 3)
    assert other.encode(rows()).l0().max() > 4


def test_an_activation_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=f"k .*{L}; got k={L + 1}"):
        reread(make(), TopK(L + 1))


def test_an_saes_own_activation_is_refused():
    sae = make()
    with pytest.raises(ValueError, match="belongs to the SAE already"):
        reread(sae, sae.activation)


# The threshold.


@pytest.mark.parametrize("l0", [0.01, 0.5, 1, 3.3, 9])
@pytest.mark.parametrize("block", [1, 7 * L, 1 << 22])
def test_the_threshold_gives_the_l0(monkeypatch, l0, block):
    monkeypatch.setattr(reading, "BLOCK_ENTRIES", block)
    sae, x = make(), rows()
    threshold = threshold_for(sae, x, l0)
    assert (pre_activations(sae, x) > threshold).sum() == round(l0 * N)
    codes = reread(sae, JumpReLU(threshold=threshold)).encode(x)
    assert codes.l0().sum() == pytest.approx(round(l0 * N), abs=0.01 * l0 * N)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_the_threshold_lies_half_way_to_the_next(monkeypatch, block):
    monkeypatch.setattr(reading, "BLOCK_ENTRIES", block)
    sae, x = make().double(), rows()
    ordered = pre_activations(sae, x).flatten().sort(descending=True).values
    assert threshold_for(sae, x, 2.5) == pytest.approx(((ordered[749] + ordered[750]) / 2).item(), rel=1e-12)


def test_no_more_is_held_than_three_times_what_is_above(monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_ENTRIES", 20 * L)
    largest, held = [], torch.cat
    monkeypatch.setattr(reading.torch, "cat", lambda parts: largest.append(sum(map(len, parts))) or held(parts))
    threshold_for(make(), rows(), 0.1)
    assert len(largest) > 1
    assert max(largest) <= 3 * 31


def test_all_positive_pre_activations_can_be_asked_for():
    sae, x = make(), rows()
    positive = pre_activations(sae, x).relu()
    l0 = (positive > 0).sum().item() / N
    threshold = threshold_for(sae, x, l0)
    assert threshold == pytest.approx(positive[positive > 0].min().item() / 2)
    assert torch.equal(reread(sae, JumpReLU(threshold=threshold)).encode(x).l0(), reread(sae, ReLU()).encode(x).l0())
    with pytest.raises(ValueError, match=f"l0 must be at most {l0:.4g}"):
        threshold_for(sae, x, l0 + 0.01)


def test_latents_that_tie_at_the_threshold_are_left_out():
    sae = SAE(D, 4, TopK(1))
    with torch.no_grad():
        sae.dictionary.W_enc.zero_()
        sae.dictionary.b_enc.copy_(torch.tensor([3.0, 2.0, 2.0, 1.0]))
    assert threshold_for(sae, rows(10), 2) == 2
    assert threshold_for(sae, rows(10), 1) == 2.5
    assert threshold_for(sae, rows(10), 3) == 1.5
    assert threshold_for(sae, rows(10), 4) == 0.5


@pytest.mark.parametrize("l0", [0, -1, float("nan"), L + 1])
def test_an_l0_out_of_range_is_named(l0):
    with pytest.raises(ValueError, match=f"l0 must be above 0 .*{L}"):
        threshold_for(make(), rows(), l0)


@pytest.mark.parametrize("shape", [(5, D + 1), (0, D), (D,)])
def test_other_rows_are_refused(shape):
    with pytest.raises(ValueError, match=rf"\[n, {D}\] with n >= 1"):
        threshold_for(make(), torch.zeros(shape), 2)


def test_a_part_of_an_sae_has_no_threshold():
    sae, mesh = make(), Mesh()
    mesh.shards = 2
    sae.mesh = mesh
    with pytest.raises(ValueError, match="one process"):
        threshold_for(sae, rows(), 2)
