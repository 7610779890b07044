"""How long collecting takes, and how quickly pages come from a large database.

    python benchmarks/explorer.py collect RUN STORE --rows 2000000     wall and processor seconds, by stage
    python benchmarks/explorer.py pages --latents 131072               milliseconds of every page, from random codes

`collect` reads a store again and again until it has so many rows; the copies cost what new rows would.
"""

import argparse
import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.core.codes import Codes
from saelab.data.store import Store, StoreWriter
from saelab.explorer import collect as collecting
from saelab.explorer.collect import collect
from saelab.explorer.corpus import Corpus, Piece, StoreCorpus
from saelab.explorer.serve import listening, server_for
from saelab.explorer.workspace import Workspace
from saelab.models.language_model import LanguageModel
from saelab.sae.activations.topk import TopK
from saelab.sae.files import load_sae
from saelab.sae.sae import SAE

WIDTH, ACTIVE = 32, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("collect")
    one.add_argument("run", type=Path)
    one.add_argument("store", type=Path)
    one.add_argument("--rows", type=int, default=2_000_000)
    one.add_argument("--threads", type=int, default=2)
    other = commands.add_parser("pages")
    other.add_argument("--latents", type=int, default=131_072)
    other.add_argument("--tokens", type=int, default=131_072)
    other.add_argument("--keep", type=Path, help="folder for the database; one that is there is used")
    options = parser.parse_args()
    if options.command == "collect":
        torch.set_num_threads(options.threads)
        time_collect(options.run, options.store, options.rows)
    else:
        time_pages(options.latents, options.tokens, options.keep)


# ---- collecting ----


def time_collect(run: Path, folder: Path, rows: int) -> None:
    sae, store = load_sae(run), Store(folder)
    with tempfile.TemporaryDirectory() as place:
        tiled = tile(store, Path(place) / "store", rows)
        origin = store.manifest.origin
        model = LanguageModel(origin["model"], origin["site"])
        gather, stages = collecting.gather, {}

        def timed(*given: Any) -> None:
            begin = clock()
            gather(*given)
            stages["codes of all tokens"] = since(begin)

        collecting.gather = timed  # type: ignore[assignment]
        begin = clock()
        path = collect(sae, run / "sae" / "weights.safetensors", StoreCorpus(tiled, rows), model, Path(place))
        stages["all"] = since(begin)
        size = path.stat().st_size / 1e6
    print(f"{sae.n_latents:,} latents, {rows:,} tokens, {torch.get_num_threads()} threads; database {size:,.0f} MB")
    for name, (wall, cpu) in stages.items():
        print(f"{name:22} {wall:8.1f} s wall  {cpu:8.1f} s of processor time")


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> tuple[float, float]:
    now = clock()
    return now[0] - begin[0], now[1] - begin[1]


def tile(store: Store, out: Path, rows: int) -> Store:
    """A store of the same rows over and over; copies are documents of their own."""
    manifest, written, documents = store.manifest, 0, 0
    writer = StoreWriter(out, manifest.d_in, manifest.dtype, manifest.origin)
    while written < rows:
        for shard in range(len(manifest.shards)):
            columns = store.columns(shard)
            last = int(columns["document"].max()) + 1
            names = [(number + documents, name) for number, name in store.names(shard)]
            writer.append(store.rows(shard), 0, {}, names, **columns | {"document": columns["document"] + documents})
            written += len(columns["document"])
        documents += last
    writer.finish()
    return Store(out)


# ---- pages ----


class RandomSAE(SAE):
    """Its codes are drawn, popular latents more often."""

    def __init__(self, n_latents: int):
        super().__init__(WIDTH, n_latents, TopK(k=ACTIVE))
        self._generator = torch.Generator().manual_seed(1)

    def encode(self, x: torch.Tensor) -> Codes:
        drawn = torch.rand(len(x), ACTIVE, generator=self._generator)
        latents = (drawn.square() * self.n_latents).long()
        # One latent may be drawn twice in a row; only its first entry counts.
        latents, order = latents.sort(1)
        values = -torch.log(drawn.gather(1, order).clamp_min(1e-6)) + 0.1
        values[:, 1:][latents.diff(dim=1) == 0] = 0
        return Codes(values, latents, self.n_latents)


class RandomCorpus(Corpus):
    """Rows whose tokens are drawn from the model's vocabulary."""

    def __init__(self, tokens: int, vocabulary: int):
        self.tokens, self.d_in, self.vocabulary = tokens, WIDTH, vocabulary

    def identity(self) -> dict[str, Any]:
        return {"random": self.tokens}

    def pieces(self, start: int = 0) -> Iterator[Piece]:
        size = 1 << 14
        for number in range(start, -(-self.tokens // size)):
            draw = np.random.default_rng(number)
            token = torch.from_numpy((draw.random(size) ** 3 * self.vocabulary).astype(np.int32))
            place = torch.arange(number * size, (number + 1) * size, dtype=torch.int32)
            document = place // 512
            names = [(int(one), f"document{int(one)}.py") for one in document.unique()]
            yield Piece(torch.zeros(size, WIDTH), token, document, place % 512, names)


def few_neighbours(directions: torch.Tensor, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ones: all pairs of so many directions would take minutes and tell nothing about pages."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(len(directions), (len(directions), count), generator=generator)
    return torch.rand(numbers.shape, generator=generator).sort(1, descending=True).values, numbers


def make(folder: Path, latents: int, tokens: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = LanguageModel("pycode-7m", "model.layers.3")
    collecting.neighbours_of = few_neighbours
    collecting.layout = lambda start, *_: start  # type: ignore[assignment]
    (folder / "weights").write_bytes(b"random")
    begin = clock()
    corpus = RandomCorpus(tokens, len(model.tokenizer))
    collect(RandomSAE(latents), folder / "weights", corpus, model, folder)  # type: ignore[arg-type]
    print("made in {:.0f} s wall, {:.0f} s of processor time".format(*since(begin)))
    SAE(d_in=WIDTH, n_latents=8, activation=TopK(k=2)).save(folder)  # so that the folder is one of an SAE


@contextmanager
def served(workspace: Workspace) -> Iterator[int]:
    place = listening("127.0.0.1", 0)
    server = server_for(workspace, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield place.getsockname()[1]
    server.should_exit = True
    thread.join()


def time_pages(latents: int, tokens: int, keep: Path | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = keep or Path(place) / "random"
        if not (folder / "explorer.sqlite").exists():
            make(folder, latents, tokens)
        base = f"/run/{folder.name}"
        pages = {
            "runs": "/",
            "latents": f"{base}/latents",
            "latents, last rows by density": f"{base}/latents.json?sort=density&offset={latents - 100}",
            "latents, filtered and sorted": f"{base}/latents.json?sort=largest&desc=1&filter=density:0.0001..0.01",
            "latents, searched": f"{base}/latents.json?q=self&sort=density&desc=1",
            "latents, searched for two words": f"{base}/latents.json?q=return%20self",
            "a latent": f"{base}/latent/{latents // 3}",
            "a frequent latent": f"{base}/latent/3",
            "a latent, stepping by density": f"{base}/latent/{latents // 2}?sort=density&desc=1",
            "manifolds": f"{base}/manifolds?threshold=0.99",
            "manifolds, the map": f"{base}/map.json?threshold=0.99",
        }
        with served(Workspace([folder])) as port:
            print(f"{latents:,} latents; milliseconds: the first time, the median of 9 more, their processor time")
            for name, path in pages.items():
                times = [ask(port, path) for _ in range(10)]
                wall, cpu = (statistics.median(column) for column in zip(*times[1:], strict=True))
                print(f"{name:34} {times[0][0]:8.1f} {wall:8.1f} {cpu:8.1f}")


def ask(port: int, path: str) -> tuple[float, float]:
    begin = clock()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, (path, answer.status, body[:200])
    wall, cpu = since(begin)
    return 1000 * wall, 1000 * cpu


if __name__ == "__main__":
    main()
