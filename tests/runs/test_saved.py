"""What folders are: runs, sweeps, saved SAEs, ensembles, and what is said of all others."""

from pathlib import Path

import pytest

from saelab.core.files import write_json
from saelab.core.run import SWEEP, Run
from saelab.runs import SavedRun, open_run, open_runs
from saelab.sae import SAE, Ensemble
from saelab.sae.activations.topk import TopK

ORIGIN = {"model": "pycode-7m", "site": "model.layers.1", "text": "stdlib", "seq_len": 64, "split": "train"}


def made(folder: Path, n_latents: int = 8, config: dict[str, object] | None = None, trained: bool = True) -> Path:
    """A run's folder, with an SAE if it is trained."""
    run = Run.create(folder, config or {"rows": 100})
    write_json(run.source_file, ORIGIN)
    if trained:
        SAE(4, n_latents, TopK(2)).save(run.sae)
    return folder


def swept(folder: Path, widths: list[int], trained: bool = True) -> Path:
    names = [f"n{number}-{width}" for number, width in enumerate(widths)]
    write_json(folder / SWEEP, {"members": names})
    for name, width in zip(names, widths, strict=True):
        made(folder / name, width, trained=trained)
    return folder


def test_a_run_says_what_it_is_and_what_its_rows_were_made_from(tmp_path):
    run = open_run(made(tmp_path / "run"))
    assert (run.kind, run.name, run.made_by, run.is_run, run.is_trained) == ("run", "run", "train", True, True)
    assert run.config == {"rows": 100}
    assert run.origin == ORIGIN
    assert (run.subject.site, run.subject.seq_len) == ("model.layers.1", 64)
    assert run.members == (run,)
    assert run.load().n_latents == run.sae_config["n_latents"] == 8
    assert (run.scores, run.measured, run.tables, run.latents, run.log, run.training_log) == ({}, {}, {}, {}, [], [])
    assert run.weights_file.exists()


def test_an_imported_run_and_one_that_was_put_together_name_their_command(tmp_path):
    assert open_run(made(tmp_path / "a", config={"convert": {"family": "sae_lens"}})).made_by == "convert"
    assert open_run(made(tmp_path / "b", config={"stitch": {}})).made_by == "stitch"


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path):
    run = open_run(made(tmp_path / "run", trained=False))
    assert not run.is_trained
    with pytest.raises(ValueError, match=f"--resume {run.folder}"):
        run.load()
    member = open_run(swept(tmp_path / "sweep", [4], trained=False)).members[0]
    with pytest.raises(ValueError, match=f"sweep --resume {member.folder.parent}"):
        member.load()


def test_a_sweep_has_members_and_a_ladder_several_widths(tmp_path):
    sweep, ladder = open_run(swept(tmp_path / "sweep", [8, 8])), open_run(swept(tmp_path / "ladder", [4, 8]))
    assert (sweep.kind, sweep.is_ladder, ladder.is_ladder) == ("sweep", False, True)
    assert [one.name for one in ladder.members] == ["n0-4", "n1-8"]
    assert ladder.origin == ORIGIN
    assert [one.load().n_latents for one in open_runs([tmp_path / "ladder", tmp_path / "sweep"])] == [4, 8, 8, 8]
    with pytest.raises(ValueError, match="sweep of 2 SAEs: name one"):
        sweep.load()


def test_a_saved_sae_and_an_ensemble_have_no_settings_of_a_run(tmp_path):
    SAE(4, 8, TopK(2)).save(tmp_path / "sae")
    Ensemble([SAE(4, 8, TopK(2), seed=seed) for seed in range(2)]).save(tmp_path / "both")
    sae, both = open_run(tmp_path / "sae"), open_run(tmp_path / "both")
    assert (sae.kind, both.kind) == ("sae", "ensemble")
    for run in (sae, both):
        assert (run.is_run, run.is_trained, run.config, run.scores, run.subject) == (False, True, {}, {}, None)
        with pytest.raises(ValueError, match="give --store"):
            run.needed_subject()
    assert (sae.load().n_latents, both.load().n_latents) == (8, 16)


def test_what_is_none_of_them_is_one_line_that_says_what_it_is(tmp_path):
    made(tmp_path / "all" / "a")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"d_in": 4}')
    for folder, words in (("none", "there is no"), ("all", "holds 1: give"), ("foreign", "saelab convert")):
        with pytest.raises(ValueError, match=words) as error:
            open_run(tmp_path / folder)
        assert "\n" not in str(error.value)
    assert isinstance(open_run(tmp_path / "all" / "a"), SavedRun)


def test_an_origin_that_is_no_subject_names_its_file(tmp_path):
    run = Run(made(tmp_path / "run"))
    write_json(run.source_file, ORIGIN | {"average": "x"})
    with pytest.raises(ValueError, match="source.json: average must be 'document'"):
        _ = open_run(tmp_path / "run").subject
