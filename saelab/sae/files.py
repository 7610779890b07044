"""Opening what `save` wrote: an SAE, or an ensemble of several, from its folder or that of its run."""

from pathlib import Path
from typing import Any

import torch

from saelab.core.files import fit, read_tensors
from saelab.core.read import check_format, expect, read_json
from saelab.core.run import CONFIG_FILE
from saelab.sae.autoencoder import CONFIG, ENSEMBLE, FORMAT, WEIGHTS, Autoencoder
from saelab.sae.ensemble import Ensemble, member_folder
from saelab.sae.sae import SAE

TOGETHER = {"how": str, "members": int}
PART = {"name": str}
DESCRIBED = {
    "d_in": int, "n_latents": int, "activation": PART, "losses?": [PART], "dictionary?": PART, "seed?": int,
    "scale?": PART,
}  # fmt: skip
"""What the config of an SAE holds; of an ensemble, the one above."""


def load(folder: str | Path) -> Autoencoder:
    """The SAE saved in a folder, or the `Ensemble` where it holds one.

    Raises:
        ValueError: naming the file and what is wrong with it: missing, damaged, a newer format, or weights that do
            not fit the config.
    """
    folder, config = _described(folder)
    return _ensemble(folder, config) if config.get("kind") == ENSEMBLE else _sae(folder, config)


def load_sae(folder: str | Path) -> SAE:
    """The SAE saved in a folder, for those who need its weights; ValueError as of `load`, and for an ensemble."""
    return needed_sae(load(folder), str(folder))


def load_ensemble(folder: str | Path) -> Ensemble:
    """The ensemble saved in a folder; ValueError as of `load`, and for an SAE."""
    found = load(folder)
    if not isinstance(found, Ensemble):
        raise ValueError(f"{Path(folder) / CONFIG} is not the config of an ensemble; open an SAE with saelab.load")
    return found


def needed_sae(found: Autoencoder, name: str) -> SAE:
    """An autoencoder as the SAE that it has to be where weights are looked at; ValueError for an ensemble."""
    if not isinstance(found, SAE):
        raise ValueError(
            f"{name} is an {type(found).__name__.lower()}, and this needs the weights of one SAE: give a member of it"
        )
    return found


def _described(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the files themselves, and what describes them."""
    folder = Path(folder)
    if not (folder / CONFIG).exists() and (folder / "sae" / CONFIG).exists():
        folder /= "sae"  # a run folder
    elif (folder / CONFIG_FILE).exists():
        raise ValueError(f"the run {folder} is not finished; `saelab train --resume {folder}` resumes it")
    if not is_saved(folder) and (folder.is_file() or _holds_weights(folder)):
        raise ValueError(f"{folder} was not written by saelab; `saelab convert {folder} NEW` makes a run of it")
    return folder, read_config(folder)


def _sae(folder: Path, config: dict[str, Any]) -> SAE:
    try:
        sae = SAE.from_config(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    tensors, _ = read_tensors(folder / WEIGHTS)
    sae.to(tensors.get("variance", torch.empty(0)).dtype)  # the precision it was saved in
    fit(sae, tensors, folder / WEIGHTS)
    return sae


def _ensemble(folder: Path, config: dict[str, Any]) -> Ensemble:
    path, members = folder / CONFIG, config["members"]
    if members < 1:
        raise ValueError(f"{path}: members must be a number of at least 1, got {members!r}")
    saes = [load_sae(member_folder(folder, number)) for number in range(members)]
    try:
        return Ensemble(saes, str(config.get("how")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """What describes the SAE or ensemble saved in a folder; ValueError that names the file if it is damaged or newer.

    Of an ensemble `kind` is "ensemble", and there is nothing else but `how` and the number of `members`.
    """
    path = folder / CONFIG
    config: dict[str, Any] = read_json(path)
    check_format(path, config.get("format"), FORMAT)
    expect(config, TOGETHER if config.get("kind") == ENSEMBLE else DESCRIBED, path)
    return config


def is_saved(folder: str | Path) -> bool:
    """Whether a folder is one that saelab saved an SAE into, or a run that has one."""
    folder = Path(folder)
    folder = folder if (folder / CONFIG).is_file() else folder / "sae"
    return (folder / CONFIG).is_file() and "format" in read_json(folder / CONFIG)


def _holds_weights(folder: Path) -> bool:
    suffixes = {path.suffix for path in folder.iterdir()} if folder.is_dir() else set()
    return not (folder / WEIGHTS).exists() and bool(suffixes & {".safetensors", ".pt", ".pth", ".npz"})
