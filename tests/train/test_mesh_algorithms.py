"""One process is two: rows shared out or latents shared out, algorithms and optimizers come to the same weights."""

from pathlib import Path

import pytest
import torch
from meshes import together
from safetensors.torch import load_file

from saelab import SAE
from saelab.core.mesh import Mesh
from saelab.core.run import Run
from saelab.data import ArraySource, Batch
from saelab.sae.activations.relu import ReLU
from saelab.train import Trainer
from saelab.train.algorithms.bias_adaptation import BiasAdaptation
from saelab.train.algorithms.closed_form_decoder import ClosedFormDecoder
from saelab.train.algorithms.resampling import Resampling
from saelab.train.optimizers.muon import Muon

ROWS = torch.randn(320, 16, generator=torch.Generator().manual_seed(0))


def train(mesh: Mesh, out: Path) -> None:
    """An SAE for each algorithm and optimizer, and a checkpoint written by this mesh and gone on from by it."""
    _train_one(mesh, out / "Muon", [], Muon())
    _train_one(mesh, out / "Resampling", [Resampling(every=192, dead_after=128)])
    _train_one(mesh, out / "BiasAdaptation", [BiasAdaptation(every=128, groups=4, rate=0.1)])
    if mesh.shards == 1:
        _train_one(mesh, out / "ClosedFormDecoder", [ClosedFormDecoder(every=128, rows=200, mu=0.1, nu=0.1)])

    if mesh.is_first:
        Run.create(out / "run", {})
    mesh.wait()
    for length in (192, 320):
        sae = SAE(16, 64, ReLU(0.01), mesh=mesh)
        algorithms = [Resampling(every=256, dead_after=128), BiasAdaptation(every=256, groups=4)]
        if mesh.shards == 1:
            algorithms.append(ClosedFormDecoder(every=256, rows=200))
        trainer = Trainer(sae, lr=1e-2, batch=64, decay=0, optimizer=Muon(), algorithms=algorithms)
        trainer.fit(ArraySource(ROWS), length, Run(out / "run"), save_every=2, show=False)


def _train_one(mesh: Mesh, out: Path, algorithms: list, optimizer: Muon | None = None) -> None:
    sae = SAE(16, 64, ReLU(0.01), mesh=mesh).double()
    sae.initialise(ROWS)
    asleep = torch.arange(64) % 5 == 1
    with torch.no_grad():
        sae.dictionary.b_enc.copy_(mesh.local_latents(torch.where(asleep, -30.0, 0.0).double()))
    trainer = Trainer(sae, lr=1e-2, batch=64, warmup=0, clip=0.5, optimizer=optimizer, algorithms=algorithms)
    for x in ROWS.split(64):
        trainer.step(Batch(x))
    if out.name == "Resampling":
        assert not mesh.gather_latents(sae.firing.dead(128).int()).any()
    sae.save(out)


def trained(folder: Path, replicas: int, shards: int) -> dict[str, dict[str, torch.Tensor]]:
    together(train, folder, replicas, shards)
    saes = {path.parent.name: load_file(path) for path in folder.glob("*/weights.safetensors")}
    return saes | {"run": load_file(max((folder / "run" / "checkpoints").iterdir()))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("mesh") / "alone", 1, 1)


@pytest.mark.parametrize(("replicas", "shards"), [(2, 1), (1, 2)])
def test_two_processes_train_the_same_weights_as_one(tmp_path, alone, replicas, shards):
    several = trained(tmp_path / "several", replicas, shards)
    assert several.keys() == alone.keys() - ({"ClosedFormDecoder"} if shards > 1 else set())
    for name in several.keys() - {"run"}:
        assert several[name].keys() == alone[name].keys()
        for key, tensor in alone[name].items():
            assert torch.allclose(several[name][key].double(), tensor.double(), rtol=0, atol=1e-9), (name, key)
    if shards == 1:
        assert several["run"].keys() == alone["run"].keys()
        for key, tensor in alone["run"].items():
            assert torch.allclose(several["run"][key].double(), tensor.double(), rtol=0, atol=1e-3), key


def test_shards_cannot_share_a_closed_form(tmp_path):
    class Two(Mesh):
        def _join(self):
            """A mesh of two shards without its processes."""

    with pytest.raises(ValueError, match="ClosedFormDecoder: .*shards; use replicas"):
        Trainer(SAE(4, 8, ReLU(), mesh=Two(1, 2)), algorithms=[ClosedFormDecoder()])
