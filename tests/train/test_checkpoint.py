"""A checkpoint holds all that a run depends on, and refuses to go on with something else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from saelab.core.files import read_tensors, write_tensors
from saelab.data import ArraySource, Batch
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train import Trainer, checkpoint

B, D, L = 4, 5, 24


def rows(seed: int = 0) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


def make(k: int = 3, auxk: bool = True, average: float | None = 0.9) -> Trainer:
    return Trainer(SAE(D, L, TopK(k), [AuxK(dead_after=6)] if auxk else []), lr=1e-2, batch=B, average=average)


def trained(trainer: Trainer, first: int = 0, last: int = 5) -> Trainer:
    for step in range(first, last):
        trainer.step(Batch(rows(step)))
    return trainer


def everything(trainer: Trainer, folder: Path) -> dict[str, Tensor]:
    """All tensors of a trainer, as a checkpoint has them."""
    return read_tensors(checkpoint.save(folder, trainer, {}))[0]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path, trained(make()), {"window": 1, "offset": 2, "seed": 0})


def edit(path: Path, **changes: object) -> None:
    """Change what a checkpoint says about itself."""
    tensors, metadata = read_tensors(path)
    about = metadata | changes
    write_tensors(path, tensors, about)


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_restored_trainer_is_the_same_and_goes_on_the_same(tmp_path, average):
    trainer = trained(make(average=average))
    trainer.rows_planned = 77
    path = checkpoint.save(tmp_path / "a", trainer, {"window": 1})
    again = make(average=average)
    assert checkpoint.restore(path, again) == {"window": 1}
    assert (again.step_number, again.rows_seen, again.rows_planned) == (5, 5 * B, 77)
    assert_same(everything(again, tmp_path / "b"), everything(trainer, tmp_path / "c"))
    if average:
        for found, expected in zip(again.average.values(), trainer.average.values(), strict=True):
            assert torch.equal(found, expected)
    for each in (trainer, again):
        trained(each, 5, 12)
    assert_same(everything(again, tmp_path / "b"), everything(trainer, tmp_path / "c"))


def test_what_is_held(saved):
    tensors, _ = read_tensors(saved)
    assert {key.split(".")[0] for key in tensors} == {"sae", "optimizer", "average"}
    assert "sae.firing.since" in tensors
    n_parameters = len(list(make().sae.parameters()))
    assert [sum(key.startswith(part) for key in tensors) for part in ("optimizer.", "average.")] == [
        3 * n_parameters,
        n_parameters,
    ]


def test_the_newest_two_are_kept(tmp_path):
    trainer = make()
    for step in range(4):
        checkpoint.save(tmp_path, trained(trainer, step, step + 1), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{step}.safetensors" for step in (3, 4)]
    assert checkpoint.newest(tmp_path).name == "step-00000004.safetensors"


def test_a_file_that_was_never_finished_is_not_the_newest(saved):
    (saved.parent / ".step-00000009.safetensors.abc.part").write_bytes(b"half")
    assert checkpoint.newest(saved.parent) == saved
    assert checkpoint.newest(saved.parent / "nowhere") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 4}, r"was saved with activation = .*'k': 3.*, this run has .*'k': 4"),
        ({"auxk": False}, r"was saved with losses = \[.*AuxK.*\], this run has \[\]"),
    ],
)
def test_another_sae_is_refused(saved, settings, message):
    with pytest.raises(ValueError, match=rf"step-00000005\.safetensors {message}"):
        checkpoint.restore(saved, make(**settings))


def test_a_checkpoint_without_an_average_is_refused_where_one_is_wanted(tmp_path):
    path = checkpoint.save(tmp_path, trained(make(average=None)), {})
    with pytest.raises(ValueError, match="holds no weight average"):
        checkpoint.restore(path, make())


@pytest.mark.parametrize("average", [None, 0.5])
def test_a_checkpoint_of_another_average_is_refused(saved, average):
    with pytest.raises(ValueError, match="average"):
        checkpoint.restore(saved, make(average=average))


def test_a_newer_format_is_refused(saved):
    edit(saved, format=3)
    with pytest.raises(ValueError, match=r"00000005\.safetensors .*3, newer than 2"):
        checkpoint.restore(saved, make())


def test_an_older_format_is_refused(saved):
    edit(saved, format=1)
    with pytest.raises(ValueError, match=r"00000005\.safetensors .*format 1.*format 2"):
        checkpoint.restore(saved, make())


def test_a_foreign_file_is_refused(saved):
    write_tensors(saved, {"a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"00000005\.safetensors has no format"):
        checkpoint.restore(saved, make())


def test_a_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"step-00000005\.safetensors is damaged"):
        checkpoint.restore(saved, make())


@pytest.mark.parametrize("part", ["sae.", "optimizer.", "average."])
@pytest.mark.parametrize("change", ["missing", "shape"])
def test_tensors_that_do_not_fit_are_refused(saved, part, change):
    tensors, metadata = read_tensors(saved)
    key = next(key for key in tensors if key.startswith(part))
    del tensors[key]
    if change == "shape":
        tensors[key] = torch.ones(2, 2)
    write_tensors(saved, tensors, metadata)
    with pytest.raises(ValueError, match=r"step-00000005\.safetensors"):
        checkpoint.restore(saved, make())


def test_a_source_is_put_back_where_it_stood(tmp_path):
    source, trainer = ArraySource(torch.randn(11, D)), make()
    batches = source.batches(B)
    for _ in range(5):
        batch = next(batches)
        trainer.step(batch)
    path = checkpoint.save(tmp_path, trainer, batch.place)
    again = ArraySource(source.rows)
    again.restore(checkpoint.restore(path, make()))
    assert torch.equal(next(again.batches(B)).x, next(batches).x)
