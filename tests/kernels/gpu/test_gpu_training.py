"""A trainer with the gpu tier comes to the same weights as with PyTorch's operations."""

import pytest
import torch

from saelab.data.source import Batch
from saelab.data.synthetic import SparseWorld
from saelab.kernels import tier
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.sae import SAE
from saelab.train.optimizers.adam import Adam
from saelab.train.trainer import Trainer

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D, L, K, B = 8, 40, 2, 16


def trained(kernels: str, adam: Adam) -> dict[str, torch.Tensor]:
    world = SparseWorld(D, 20, l0=3.0, seed=0)
    rows = world.draw(0)[0][: 4 * B]
    sae = SAE(D, L, TopK(K), [AuxK(k_aux=4, dead_after=B)]).to(DEVICE)
    sae.initialise(rows.to(DEVICE))
    with tier.using(kernels):
        trainer = Trainer(sae, lr=0.01, batch=B, warmup=0, optimizer=adam)
        for part in rows.split(B)[:2]:
            trainer.step(Batch(part))
        trainer.finish()
    return sae.state_dict()


@pytest.mark.parametrize("touched", [False, True])
def test_weights_are_the_same(touched, monkeypatch):
    if DEVICE == "cpu":  # Triton's interpreter
        monkeypatch.setattr(tier, "on_gpu", lambda tensor: True)
    adam = Adam(epsilon=1e-5, touched=touched)
    wanted, found = trained("torch", adam), trained("gpu", adam)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_it_is_taken_when_asked_for_and_only_on_a_gpu():
    tensor = torch.ones(2)
    assert not tier.is_gpu(tensor)
    with tier.using("gpu"):
        assert not tier.is_gpu(tensor)
        assert not tier.is_native(tensor)


def test_without_triton_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(tier.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="need triton"), tier.using("gpu"):
        pass
