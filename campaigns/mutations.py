"""Damaged files, through every command that reads them: one line that says what is wrong, and nothing read in silence.

Each trial copies a small world (a store, a sweep of two runs, scores, laws, comparisons, an explorer's database, tasks,
other libraries' files), damages one file at random and runs a command on it in a process of its own, whose memory and
time are bounded. It fails on a traceback, on more than one line of complaint, on a process that hangs or dies of a
signal, and on a command that succeeds although the tensors of a file that it reads are no longer those written.

Left out: damaged files of language models, which transformers reads.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from campaigns.damage import damage
from campaigns.small_world import asked, warm, write_laws
from campaigns.trials import run_campaign
from saelab.cli import main as saelab

MEMORY, SECONDS = 3 << 30, 60
"""Bytes of address space that a command may take besides what is there already, and how long it may take."""
SMALL = ["--sae.activation.k", "4", "--trainer.batch", "128", "--log_every", "1", "--save_every", "4"]


@cache
def world() -> Path:
    """What the trials copy; made once, by the commands themselves."""
    from saelab.data.store import StoreWriter

    root = Path(tempfile.mkdtemp(prefix="saelab-mutations-"))
    here = os.getcwd()
    os.chdir(root)
    writer = StoreWriter("acts", 16, "fp32", {"text": "made up"})
    generator = torch.Generator().manual_seed(0)
    for part in range(2):
        number = torch.arange(640) + 640 * part
        columns = {"token": number % 50, "document": number // 32, "position": number % 32}
        writer.append(torch.randn(640, 16, generator=generator), 20, {}, [(20 * part, "a.txt")], **columns)
    writer.finish()
    vary = ["--vary", "sae.n_latents=24,48", "--store", "acts", "--rows", "1024", *SMALL]
    saelab(["sweep", "--out", "sweep", *vary])
    runs = sorted(map(str, Path("sweep").glob("*/")))
    data = ["--store", "acts", "--tokens", "1000"]
    saelab(["measure", *runs, *data])
    saelab(["stitch", *runs, "--out", "stitched", *data, "--min_firings", "5", "--figures", "false"])
    saelab(["manifolds", runs[1], "--out", "clusters", *data, "--figures", "false"])
    saelab(["match", *runs, "--out", "matched", "--tokens", "0"])
    for library in ("sae_lens", "dictionary_learning", "sparsify"):
        saelab(["convert", runs[0], f"theirs-{library}", "--to", library])
    saelab(["explore", runs[1], "stitched", "matched", *data, "--export.to", "page"])
    lines = [{"text": f"a b c {n}", "label": n % 2, "document": str(n)} for n in range(80)]
    Path("tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    saelab(["train", "--out", "half", "--store", "acts", "--rows", "1024", "--sae.n_latents", "64", *SMALL])
    shutil.copytree("half", "whole")
    shutil.rmtree("half/sae")
    max(Path("half/checkpoints").iterdir()).unlink()
    saelab(["meta", runs[1], "--out", "metas", "--steps", "20", "--ratio", "4", "--controls", "false", *data])
    Path("laws").mkdir()
    write_laws(Path("laws/made"))
    saelab(["scaling", "plan", "laws/made", "--tokens", "1e8"])
    saelab(["scaling", "allocate", "--features", "1000", "--out", "laws/allocation.json"])
    saelab(["scaling", "diagnose", "whole", "--store", "acts", "--rows", "1000", "--out", "laws/diagnosis.json"])
    _with_text()
    os.chdir(here)
    return root


SITE = ["--seq_len", "32", "--site", "model.layers.0"]


def _with_text() -> None:
    """What is made of text by the bundled model, in the folder that is the current one."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet

    from saelab.models import harvest as harvesting

    harvesting.TOKENS_AT_ONCE, harvesting.SHARD_BYTES = 128, 200 * 256 * 4
    draw = random.Random(0)
    texts = [" ".join(draw.choices("def return the quick brown fox self for in".split(), k=60)) for _ in range(200)]  # noqa: SIM905
    Path("texts").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path("texts/a.jsonl").write_text(lines)
    Path("texts/b.txt").write_text("\n".join(texts))
    Path("texts/c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pa.table({"text": texts}), "texts/d.parquet")
    Path("code").mkdir()
    for number in range(6):
        body = f'    """Some words."""\n    return [x + {number} for x in y if x]\n'
        Path(f"code/{number}.py").write_text("import os\n\n\n" + f"def f{number}(x, y):\n{body}\n\n" * 9)
    saelab(["harvest", "--out", "harvested", "--tokens", "300", "--text", "texts/a.jsonl", *SITE])
    live = ["--live.text", "texts/a.jsonl", "--live.seq_len", "32", "--live.site", "model.layers.0"]
    saelab(["train", "--out", "read", *live, "--rows", "1024", "--sae.n_latents", "24", *SMALL])
    saelab(["explain", "read", "--model", "pycode-7m", "--latents", "2", "--tokens", "512"])
    saelab(["explore", "read", "--tokens", "512", "--export.to", "gone", "--export.form", "neuronpedia"])


PAGES = (
    "/", "/run/{}", "/run/{}/log", "/run/{}/latents", "/run/{}/latents?sort=density&desc=1&filter=density:0..1",
    "/run/{}/latents?q=def&kind=ordinary", "/run/{}/latent/{n}", "/run/{}/latent/{n}/examples",
    "/run/{}/latent/{n}/context?row={row}", "/run/{}/latent/{n}/counterparts", "/run/{}/latent/{n}/meta",
    "/run/{}/latent/{n}/pattern", "/run/{}/latent/{n}/effects?row={row}", "/run/{}/map", "/run/{}/map?map=pca",
    "/run/{}/norms", "/run/{}/around?latent={n}", "/run/{}/cloud?latents=1,2,3", "/run/{}/manifolds", "/run/{}/meta",
    "/run/{}/meta/1", "/run/{}/prompt", "/compare", "/compare?a=n_latents24&b=n_latents48", "/scaling",
)  # fmt: skip
"""Addresses; of those of a run each is asked of two."""


def ask_pages(command: list[str]) -> int:
    """Show runs and results, and ask for every page and some latents; the status, as of a command.

    RuntimeError for an answer that is none, or one that does not name the damaged file.

    Args:
        command: what is shown, and the file.
    """
    from saelab.explorer.workspace import Workspace

    *shown, damaged = command
    try:
        workspace = Workspace(shown)
    except ValueError as error:
        print(f"saelab: {error}", file=sys.stderr)
        return 2
    for name, page, number in product(("n_latents48", "read"), PAGES, range(0, 24, 7)):
        if not number or "{n}" in page:
            path, _, query = page.format(name, n=number, row=40 * number).partition("?")
            status, answer = asked(workspace, f"{path if path != '/' else '/index'}.json?{query}")
            if status != 200 and (status >= 500 or not told(json.loads(answer)["error"], damaged)):
                raise RuntimeError(f"{path}?{query} is answered with {status}: {answer.decode()}")
    for path in ("/", "/run/read", "/run/read/latents", "/run/read/latent/3"):
        if (status := asked(workspace, path)[0]) >= 500:
            raise RuntimeError(f"{path} is answered with {status}")
    return 0


FINE = ("was collected on rows without text", "does not say which model", "read has no meta-latent")
"""What pages answer although nothing is damaged."""


def told(said: str, damaged: str) -> bool:
    """Whether a complaint is one line that names the damaged file, or is none about damage."""
    return "\n" not in said and (damaged in said or any(words in said for words in FINE))


Case = tuple[tuple[str, ...], Callable[[Path], list[Any]]]
"""Patterns of the files that are damaged, and the command that reads them."""
RUNS = ("sweep/n_latents24", "sweep/n_latents48")
PAGES_OF = "pages of"
"""Stands for a command that asks for the explorer's pages."""
DATA = ["--store", "acts", "--tokens", "600"]
CASES: dict[str, Case] = {
    "show": ((f"{RUNS[0]}/config.yaml", f"{RUNS[0]}/scores.json"), lambda _: ["show", RUNS[0]]),
    "measure": (
        (f"{RUNS[0]}/sae/*", f"{RUNS[0]}/*.json", f"{RUNS[0]}/log.jsonl", f"{RUNS[0]}/config.yaml", "acts/*"),
        lambda _: ["measure", *RUNS, *DATA],
    ),
    "resume": (
        (f"{RUNS[0]}/checkpoints/*", f"{RUNS[0]}/*.yaml", f"{RUNS[0]}/source.json", f"{RUNS[0]}/log.jsonl", "acts/*"),
        lambda _: ["train", "--resume", RUNS[0]],
    ),
    "sweep": (("sweep/*.json", "sweep/*/config.yaml", "sweep/*/source.json"), lambda _: ["sweep", "--resume", "sweep"]),
    "config": ((f"{RUNS[0]}/config.yaml",), lambda file: ["train", "--config", file, "--out", "new"]),
    "match": ((f"{RUNS[0]}/sae/*",), lambda _: ["match", *RUNS, "--out", "new", "--tokens", "0"]),
    "stitch": ((f"{RUNS[0]}/sae/*", "acts/*"), lambda _: ["stitch", *RUNS, "--out", "new", *DATA]),
    "manifolds": ((f"{RUNS[0]}/sae/*", "acts/*"), lambda _: ["manifolds", RUNS[0], "--out", "new", *DATA]),
    "fit": (
        ("sweep/sweep.json", "sweep/*/log.jsonl", "sweep/*/scores.json", "sweep/*/sae/*.json", "sweep/*/*.yaml"),
        lambda _: ["scaling", "fit", "sweep", "--out", "new"],
    ),
    "figures": ((f"{RUNS[0]}/tables/*", f"{RUNS[0]}/scores.json", f"{RUNS[0]}/latents.safetensors"),
                lambda _: ["figures", *RUNS, "--out", "new"]),
    "tasks": (("tasks.jsonl",), lambda _: ["measure", RUNS[0], *DATA, "--tasks", "tasks.jsonl"]),
    "all rows": (("acts/*",), lambda _: ["measure", RUNS[0], "--store", "acts", "--tokens", "1280"]),
    "go on": (
        ("half/checkpoints/*", "half/*.*", "acts/*"), lambda _: ["train", "--resume", "half"],
    ),
    "text": (("texts/*",), lambda file: ["harvest", "--out", "new", "--tokens", "200", "--text", str(file), *SITE]),
    "harvest": (
        ("harvested/*", "texts/a.jsonl"),
        lambda _: ["harvest", "--out", "harvested", "--tokens", "600", "--text", "texts/a.jsonl", *SITE],
    ),
    "code": (("code/*",), lambda _: ["tasks", "--out", "new.jsonl.gz", "--text", "code", "--examples", "20"]),
    "explain": (
        ("read/explain/*", "read/source.json", "read/sae/*", "read/config.yaml", "texts/a.jsonl"),
        lambda _: ["explain", "read", "--model", "pycode-7m", "--latents", "2", "--tokens", "512"],
    ),
    "plan": (("laws/made/*",), lambda _: ["scaling", "plan", "laws/made", "--tokens", "1e8"]),
    "pages": (
        (
            f"{RUNS[1]}/explorer.sqlite", f"{RUNS[1]}/explorer.sqlite", "read/explorer.sqlite", "read/explorer.sqlite",
            "stitched/*.json", "stitched/*/*.parquet", "matched/*", "metas/*.*", "clusters/*.*", "laws/*",
            "laws/made/*", f"{RUNS[1]}/*.json*", f"{RUNS[1]}/config.yaml", "read/source.json",
        ),
        lambda file: [
            PAGES_OF, *RUNS, "read", "stitched", "matched", "metas", "clusters", "laws", "laws/made", str(file),
        ],
    ),
    "convert": (("theirs-*/*",), lambda file: ["convert", file.parts[0], "new"]),
    "explore": (
        (f"{RUNS[1]}/explorer.sqlite", "stitched/*.json", "stitched/*/*.parquet", "matched/*", f"{RUNS[1]}/sae/*"),
        lambda _: ["explore", RUNS[1], "stitched", "matched", *DATA, "--export.to", "new"],
    ),
}  # fmt: skip


def trial(draw: random.Random, folder: Path) -> str | None:
    """One damaged file, one command."""
    name = draw.choice([*sorted(CASES), *["pages"] * 3])
    patterns, words = CASES[name]
    shutil.copytree(world(), folder / "world")
    place = folder / "world"
    files = sorted([path for pattern in patterns for path in place.glob(pattern) if path.is_file()])
    file = draw.choice(files)
    before = file.read_bytes()
    how = damage(draw, file)
    if file.read_bytes() == before:
        return None
    command = [str(word) for word in words(file.relative_to(place))]
    status, broken = ended(command, place, folder / "stderr")
    tensors = file.suffix == ".safetensors" and name != "convert"  # others' files have no checksum
    if status == 0 and name == "go on" and tensors and not same_end(place):
        broken = "the run went on from a damaged file to other weights"
    elif status == 0 and tensors and read_by(file, name) and changed(file, before, folder):
        broken = "the tensors of a damaged file were read in silence"
    return f"{' '.join(command)}, {file.relative_to(place)} {how}: {broken}" if broken else None


def read_by(file: Path, name: str) -> bool:
    """Whether a command certainly reads the tensors of a file: of checkpoints it is the newest, of shards the first."""
    if name in ("go on", "harvest", "pages"):  # go on is judged by its end; the others need not read what was written
        return False
    if "checkpoints" in file.parts:
        return file == max(file.parent.glob("step-*"))
    first = name == "all rows" or not file.name.startswith("shard-00001")
    return first and not (name == "resume" and "acts" in file.parts)


def same_end(place: Path) -> bool:
    """Whether a run that went on has the weights of the one that was left alone."""
    left_alone, own = place / "whole" / "sae", place / "half" / "sae"
    return all((own / file.name).read_bytes() == file.read_bytes() for file in left_alone.iterdir())


def changed(file: Path, before: bytes, folder: Path) -> bool:
    """Whether a file of tensors reads otherwise than it did, or not at all."""
    from safetensors.torch import load_file

    (folder / "before.safetensors").write_bytes(before)
    old = load_file(folder / "before.safetensors")
    try:
        new = load_file(file)
    except Exception:  # whatever is wrong with it, it was to be said
        return True
    return old.keys() != new.keys() or any(
        old[key].dtype != new[key].dtype or not torch.equal(old[key], new[key]) for key in old
    )


def ended(command: list[str], place: Path, errors: Path) -> tuple[int, str]:
    """Status of a command, run in a process that is forked from this one, and what is wrong with how it ended."""
    child = os.fork()
    if child == 0:
        os.chdir(place)
        with errors.open("wb") as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        os._exit(_run(command))
    end = time.monotonic() + SECONDS
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -9, f"it was not done after {SECONDS} seconds"
        time.sleep(0.01)
    status, said = os.waitstatus_to_exitcode(found[1]), errors.read_text(errors="replace")
    if status < 0:
        return status, f"it died of signal {-status}"
    if "Traceback" in said:
        return status, f"a traceback: {said.strip().splitlines()[-1][:200]}"
    complaints = said[said.find("saelab: ") :].strip().splitlines() if "saelab: " in said else []
    if status and len(complaints) != 1:
        return status, f"{len(complaints)} lines of complaint: {said.strip()[-300:]}"
    return status, ""


def _run(command: list[str]) -> int:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        if command[0] == PAGES_OF:
            return ask_pages(command[1:])
        saelab(command)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    promise = "damaged files give one line, never a traceback, a hang or wrong rows."
    made = world()
    try:
        status = run_campaign("mutations", promise, trial, 1000)
    finally:
        shutil.rmtree(made)
    sys.exit(status)
