"""One process is four for each part of an SAE that looks at all rows or all latents: same weights, same thresholds."""

from pathlib import Path

import pytest
import torch
from meshes import together
from safetensors.torch import load_file

from saelab import SAE
from saelab.core.mesh import Mesh
from saelab.data.source import Batch
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.block_topk import BlockTopK
from saelab.sae.activations.gradient_topk import GradientTopK
from saelab.sae.activations.matching_pursuit import MatchingPursuit
from saelab.sae.activations.top_afa import TopAFA
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.norm_match import NormMatch
from saelab.sae.losses.nuclear_norm import NuclearNorm
from saelab.train import Trainer


def train(mesh: Mesh, out: Path) -> None:
    """An SAE of each kind, and what it reads."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(192, 16, generator=generator) * torch.linspace(0.1, 3, 192)[:, None]
    gradients = torch.randn(192, 16, generator=generator)
    order = torch.randperm(192, generator=generator).view(3, 64)
    kinds = {
        "batch": (BatchTopK(4), [NormMatch()], Dense()),
        "abs": (AbsTopK(4), [NormMatch(mode="reference")], Dense()),
        "block": (BlockTopK(2, 4), [NuclearNorm(4, 0.1)], Dense()),
        "pursuit": (MatchingPursuit(4), [], Dense()),
        "signed pursuit": (MatchingPursuit(4, signed=True), [], Dense(tied=True, encoder_bias=False)),
        "afa": (TopAFA(), [NormMatch(0.3)], Dense()),
        "gradient": (GradientTopK(4, 2.0), [], Dense()),
    }
    for name, (activation, losses, dictionary) in kinds.items():
        sae = SAE(16, 96, activation, losses, dictionary, mesh=mesh).double()
        sae.initialise(rows)
        trainer = Trainer(sae, lr=1e-2, batch=64, warmup=0)
        for batch in order:
            trainer.step(Batch(rows[batch], gradient=gradients[batch]))
        sae.save(out / name)
        with torch.no_grad():
            read = mesh.gather_latents(sae.encode(rows).dense().T.contiguous()).T.contiguous()
        if mesh.is_first:
            torch.save(read, out / name / "read.pt")
    mesh.wait()


def trained(folder: Path, replicas: int, shards: int) -> dict[str, dict[str, torch.Tensor]]:
    together(train, folder, replicas, shards)
    return {
        name.name: load_file(name / "weights.safetensors") | {"read": torch.load(name / "read.pt")}
        for name in folder.iterdir()
        if name.is_dir()
    }


@pytest.mark.slow
def test_four_processes_train_and_read_the_same_as_one(tmp_path):
    alone, several = trained(tmp_path / "alone", 1, 1), trained(tmp_path / "several", 2, 2)
    assert len(alone) == 7
    for name, tensors in alone.items():
        assert tensors.keys() == several[name].keys()
        for key, tensor in tensors.items():
            assert torch.allclose(several[name][key].double(), tensor.double(), rtol=0, atol=1e-8), (name, key)
