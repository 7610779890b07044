"""What is estimated while training is exact in what is saved: the mean L0 that a threshold reads by is k."""

# Shape letters: D input width, L latents, n rows of the source.

from pathlib import Path

import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.files import read_tensors
from saelab.core.run import Run
from saelab.data.array import ArraySource
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.topk import TopK
from saelab.train import checkpoint
from saelab.train.optimizers.adam import Adam
from saelab.train.trainer import Trainer

D, L, K, BATCH, N = 12, 96, 4, 64, 2000


def rows() -> Tensor:
    """Sparse sums of fixed directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, D, generator=generator), dim=1)
    on = torch.rand(N, 40, generator=generator) < 0.08
    return (on * (0.5 + torch.rand(N, 40, generator=generator))) @ directions


def make(k: float = K, **settings: object) -> Trainer:
    return Trainer(SAE(D, L, BatchTopK(k)), **({"lr": 3e-3, "batch": BATCH} | settings))


def active(sae: SAE, x: Tensor) -> int:
    """Active latents of all rows, read."""
    with torch.no_grad():
        return int(sae.encode(x).l0().sum())


@pytest.fixture(scope="module")
def source() -> ArraySource:
    return ArraySource(rows(), seed=1)


@pytest.mark.parametrize("k", [K, 2.5])
@pytest.mark.parametrize("steps", [30, 120])
def test_read_by_the_saved_threshold_l0_is_k(tmp_path, source, steps, k):
    trainer = make(k)
    source.restore(ArraySource(rows(), seed=1).state())
    trainer.fit(source, steps * BATCH, Run.create(tmp_path / "run", {}), show=False)
    saved = saelab.load(tmp_path / "run")
    assert active(saved, source.rows) == round(k * N)
    assert torch.equal(saved.activation.threshold, trainer.sae.activation.threshold)


def test_without_a_folder_too(source):
    assert active(make().fit(source, 40 * BATCH, show=False), source.rows) == K * N


def test_with_latents_updated_now_and_then(tmp_path, source):
    trainer = make(optimizer=Adam(touched=True))
    trainer.fit(source, 40 * BATCH, Run.create(tmp_path / "run", {}), show=False)
    assert active(saelab.load(tmp_path / "run"), source.rows) == K * N


def test_the_threshold_is_that_of_the_weights_saved(tmp_path, source):
    trainer = make(average=0.95)
    trainer.fit(source, 40 * BATCH, Run.create(tmp_path / "run", {}), show=False)
    saved = saelab.load(tmp_path / "run")
    assert active(saved, source.rows) == active(trainer.sae, source.rows) == K * N
    assert not torch.equal(saved.activation.threshold, trainer.sae.activation.threshold)


@pytest.mark.parametrize("average", [None, 0.95])
def test_checkpoints_have_it(tmp_path, source, average):
    run, trainer = Run.create(tmp_path / "run", {}), make(average=average)
    trainer.fit(source, 30 * BATCH, run, save_every=10, show=False)
    for path in run.checkpoints.iterdir():
        tensors, _ = read_tensors(path)
        sae = SAE(D, L, BatchTopK(K))
        sae.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("sae.")})
        assert active(sae, source.rows) == K * N


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_resumed_run_ends_with_the_same_threshold(tmp_path, average):
    def fit(folder: Path, steps: int) -> None:
        run = Run.open(folder) if folder.exists() else Run.create(folder, {})
        make(average=average, decay=0, warmup=0).fit(ArraySource(rows()), steps * BATCH, run, save_every=7, show=False)

    fit(tmp_path / "whole", 20)
    for steps in (9, 20):  # the first ends with a checkpoint that the other run does not have
        fit(tmp_path / "run", steps)
    for file in ("sae/weights.safetensors", "checkpoints/step-00000020.safetensors"):
        (found, _), (expected, _) = (read_tensors(tmp_path / name / file) for name in ("run", "whole"))
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_rows_are_looked_at_only_where_something_is_estimated(source, monkeypatch):
    calls = []
    real = ArraySource.sample
    monkeypatch.setattr(ArraySource, "sample", lambda self, n: calls.append(n) or real(self, n))
    trainer = Trainer(SAE(D, L, TopK(K)), batch=BATCH)
    trainer.fit(source, BATCH, show=False)
    trainer.fit(source, BATCH, show=False)
    assert len(calls) == 1  # to start from


def test_a_loop_of_ones_own_ends_with_it(source):
    trainer = make()
    trainer.prepare(source)
    for _, batch in zip(range(10), source.batches(BATCH), strict=False):
        trainer.step(batch)
    trainer.finish()
    assert active(trainer.sae, source.rows) == K * N


def test_many_rows_are_taken_in_parts(source, monkeypatch):
    sae = make().fit(source, 5 * BATCH, show=False)
    monkeypatch.setattr("saelab.sae.sae.BLOCK_ENTRIES", 7 * L)
    sae.activation.threshold.zero_()
    sae.calibrate(source.rows)
    assert active(sae, source.rows) == K * N


@pytest.mark.parametrize("bias", [-0.5, -100.0])
def test_with_fewer_positive_pre_activations_than_k_all_of_them_are_read(source, bias):
    sae = SAE(D, L, BatchTopK(30))
    sae.initialise(source.rows)
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(bias)
    sae.calibrate(source.rows)
    assert (sae.activation.threshold == 0).all()
    pre = sae.dictionary.pre(sae.scale.apply_to(source.rows)).dense()
    assert active(sae, source.rows) == (pre > 0).sum() < 30 * N


def test_places_of_checkpoints_do_not_matter(tmp_path, source):
    run = Run.create(tmp_path / "run", {})
    make().fit(ArraySource(rows()), 12 * BATCH, run, save_every=5, show=False)
    assert len(list(run.checkpoints.iterdir())) == checkpoint.KEPT
    apart = make().fit(ArraySource(rows()), 12 * BATCH, show=False)
    saved = saelab.load(tmp_path / "run")
    assert all(torch.equal(value, apart.state_dict()[key]) for key, value in saved.state_dict().items())
