"""Checkpoints: all that a run depends on from here, in one safetensors file that appears whole or not at all."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab.core.files import check_format, read_tensors, write_tensors
from saelab.sae.sae import fit

if TYPE_CHECKING:
    from saelab.train.trainer import Trainer

FORMAT = 1
KEPT = 2
"""Newest checkpoints that are kept."""


def save(folder: Path, trainer: "Trainer", place: dict[str, Any]) -> Path:
    """Write a checkpoint of a trainer whose source stands at `place`; older ones than the newest two are removed."""
    tensors = {f"sae.{key}": value for key, value in trainer.sae.state_dict().items()}
    for number, state in _adam(trainer).items():
        tensors |= {f"adam.{number}.{key}": value for key, value in state.items()}
    if trainer.average:
        tensors |= {f"average.{number}": value for number, value in enumerate(trainer.average.sums)}
    about = {
        "format": FORMAT,
        "step": trainer.step_number,
        "rows": trainer.rows_seen,
        "rows_planned": trainer.rows_planned,
        "source": place,
        "sae": trainer.sae.config(),
    }
    path = folder / f"step-{trainer.step_number:08d}.safetensors"
    write_tensors(path, tensors, {"about": json.dumps(about)})
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def newest(folder: Path) -> Path | None:
    """The latest checkpoint in a folder, if there is one."""
    return max(folder.glob("step-*.safetensors"), default=None)


def restore(path: Path, trainer: "Trainer") -> dict[str, Any]:
    """Put a trainer where the checkpoint was taken and return the source's place.

    Raises:
        ValueError: naming the file, if it is damaged, of a newer format, or of another SAE or optimizer.
    """
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata.get("about", "{}"))
    check_format(path, about.get("format"), FORMAT)
    for key, value in trainer.sae.config().items():
        if about["sae"].get(key) != value:
            raise ValueError(f"{path} was taken with {key} = {about['sae'].get(key)!r}, this run has {value!r}")
    fit(trainer.sae, _group(tensors, "sae."), path)
    _restore_adam(trainer, tensors)
    if trainer.average:
        sums = _group(tensors, "average.")
        if len(sums) != len(trainer.average.sums):
            raise ValueError(f"{path} holds no weight average: it was taken without the setting `average`")
        trainer.average.sums = [sums[str(number)].to(total.device) for number, total in enumerate(trainer.average.sums)]
        trainer.average.steps = about["step"]
    trainer.step_number, trainer.rows_seen = about["step"], about["rows"]
    trainer.rows_planned = about["rows_planned"]
    place: dict[str, Any] = about["source"]
    return place


def _adam(trainer: "Trainer") -> dict[int, dict[str, Tensor]]:
    return trainer.optimizer.state_dict()["state"]


def _restore_adam(trainer: "Trainer", tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _group(tensors, "adam.").items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
