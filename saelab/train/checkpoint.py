"""Checkpoints: all that a run depends on from here, in one safetensors file that appears whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab.core.files import PART, check_format, read_tensors, write_tensors
from saelab.sae.sae import fit

if TYPE_CHECKING:
    from saelab.train.trainer import Trainer

FORMAT = 1
KEPT = 2
"""Newest checkpoints that are kept."""
ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter."""


def save(folder: Path, trainer: "Trainer", place: dict[str, Any]) -> Path:
    """Write a checkpoint of a trainer whose source stands at `place`; older ones than the newest two are removed."""
    sae = trainer.sae
    tensors = {f"sae.{name}": value for name, value in sae.whole(sae.state_dict()).items()}
    for part, values in _by_parameter(trainer).items():
        tensors |= {f"{part}.{name}": value for name, value in sae.whole(values).items()}
    about = {
        "format": FORMAT,
        "step": trainer.step_number,
        "rows": trainer.rows_seen,
        "rows_planned": trainer.rows_planned,
        "source": place,
        "sae": trainer.sae.config(),
        "trainer": trainer.settings(),
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
    missing = {"step", "rows", "rows_planned", "source", "sae", "trainer"} - about.keys()
    if missing:
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(sorted(missing))}")
    return tensors, about


def newest(folder: Path) -> Path | None:
    """The latest checkpoint in a folder, if there is one."""
    return max(folder.glob("step-*.safetensors"), default=None)


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
    _restore_optimizer(trainer, tensors, path)
    if trainer.average:
        _restore_average(trainer, tensors, path)
        trainer.average.steps = about["step"]
    trainer.step_number, trainer.rows_seen = about["step"], about["rows"]
    trainer.rows_planned = about["rows_planned"]
    place: dict[str, Any] = about["source"]
    return place


def _names(trainer: "Trainer") -> list[str]:
    return [name for name, _ in trainer.sae.named_parameters()]


def _by_parameter(trainer: "Trainer") -> dict[str, dict[str, Tensor]]:
    """What the optimizer and the average hold, as {part: {parameter's name: tensor}}."""
    names = _names(trainer)
    parts: dict[str, dict[str, Tensor]] = {}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            parts.setdefault(f"adam.{key}", {})[names[number]] = value
    if trainer.average:
        parts["average"] = dict(zip(names, trainer.average.sums, strict=True))
    return parts


def _restore_optimizer(trainer: "Trainer", tensors: dict[str, Tensor], path: Path) -> None:
    names = _names(trainer)
    shapes = {name: parameter.shape for name, parameter in trainer.sae.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(names))}
    for key in ADAM:
        own = trainer.sae.own(_group(tensors, f"adam.{key}."))
        for number, name in enumerate(names):
            state[number][key] = _fitting(path, own, name, [] if key == "step" else list(shapes[name]))
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})


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
