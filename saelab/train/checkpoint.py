"""Checkpoints: all that a run depends on from here, in one safetensors file that appears whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab.core.files import PART, read_tensors, write_tensors
from saelab.core.read import check_format
from saelab.sae.sae import fit

if TYPE_CHECKING:
    from saelab.train.trainer import Trainer

FORMAT = 2
KEPT = 2
"""Newest checkpoints that are kept."""


def save(folder: Path, trainer: "Trainer", place: dict[str, Any]) -> Path:
    """Write a checkpoint of a trainer whose source stands at `place`; older ones than the newest two are removed."""
    sae = trainer.sae
    tensors = {f"sae.{name}": value for name, value in sae.whole(sae.state_dict()).items()}
    for part, values in _by_parameter(trainer).items():
        tensors |= {f"{part}.{name}": value for name, value in sae.whole(values).items()}
    for algorithm in trainer.algorithms:
        prefix = f"algorithm.{type(algorithm).__name__}"
        for name, value in algorithm.state_dict().items():
            whole = sae.mesh.all_latents(value) if name in algorithm.sharded else value
            tensors[f"{prefix}.{name}"] = whole
    about = {
        "format": FORMAT,
        "step": trainer.step_number,
        "rows": trainer.rows_seen,
        "rows_planned": trainer.rows_planned,
        "source": place,
        "sae": trainer.sae.config(),
        "trainer": trainer.settings(),
        "optimizer": {name: sorted(kept) for name, kept in _optimizer_state(trainer).items()},
    }
    path = folder / f"step-{trainer.step_number:08d}.safetensors"
    if sae.mesh.is_first:
        write_tensors(path, tensors, about)
        for old in [*sorted(folder.glob("step-*.safetensors"))[:-KEPT], *folder.glob(f".step-*{PART}")]:
            old.unlink()
    sae.mesh.wait()
    return path


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
        raise ValueError(f"{path} has format {about['format']}, this saelab goes on from {FORMAT}: train it anew")
    missing = {"step", "rows", "rows_planned", "source", "sae", "trainer", "optimizer"} - about.keys()
    if missing:
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(sorted(missing))}")
    return tensors, about


def newest(folder: Path) -> Path | None:
    """The latest checkpoint in a folder, if there is one."""
    return next(iter(newest_of_all([folder])), None)


def newest_of_all(folders: Sequence[Path]) -> list[Path]:
    """The latest checkpoints of one step that all folders have; none, where they have no step in common."""
    names = [{path.name for path in folder.glob("step-*.safetensors")} for folder in folders]
    common = set.intersection(*names) if names else set()
    return [folder / max(common) for folder in folders] if common else []


def restore(path: Path, trainer: "Trainer") -> dict[str, Any]:
    """Put a trainer where the checkpoint was taken and return the source's place.

    Raises:
        ValueError: naming the file, if it is damaged, of a newer format, or of another SAE or optimizer.
    """
    tensors, about = _read(path)
    for kind, own in (("sae", trainer.sae.config()), ("trainer", trainer.settings())):
        for key, value in own.items():
            if key == "average" and about[kind].get(key) is None and value is not None:
                raise ValueError(f"{path} holds no weight average: it was taken without the setting `average`")
            if about[kind].get(key) != value:
                raise ValueError(f"{path} was taken with {key} = {about[kind].get(key)!r}, this run has {value!r}")
    fit(trainer.sae, trainer.sae.own(_group(tensors, "sae.")), path)
    _restore_optimizer(trainer, tensors, path, about["optimizer"])
    _restore_algorithms(trainer, tensors, path)
    if trainer.average:
        _restore_average(trainer, tensors, path)
        trainer.average.steps = about["step"]
    trainer.step_number, trainer.rows_seen = about["step"], about["rows"]
    trainer.rows_planned = about["rows_planned"]
    place: dict[str, Any] = about["source"]
    return place


def _optimizer_state(trainer: "Trainer") -> dict[str, dict[str, Tensor]]:
    """What the optimizer keeps of each parameter that it has moved, as {parameter's name: {key: tensor}}."""
    states = [stepper.state for stepper in trainer.steppers]
    named = trainer.sae.named_parameters()
    return {name: state[parameter] for name, parameter in named for state in states if state.get(parameter)}


def _by_parameter(trainer: "Trainer") -> dict[str, dict[str, Tensor]]:
    """What the optimizer and the average hold, as {part: {parameter's name: tensor}}."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, kept in _optimizer_state(trainer).items():
        for key, value in kept.items():
            parts.setdefault(f"optimizer.{key}", {})[name] = value
    if trainer.average:
        names = [name for name, _ in trainer.sae.named_parameters()]
        parts["average"] = dict(zip(names, trainer.average.sums, strict=True))
    return parts


def _restore_optimizer(trainer: "Trainer", tensors: dict[str, Tensor], path: Path, kept: dict[str, list[str]]) -> None:
    own = {
        key: trainer.sae.own(_group(tensors, f"optimizer.{key}."))
        for key in sorted({key for keys in kept.values() for key in keys})
    }
    name_of = {parameter: name for name, parameter in trainer.sae.named_parameters()}
    for stepper in trainer.steppers:
        parameters = [parameter for group in stepper.param_groups for parameter in group["params"]]
        state = {}
        for number, parameter in enumerate(parameters):
            name, shape = name_of[parameter], list(parameter.shape)
            state[number] = {
                key: _fitting(path, own[key], name, [] if key == "step" else shape) for key in kept.get(name, ())
            }
        kept_groups = stepper.state_dict()["param_groups"]
        stepper.load_state_dict({"state": state, "param_groups": kept_groups})


def _restore_algorithms(trainer: "Trainer", tensors: dict[str, Tensor], path: Path) -> None:
    for algorithm in trainer.algorithms:
        whole = _group(tensors, f"algorithm.{type(algorithm).__name__}.")
        mesh = trainer.sae.mesh
        own = {name: mesh.own_latents(value) if name in algorithm.sharded else value for name, value in whole.items()}
        fit(algorithm, own, path)


def _restore_average(trainer: "Trainer", tensors: dict[str, Tensor], path: Path) -> None:
    assert trainer.average
    sums = trainer.sae.own(_group(tensors, "average."))
    trainer.average.sums = [
        _fitting(path, sums, name, list(parameter.shape)).to(trainer.device)
        for name, parameter in trainer.sae.named_parameters()
    ]


def _fitting(path: Path, tensors: dict[str, Tensor], name: str, shape: list[int]) -> Tensor:
    found = list(tensors[name].shape) if name in tensors else "nothing"
    if found != shape:
        raise ValueError(f"{path} does not fit: what it keeps of {name} should be {shape}, the file holds {found}")
    return tensors[name]


def _group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
