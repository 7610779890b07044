"""A run that is killed or interrupted, anywhere and often, ends with the weights of one that was not, bit for bit.

A process started by the test trains in children of its own: one import of torch serves them all, and each dies for
real, by SIGKILL or Ctrl-C, at a step or at a system call of writing files that the test names.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from saelab.core.files import read_tensors
from saelab.core.log import read_log
from saelab.core.run import Run
from saelab.data.store import StoreWriter
from saelab.train import checkpoint

STEPS, D = 40, 6

SCRIPT = """
import json, os, signal, sys, traceback

import torch

from saelab.core.run import Run
from saelab.data import StoreSource
from saelab.sae import SAE
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.scales import DataScale, LayerNorm
from saelab.train import Trainer
from saelab.train.algorithms.bias_adaptation import BiasAdaptation
from saelab.train.algorithms.closed_form_decoder import ClosedFormDecoder
from saelab.train.algorithms.resampling import Resampling
from saelab.train.optimizers.muon import Muon
from saelab.train.ramp import Ramp


def die_at(call, count, on, number):
    '''Send the signal to this process when `call` of os is called for the count-th time, with `on` in its arguments.'''
    real, calls = getattr(os, call), iter(range(1, 10**6))

    def counted(*args):
        if on in str(args) and next(calls) == count:
            os.kill(os.getpid(), number)
        return real(*args)

    setattr(os, call, counted)


def train(
    run, store, steps, k=3, batch=False, average=0.9, step=None, call=None, count=1, on="", number=signal.SIGKILL
):
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # nothing may depend on the global generator
    if call:
        die_at(call, count, on, number)
    run = Run.open(run) if os.path.exists(run + "/config.yaml") else Run.create(run, {})
    scale = LayerNorm() if batch else DataScale()
    sae = SAE(6, 96, BatchTopK(k) if batch else TopK(k), [AuxK(k_aux=4, dead_after=40)], scale=scale)
    algorithms = [
        Resampling(every=100, dead_after=72, times=2),
        BiasAdaptation(every=90, rate=0.05),
        ClosedFormDecoder(every=110, rows=50),
    ]
    ramps = [Ramp("activation.k", 6, 20)]
    learner = Trainer(sae, 3e-3, 8, 5, 0.3, 1.0, average, optimizer=Muon(), algorithms=algorithms, ramps=ramps)
    if step:
        real = learner.step

        def counted(batch):
            result = real(batch)
            if learner.step_number == step:
                os.kill(os.getpid(), number)
            return result

        learner.step = counted
    source = StoreSource(store, seed=1, block_rows=4, window_rows=48)
    learner.fit(source, steps * 8, run, log_every=1, save_every=7, show=False)
    assert "torch._dynamo" not in sys.modules  # it takes as long to import as torch itself


for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            train(**json.loads(line))
        except KeyboardInterrupt as stop:
            print(stop, file=sys.stderr, flush=True)
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

KILLED, INTERRUPTED = -9, 130
Train = Callable[..., int]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Trains in a process of its own and returns its exit code; what it printed is in `errors` beside the run."""
    folder = tmp_path_factory.mktemp("training")
    store = StoreWriter(folder / "store", D, "bf16", {})
    rows = torch.randn(150, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, D)
    for part in rows.split([70, 9, 71]):
        store.append(part, 1, {})
    store.finish()
    (folder / "train.py").write_text(SCRIPT)
    with (folder / "errors").open("wb") as errors:
        command = [sys.executable, str(folder / "train.py")]
        trainer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert trainer.stdin
        assert trainer.stdout

        def one(run: Path, steps: int = STEPS, **settings: object) -> int:
            job = {"run": str(run), "store": str(folder / "store"), "steps": steps, **settings}
            print(json.dumps(job), file=trainer.stdin, flush=True)
            code = int(trainer.stdout.readline())
            run.with_name("errors").write_bytes((folder / "errors").read_bytes())
            return code

        yield one
        trainer.stdin.close()
        assert trainer.wait() == 0
        trainer.stdout.close()


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole")
    assert train(run / "run") == 0
    return run / "run"


def last_step(run: Path) -> int:
    path = checkpoint.newest(Run(run).checkpoints)
    return int(path.stem.removeprefix("step-")) if path else 0


def numbers(run: Path) -> list[dict[str, object]]:
    """The log without the clock."""
    records = read_log(run / "log.jsonl")
    return [{key: value for key, value in record.items() if key != "rows_per_second"} for record in records]


def assert_same_run(run: Path, whole: Path) -> None:
    for file in ("sae/weights.safetensors", f"checkpoints/step-{STEPS:08d}.safetensors"):
        (found, about), (expected, about_expected) = read_tensors(run / file), read_tensors(whole / file)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
        assert about == about_expected
    assert numbers(run) == numbers(whole)
    assert files_of(run) == files_of(whole)


def files_of(run: Path) -> set[Path]:
    return {path.relative_to(run) for path in run.rglob("*")}


def test_the_undisturbed_run_has_everything_switched_on(whole):
    log = numbers(whole)
    assert [record["step"] for record in log] == list(range(1, STEPS + 1))
    assert sum(record["AuxK"] > 0 for record in log) > STEPS / 2
    tensors, _ = read_tensors(whole / "checkpoints" / f"step-{STEPS:08d}.safetensors")
    assert tensors["sae.firing.since"].max() > 40
    assert any(key.startswith("average.") for key in tensors)
    assert any(key.startswith("algorithm.ClosedFormDecoder.") for key in tensors)
    assert (tensors["sae.dictionary.b_enc"] != 0).any()
    assert [record["activation.k"] for record in log[::5]] == [6, 5, 4, 4, 3, 3, 3, 3]
    assert len(log) * 8 > 150  # more than one pass


def test_a_second_undisturbed_run_is_the_same(train, whole, tmp_path):
    assert train(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_steps(train, whole, tmp_path, seed):
    run, kills = tmp_path / "run", sorted(random.Random(seed).sample(range(1, STEPS + 1), 5))
    for step in kills:
        assert train(run, step=step) == KILLED
        assert last_step(run) == (step - 1) // 7 * 7
    assert train(run) == 0
    assert_same_run(run, whole)


def test_a_threshold_set_on_rows_of_the_source_is_the_same_too(train, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, batch=True) == 0
    assert train(run, batch=True, step=5, number=2) == INTERRUPTED  # a checkpoint that the other run never had
    for step in (13, 29):
        assert train(run, batch=True, step=step) == KILLED
    assert train(run, batch=True) == 0
    assert_same_run(run, whole)


def test_killed_before_each_file_gets_its_name(train, whole, tmp_path):
    run = tmp_path / "run"
    Run.create(run, {})
    files = ["log.jsonl", *(f"step-{step:08d}" for step in (7, 14, 35, STEPS)), "weights.safetensors", "config.json"]
    for file in files:
        assert train(run, call="replace", on=file) == KILLED
        assert not [path for path in run.rglob("*") if path.name.startswith(file) and file != "log.jsonl"]
    assert train(run) == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("file", ["README.md", "config.yaml"])
def test_killed_while_its_folder_is_made(train, whole, tmp_path, file):
    run = tmp_path / "run"
    assert train(run, call="replace", on=file) == KILLED
    assert train(run) == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("call", ["fsync", "unlink"])
def test_killed_ever_later_while_files_are_written(train, whole, tmp_path, call):
    run = tmp_path / "run"
    Run.create(run, {})
    codes = [KILLED]
    while codes[-1] == KILLED:
        codes.append(train(run, call=call, count=len(codes)))
    assert len(codes) > 3
    assert codes[-1] == 0
    assert_same_run(run, whole)


def test_what_a_killed_run_left_half_written_is_cleared_away(train, tmp_path):
    run = tmp_path / "run"
    Run.create(run, {})
    for file in ("step-00000007", "weights.safetensors"):
        assert train(run, call="replace", on=file) == KILLED
    assert train(run) == 0
    assert [path.name for path in run.rglob("*.part")] == []


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_interrupted_twice(train, whole, tmp_path, number):
    run = tmp_path / "run"
    for step in (5, 23):
        assert train(run, step=step, number=number) == INTERRUPTED
        assert last_step(run) == step
        message = f"stopped after step {step}; `saelab train --resume {run}` resumes it"
        assert message in run.with_name("errors").read_text()
    assert train(run) == 0
    assert_same_run(run, whole)


def test_a_finished_run_is_left_as_it_is(train, whole, tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        assert train(run) == 0
        assert_same_run(run, whole)


def test_a_finished_run_can_be_made_longer(train, tmp_path):
    run = tmp_path / "run"
    assert train(run, steps=10) == 0
    assert train(run, steps=12) == 0
    assert [record["step"] for record in numbers(run)] == list(range(1, 13))
    assert last_step(run) == 12


def test_another_config_is_refused(train, tmp_path):
    run = tmp_path / "run"
    assert train(run, step=10) == KILLED
    assert train(run, k=4) == 1
    assert "was saved with activation = " in run.with_name("errors").read_text()
    assert last_step(run) == 7
