"""Checkpoints: all that a run depends on from here, in one safetensors file that appears whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from saelab.core.files import PART, fit, read_tensors, write_tensors
from saelab.core.read import check_format
from saelab.train.optimizer import Stepper
from saelab.train.step import StepTrainer

FORMAT = 2
KEPT = 2
"""Newest checkpoints that are kept."""


def save(folder: Path, trainer: StepTrainer, place: dict[str, Any]) -> Path:
    """Write a checkpoint of a trainer whose source stands at `place`; older ones than the newest two are removed."""
    sae = trainer.sae
    tensors = {f"sae.{name}": value for name, value in sae.gathered(sae.state_dict()).items()}
    tensors |= _optimizer_tensors(trainer)
    if trainer.average:
        tensors |= {f"average.{name}": value for name, value in sae.gathered(_sums(trainer)).items()}
    for algorithm in trainer.algorithms:
        prefix = f"algorithm.{type(algorithm).__name__}"
        for name, value in algorithm.state_dict().items():
            whole = sae.mesh.gather_latents(value) if name in algorithm.sharded else value
            tensors[f"{prefix}.{name}"] = whole
    about = {
        "format": FORMAT,
        "step": trainer.step_number,
        "rows": trainer.rows_seen,
        "rows_planned": trainer.rows_planned,
        "source": place,
        "sae": trainer.sae.config(),
        "trainer": trainer.settings(),
        "optimizer": {name: sorted(s.state[p]) for name, p, s in _moved(trainer) if s.state.get(p)},
    }
    path = folder / f"step-{trainer.step_number:08d}.safetensors"
    if sae.mesh.is_first:
        write_tensors(path, tensors, about)
        tidy(folder)
    sae.mesh.wait()
    return path


def tidy(folder: Path) -> None:
    """Remove what a killed process left half-written, and checkpoints older than the newest two."""
    for old in [*sorted(folder.glob("step-*.safetensors"))[:-KEPT], *folder.glob(f".step-*{PART}")]:
        old.unlink()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a checkpoint."""
    older = sorted(other for other in path.parent.glob("step-*.safetensors") if other.name < path.name)
    try:
        tensors, about = read_tensors(path)
    except ValueError as error:
        remedy = f"; remove it to go on from {older[-1].name}" if older else ""
        raise ValueError(f"{error}{remedy}") from None
    check_format(path, about.get("format"), FORMAT)
    if about["format"] < FORMAT:
        raise ValueError(
            f"{path} has format {about['format']}, this saelab resumes format {FORMAT} only: train again from the start"
        )
    missing = {"step", "rows", "rows_planned", "source", "sae", "trainer", "optimizer"} - about.keys()
    if missing:
        raise ValueError(f"{path} is an incomplete checkpoint: it lacks {', '.join(sorted(missing))}")
    return tensors, about


def newest(folder: Path) -> Path | None:
    """The latest checkpoint in a folder, if there is one."""
    return next(iter(newest_of_all([folder])), None)


def newest_of_all(folders: Sequence[Path]) -> list[Path]:
    """The latest checkpoints of one step that all folders have; none, where they have no step in common."""
    names = [{path.name for path in folder.glob("step-*.safetensors")} for folder in folders]
    common = set.intersection(*names) if names else set()
    return [folder / max(common) for folder in folders] if common else []


def restore(path: Path, trainer: StepTrainer) -> dict[str, Any]:
    """Put a trainer where the checkpoint was taken and return the source's place.

    Raises:
        ValueError: naming the file, if it is damaged, of a newer format, or of another SAE or optimizer.
    """
    tensors, about = _read(path)
    for kind, own in (("sae", trainer.sae.config()), ("trainer", trainer.settings())):
        for key, value in own.items():
            if key == "average" and about[kind].get(key) is None and value is not None:
                raise ValueError(f"{path} holds no weight average: it was saved without the setting `average`")
            if about[kind].get(key) != value:
                raise ValueError(f"{path} was saved with {key} = {about[kind].get(key)!r}, this run has {value!r}")
    fit(trainer.sae, trainer.sae.local_part(_group(tensors, "sae.")), path)
    _restore_optimizer(trainer, tensors, path, about["optimizer"])
    _restore_algorithms(trainer, tensors, path)
    if trainer.average:
        _restore_average(trainer, tensors, path)
        trainer.average.steps = about["step"]
    trainer.step_number = trainer.began = about["step"]
    trainer.rows_seen = about["rows"]
    trainer.rows_planned = about["rows_planned"]
    place: dict[str, Any] = about["source"]
    return place


def _moved(trainer: StepTrainer) -> list[tuple[str, Parameter, Stepper]]:
    """Each parameter's name, the parameter and the stepper that moves it."""
    stepper_of = {p: stepper for stepper in trainer.steppers for group in stepper.param_groups for p in group["params"]}
    return [(name, parameter, stepper_of[parameter]) for name, parameter in trainer.sae.named_parameters()]


def _optimizer_tensors(trainer: StepTrainer) -> dict[str, Tensor]:
    """What the optimizer keeps of each parameter, with the latents of all shards."""
    sharded, tensors = trainer.sae.sharded_names(), {}
    for name, parameter, stepper in _moved(trainer):
        for key, value in stepper.state.get(parameter, {}).items():
            is_part = name in sharded and key not in stepper.common
            tensors[f"optimizer.{key}.{name}"] = trainer.sae.mesh.gather_latents(value) if is_part else value
    return tensors


def _restore_optimizer(
    trainer: StepTrainer, tensors: dict[str, Tensor], path: Path, kept: dict[str, list[str]]
) -> None:
    sharded = trainer.sae.sharded_names()
    for name, parameter, stepper in _moved(trainer):
        stepper.state.pop(parameter, None)
        state = {}
        for key in kept.get(name, ()):
            full = tensors.get(f"optimizer.{key}.{name}")
            if full is not None:
                is_part = name in sharded and key not in stepper.common and full.ndim
                state[key] = trainer.sae.mesh.local_latents(full) if is_part else full
        if name in kept:
            try:
                stepper.put_back(parameter, state)
            except ValueError as error:
                raise ValueError(f"{path} does not fit: of what is kept of {name}, {error}") from None


def _sums(trainer: StepTrainer) -> dict[str, Tensor]:
    """What the weights' average holds, by parameter."""
    assert trainer.average
    names = [name for name, _ in trainer.sae.named_parameters()]
    return dict(zip(names, trainer.average.sums, strict=True))


def _restore_algorithms(trainer: StepTrainer, tensors: dict[str, Tensor], path: Path) -> None:
    for algorithm in trainer.algorithms:
        whole = _group(tensors, f"algorithm.{type(algorithm).__name__}.")
        mesh = trainer.sae.mesh
        own = {name: mesh.local_latents(value) if name in algorithm.sharded else value for name, value in whole.items()}
        fit(algorithm, own, path)


def _restore_average(trainer: StepTrainer, tensors: dict[str, Tensor], path: Path) -> None:
    assert trainer.average
    sums = trainer.sae.local_part(_group(tensors, "average."))
    trainer.average.sums = [
        _fitting(path, sums, name, list(parameter.shape)).to(trainer.device, copy=True)
        for name, parameter in trainer.sae.named_parameters()
    ]


def _fitting(path: Path, tensors: dict[str, Tensor], name: str, shape: list[int]) -> Tensor:
    found = list(tensors[name].shape) if name in tensors else "nothing"
    if found != shape:
        raise ValueError(f"{path} does not fit: the saved state of {name} should be {shape}, the file holds {found}")
    return tensors[name]


def _group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
