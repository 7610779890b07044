"""SAEs trained together get the weights that training each alone gives, and go on from a kill in step."""

# Shape letters: B rows, D input width, L latents.

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.log import read_log
from saelab.core.run import Run
from saelab.data.array import ArraySource
from saelab.data.source import Batch
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train.loop import LoopConfig
from saelab.train.ramp import Ramp
from saelab.train.sweep import Sweep
from saelab.train.trainer import Trainer

D, L, BATCH, STEPS = 10, 40, 32, 30
QUIET = LoopConfig(log_every=10, save_every=10, show=False)


def source() -> ArraySource:
    rows = torch.randn(400, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.3, 3, D)
    return ArraySource(rows, seed=3)


def topk_trainers() -> list[Trainer]:
    """k, seed, learning rate, an average, a ramp and a clip differ."""
    saes = [SAE(D, L, TopK(k), [AuxK(dead_after=200)], seed=seed) for k, seed in ((2, 0), (5, 1), (3, 1))]
    return [
        Trainer(saes[0], lr=1e-3, batch=BATCH),
        Trainer(saes[1], lr=3e-3, batch=BATCH, average=0.9),
        Trainer(saes[2], lr=2e-3, batch=BATCH, clip=0.5, ramps=[Ramp("activation.k", 6, 10)]),
    ]


def relu_trainers() -> list[Trainer]:
    return [Trainer(SAE(D, L, ReLU(l1=l1)), lr=1e-3, batch=BATCH) for l1 in (0.0, 0.01, 0.3)]


def runs(folder: Path) -> list[Run]:
    return [Run.create(folder / name, {}) for name in ("a", "b", "c")]


def weights(sae: SAE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sae.state_dict().items()}


def batch_topk_trainers() -> list[Trainer]:
    return [Trainer(SAE(D, L, BatchTopK(k)), lr=1e-3, batch=BATCH) for k in (1.5, 2, 5)]


@pytest.mark.parametrize("make", [topk_trainers, relu_trainers, batch_topk_trainers])
def test_the_weights_are_those_of_training_alone(make):
    together = Sweep(make()).fit(source(), STEPS * BATCH, config=QUIET)
    for trainer, sae in zip(make(), together, strict=True):
        alone = trainer.fit(source(), STEPS * BATCH, show=False)
        start = trainer.sae
        assert torch.equal(sae.firing.since, alone.firing.since)
        for name, value in [*alone.named_parameters(), *alone.activation.named_buffers(prefix="activation")]:
            torch.testing.assert_close(sae.state_dict()[name], value, rtol=1e-3, atol=2e-5, msg=name)
        assert int(start.firing.rows) == STEPS * BATCH


def test_each_run_is_an_ordinary_run(tmp_path):
    folders = runs(tmp_path)
    Sweep(topk_trainers()).fit(source(), STEPS * BATCH, folders, QUIET)
    for run, k in zip(folders, (2, 5, 3), strict=True):
        sae = saelab.load(run.folder)
        assert sae.activation.k == k
        records = read_log(run.log_file)
        assert [record["step"] for record in records] == [1, 10, 20, 30]
    assert read_log(folders[2].log_file)[0]["activation.k"] == 6


def test_it_goes_on_bit_for_bit_from_the_last_step_that_all_have(tmp_path):
    folders = runs(tmp_path)
    whole = [weights(sae) for sae in Sweep(topk_trainers()).fit(source(), STEPS * BATCH, folders, QUIET)]
    log = read_log(folders[0].log_file)
    # As if killed while the last checkpoints were written: one run has only the one before.
    (folders[2].checkpoints / f"step-{STEPS:08d}.safetensors").unlink()
    shutil.rmtree(folders[0].sae)
    again = Sweep(topk_trainers())
    for expected, sae in zip(whole, again.fit(source(), STEPS * BATCH, folders, QUIET), strict=True):
        for name, value in weights(sae).items():
            assert torch.equal(value, expected[name]), name
    assert saelab.load(folders[0].folder).activation.k == 2
    assert [record["loss"] for record in read_log(folders[0].log_file)] == [record["loss"] for record in log]


def test_saved_thresholds_are_each_ones_own(tmp_path):
    folders = runs(tmp_path)
    Sweep(batch_topk_trainers()).fit(source(), STEPS * BATCH, folders, QUIET)
    for run, k in zip(folders, (1.5, 2, 5), strict=True):
        sae = saelab.load(run.folder)
        with torch.no_grad():
            assert sae.encode(source().rows).l0().sum() == k * 400


def test_trainers_that_do_not_go_in_step_are_refused():
    first, second = (SAE(D, L, TopK(2)) for _ in range(2))
    with pytest.raises(ValueError, match="same batch: 16 is not 32"):
        Sweep([Trainer(first, batch=32), Trainer(second, batch=16)])
    sweep = Sweep([Trainer(SAE(D, L, TopK(2)), batch=32)])
    with pytest.raises(ValueError, match="one by one"):
        sweep.step(Batch(torch.zeros(32, D), target=torch.zeros(32, D)))
    with pytest.raises(ValueError, match="need as many runs"):
        sweep.fit(source(), 32, [])
