"""What optimizers and algorithms keep comes back from a checkpoint bit for bit, in the precision it was saved in."""

from itertools import product
from pathlib import Path

import pytest
import torch
from meshes import together
from torch import Tensor

from saelab.core.files import read_tensors, write_tensors
from saelab.core.mesh import Mesh
from saelab.data import Batch
from saelab.kernels import tier
from saelab.kernels.adam import MOMENTS
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.train import Trainer, checkpoint
from saelab.train.algorithm import Algorithm
from saelab.train.algorithms.bias_adaptation import BiasAdaptation
from saelab.train.algorithms.closed_form_decoder import ClosedFormDecoder
from saelab.train.algorithms.resampling import Resampling
from saelab.train.optimizer import Optimizer
from saelab.train.optimizers.adam import Adam
from saelab.train.optimizers.muon import Muon
from saelab.train.optimizers.signum import Signum

B, D, L = 8, 16, 64  # rows of a width that the compiled kernels take

OPTIMIZERS = {
    **{f"Adam {m} {t}": (m, t) for m, t in product(MOMENTS, (False, True))},
    "Signum": None,
    "Muon": None,
}


def optimizer_named(name: str) -> Optimizer:
    if kind := OPTIMIZERS[name]:
        return Adam(moments=kind[0], touched=kind[1])
    return Signum() if name == "Signum" else Muon()


def algorithm_named(name: str) -> list[Algorithm]:
    return {
        "none": [],
        "Resampling": [Resampling(every=40, dead_after=24)],
        "BiasAdaptation": [BiasAdaptation(every=32, rate=0.1, groups=4)],
        "ClosedFormDecoder": [ClosedFormDecoder(every=32, rows=24)],
    }[name]


def make(optimizer: str, algorithm: str = "none", activation: Activation | None = None) -> Trainer:
    sae = SAE(D, L, activation or TopK(4), seed=1)
    return Trainer(sae, 1e-2, B, 0, optimizer=optimizer_named(optimizer), algorithms=algorithm_named(algorithm))


def trained(trainer: Trainer, first: int, last: int) -> Trainer:
    for step in range(first, last):
        trainer.step(Batch(torch.randn(B, D, generator=torch.Generator().manual_seed(step))))
    return trainer


def everything(trainer: Trainer, folder: Path) -> dict[str, Tensor]:
    """All tensors of a trainer at its end, as a checkpoint has them."""
    return read_tensors(checkpoint.save(folder, trainer, {}))[0]


def assert_goes_on(make_one, folder: Path) -> dict[str, Tensor]:
    """A trainer put back after 7 steps ends like one that was never stopped; returns what was saved."""
    whole = trained(make_one(), 0, 7)
    path = checkpoint.save(folder / "half", whole, {})
    again = make_one()
    checkpoint.restore(path, again)
    saved, back = read_tensors(path)[0], everything(again, folder / "back")
    trained(whole, 7, 15)
    trained(again, 7, 15)
    ends = everything(whole, folder / "whole"), everything(again, folder / "again")
    whole.finish()
    again.finish()
    finished = everything(whole, folder / "whole"), everything(again, folder / "again")
    for found, expected in ((back, saved), ends, finished):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype, key
            assert torch.equal(found[key], value), key
    return saved


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("activation", [TopK, ReLU])  # gradients latent by latent, and as a whole
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_as_if_never_stopped(tmp_path, optimizer, activation, kernels):
    with tier.using(kernels):
        assert_goes_on(lambda: make(optimizer, activation=activation(4) if activation is TopK else ReLU()), tmp_path)


@pytest.mark.parametrize("algorithm", ["Resampling", "BiasAdaptation", "ClosedFormDecoder"])
@pytest.mark.parametrize("optimizer", ["Adam float8 True", "Adam bfloat16 False", "Muon"])
def test_every_algorithm_goes_on_as_if_never_stopped(tmp_path, optimizer, algorithm):
    assert_goes_on(lambda: make(optimizer, algorithm), tmp_path)


@pytest.mark.parametrize(("moments", "kind"), [("bfloat16", torch.int16), ("float8", torch.uint8)])
def test_narrow_moments_stay_the_bits_that_they_are(tmp_path, moments, kind):
    saved = assert_goes_on(lambda: make(f"Adam {moments} False"), tmp_path)
    assert saved["optimizer.exp_avg.dictionary.W_dec"].dtype == kind
    assert (saved["optimizer.exp_avg.dictionary.W_dec"] != 0).any()


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("exp_avg", lambda value: value.float(), r"exp_avg should be \[64, 16\] int16, the file holds .* float32"),
        ("last", lambda value: value[:-1], r"last should be \[64\] int32, the file holds \[63\] int32"),
        ("last", lambda value: value + 90, "last and rates should be of steps up to 7, the file holds others"),
        ("rates", lambda value: value[:3], "last and rates should be of steps up to 7, the file holds others"),
        ("step", lambda value: None, r"step should be \[\] float32, the file holds nothing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, key, change, said):
    path = checkpoint.save(tmp_path, trained(make("Adam bfloat16 True"), 0, 7), {})
    tensors, about = read_tensors(path)
    changed = change(tensors.pop(f"optimizer.{key}.dictionary.W_dec"))
    write_tensors(path, tensors | ({} if changed is None else {f"optimizer.{key}.dictionary.W_dec": changed}), about)
    with pytest.raises(ValueError, match=rf"00000007\.safetensors .*W_dec, {said}"):
        checkpoint.restore(path, make("Adam bfloat16 True"))


def goes_on(mesh: Mesh, out: Path) -> None:
    """Train with every optimizer the mesh allows, save in the middle, go on with what was saved; all is equal."""
    optimizers = [Adam(), Signum(), Muon()]
    if mesh.shards == 1:
        optimizers += [Adam(moments="bfloat16", touched=True), Adam(moments="float8")]
    for number, optimizer in enumerate(optimizers):

        def made(optimizer: Optimizer = optimizer) -> Trainer:
            sae = SAE(16, 64, TopK(4), mesh=mesh)
            algorithms = [Resampling(every=40, dead_after=24), BiasAdaptation(every=32, rate=0.1, groups=4)]
            return Trainer(sae, 1e-2, 8, 0, average=0.9, optimizer=optimizer, algorithms=algorithms)

        whole, again = trained(made(), 0, 7), made()
        checkpoint.restore(checkpoint.save(out / f"{number}-half", whole, {}), again)
        ends = [checkpoint.save(out / f"{number}-{i}", trained(one, 7, 12), {}) for i, one in enumerate((whole, again))]
        expected, found = (read_tensors(path)[0] for path in ends)
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(found[key], expected[key]), (optimizer, key)


@pytest.mark.parametrize(("replicas", "shards"), [(2, 1), (1, 2)])
def test_two_processes_go_on_as_if_never_stopped(tmp_path, replicas, shards):
    together(goes_on, tmp_path / "both", replicas, shards)
