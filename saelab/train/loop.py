"""The loop around training steps: progress, logs, checkpoints, interrupts. For one trainer, or several in step."""

# Shape letters: none; rows are counted only.

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.log import Log, Record, read_log
from saelab.core.progress import progress
from saelab.core.run import Run
from saelab.data.source import Batch, Source
from saelab.sae.base import Forward
from saelab.train import checkpoint
from saelab.train.convergence import Convergence, at_full_rate
from saelab.train.step import StepTrainer

Passed = tuple[dict[str, Tensor], Forward]
"""The terms of one SAE's objective, and the pass that led to them."""


@dataclass(frozen=True)
class LoopConfig:
    """How often a loop says and keeps where it stands."""

    log_every: int = 50
    """Steps between records."""
    save_every: int = 1000
    """Steps between checkpoints."""
    tensorboard: bool = False
    """Whether to write TensorBoard's event files too."""
    show: bool = True
    """Whether to show progress."""
    converge: Convergence | None = None
    """Ends a run early: once all have converged, the learning rate falls as planned for the end of a run."""
    title: str = "train"
    """What the progress bar says is being done."""

    def check(self) -> None:
        """ValueError unless both intervals are at least 1."""
        if self.log_every < 1 or self.save_every < 1:
            raise ValueError(f"log_every and save_every must be at least 1, got {self.log_every} and {self.save_every}")


def run_loop(
    trainers: Sequence[StepTrainer],
    step: Callable[[Batch], list[Passed]],
    source: Source,
    rows: int,
    runs: Sequence[Run] | None,
    config: LoopConfig,
) -> None:
    """Take steps until `rows` rows were seen, each batch by all trainers; see `Trainer.fit`."""
    config.check()
    _begin(trainers, source, rows, runs, config)
    lead = trainers[0]
    mesh, last = lead.sae.mesh, _steps(lead)
    folders: list[Run | None] = list(runs) if runs else [None] * len(trainers)
    tellers = [_Teller(trainer, run, config) for trainer, run in zip(trainers, folders, strict=True)]
    bar = progress(config.title, last * lead.batch, "rows", done=lead.rows_seen, show=config.show and mesh.is_first)
    batches = source.batches(lead.batch)
    with ExitStack() as ending:
        ending.callback(batches.close)  # type: ignore[attr-defined]
        for teller in tellers:
            ending.callback(teller.close)
        batch: Batch | None = None
        shown, stopped = ending.enter_context(bar), ending.enter_context(interrupts())
        while lead.step_number < last:
            batch = _next(batches, trainers, runs, batch)
            passed = step(batch)
            done = lead.step_number
            if done % config.log_every == 0 or done in (1, last):
                fvus = [teller.write_record(*one) for teller, one in zip(tellers, passed, strict=True)]
                settled = [teller.settled() for teller in tellers]
                # The first process decides: only it has the whole log after a resume.
                if config.converge and mesh.any(mesh.is_first and all(settled)) and _at_full_rate(trainers):
                    last = _end_early(trainers)
                shown.advance(0, _words(tellers, fvus, settled))
            shown.advance(len(batch.x))
            interrupted = mesh.any(stopped.is_set()) and done < last
            if runs and (done % config.save_every == 0 or done == last or interrupted):
                _save(trainers, runs, batch)
            if interrupted:
                raise KeyboardInterrupt(_farewell(done, runs))


def _save(trainers: Sequence[StepTrainer], runs: Sequence[Run], batch: Batch) -> None:
    """Write a checkpoint of each trainer, where the source stands after a batch."""
    for trainer, run in zip(trainers, runs, strict=True):
        trainer.calibrate()
        checkpoint.save(run.checkpoints, trainer, batch.place or {})


def _next(
    batches: Iterator[Batch], trainers: Sequence[StepTrainer], runs: Sequence[Run] | None, latest: Batch | None
) -> Batch:
    """The next batch. Where the source has none to give, no step is lost: a checkpoint is written first."""
    try:
        return next(batches)
    except (ValueError, OSError) as error:
        mesh = trainers[0].sae.mesh
        if latest is None or not runs or mesh.replicas * mesh.shards > 1:  # the others may not know of it
            raise
        _save(trainers, runs, latest)
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{error}; {_farewell(trainers[0].step_number, runs)}") from error


def _steps(trainer: StepTrainer) -> int:
    assert trainer.rows_planned
    return -(-trainer.rows_planned // trainer.batch)


def _at_full_rate(trainers: Sequence[StepTrainer]) -> bool:
    """Whether no rate has begun to fall towards the end of its run."""
    return all(trainer.step_number <= (1 - trainer.decay) * _steps(trainer) for trainer in trainers)


def _end_early(trainers: Sequence[StepTrainer]) -> int:
    """Plan the end of runs that have converged by now, the falling of the rate included; returns the last step."""
    step, batch = trainers[0].step_number, trainers[0].batch
    last = min(_steps(trainers[0]), max(math.ceil(step / (1 - trainer.decay)) for trainer in trainers))
    for trainer in trainers:
        trainer.rows_planned = last * batch
    return last


def _words(tellers: Sequence["_Teller"], fvus: list[float], settled: list[bool]) -> str:
    """How it goes, in a few words."""
    if len(tellers) == 1:
        return tellers[0].words
    done = f"  {sum(settled)} of {len(settled)} converged" if tellers[0].config.converge else ""
    return f"fvu {min(fvus):.3f} to {max(fvus):.3f}{done}"


def _begin(
    trainers: Sequence[StepTrainer], source: Source, rows: int, runs: Sequence[Run] | None, config: LoopConfig
) -> None:
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    paths = checkpoint.newest_of_all([run.checkpoints for run in runs or ()])
    if paths and not trainers[0].step_number:
        for trainer, path in zip(trainers, paths, strict=True):
            place = checkpoint.restore(path, trainer)
        source.restore(place)
        for run in runs or () if trainers[0].sae.mesh.is_first else ():
            checkpoint.tidy(run.checkpoints)  # a process killed between writing and tidying had no time for it
    sample = None
    for trainer in trainers:
        trainer.sae.firing.planned = rows  # as asked for: the end of a run that converges is not known before
        sample = trainer.prepare(source, sample)
        planned = trainer.rows_planned if config.converge and trainer.rows_planned else rows
        trainer.rows_planned = min(rows, planned)  # a run that had converged before it was stopped keeps its end
        if config.converge and trainer.decay == 1:
            raise ValueError("converge needs some time at the full learning rate: set decay below 1")


def _farewell(step: int, runs: Sequence[Run] | None) -> str:
    if not runs:
        return f"stopped after step {step}"
    command = "train" if len(runs) == 1 else "sweep"
    folder = runs[0].folder if len(runs) == 1 else runs[0].folder.parent
    return f"stopped after step {step}; `saelab {command} --resume {folder}` resumes it"


def by_firing(codes: Codes) -> Tensor:
    """Latents by how many of a batch's rows [B] they are active in: none, 1, 2 or 3, 4 to 7, ...; [2 + log2 B] int64.

    What is in bin b > 0 was active in at least 2^(b - 1) rows. On several replicas it is of this one's rows.
    """
    bins = torch.zeros(1 + len(codes).bit_length(), dtype=torch.int64, device=codes.values.device)
    counts = codes.counts()
    edges = 2 ** torch.arange(len(bins) - 1, device=counts.device)
    return bins.index_add_(0, torch.searchsorted(edges, counts, right=True), torch.ones_like(counts))


class _Teller:
    """Writes one trainer's records."""

    def __init__(self, trainer: StepTrainer, run: Run | None, config: LoopConfig):
        self.trainer, self.log, self.config, self.words = trainer, None, config, ""
        self.records: list[Record] = []
        if run and trainer.sae.mesh.is_first:
            self.log = Log(run.log_file, trainer.step_number, run.folder if config.tensorboard else None)
            self.records = read_log(run.log_file)
        self._said = (time.perf_counter(), trainer.rows_seen)

    def close(self) -> None:
        self.trainer.rows_planned = None
        if self.log:
            self.log.close()

    @torch.no_grad()
    def write_record(self, terms: dict[str, Tensor], forward: Forward) -> float:
        """Write a record; returns the FVU."""
        trainer, mesh = self.trainer, self.trainer.sae.mesh
        x_hat, target = forward.x_hat, forward.target
        if trainer.sae.target_scale.per_row:  # with one scale it is the same share either way
            x_hat, target = forward.undone(x_hat), forward.undone(target)
        spread = (target - target.mean(0)).square().sum()
        record: Record = {"step": trainer.step_number, "rows": trainer.rows_seen}
        record |= {name: value.item() for name, value in terms.items()}
        record["fvu"] = ((x_hat - target).square().sum() / spread).item()
        record["l0"] = mesh.total(forward.codes.l0().float().mean()).item()
        fired = mesh.total(by_firing(forward.codes)).tolist()
        # Rows since a latent last fired are what AuxK goes by; here a fixed horizon makes runs comparable.
        record["silent_100k"] = int(mesh.total(trainer.sae.firing.dead(100_000).sum()))
        record["lr"] = trainer.steppers[0].param_groups[0]["lr"]
        record |= {ramp.setting: ramp.value_at(trainer.step_number - 1) for ramp in trainer.ramps}
        now, (then, seen) = time.perf_counter(), self._said
        # Waiting for data counts. A clock may stand still; a rate that is not a number is null in the file.
        record["rows_per_second"] = (trainer.rows_seen - seen) / (now - then) if now > then else math.nan
        self._said = (now, trainer.rows_seen)
        if self.log:
            self.log.write(record, {"fired": fired})
        self.records.append(record)
        self.words = f"fvu {record['fvu']:.3f}  l0 {record['l0']:.1f}  silent {record['silent_100k']}"
        return record["fvu"]

    def settled(self) -> bool:
        """Whether the run has converged; never, where nobody asked."""
        converge = self.config.converge
        return converge is not None and converge.reached(*at_full_rate(self.records))


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets instead of stopping the program at once; a second Ctrl-C stops it."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
