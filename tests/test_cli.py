"""The command line: help, options, near misses, and what the commands do to folders."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from recipes.world import SITE, SMALL, command, die, files, in_process

from saelab import cli, load
from saelab.core.log import read_log
from saelab.data.store import Store
from saelab.models.harvest import LiveSource, harvest
from saelab.models.harvest_config import HarvestConfig
from saelab.models.subject import Subject
from saelab.recipes import commands, quick
from saelab.recipes.table import COMMANDS, GROUPS
from saelab.sae.base import Activation, Dictionary, Loss
from saelab.sae.scale import Scale
from saelab.train.trainer import Trainer

pytest_plugins = ["models.conftest", "recipes.small_world"]

KINDS = {"activation": Activation, "losses": Loss, "dictionary": Dictionary, "scale": Scale}


@pytest.fixture
def train(saelab, store):
    """`saelab train` on the store with small settings."""
    return lambda *words: saelab("train", "--store", store, "--rows", 1280, *SMALL, *words)


# ---- help ----


def test_the_overview_names_every_command(saelab):
    for words in ([], ["--help"], ["-h"]):
        ended = saelab(*words)
        assert ended.status == 0
        for name in COMMANDS:
            assert f"\n  {name} " in ended.out
        assert all(f"\n{group}:\n" in ended.out for group in GROUPS)
        assert max(map(len, ended.out.splitlines())) <= 100
        assert "--help lists its options" in ended.out


def test_the_program_can_be_run_as_a_module():
    code = "import runpy, sys; sys.argv = ['saelab', '--version']; runpy.run_module('saelab', run_name='__main__')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert said.stdout.startswith("saelab 0.")
    assert said.returncode == 0, said.stderr


class Caught(Exception):
    """Carries a command's parser out of it."""


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    def catch(parser: ArgumentParser, words: list[str]) -> None:
        raise Caught(parser)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "parse", catch)
        with pytest.raises(Caught) as caught:
            cli.main(name.split())
    return caught.value.args[0]


SCALING = ["fit", "plan", "allocate", "diagnose"]
WITH_OPTIONS = [*(name for name in COMMANDS if name != "scaling"), *(f"scaling {action}" for action in SCALING)]


def test_the_actions_of_scaling_are_listed(saelab):
    assert [line.split()[0] for line in saelab("scaling", "--help").out.splitlines()[2:]] == SCALING


@pytest.mark.parametrize(
    "name", [*(name for name in COMMANDS if name != "scaling"), *(f"scaling {a}" for a in SCALING)]
)
def test_every_command_shows_its_options_and_each_is_described(saelab, monkeypatch, name):
    ended = saelab(*name.split(), "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"usage: saelab {name} ")
    actions = parser_of(name, monkeypatch)._actions
    assert len(actions) > 1
    for action in actions:
        spelled = action.option_strings[-1].removesuffix("+") if action.option_strings else action.dest
        assert spelled in ended.out
        assert action.help, spelled
        assert len(action.help.split()) >= 2, f"{spelled}: {action.help}"


@pytest.mark.parametrize(("option", "name"), [(o, name) for o, kind in KINDS.items() for name in kind.variants()])
def test_every_setting_of_every_component_is_described(saelab, option, name):
    ended = saelab("train", f"--sae.{option}.help", name)
    assert ended.status == 0
    for setting in KINDS[option].named(name).options():
        described = ended.out.partition(f".{setting} ")[2]
        assert described, setting
        assert described.split("(type:")[0].strip(" \nA-Z_"), setting


def test_the_settings_of_a_subject_are_described(saelab):
    for words in (("train", "--live.help"), ("measure", "--subject.help")):
        out = saelab(*words).out
        assert "module path in the model" in out
        assert "seq_len" in out


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the layout of help differs between versions of Python")
def test_the_help_that_is_kept_is_that_of_the_commands():
    # In a process of its own: tests define components here, which help would name.
    code = "import json, runpy; print(json.dumps(runpy.run_path('tools/make_help.py')['help_of_all']()))"
    root = Path(__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=root)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(quick.FILE.read_text()) == json.loads(ended.stdout), "stale: python tools/make_help.py"


@pytest.mark.parametrize("words", [["train", "--help"], ["scaling", "plan", "-h"], ["measure", "x", "--tokenz", "4"]])
def test_help_and_unknown_options_are_answered_without_torch(words):
    code = (
        "import sys; from saelab.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'jsonargparse', 'numpy'} & sys.modules.keys()"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert (
        ended.stdout.startswith("usage: saelab ") or "unknown option --tokenz; did you mean --tokens?" in ended.stderr
    )


def test_options_below_a_component_are_left_to_the_command():
    assert (
        quick.answer(["train", "--sae.activation.k=8", "--sae.losses+=AuxK", "--trainer.optimizer.moments", "x"])
        is None
    )
    for option in ("--trainer.optimiser.moments", "--lr", "--sae.kk"):
        with pytest.raises(ValueError, match=f"unknown option {option}"):
            quick.answer(["train", option, "1"])


# ---- wrong options ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (
            ["frobnicate"],
            "unknown command 'frobnicate'; there are: bench, check, convert, ",
        ),
        (["train", "--lr", "1"], "unknown option --lr; did you mean --trainer.lr?"),
        (["train", "--xyzzy", "1"], "unknown option --xyzzy; --help lists the options"),
        (["train", "--n_latents=3"], "unknown option --n_latents; did you mean --sae.n_latents?"),
        (["train", "--trainer.bach", "1"], "unknown option --trainer.bach; did you mean --trainer.batch?"),
        (["train", "--sae.activation.kk", "1"], "--sae.activation: unknown option 'kk'; did you mean 'k'?"),
        (["train", "--sae.activation", "TopQ"], "--sae.activation: unknown component 'TopQ'; did you mean 'TopK'?"),
        (["train", "--sae.losses+", "AuxQ"], "unknown component 'AuxQ'; did you mean 'AuxK'?"),
        (["train", "--rows", "many"], "--rows: expected int. Got value: many"),
        (["train", "--sae.activation.k", "few"], "--sae.activation.k: expected int"),
        (["train", "--trainer.lr", "fast"], "--trainer.lr: expected float"),
        (["train", "--tensorboard", "maybe"], "--tensorboard: expected bool"),
        (["train", "--out"], "--out: expected one argument"),
        (["harvest", "--tokns", "3"], "unknown option --tokns; did you mean --tokens?"),
        (["harvest"], "arguments are required: out"),
        (["quickstart", "--tokens", "x"], "--tokens: expected int"),
        (["quickstart", "--token", "3"], "unknown option --token; did you mean --tokens?"),
        (["measure"], "arguments are required: runs"),
        (["show"], "arguments are required: runs"),
        (["show", "--all", "x"], "unknown option --all"),
    ],
)
def test_a_wrong_option_is_named_with_the_near_miss(saelab, words, message):
    ended = saelab(*words)
    assert ended.status == 2
    assert message in ended.complaint
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  bach: 3\n", "did you mean 'batch'"),
        ("stor: acts\n", "did you mean 'store'"),
        ("sae:\n  activation:\n    class_path: TopK\n    init_args: {kk: 3}\n", "did you mean 'k'"),
        ("rows: many\n", "rows: expected int"),
        ("- 3\n", "{file}"),
        ("words\n", "{file}"),
        ("a: [1\n", "{file}"),
    ],
)
def test_a_wrong_config_file_is_one_line_that_names_it_or_the_key(saelab, tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    ended = saelab("train", "--config", file, "--out", tmp_path / "new")
    assert ended.status == 2
    assert message.format(file=file) in ended.complaint
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--config", "{folder}"], ["--config", "{folder}/none.yaml"], ["--config={folder}"]])
def test_a_config_file_that_cannot_be_read_is_named(saelab, tmp_path, words):
    ended = saelab("train", *[word.format(folder=tmp_path) for word in words])
    assert ended.status == 2
    assert str(tmp_path) in ended.complaint


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--sae.activation", "TopK(k=8)"], {"activation": {"class_path": "TopK", "init_args": {"k": 8}}}),
        (["--sae.activation=TopK(8)"], {"activation": {"class_path": "TopK", "init_args": {"k": 8}}}),
        (["--sae.losses", "[MultiTopK(k=16, weight=0.25)]"], {"losses": [{"class_path": "MultiTopK"}]}),
        (["--sae.losses+=MultiTopK(k=16)"], {"losses": [{"class_path": "AuxK"}, {"class_path": "MultiTopK"}]}),
    ],
)
def test_a_component_may_be_written_as_in_python(train, tmp_path, words, kept):
    ended = train("--out", tmp_path / "run", *words)
    assert ended.status == 0, ended.err
    found = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["sae"]
    if "activation" in kept:
        assert found["activation"] == kept["activation"]
    else:
        assert [one["class_path"] for one in found["losses"]] == [one["class_path"] for one in kept["losses"]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("TopQ(k=8)", "--sae.activation: TopQ(k=8): unknown component 'TopQ'; did you mean 'TopK'?"),
        ("TopK(kk=8)", "--sae.activation: TopK(kk=8): unknown option 'kk' of TopK; did you mean 'k'?"),
        ("TopK(8, 9)", "--sae.activation: TopK(8, 9): too many positional arguments"),
        ("TopK(k=open('x'))", "--sae.activation: TopK(k=open('x')): malformed node"),
        ("TopK(k={1})", "--sae.activation: TopK(k={1}): "),
        ("TopK(k=8", "--sae.activation: TopK(k=8: '(' was never closed"),
        ("TopK(k='x')", "--sae.activation.k: expected int"),
    ],
)
def test_a_component_that_is_written_wrongly_is_named(train, tmp_path, value, message):
    ended = train("--out", tmp_path / "run", "--sae.activation", value)
    assert ended.status == 2
    assert message in ended.complaint
    assert ended.err.count("\n") == 1


# ---- several processes, too little memory ----


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("name", [name for name, row in COMMANDS.items() if not row.shares_work])
def test_a_command_that_does_not_share_its_work_runs_in_one_process_only(saelab, monkeypatch, name, rank, lines):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    ended = saelab(name, "x")
    assert ended.status == 2
    assert ended.err.count("\n") == lines
    if lines:
        assert f"`saelab {name}` runs in one process, and 2 were started" in ended.complaint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sae.n_latents", "20000000000"], "20,000,000,000 latents of 16 entries, with gradients and an optimizer's"),
        (["--trainer.batch", "20000000000"], "a batch of 20,000,000,000 rows of 16 entries needs about 5.12 TB"),
    ],
)
def test_what_cannot_fit_into_memory_is_said_before_it_is_made(train, tmp_path, words, message):
    ended = train("--out", tmp_path / "run", *words)
    assert ended.status == 2
    assert ended.complaint.startswith("saelab: not enough memory: ")
    assert message in ended.complaint
    assert ended.complaint.endswith(f"lower {words[0]}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory for more; lower --trainer.batch"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "not enough memory for 7.45 GiB more; lower"),
        (RuntimeError("can't allocate memory: you tried to allocate 8192000000 bytes."), "for 8.19 GB more; lower"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "for 2.00 GiB more; lower"),
    ],
)
def test_an_allocator_that_refuses_is_told_in_one_line(train, monkeypatch, tmp_path, error, message):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "step", refuse)
    ended = train("--out", tmp_path / "run")
    assert ended.status == 1
    assert message in ended.complaint


def test_another_fault_of_ours_keeps_its_traceback(train, monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        train("--out", tmp_path / "run")


# ---- configs execute nothing ----

TRAP = """
from pathlib import Path
Path(__file__).with_name("SPRUNG").touch()
class Trap:
    def __init__(self, k: int = 3): ...
"""


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, and could be: it is on the path."""
    (tmp_path / "trapmodule.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "SPRUNG"
    sys.modules.pop("trapmodule", None)


@pytest.mark.parametrize(
    "text",
    [
        "sae: {activation: {class_path: trapmodule.Trap}}",
        "sae: {activation: {class_path: trapmodule.Trap, init_args: {k: 3}}}",
        "sae: {losses: [{class_path: AuxK}, {class_path: trapmodule.Trap}]}",
        "trainer: {class_path: trapmodule.Trap}",
        "live: {class_path: trapmodule.Trap}",
        "sae: {activation: trapmodule.Trap}",
        "sae.activation: trapmodule.Trap",
        "sae: {losses: [trapmodule.Trap]}",
        "sae: {dictionary: trapmodule.Trap}",
        "sae: {activation: '{class_path: trapmodule.Trap}'}",
        "sae: other.yaml",
        "config: whole.yaml",
        "live: trapmodule.Trap",
    ],
)
def test_a_class_that_a_config_names_is_refused_without_being_imported(train, trap, tmp_path, text):
    (tmp_path / "other.yaml").write_text("activation: {class_path: trapmodule.Trap}")
    (tmp_path / "whole.yaml").write_text("sae: {activation: {class_path: trapmodule.Trap}}")
    (tmp_path / "evil.yaml").write_text(text)
    ended = train("--config", tmp_path / "evil.yaml", "--out", tmp_path / "new")
    assert not trap.exists()
    assert "trapmodule" not in sys.modules
    assert ended.status == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--config=evil.yaml"],
        ["--conf", "evil.yaml"],
        ["--sae", "other.yaml"],
    ],
)
def test_no_spelling_of_the_option_gets_a_config_past_the_check(train, trap, tmp_path, words):
    (tmp_path / "other.yaml").write_text("activation: {class_path: trapmodule.Trap}")
    (tmp_path / "evil.yaml").write_text("sae: {activation: {class_path: trapmodule.Trap}}")
    assert train(*words, "--out", tmp_path / "new").status == 2
    assert not trap.exists()


@pytest.mark.parametrize("name", ["trapmodule.Trap", "{class_path: trapmodule.Trap}"])
def test_resuming_a_run_imports_nothing_that_its_config_names(saelab, trap, trained, tmp_path, name):
    shutil.copytree(trained, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["sae"]["activation"] = yaml.safe_load(name)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    ended = saelab("train", "--resume", tmp_path / "run")
    assert not trap.exists()
    assert ended.status == 2


def test_yaml_tags_make_no_objects(train, tmp_path):
    (tmp_path / "evil.yaml").write_text(f"rows: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    assert train("--config", tmp_path / "evil.yaml", "--out", tmp_path / "new").status == 2
    assert not (tmp_path / "made").exists()


# ---- harvest ----


def test_harvest_says_what_it_kept_and_dropped(saelab, subject_words, tmp_path):
    ended = saelab("harvest", "--out", tmp_path / "acts", "--tokens", 500, *subject_words)
    manifest = Store(tmp_path / "acts").manifest
    assert ended.status == 0
    assert f"{manifest.rows:,} rows of width 16 in {len(manifest.shards)} shards" in ended.out
    for reason in ("bos", "padding", "outlier"):
        assert f"{manifest.dropped[reason]:,} {reason}" in ended.out
    assert "the text ended" not in ended.out
    assert f"harvest: {manifest.rows:,} tokens in" in ended.err


def test_harvest_says_when_the_text_ended_early(saelab, subject_words, tmp_path):
    ended = saelab("harvest", "--out", tmp_path / "acts", "--tokens", 10**6, *subject_words)
    assert "the text ended before 1,000,000 tokens were kept" in ended.out


def test_a_harvest_from_a_file_is_that_of_the_same_options(saelab, subject_words, tmp_path):
    model, site, text, seq_len = subject_words[1::2]
    config = HarvestConfig(Subject(model, site, text, seq_len=int(seq_len)), tokens=400, split="all", dtype="fp32")
    (tmp_path / "harvest.yaml").write_text(yaml.safe_dump(config.settings()))
    assert saelab("harvest", "--out", tmp_path / "file", "--config", tmp_path / "harvest.yaml").status == 0
    harvest(**vars(config), out=tmp_path / "python", show=False)
    assert files(tmp_path / "file") == files(tmp_path / "python")
    ended = saelab("harvest", "--out", tmp_path / "more", "--config", tmp_path / "harvest.yaml", "--split", "train")
    assert ended.status == 0
    assert Store(tmp_path / "more").manifest.origin["split"] == "train"


# ---- train ----


def test_a_run_folder_explains_itself(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["format"] == 1
    assert config["sae"]["n_latents"] == 32
    assert config["sae"]["activation"] == {"class_path": "TopK", "init_args": {"k": 4}}
    assert config["trainer"]["batch"] == 128
    assert json.loads((trained / "source.json").read_text())["site"] == SITE
    assert read_log(trained / "log.jsonl")[-1]["rows"] == 1280
    assert "saelab train --resume" in (trained / "README.md").read_text()
    assert list((trained / "checkpoints").iterdir())
    assert load(trained).n_latents == 32


def test_a_run_repeated_from_its_config_is_the_same_bit_for_bit(saelab, trained, tmp_path):
    ended = saelab("train", "--config", trained / "config.yaml", "--out", tmp_path / "again")
    assert ended.status == 0, ended.err
    assert files(tmp_path / "again" / "sae") == files(trained / "sae")
    assert files(tmp_path / "again")["config.yaml"] == files(trained)["config.yaml"]


def test_an_sae_is_saved_as_the_same_bytes_every_time(trained, tmp_path):
    sae, found = load(trained), set()
    for number in range(20):
        sae.save(tmp_path / str(number))
        found.add((tmp_path / str(number) / "weights.safetensors").read_bytes())
    assert len(found) == 1


def test_an_option_after_the_config_changes_it(saelab, trained, tmp_path):
    words = ["--config", trained / "config.yaml", "--out", tmp_path / "other", "--sae.activation.k", 2]
    assert saelab("train", *words).status == 0
    assert load(tmp_path / "other").activation.k == 2
    assert load(tmp_path / "other").n_latents == 32


def test_another_activation_needs_no_code(train, tmp_path):
    ended = train("--out", tmp_path / "relu", "--sae.activation", "ReLU", "--sae.activation.l1", "0.1")
    assert ended.status == 0, ended.err
    assert load(tmp_path / "relu").activation.config() == {"name": "ReLU", "l1": 0.1}


def test_rows_that_come_again_are_said_before_training_and_after(saelab, train, store, subject_words, tmp_path):
    held = len(Store(store))
    ended = train("--out", tmp_path / "often", "--rows", 5 * held)
    seen = -(-5 * held // 128) * 128
    note = f"note: {5 * held:,} rows are 5 passes over the {held:,} that there are"
    assert ended.out.startswith(note)
    assert f"trained on {seen:,} rows, {seen / held:.3g} passes over the {held:,} that there are" in ended.out
    assert "passes" not in train("--out", tmp_path / "once", "--rows", held // 2).out
    live = [word.replace("--", "--live.") if word.startswith("--") else word for word in subject_words]
    ended = saelab("train", *live, "--rows", 10_000, *SMALL, "--out", tmp_path / "live")
    assert ended.status == 0, ended.err
    found = re.search(r"note: 10,000 rows are ([\d.]+) passes over the ([\d,]+) that there are", ended.out)
    assert found, ended.out
    rows = LiveSource(Subject(subject_words[1], SITE, subject_words[5], seq_len=16)).distinct_rows(10_000)
    assert int(found[2].replace(",", "")) == rows
    assert f"rows, {10_112 / rows:,.3g} passes over" in ended.out


def test_a_full_disk_while_training_is_said_with_the_command_that_goes_on(train, saelab, monkeypatch, tmp_path):
    real, full = Trainer.step, tmp_path / "full"

    def fail(self, batch):
        if self.step_number == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, batch)

    monkeypatch.setattr(Trainer, "step", fail)
    ended = train("--out", full, "--save_every", 2)
    assert ended.status == 1
    assert ended.complaint == (
        "saelab: the disk is full (No space left on device). Free some space then "
        f"`saelab train --resume {full}` resumes it"
    )
    monkeypatch.setattr(Trainer, "step", real)
    assert saelab("train", "--resume", full).status == 0


def test_a_clock_that_stands_still_gives_no_rate(train, saelab, monkeypatch, tmp_path):
    monkeypatch.setattr("time.perf_counter", lambda: 5.0)
    ended = train("--out", tmp_path / "still")
    assert ended.status == 0, ended.err
    assert {record["rows_per_second"] for record in read_log(tmp_path / "still" / "log.jsonl")} == {None}


def test_training_on_a_live_model_equals_itself_resumed(saelab, subject_words, tmp_path):
    live = [word.replace("--", "--live.") if word.startswith("--") else word for word in subject_words]
    words = [*live, "--rows", 512, *SMALL]
    assert saelab("train", *words, "--out", tmp_path / "live").status == 0
    assert saelab("train", "--resume", tmp_path / "live").status == 0
    assert saelab("train", *words, "--out", tmp_path / "again").status == 0
    assert files(tmp_path / "live" / "sae") == files(tmp_path / "again" / "sae")


@pytest.mark.parametrize("words", [["--rows", "9"], ["--trainer.lr=1"], ["--out", "x"], ["--sae.activation", "ReLU"]])
def test_resume_takes_no_other_setting(saelab, trained, words):
    before = files(trained)
    ended = saelab("train", "--resume", trained, *words)
    assert ended.status == 2
    assert f"--resume takes every setting from the run; leave out {words[0]}" in ended.complaint
    assert files(trained) == before


def test_resuming_a_finished_run_leaves_it_finished(saelab, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = files(tmp_path / "run")
    ended = saelab("train", "--resume", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "trained on 1,280 rows" in ended.out
    assert files(tmp_path / "run") == before


def test_resuming_on_changed_data_is_refused(saelab, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    source = json.loads((tmp_path / "run" / "source.json").read_text())
    (tmp_path / "run" / "source.json").write_text(json.dumps(source | {"site": "model.layers.0"}))
    ended = saelab("train", "--resume", tmp_path / "run")
    assert ended.status == 2
    assert "changed: site was 'model.layers.0'" in ended.complaint


def stopped_at(step: int, how: str, words: list[str], said: Path) -> None:
    """The target of a process: a command that is interrupted as a training step begins."""
    real = Trainer.step

    def one(self, batch):
        if self.step_number == step:
            os.kill(os.getpid(), signal.SIGINT) if how == "Ctrl-C" else die()
        return real(self, batch)

    Trainer.step = one  # type: ignore[method-assign]
    command(words, said)


@pytest.mark.parametrize(("how", "status"), [("Ctrl-C", 130), ("kill -9", -9)])
def test_an_interrupted_run_goes_on_to_the_same_weights(saelab, store, trained, tmp_path, how, status):
    out, said = tmp_path / "trained", tmp_path / "said"
    words = ["train", "--out", str(out), "--store", str(store), "--rows", "1280", *SMALL]
    if how == "kill -9":
        words += ["--save_every", "3"]
    assert in_process(stopped_at, 4, how, words, said) == status
    assert not (out / "sae").exists()
    if how == "Ctrl-C":
        last = said.read_text().splitlines()[-1]
        assert last == f"saelab: stopped after step 5; `saelab train --resume {out}` resumes it"
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005.safetensors"]
    else:
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000003.safetensors"]
    ended = saelab("train", "--resume", out)
    assert ended.status == 0, ended.err
    assert files(out / "sae") == files(trained / "sae")
    log, whole = read_log(out / "log.jsonl"), read_log(trained / "log.jsonl")
    untimed = [
        [{key: one[key] for key in one if key != "rows_per_second"} for one in records] for records in (log, whole)
    ]
    assert untimed[0] == untimed[1]


# ---- measure and show ----


@pytest.fixture(scope="module")
def two(tmp_path_factory, trained, store) -> tuple[Path, Path]:
    """Two runs that may be measured: a copy of the finished one, and one with other settings."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(trained, folder / "four")
    options = ["--rows", "1280", *SMALL, "--sae.activation.k", "8"]
    cli.main(["train", "--out", str(folder / "eight"), "--store", str(store), *options])
    return folder / "four", folder / "eight"


def test_measuring_two_runs_prints_one_table_and_keeps_each_ones_scores(saelab, two):
    ended = saelab("measure", *two, "--tokens", 100)
    assert ended.status == 0, ended.err
    table = [line.split() for line in ended.out.splitlines()]
    assert [word for word in table[0] if word in ("four", "eight")] == ["four", "eight"]
    scores = [json.loads((run / "scores.json").read_text()) for run in two]
    for metric in ("fvu", "l0", "dead", "ce_recovered", "density_p50"):
        (line,) = [line for line in table if line and line[0] == metric]
        for one in scores:
            assert f"{one[metric]['value']:.4g}" in line, metric
    for one in scores:
        assert {"fvu", "ce_recovered", "l0", "dead", "nearest_cosine", "kl"} <= one.keys()
        for score in one.values():
            assert list(score)[:5] == ["value", "low", "high", "n", "unit"]
    assert [one["l0"]["value"] for one in scores] == pytest.approx([4, 8], abs=0.5)
    assert all((run / "latents.safetensors").exists() for run in two)
    assert "skipped Downstream" not in ended.out


def test_nothing_in_the_table_is_cut_off_when_it_goes_into_a_file(saelab, two):
    assert "…" not in saelab("measure", *two, "--tokens", 100).out


def test_measuring_on_a_store_says_what_is_skipped(saelab, trained, store, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    ended = saelab("measure", tmp_path / "run", "--store", store)
    assert ended.status == 0, ended.err
    assert "skipped Downstream: needs a model" in ended.out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["fvu"]["n"] == len(Store(store))
    assert not [name for name in scores if name.startswith("ce_")]


def test_chosen_metrics_only(saelab, trained, store, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    assert saelab("measure", tmp_path / "run", "--store", store, "--metrics", "L0", "Density").status == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {"l0", "silent"} <= scores.keys()
    assert "fvu" not in scores
    ended = saelab("measure", tmp_path / "run", "--store", store, "--metrics", "L1")
    assert ended.status == 2
    assert "unknown metric 'L1'; did you mean 'L0'?" in ended.complaint


def test_a_saved_sae_that_is_no_run_is_measured_where_it_is_told(saelab, trained, store, tmp_path):
    load(trained).save(tmp_path / "bare")
    ended = saelab("measure", tmp_path / "bare", "--store", store)
    assert ended.status == 0, ended.err
    assert "fvu" in ended.out
    assert sorted(files(tmp_path / "bare")) == ["config.json", "weights.safetensors"]
    assert saelab("measure", tmp_path / "bare").status == 2


def test_measured_again_the_scores_are_the_same(saelab, two, store):
    saelab("measure", two[0], "--store", store)
    before = (two[0] / "scores.json").read_bytes()
    saelab("measure", two[0], "--store", store)
    assert (two[0] / "scores.json").read_bytes() == before


def test_an_sae_of_another_model_is_refused(saelab, trained, subject_words, tmp_path):
    copy = tmp_path / "other_model"
    shutil.copytree(subject_words[1], copy)
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    words = [str(copy) if word == subject_words[1] else word for word in subject_words]
    before = files(trained)
    on_text = saelab("measure", trained, *[w.replace("--", "--subject.") if w[:2] == "--" else w for w in words])
    assert saelab("harvest", "--out", tmp_path / "acts", "--tokens", 100, *words).status == 0
    on_store = saelab("measure", trained, "--store", tmp_path / "acts")
    for ended, place in ((on_text, copy), (on_store, tmp_path / "acts")):
        assert ended.status == 2
        assert f"{trained} was trained on another model than {place}: the weights differ" in ended.complaint
    assert files(trained) == before


def test_subject_and_store_together_are_refused(saelab, trained, store):
    ended = saelab("measure", trained, "--store", store, "--subject.model", "x")
    assert ended.status == 2
    assert "give --subject or --store, not both" in ended.complaint


def test_show_prints_config_and_scores(saelab, trained, store, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    ended = saelab("show", tmp_path / "run")
    assert "n_latents: 32" in ended.out
    assert "has no scores yet: `saelab measure" in " ".join(ended.out.split())
    saelab("measure", tmp_path / "run", "--store", store)
    ended = saelab("show", tmp_path / "run")
    assert ended.status == 0
    fvu = json.loads((tmp_path / "run" / "scores.json").read_text())["fvu"]
    assert f"{fvu['value']:.4g}" in ended.out
    assert "95 % interval" in ended.out
    assert "no scores yet" not in ended.out


def test_show_changes_nothing(saelab, trained):
    before = files(trained)
    saelab("show", trained)
    assert files(trained) == before


def test_the_weights_of_a_run_are_finite_and_were_trained(trained):
    weights = load(trained).state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert weights["firing.rows"] == 1280


def test_a_run_killed_before_it_says_what_it_is_trained_on_can_be_resumed(saelab, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "source.json").unlink()
    assert saelab("train", "--resume", tmp_path / "run").status == 0
    assert json.loads((tmp_path / "run" / "source.json").read_text()) == json.loads(
        (trained / "source.json").read_text()
    )
