"""One process is two processes: rows shared out or latents shared out, training comes to the same weights."""

from pathlib import Path

import pytest
import torch
from meshes import together
from safetensors.torch import load_file

from saelab import SAE
from saelab.core.mesh import ALONE, Mesh
from saelab.core.run import Run
from saelab.data import ArraySource
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.scales import DataScale, LayerNorm
from saelab.train import Trainer


def train(mesh: Mesh, out: Path) -> None:
    """Two SAEs, and a checkpoint written by this mesh and gone on from by it."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    for name, activation, scale in (("topk", TopK(4), DataScale()), ("relu", ReLU(0.01), LayerNorm())):
        sae = SAE(16, 64, activation, [AuxK(k_aux=8, dead_after=100)], mesh=mesh, scale=scale)
        sae.initialise(rows)
        sleepy = torch.arange(64) % 5 == 0  # these are dead from the start, so that AuxK has work on every shard
        with torch.no_grad():
            sae.dictionary.b_enc.copy_(mesh.local_latents(torch.where(sleepy, -3.0, 0.0)))
        sae.firing.since.copy_(mesh.local_latents(torch.where(sleepy, 10_000, 0)))
        trainer = Trainer(sae, lr=1e-2, batch=128, clip=0.5, average=0.5)
        auxiliary = []
        for number, batch in enumerate(ArraySource(rows).batches(128)):
            terms, _ = trainer.step(batch)
            auxiliary.append(terms["AuxK"].item())
            if number == 7:
                break
        assert min(auxiliary) > 0
        sae.save(out / name)
    # A threshold set on rows that cannot be dealt evenly.
    sae = SAE(16, 64, BatchTopK(2.5), mesh=mesh).double()
    Trainer(sae, lr=1e-2, batch=128).fit(ArraySource(rows[:509]), 1024, show=False)
    sae.save(out / "batch")

    if mesh.is_first:
        Run.create(out / "run", {})
    mesh.wait()
    for length in (512, 1024):
        sae = SAE(16, 64, TopK(4), [AuxK(k_aux=8, dead_after=100)], mesh=mesh)
        trainer = Trainer(sae, lr=1e-2, batch=128, decay=0, average=0.5)
        trainer.fit(ArraySource(rows), length, Run(out / "run"), save_every=2, show=False)


def trained(folder: Path, replicas: int, shards: int) -> dict[str, dict[str, torch.Tensor]]:
    together(train, folder, replicas, shards)
    saes = {name: load_file(folder / name / "weights.safetensors") for name in ("topk", "relu", "batch")}
    return saes | {"run": load_file(max((folder / "run" / "checkpoints").iterdir()))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("mesh") / "alone", 1, 1)


@pytest.mark.parametrize(("replicas", "shards"), [(2, 1), (1, 2), (2, 2)])
def test_several_processes_train_the_same_weights_as_one(tmp_path, alone, replicas, shards):
    several = trained(tmp_path / "several", replicas, shards)
    for name, tensors in alone.items():
        assert tensors.keys() == several[name].keys()
        for key, tensor in tensors.items():
            assert torch.allclose(several[name][key].float(), tensor.float(), rtol=0, atol=2e-6), (name, key)


def test_a_mesh_needs_as_many_processes_as_it_has_places(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="need 4 processes, there are 3.*torchrun"):
        Mesh(2, 2)


def test_a_mesh_needs_at_least_one_of_each():
    with pytest.raises(ValueError, match="replica .*shard, got 0 and 1"):
        Mesh(0)


def test_latents_must_divide_evenly():
    class Three(Mesh):
        def _join(self):
            """A mesh of three shards without its processes."""

    with pytest.raises(ValueError, match="64 latents .*3 shards"):
        SAE(16, 64, TopK(4), mesh=Three(1, 3))


def test_rows_must_divide_evenly():
    class Two(Mesh):
        def _join(self):
            """A mesh of two replicas without its processes."""

    with pytest.raises(ValueError, match="7 rows .*2 replicas"):
        Two(2).local_rows(torch.zeros(7, 3))


def test_alone_every_operation_is_the_identity():
    values = torch.randn(5, 4)
    assert torch.equal(ALONE.local_rows(values), values)
    assert ALONE.local_latents(values) is values
    assert ALONE.gather_latents(values) is values
    assert ALONE.sum_over_shards(values) is values
    assert ALONE.mean(values) is values
    assert ALONE.any(True)
    assert not ALONE.any(False)


def test_the_largest_alone_are_those_of_topk():
    values = torch.randn(20, 9)
    chosen = ALONE.largest(values, 4)
    kept = torch.zeros_like(chosen).scatter_(1, values.topk(4).indices, True)
    assert torch.equal(chosen, kept)
