"""Files of dictionary_learning (0.1.0): those that its training saves, read by ours, and ours, loaded by its API.

`load_dictionary` brings an AutoEncoder's directions to unit norm, so its codes are larger by their norms than those of
the file and of ours; reconstructions are the same.
"""

# Shape letters: B rows, D input width, L latents.

import json
from pathlib import Path

import pytest
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sharing import D, L, in_float32, rows, same, shuffle
from torch import nn

from saelab.interchange import read, write
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK

K = 4
CLASSES = {
    AutoEncoder: (),
    AutoEncoderNew: (),
    AutoEncoderTopK: (K,),
    BatchTopKSAE: (K,),
    MatryoshkaBatchTopKSAE: (K, [10, L - 10]),
    GatedAutoEncoder: (),
    JumpReluAutoEncoder: (),
}
PLACE = {"lm_name": "EleutherAI/pythia-70m", "layer": 3, "submodule_name": "resid_post_layer_3"}


def filled(peer: nn.Module) -> nn.Module:
    """Their SAE with weights that are nowhere special; thresholds are positive."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.4
            parameter.copy_(noise.abs() if name == "threshold" else noise)
    return peer


def save(peer: nn.Module, folder: Path) -> None:
    """As the end of their training does."""
    torch.save(peer.state_dict(), folder / "ae.pt")
    own = {"k": K} if hasattr(peer, "k") else {}
    trainer = {"dict_class": type(peer).__name__, "activation_dim": D, "dict_size": L, **PLACE, **own}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}}))


@torch.no_grad()
def same_outputs(ours: SAE, theirs: nn.Module, codes: bool = True) -> None:
    ours, theirs = in_float32(ours), in_float32(theirs)
    x = rows(ours.dtype)
    if codes:
        same(ours.encode(x).dense(), theirs.encode(x), "codes")
    same(ours(x), theirs(x), "reconstruction")


@pytest.mark.parametrize("kind", CLASSES)
def test_reading_what_they_save(dtype: torch.dtype, tmp_path: Path, kind: type) -> None:
    theirs = filled(kind(D, L, *CLASSES[kind])).to(dtype)
    if "threshold" in dict(theirs.named_buffers()):
        theirs.threshold.fill_(0.7)
    save(theirs, tmp_path)
    ours, description = read(tmp_path)
    same_outputs(ours, theirs)
    assert description.source["site"] == "gpt_neox.layers.3"
    loaded, _ = load_dictionary(str(tmp_path), "cpu")
    if dtype == torch.float32:  # in which their loader keeps all weights
        same_outputs(ours, loaded, codes=kind is not AutoEncoder)


def test_a_threshold_that_was_never_set_keeps_every_positive_latent_there(tmp_path: Path) -> None:
    theirs = filled(BatchTopKSAE(D, L, K))
    save(theirs, tmp_path)
    ours, description = read(tmp_path)
    x = rows(torch.float32)
    assert (theirs.encode(x) != 0).sum(1).max() > K
    assert ours.encode(x).l0().max() <= K
    assert "never set" in description.notes[0]


KINDS = [(ReLU, AutoEncoder), (TopK, AutoEncoderTopK), (BatchTopK, BatchTopKSAE), (JumpReLU, JumpReluAutoEncoder),
         (Gated, GatedAutoEncoder)]  # fmt: skip


@pytest.mark.parametrize(("activation", "kind"), KINDS)
def test_they_load_what_we_write(tmp_path: Path, activation: type, kind: type) -> None:
    ours = shuffle(SAE(D, L, activation(K) if "TopK" in activation.__name__ else activation()), torch.float32)
    if activation is BatchTopK:
        ours.activation.threshold.fill_(0.6)
        ours.activation.updates.fill_(1)
    ours.scale.set(torch.linspace(-1, 1, D), 1.5)
    write(ours, tmp_path / "sae", "dictionary_learning")
    theirs, config = load_dictionary(str(tmp_path / "sae"), "cpu")
    assert type(theirs) is kind
    assert config["trainer"]["dict_size"] == L
    same_outputs(ours.fold(), theirs, codes=kind is not AutoEncoder)
