"""`saelab sweep` and `saelab train --world`, as a user types them."""

import json
import os
from pathlib import Path

import pytest
from recipes.world import die, in_process

import saelab
from saelab.cli import main

WORLD = ["--world", "SparseWorld", "--world.d_in", "8", "--world.n_features", "12", "--world.l0", "2"]
SMALL = ["--rows", "600", "--trainer.batch", "100", "--sae.n_latents", "40", "--log_every", "2"]


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_training_on_a_world_and_going_on(tmp_path, capsys):
    out = str(tmp_path / "run")
    main(["train", "--out", out, *WORLD, *SMALL, "--sae.activation.k", "2"])
    main(["train", "--resume", out])
    assert saelab.load(out).d_in == 8
    origin = json.loads((tmp_path / "run" / "source.json").read_text())
    assert origin["world"]["name"] == "SparseWorld"
    assert origin["world"]["n_features"] == 12


def test_a_grid_becomes_ordinary_runs(tmp_path, capsys):
    out = tmp_path / "sweep"
    vary = ["--vary", "sae.activation.k=1,3", "sae.seed=0,7", "--save_every", "3"]
    main(["sweep", "--out", str(out), *WORLD, *SMALL, *vary])
    names = ["k1-seed0", "k1-seed7", "k3-seed0", "k3-seed7"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "sweep.json"]
    for name in names:
        sae = saelab.load(out / name)
        assert f"k{sae.activation.k}-seed{sae.seed}" == name
    before = (out / "k3-seed7" / "sae" / "weights.safetensors").read_bytes()
    main(["sweep", "--resume", str(out)])
    assert (out / "k3-seed7" / "sae" / "weights.safetensors").read_bytes() == before
    main(["train", "--resume", str(out / "k1-seed0")])
    assert "4 SAEs in one computation" in capsys.readouterr().out


def test_a_loss_is_named_by_its_class(tmp_path):
    main(["sweep", "--out", str(tmp_path / "s"), *WORLD, *SMALL, "--vary", "sae.losses.AuxK.weight=0.1,0.2"])
    assert saelab.load(tmp_path / "s" / "weight0.2").losses[0].weight == 0.2


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["sae.activation.kk=1,2"], "the member kk1 of the sweep does not fit"),
        (["sae.activations.k=1,2"], "there is no activations in these settings; did you mean 'activation'?"),
        (["sae.activation.k"], "--vary takes SETTING=VALUE,VALUE"),
        (["sae.activation.k=1,1"], "a value is given twice"),
        (["sae.n_latents=40,0"], "n_latents must be at least 1"),
        (["sae.n_latents=40,48", "converge=2"], "converge must be between 0 and 1"),
        (["sae.activation.k=1,99"], "k must be from 1 to the number of latents"),
    ],
)
def test_what_cannot_be_varied_is_said_before_anything_is_made(vary, message, tmp_path, capsys):
    assert message in complaint(["sweep", "--out", str(tmp_path / "s"), *WORLD, *SMALL, "--vary", *vary], capsys)
    assert not Path(tmp_path / "s").exists()


def test_a_folder_that_is_no_sweep_is_named(tmp_path, capsys):
    assert "is not a sweep" in complaint(["sweep", "--resume", str(tmp_path)], capsys)
    assert "--vary is missing" in complaint(["sweep", "--out", str(tmp_path / "s"), *WORLD], capsys)


LADDER = ["--vary", "sae.n_latents=24,40", "sae.activation.k=1,3", "--save_every", "3", "--converge", "0.9"]


def test_widths_are_trained_in_groups_that_end_when_they_have_converged(tmp_path, capsys):
    out = tmp_path / "ladder"
    words = ["sweep", "--out", str(out), *WORLD, *SMALL, "--rows", "20000", "--log_every", "1", *LADDER]
    main(words)
    said = capsys.readouterr().out
    assert "2 SAEs in one computation: n_latents24-k1, n_latents24-k3" in said
    assert "n_latents40-k3: converged at" in said
    for name in ("n_latents24-k1", "n_latents40-k3"):
        records = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
        assert records[-1]["rows"] < 20000  # ended early
        assert records[-1]["lr"] < 0.1 * max(record["lr"] for record in records)  # after the rate had fallen
        assert saelab.load(out / name).n_latents == int(name[9:11])
    # A width that was not trained yet, or not to its end, is trained again; the other is left alone.
    kept = {path: path.read_bytes() for path in out.glob("n_latents24*/sae/*")}
    wanted = {path: path.read_bytes() for path in out.glob("n_latents40*/sae/*")}
    for path in wanted:
        path.unlink()
    for path in out.glob("n_latents40*/checkpoints/*"):
        path.unlink()
    main(["sweep", "--resume", str(out)])
    assert "group 1 of 2: was trained before" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path: path.read_bytes() for path in wanted} == wanted


def test_a_group_alone_is_trained_as_in_the_ladder(tmp_path, capsys):
    words = [*WORLD, *SMALL, "--sae.activation.k", "2"]
    main(["sweep", "--out", str(tmp_path / "both"), *words, "--vary", "sae.n_latents=24,40"])
    main(["sweep", "--out", str(tmp_path / "one"), *words, "--vary", "sae.n_latents=40"])
    weights = "n_latents40/sae/weights.safetensors"
    assert (tmp_path / "both" / weights).read_bytes() == (tmp_path / "one" / weights).read_bytes()


def dies_at(call: str, count: int, words: list[str]) -> None:
    """The target of a process: a command that is killed when `call` of os is called for the count-th time."""
    real, calls = getattr(os, call), iter(range(1, 10**6))

    def counted(*values: object, **named: object) -> object:
        if next(calls) == count:
            die()
        return real(*values, **named)

    setattr(os, call, counted)
    main(words)


def everything(folder: Path) -> dict[str, bytes]:
    """All files of a sweep but the logs, in which there are times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "log.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


SMALL_SWEEP = ["sweep", *WORLD, *SMALL, "--save_every", "3", "--vary", "sae.activation.k=1,3", "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    main([*SMALL_SWEEP, str(folder)])
    return folder


@pytest.mark.parametrize(("call", "count"), [("fsync", 2), ("replace", 9), ("replace", 14), ("replace", 20)])
def test_a_sweep_killed_early_goes_on_by_the_same_command(tmp_path, whole, call, count):
    words = [*SMALL_SWEEP, str(tmp_path / "killed")]
    assert in_process(dies_at, call, count, words) == -9
    main(words)
    assert everything(tmp_path / "killed") == everything(whole)
    assert os.listdir(tmp_path) == ["killed"]


def test_a_sweep_with_other_settings_is_not_gone_on_with(tmp_path, capsys):
    out = str(tmp_path / "s")
    main(["sweep", "--out", out, *WORLD, *SMALL, "--vary", "sae.activation.k=1,3"])
    message = complaint(["sweep", "--out", out, *WORLD, *SMALL, "--vary", "sae.activation.k=1,2"], capsys)
    assert f"{out} holds a sweep with other settings, first of k3: `saelab sweep --resume {out}` resumes it" in message


def test_a_sweep_on_other_data_is_not_gone_on_with(tmp_path, capsys):
    out = tmp_path / "s"
    main(["sweep", "--out", str(out), *WORLD, *SMALL, "--vary", "sae.activation.k=1,3"])
    origin = json.loads((out / "k3" / "source.json").read_text())
    (out / "k3" / "source.json").write_text(json.dumps({"world": {**origin["world"], "n_features": 13}}))
    assert "k3 changed: world was" in complaint(["sweep", "--resume", str(out)], capsys)
