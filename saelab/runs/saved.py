"""A folder that holds SAEs, as one object: what it is, what its rows were made from, its SAE, scores and tables.

    run         config.yaml, and sae/ once it is trained; of `saelab train`, or made by another command (`made_by`)
    sweep       sweep.json, and a run for each member; a ladder if the members have several widths
    sae         config.json and weights.safetensors alone, as `SAE.save` leaves them
    ensemble    config.json, and a folder for each SAE

Files are named in `saelab.core.run` only; what is read here is read when it is asked for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from saelab.core.files import read_tensors
from saelab.core.log import read_log, read_training
from saelab.core.read import REMEDY, read_json
from saelab.core.run import SWEEP, Run, members_of
from saelab.models.subject import Subject
from saelab.runs.published import place_of
from saelab.sae.autoencoder import CONFIG, ENSEMBLE, WEIGHTS, Autoencoder
from saelab.sae.files import load, needed_sae, read_config
from saelab.sae.sae import SAE

Kind = Literal["run", "sweep", "sae", "ensemble"]
MAKERS = ("convert", "stitch", "match", "meta", "quickstart")
"""Commands other than `train` and `sweep` that leave runs, with their settings under their own name."""


@dataclass(frozen=True)
class SavedRun:
    """A folder that holds one SAE or, of a sweep, several.

    Attributes:
        folder: where it is.
        kind: what it is, see above.
        title: what it is called: its folder, or the name of a published one.
    """

    folder: Path
    kind: Kind
    title: str

    @property
    def files(self) -> Run:
        """Where a run keeps what."""
        return Run(self.folder)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def is_run(self) -> bool:
        """Whether it has settings, a log and scores, and not just weights."""
        return self.kind == "run"

    @cached_property
    def members(self) -> tuple["SavedRun", ...]:
        """The runs of a sweep, trained or not, in its own order; of all else the folder itself."""
        if self.kind != "sweep":
            return (self,)
        return tuple(SavedRun(folder, "run", str(folder)) for folder in members_of(self.folder))

    @property
    def is_ladder(self) -> bool:
        """Whether it is a sweep whose trained members have several widths."""
        return self.kind == "sweep" and len({one.sae_config["n_latents"] for one in self.members if one.is_trained}) > 1

    @property
    def sae_folder(self) -> Path:
        """The folder of the SAE's own files."""
        return self.files.sae if self.is_run else self.folder

    @property
    def weights_file(self) -> Path:
        """The SAE's weights; an ensemble has none of its own."""
        return self.sae_folder / WEIGHTS

    @property
    def is_trained(self) -> bool:
        """Whether there is an SAE to load; of a sweep, whether every member has one."""
        if self.kind == "sweep":
            return all(one.is_trained for one in self.members)
        return (self.sae_folder / CONFIG).exists()

    @property
    def sae_config(self) -> dict[str, Any]:
        """What the SAE was built from, without loading it; ValueError before it is trained."""
        return read_config(self._trained().sae_folder)

    def load_sae(self) -> SAE:
        """The SAE for those who need its weights; ValueError as of `load`, and for an ensemble."""
        return needed_sae(self.load(), str(self.folder))

    def load(self) -> Autoencoder:
        """The SAE or ensemble, on the CPU; ValueError where there is none yet, or several."""
        if self.kind == "sweep":
            names = ", ".join(one.name for one in self.members[:3])
            raise ValueError(f"{self.folder} is a sweep of {len(self.members)} SAEs: name one of them, such as {names}")
        return load(self._trained().folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of a run; empty for what is none."""
        return self.files.config() if self.is_run else {}

    @property
    def made_by(self) -> str:
        """The command that made a run: "train", "convert" for one of another library, or another of MAKERS."""
        return next((command for command in MAKERS if command in self.config), "train")

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the rows were made from (model, site, text, or a world), as far as the folder says."""
        return (self.members[0] if self.kind == "sweep" else self).files.source()

    @property
    def subject(self) -> Subject | None:
        """Model, site and text of the rows; None where they come from no model, or nobody knows."""
        if not (self.origin.get("model") and self.origin.get("site")):
            return None
        try:
            return Subject.of(self.origin)
        except ValueError as error:
            raise ValueError(f"{self.files.source_file}: {error}; {REMEDY}") from None

    def needed_subject(self) -> Subject:
        """`subject`; ValueError that says what to give where there is none."""
        if self.subject is None:
            what = "does not say what it was trained on"
            if self.origin:
                rows = "a synthetic world" if "world" in self.origin else "rows that do not say their model and site"
                what = f"was trained on {rows}"
            raise ValueError(
                f"{self.folder} {what}: give --store with rows of that kind or, where the command has them, "
                "--subject.model, --subject.site and --subject.text"
            )
        return self.subject

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """What was measured, by name: value, low, high, n, unit; empty if nothing was."""
        return self.files.scores() if self.is_run else {}

    @property
    def measured(self) -> dict[str, Any]:
        """On which data it was measured (`data`), and what was left out and why (`skipped`); empty if it was not."""
        return self.files.measured()

    @property
    def tables(self) -> dict[str, Path]:
        """What metrics found beside scores, by name: Parquet files."""
        return {path.stem: path for path in sorted(self.files.tables.glob("*.parquet"))}

    @property
    def latents(self) -> dict[str, Tensor]:
        """Numbers per latent of the last measurement, [L] each, by name."""
        file = self.files.latents_file
        return read_tensors(file)[0] if file.exists() else {}

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of training and measuring; empty before the first."""
        file = self.files.log_file
        return read_log(file) if file.exists() else []

    @property
    def training_log(self) -> list[dict[str, Any]]:
        """The records of training alone; empty before the first."""
        file = self.files.log_file
        return read_training(file) if file.exists() else []

    def _trained(self) -> "SavedRun":
        if not self.is_trained:
            how = f"`saelab train --resume {self.folder}` resumes it"
            if (self.folder.parent / SWEEP).exists():
                how = f"`saelab sweep --resume {self.folder.parent}` resumes its sweep"
            raise ValueError(f"the run {self.folder} is not finished; {how}")
        return self


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run, finished or not."""
    return Run(folder).config_file.exists()


def kind_of(folder: str | Path) -> Kind | None:
    """What a folder is; None for one that holds no SAE of ours."""
    folder = Path(folder)
    if (folder / SWEEP).exists():
        return "sweep"
    if is_run(folder):
        return "run"
    if not (folder / CONFIG).is_file():
        return None
    config = read_json(folder / CONFIG, foreign=True)
    return None if "format" not in config else "ensemble" if config.get("kind") == ENSEMBLE else "sae"


def open_run(name: str | Path) -> SavedRun:
    """The run, sweep, saved SAE or ensemble in a folder, or a published SAE by its name.

    Raises:
        ValueError: for a folder that is none of them, saying what it holds instead, and as of `place_of`.
        OSError: as of `place_of`.
    """
    folder = place_of(name)
    kind = kind_of(folder)
    if kind:
        run = SavedRun(folder, kind, str(folder if folder == Path(name) else name))
        _ = run.config  # says now of one that is damaged or newer
        return run
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}: give the folders of runs, sweeps or saved SAEs")
    inside = sorted(path.name for path in folder.iterdir() if kind_of(path)) if folder.is_dir() else []
    if inside:
        raise ValueError(f"{folder} is no run but holds {len(inside)}: give {folder}/*, or one, such as {inside[0]}")
    raise ValueError(
        f"{folder} is neither a run, a sweep nor a saved SAE; of another library's files "
        f"`saelab convert {folder} NEW` makes a run"
    )


def open_runs(names: Iterable[str | Path]) -> Iterator[SavedRun]:
    """Runs and saved SAEs, those of sweeps one by one; errors as of `open_run`."""
    for name in names:
        yield from open_run(name).members
