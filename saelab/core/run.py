"""The run folder: everything about one training run, and a README that says what is what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from saelab.core.files import whole_folder, write_json, write_text
from saelab.core.read import REMEDY, check_format, read_json, read_yaml

FORMAT = 1
SWEEP = "sweep.json"
"""In the folder of a sweep: the names of its members, runs in folders beside it."""
CONFIG_FILE, SOURCE_FILE, SCORES_FILE = "config.yaml", "source.json", "scores.json"
SAE_FOLDER = "sae"
SHARED = (
    CONFIG_FILE, SOURCE_FILE, SCORES_FILE, "scores.parquet", "measured.json", "tables", "latents.safetensors",
    SAE_FOLDER,
)  # fmt: skip
"""What of a run's folder is published and fetched: not its log, checkpoints, README and what other commands keep."""
SCORE = {"value": float, "n": int, "unit": str, "documents?": (int, None)}
SOURCE = {
    **{f"{key}?": str for key in ("model", "site", "text", "field", "split", "fingerprint", "device", "precision")},
    **{f"{key}?": (str, None) for key in ("target", "average")},
    **{f"{key}?": int for key in ("seq_len", "seed")},
    "piece?": (int, None),
    "world?": {"name": str},
}
"""What is known of the keys of a source.json; other kinds of rows have others."""

README = """# A saelab run

| file | what it is |
|---|---|
| `config.yaml` | every setting of this run; `saelab train --config {name}/config.yaml --out NEW` repeats it |
| `source.json` | what the rows were made from: model, site, text |
| `log.jsonl` | one JSON object per logged step: loss terms, FVU, L0, silent latents, learning rate, rows per second |
| `checkpoints/` | model, optimizer and data position; `saelab train --resume {name}` resumes from the newest |
| `sae/` | the trained SAE: `saelab.load("{name}")` |
| `scores.json` | what was measured: `{{metric: {{value, low, high, n, unit, documents}}}}`; low, high: 95 % interval |
| `scores.parquet` | the same as a table |
| `tables/` | what metrics found beside their scores, a table each: the latent of every labelled task, curves |
| `measured.json` | the data that it was measured on, and what was left out and why |
| `latents.safetensors` | per-latent numbers of the last measurement: density, nearest cosine |

`saelab show {name}` prints the config and the scores. Commands are meant for the folder that holds this one.
"""


class Run:
    """A run's folder. `Run.create` starts one, `Run.open` finds one."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config_file = self.folder / CONFIG_FILE
        self.log_file = self.folder / "log.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.sae = self.folder / SAE_FOLDER
        self.source_file = self.folder / SOURCE_FILE
        self.scores_file = self.folder / SCORES_FILE
        self.table_file = self.folder / "scores.parquet"
        self.tables = self.folder / "tables"
        self.measured_file = self.folder / "measured.json"
        self.latents_file = self.folder / "latents.safetensors"

    @classmethod
    def create(
        cls, folder: str | Path, config: dict[str, Any], beside: Mapping[str, Any] | None = None, readme: str = README
    ) -> "Run":
        """Start a run in a folder that is new or empty, all at once; ValueError if the folder is neither.

        Args:
            folder: of the run.
            config: its settings.
            beside: other JSON files by name, such as source.json.
            readme: what README.md says; {name} stands for the folder's name.
        """
        run = cls(folder)
        if run.config_file.exists():
            raise ValueError(
                f"{folder} holds a run already: `saelab train --resume {folder}` resumes it; "
                "a new run needs another --out"
            )
        with whole_folder(folder) as part:
            for name, value in (beside or {}).items():
                write_json(part / name, value)
            write_text(part / "README.md", readme.format(name=run.folder.name))
            settings = yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False, allow_unicode=True)
            write_text(part / run.config_file.name, settings)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run; ValueError if the folder is none or its format is newer."""
        run = cls(folder)
        if not run.config_file.exists():
            raise ValueError(f"{folder} is not a run: it has no config.yaml; `saelab train --out {folder}` makes one")
        run.config()
        return run

    def config(self) -> dict[str, Any]:
        """The run's settings; ValueError if the file is damaged or newer than this program."""
        config: dict[str, Any] = read_yaml(self.config_file)
        check_format(self.config_file, config.pop("format", None), FORMAT)
        return config

    def scores(self) -> dict[str, Any]:
        """What was measured; empty if nothing was."""
        again = f"restore it from a copy, or remove it and `saelab measure {self.folder}`"
        return (
            read_json(
                self.scores_file,
                {str: (SCORE | dict.fromkeys(("low", "high"), float), SCORE | {"low": None, "high": None})},
                remedy=again,
            )
            if self.scores_file.exists()
            else {}
        )

    def measured(self) -> dict[str, Any]:
        """The data that it was measured on, and what was left out; empty if nothing was measured."""
        again = f"restore it from a copy, or remove it and `saelab measure {self.folder}`"
        kinds = {"data": dict, "skipped": {str: str}}
        return read_json(self.measured_file, kinds, remedy=again) if self.measured_file.exists() else {}

    def source(self) -> dict[str, Any]:
        """What its rows were made from; empty if it does not say."""
        return read_json(self.source_file, SOURCE) if self.source_file.exists() else {}

    def write_scores(self, scores: dict[str, Any]) -> None:
        """Keep these scores in place of earlier ones: what stands together was measured together."""
        write_json(self.scores_file, scores)


def members_of(sweep: str | Path) -> list[Path]:
    """The folders of a sweep's members; ValueError if its list of them is missing or damaged."""
    path = Path(sweep) / SWEEP
    names = read_json(path, {"members": [str]})["members"]
    for number, name in enumerate(names):
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"{path}: members[{number}]: expected the name of a folder, got {name!r}; {REMEDY}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path}: members: expected at least one name, each once; {REMEDY}")
    return [Path(sweep) / name for name in names]
