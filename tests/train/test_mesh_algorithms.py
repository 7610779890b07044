"""One process is two: rows shared out or latents shared out, algorithms and optimizers come to the same weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
import torch
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

torch.set_num_threads(1)
replicas, shards, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
mesh = Mesh(replicas, shards)
generator = torch.Generator().manual_seed(0)
rows = torch.randn(320, 16, generator=generator)


def train(name, algorithms, optimizer=None):
    sae = SAE(16, 64, ReLU(0.01), mesh=mesh).double()
    sae.initialise(rows)
    asleep = torch.arange(64) % 5 == 1
    with torch.no_grad():
        sae.dictionary.b_enc.copy_(mesh.own_latents(torch.where(asleep, -30.0, 0.0).double()))
    trainer = Trainer(sae, lr=1e-2, batch=64, warmup=0, clip=0.5, optimizer=optimizer, algorithms=algorithms)
    for x in rows.split(64):
        trainer.step(Batch(x))
    if "Resampling" in name:
        assert not mesh.all_latents(sae.firing.dead(128).int()).any()
    sae.save(f"{out}/{name}")


train("Muon", [], Muon())
train("Resampling", [Resampling(every=192, dead_after=128)])
train("BiasAdaptation", [BiasAdaptation(every=128, groups=4, rate=0.1)])
if shards == 1:
    train("ClosedFormDecoder", [ClosedFormDecoder(every=128, rows=200, mu=0.1, nu=0.1)])

# A checkpoint written by this mesh, and gone on from by it.
if mesh.is_first:
    Run.create(f"{out}/run", {})
mesh.wait()
for length in (192, 320):
    sae = SAE(16, 64, ReLU(0.01), mesh=mesh)
    algorithms = [Resampling(every=256, dead_after=128), BiasAdaptation(every=256, groups=4)]
    if shards == 1:
        algorithms.append(ClosedFormDecoder(every=256, rows=200))
    trainer = Trainer(sae, lr=1e-2, batch=64, decay=0, optimizer=Muon(), algorithms=algorithms)
    trainer.fit(ArraySource(rows), length, Run(f"{out}/run"), save_every=2, show=False)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trained(folder: Path, replicas: int, shards: int) -> dict[str, dict[str, torch.Tensor]]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    world = replicas * shards
    together = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, str(script), str(replicas), str(shards), str(folder)]
    processes = [
        subprocess.Popen(words, env=os.environ | together | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors
    saes = {path.parent.name: load_file(path) for path in folder.glob("*/weights.safetensors")}
    return saes | {"run": load_file(max((folder / "run" / "checkpoints").iterdir()))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("mesh") / "alone", 1, 1)


@pytest.mark.parametrize(("replicas", "shards"), [(2, 1), (1, 2)])
def test_two_processes_train_the_same_weights_as_one(tmp_path, alone, replicas, shards):
    together = trained(tmp_path / "together", replicas, shards)
    assert together.keys() == alone.keys() - ({"ClosedFormDecoder"} if shards > 1 else set())
    for name in together.keys() - {"run"}:
        assert together[name].keys() == alone[name].keys()
        for key, tensor in alone[name].items():
            assert torch.allclose(together[name][key].double(), tensor.double(), rtol=0, atol=1e-9), (name, key)
    if shards == 1:
        assert together["run"].keys() == alone["run"].keys()
        for key, tensor in alone["run"].items():
            assert torch.allclose(together["run"][key].double(), tensor.double(), rtol=0, atol=1e-3), key


def test_shards_cannot_share_a_closed_form(tmp_path):
    from saelab import SAE
    from saelab.core.mesh import Mesh
    from saelab.sae.activations.relu import ReLU
    from saelab.train import Trainer
    from saelab.train.algorithms.closed_form_decoder import ClosedFormDecoder

    class Two(Mesh):
        def _join(self):
            """A mesh of two shards without its processes."""

    with pytest.raises(ValueError, match="ClosedFormDecoder: latents cannot be dealt to several shards; use replicas"):
        Trainer(SAE(4, 8, ReLU(), mesh=Two(1, 2)), algorithms=[ClosedFormDecoder()])
