"""`kill -9` at random moments and within writes, over every command that writes: `python -m campaigns.kills`.

A trial draws a command with settings, runs it undisturbed, then runs it again elsewhere, is killed up to four times and
goes on each time by the same command (or --resume, where a run is made); the folder must then equal the undisturbed
one, byte for byte but for the times in logs. Architectures, optimizers, moments and algorithms are those that are
found, so that a new one is tried without being named here.
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from campaigns.killing import Command, Ended, difference, drawn, run
from campaigns.small_world import asked, warm, write_laws
from campaigns.trials import run_campaign
from saelab.core.components import Component
from saelab.data.store import StoreWriter
from saelab.explorer.database import Database
from saelab.explorer.notes import Notes, notes_file
from saelab.explorer.workspace import Workspace
from saelab.models import harvest as harvesting
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.train import job
from saelab.train.algorithm import Algorithm
from saelab.train.optimizer import Optimizer

MOST_KILLS = 4
LIBRARIES = ("sae_lens", "dictionary_learning", "sparsify")
SHAPE = ["--trainer.batch", "64", "--log_every", "2", "--save_every", "3", "--trainer.lr", "0.003", "--rows", "900"]
WORLD = ["--world", "SparseWorld", "--world.d_in", "16", "--world.n_features", "24", "--world.l0", "3"]
SHORT = {"every": 200, "dead_after": 100, "rows": 128}
"""Settings that are longer than these runs by default."""

torch.set_num_threads(1)


@dataclass
class Case:
    """One thing to try."""

    name: str
    first: Command
    again: Command
    prepare: Callable[[Path], None] = lambda folder: None
    appears: str | None = None
    """A folder that appears whole: once it is there all is done, and the command says that it is there."""
    judge: Callable[[Path, Path], str | None] = difference
    """What is wrong with a folder, beside that of the undisturbed."""


def same(name: str, words: list[str], prepare: Callable[[Path], None] = lambda folder: None) -> Case:
    """A command that goes on when it is given again."""
    command = Command(words, patch=small_pieces)
    return Case(name, command, command, prepare)


def whole(name: str, words: list[str], appears: str = "out") -> Case:
    """A command whose folder appears whole."""
    return replace(same(name, words), appears=appears)


def small_pieces() -> None:
    """Windows and shards of a few rows, so that many are written."""
    from saelab.models.harvest import LiveSource

    job.LiveSource = partial(LiveSource, window_rows=512)  # type: ignore[misc, assignment]
    harvesting.TOKENS_AT_ONCE, harvesting.SHARD_BYTES = 128, 200 * 256 * 4


# ---- what is trained ----


def _settings(rng: random.Random, kind: type[Component], prefix: str) -> tuple[str, list[str]]:
    """A variant that is found, with settings short enough for these runs."""
    name = rng.choice(sorted(kind.variants()))
    known = kind.variants()[name].options()
    return name, [word for key, value in SHORT.items() if key in known for word in (f"--{prefix}.{key}", str(value))]


def _drawn_sae(rng: random.Random) -> list[str]:
    words = ["--sae.n_latents", rng.choice(["32", "48", "64"])]
    activation, _ = _settings(rng, Activation, "sae.activation")
    known = Activation.variants()[activation].options()
    words += ["--sae.activation", activation, *(["--sae.activation.k", "4"] if "k" in known else [])]
    if rng.random() < 0.3:
        words += ["--sae.dictionary", _settings(rng, Dictionary, "sae.dictionary")[0]]
    losses = ["AuxK", *([_settings(rng, Loss, "sae.losses")[0]] if rng.random() < 0.4 else [])]
    words += ["--sae.losses", str([{"class_path": loss} for loss in dict.fromkeys(losses)]).replace("'", '"')]
    return words


def _drawn_trainer(rng: random.Random) -> list[str]:
    name, words = _settings(rng, Optimizer, "trainer.optimizer")
    words = ["--trainer.optimizer", name, *words]
    if "moments" in Optimizer.variants()[name].options():
        words += ["--trainer.optimizer.moments", rng.choice(["float32", "bfloat16", "float8"])]
        words += ["--trainer.optimizer.touched", rng.choice(["true", "false"])]
    if rng.random() < 0.4:
        words += ["--trainer.average", "0.9"]
    if rng.random() < 0.2:
        words += ["--trainer.bf16", "true"]
    if rng.random() < 0.4:
        algorithm = rng.choice(sorted(Algorithm.variants()))
        known = Algorithm.variants()[algorithm].options()
        settings = {key: value for key, value in SHORT.items() if key in known}
        words += ["--trainer.algorithms", str([{"class_path": algorithm, "init_args": settings}]).replace("'", '"')]
    return words


def trained(rng: random.Random, base: Path) -> Case:
    """`saelab train` on a store or a world, alone or in two processes; it goes on by --resume."""
    source = rng.choice([WORLD, ["--store", str(base / "store")]])
    words = [*source, *SHAPE, *_drawn_sae(rng), *_drawn_trainer(rng)]
    processes = 2 if rng.random() < 0.2 else 1
    if processes == 2:
        words += [f"--mesh.{rng.choice(['replicas', 'shards'])}", "2"]
    return _run_of(f"train on {processes}", words, processes)


def live(rng: random.Random, base: Path) -> Case:
    """`saelab train` on a live model."""
    return _run_of("train live", [*live_text(base), *SHAPE, *_drawn_sae(rng), *_drawn_trainer(rng)], 1)


def live_text(base: Path) -> list[str]:
    """The options of a live model on the text."""
    return ["--live.text", str(base / "text.jsonl"), "--live.seq_len", "32", "--live.site", "model.layers.0"]


def _run_of(name: str, words: list[str], processes: int) -> Case:
    first = Command(["train", "--out", "run", *words], processes=processes, patch=small_pieces)
    return Case(name, first, Command(["train", "--resume", "run"], processes=processes, patch=small_pieces))


def swept(rng: random.Random, base: Path) -> Case:
    """`saelab sweep`, of one or two shapes; it goes on by the same command or --resume."""
    source = rng.choice([WORLD, ["--store", str(base / "store")]])
    vary = rng.choice([["sae.activation.k=2,4"], ["sae.n_latents=32,48", "trainer.lr=0.003,0.001"], ["sae.seed=1,2,3"]])
    words = [*source, *SHAPE, "--sae.n_latents", "32", "--sae.activation.k", "4", *_drawn_trainer(rng), "--vary", *vary]
    words = [*words, "--converge", "0.5"] if rng.random() < 0.2 else words
    return same("sweep", ["sweep", "--out", "sweep", *words])


# ---- what is made of it ----


def _copies(base: Path, *names: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for name in names:
            shutil.copytree(base / name, folder / name)

    return prepare


def _other(rng: random.Random, base: Path) -> Case:
    """Every other command that writes."""
    run_, rival, wide, store = (str(base / name) for name in ("run", "rival", "wide", "store"))
    on = ["--store", store, "--tokens", "600"]
    made = ["--out", "out"]
    text = ["--text", str(base / "text.jsonl"), "--seq_len", "32", "--site", "model.layers.0"]
    export = ["--tokens", "512", "--export.to", "copy", "--export.latents", "[1, 2, 3]", "--export.form"]
    asked = ["--latents", "1", "--tokens", "512"]
    drawn_, diagnosed = ["--figures", rng.choice(["true", "false"])], ["--out", "diagnosis.json"]
    little = ["--tokens", "6000", "--rows", "6000", "--n_latents", "64", "--k", "4", "--measure_tokens", "512"]
    cases = [
        same("harvest", ["harvest", *made, "--tokens", "900", *text]),
        same("tasks", ["tasks", "--out", "tasks.jsonl.gz", "--files", "6", "--examples", "20"]),
        whole("meta", ["meta", run_, *made, "--steps", "20", "--ratio", "4", "--controls", "false", *on]),
        whole("match", ["match", run_, rival, *made, "--keep_union", "true", *on]),
        whole("stitch", ["stitch", run_, rival, *made, *on, "--figures", rng.choice(["true", "false"])]),
        whole("manifolds", ["manifolds", run_, *made, "--threshold", "0.3", *on, "--figures", "true"]),
        same("convert to", ["convert", run_, "out", "--to", rng.choice(LIBRARIES)]),
        whole("convert from", ["convert", str(base / f"foreign-{rng.choice(LIBRARIES)}"), "out"]),
        whole("publish", ["publish", str(base / "measured"), "me/out", "--also", "sae_lens", "--dry_run", "true"]),
        same("figures", ["figures", str(base / "measured"), *made]),
        same("scaling fit", ["scaling", "fit", str(base / "ladder"), *made, "--laws", "[width]", "--hold_out", "0"]),
        same("scaling plan", ["scaling", "plan", "laws", "--tokens", "1e8"], _copies(base, "laws")),
        same("scaling allocate", ["scaling", "allocate", "--features", "10000", "--out", "allocation.json", *drawn_]),
        same("scaling diagnose", ["scaling", "diagnose", wide, *on[:2], "--rows", "1000", *diagnosed, *drawn_]),
        same("measure", ["measure", "run", *on, "--metrics", "Reconstruction", "L0", "Density"], _copies(base, "run")),
        same("explore", ["explore", "run", *export, "neuronpedia"], _copies(base, "run")),
        same("explain", ["explain", "read", "--model", "pycode-7m", *asked], _copies(base, "read")),
        same("quickstart", ["quickstart", "--out", "quick", *little]),
        whole("export", ["explore", str(base / "read"), *export, "folder"], "copy"),
    ]
    return rng.choice(cases)


def prepared(base: Path) -> None:
    """What commands are tried on: a store, a text, runs, a ladder, another library's files."""
    base.mkdir(parents=True)
    words = "def return the quick brown fox jumps over lazy dog import self for in range".split()  # noqa: SIM905
    draw = random.Random(0)
    lines = (" ".join(draw.choices(words, k=60)) for _ in range(60))
    (base / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    writer = StoreWriter(base / "store", 16, "bf16", {"made": "by a campaign"})
    generator = torch.Generator().manual_seed(0)
    for rows in torch.randn(1200, 16, generator=generator).split([500, 300, 400]):
        place = torch.arange(len(rows), dtype=torch.int32)
        writer.append(rows, 1, {}, token=place % 50 + 5, document=place // 40, position=place % 40)
    writer.finish()
    train_ = ["train", "--store", str(base / "store"), *SHAPE, "--sae.activation.k", "4", "--out"]
    ladder = [
        "--log_every",
        "1",
        "--rows",
        "4000",
        "--converge",
        "0.9",
        "--vary",
        "sae.n_latents=16,24,32,48,64",
        "--out",
        "ladder",
    ]
    for words in (
        [*train_, "run", "--sae.n_latents", "32"], [*train_, "rival", "--sae.n_latents", "48"],
        [*train_, "measured", "--sae.n_latents", "32"], [*train_, "wide", "--sae.n_latents", "64"],
        *(["convert", "run", f"foreign-{library}", "--to", library] for library in LIBRARIES),
        ["measure", "measured", "--store", str(base / "store"), "--metrics", "Reconstruction", "L0", "Density"],
        ["train", *live_text(base), *SHAPE, "--sae.n_latents", "32", "--sae.activation.k", "4", "--out", "read"],
        ["explore", "read", "--tokens", "512", "--export.to", "gone", "--export.form", "neuronpedia"],
        ["sweep", "--store", str(base / "store"), *SHAPE, "--sae.activation.k", "4", *ladder],
    ):  # fmt: skip
        ended = run(Command(words, patch=small_pieces), base)
        if ended.status:
            raise RuntimeError(f"{' '.join(words)}: {ended.said}")
    write_laws(base / "laws")


# ---- notes ----

NOTED = 40


def notes(rng: random.Random, base: Path) -> Case:
    """Notes that are sent to the explorer: those that were acknowledged are there."""
    command = Command(["notes"], target=send_notes)
    return Case("notes", command, command, _copies(base, "read"), judge=noted)


def send_notes() -> None:
    """Send notes to the explorer's application; each that it answers with 200 goes into a file of acknowledgements."""
    workspace = Workspace(["read"])
    with open("acknowledged", "a+", encoding="ascii") as said:
        said.seek(0)
        for number in range(sum(1 for _ in said), NOTED):
            body = {"note": f"note {number} " + "x" * 3000, "tags": ["seen"]}
            status, answer = asked(workspace, f"/run/read/latent/{number % 32}/note.json", body)
            if status != 200:
                raise RuntimeError(f"note {number} is answered with {status}: {answer.decode()}")
            said.write(f"{number}\n")
            said.flush()


def noted(folder: Path, whole: Path) -> str | None:
    """Which acknowledged note is not there: in the file of notes or, being its latent's last one, as it is shown."""
    file = folder / "read" / "explorer.sqlite"
    kept, shown = {note.note.split()[1] for note in Notes(notes_file(file)).since()[0]}, Database(file)
    for number in range(NOTED):
        if str(number) not in kept:
            return f"note {number} was acknowledged and is not in the file of notes"
        text = shown.note(number % 32)["note"]
        if number >= NOTED - 32 and not text.startswith(f"note {number} "):
            return f"latent {number % 32} shows {text[:20]!r}, acknowledged was note {number}"
    return None


# ---- a trial ----

CASES: list[tuple[int, Callable[[random.Random, Path], Case]]] = [
    (32, trained), (8, live), (12, swept), (40, _other), (8, notes),
]  # fmt: skip


class Kills:
    """Trials of kills, on what was prepared once."""

    def __init__(self, base: Path):
        self.base, self.kills, self.refused = base, 0, 0
        self.by_kind: dict[str, int] = {}

    def trial(self, rng: random.Random, folder: Path) -> str | None:
        """Kill a command some times, and compare its end with that of one that was left alone."""
        folder = folder.resolve()
        while True:
            choose = rng.choices([case for _, case in CASES], [weight for weight, _ in CASES])[0]
            case = choose(rng, self.base)
            whole = self._run_in(folder / "work", case)
            if whole.status == 0:
                break
            if whole.status != 2 or choose is _other:  # drawn settings that do not go together are refused
                return f"{case.name}: {' '.join(case.first.words)} undisturbed ends with {whole.status}: {whole.said}"
            self.refused += 1
            shutil.rmtree(folder / "work")
        return self._killed(rng, folder, case, whole)

    def _run_in(self, work: Path, case: Case) -> Ended:
        work.mkdir()
        case.prepare(work)
        return run(case.first, work)

    def _killed(self, rng: random.Random, folder: Path, case: Case, whole: Ended) -> str | None:
        work, told = folder / "work", []
        work.rename(folder / "whole")  # the killed one stands where this did: files that name folders are the same
        work.mkdir()
        case.prepare(work)
        for kill in [*(drawn(rng, whole) for _ in range(rng.randint(1, MOST_KILLS))), None]:
            if case.appears and (work / case.appears).exists():
                break  # it was killed after its folder had appeared, and says that the folder is there
            ended = run(self._next(case, work), work, kill)
            told.append(f"{kill or 'to its end'}: {ended.status}")
            if ended.status not in (0, -signal.SIGKILL):
                return f"{case.name}: {' '.join(case.first.words)} [{'; '.join(told)}]: {ended.said}"
            if not ended.status:
                break
            self.kills += 1
            self.by_kind[case.name] = self.by_kind.get(case.name, 0) + 1
        if differs := case.judge(work, folder / "whole"):
            return f"{case.name}: {' '.join(case.first.words)} [{'; '.join(told)}]: {differs}"
        return None

    def _next(self, case: Case, work: Path) -> Command:
        return case.again if (work / "run" / "config.yaml").exists() and case.first.words[0] == "train" else case.first


def main() -> int:
    """Run the campaign."""
    with tempfile.TemporaryDirectory() as place:
        kills, start = Kills(Path(place) / "base"), time.monotonic()
        warm()
        prepared(kills.base)
        print(f"prepared in {time.monotonic() - start:.0f} s", flush=True)
        status = run_campaign("kills", "A command killed at any moment goes on and ends the same.", kills.trial, 400)
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(kills.by_kind.items()))
    print(f"kills: {kills.kills} kills ({kinds}); {kills.refused} drawn settings were refused")
    return status


if __name__ == "__main__":
    sys.exit(main())
