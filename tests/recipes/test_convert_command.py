"""`saelab convert`: there and back, measured without being told where, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from recipes.world import SMALL, files
from safetensors.torch import load_file, save_file

from saelab import SAE, load
from saelab.core.files import write_whole
from saelab.interchange import read
from saelab.sae.activations.topk import TopK
from saelab.sae.ensemble import Ensemble
from saelab.sae.scales import LayerNorm

pytest_plugins = ["models.conftest", "recipes.small_world"]


def foreign(folder: Path, d_in: int = 4, **metadata: object) -> Path:
    """A ReLU SAE of SAELens."""
    folder.mkdir()
    tensors = {"W_enc": torch.ones(d_in, 8), "b_enc": torch.zeros(8), "W_dec": torch.ones(8, d_in)}
    save_file(tensors | {"b_dec": torch.zeros(d_in)}, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": d_in, "d_sae": 8, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_a_run_to_sae_lens_and_back_is_measured_where_it_was_trained(saelab, trained, subject_words, tmp_path):
    ended = saelab("convert", trained, tmp_path / "theirs", "--to", "sae_lens")
    assert ended.status == 0, ended.err
    d_in = load(trained).d_in
    assert f"{tmp_path / 'theirs'}: saelab TopK, {d_in} -> 32 latents -> {d_in}, read as TopK" in ended.out
    assert "note: folded the scaling of rows" in ended.out
    assert sorted(files(tmp_path / "theirs")) == ["cfg.json", "sae_weights.safetensors"]
    assert (
        json.loads((tmp_path / "theirs" / "cfg.json").read_text())["metadata"]["hook_name"]
        == "blocks.1.hook_resid_post"
    )
    ended = saelab("convert", tmp_path / "theirs", tmp_path / "ours")
    assert ended.status == 0, ended.err
    assert "sae_lens topk" in ended.out
    assert f"`saelab measure {tmp_path / 'ours'}` measures it at {subject_words[1]}, model.layers.1" in ended.out
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "README.md",
        "config.yaml",
        "sae",
        "source.json",
    ]
    x = torch.randn(30, d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load(tmp_path / "ours")(x), load(trained)(x), rtol=1e-5, atol=1e-5)
    ended = saelab("measure", tmp_path / "ours", "--tokens", 60, "--metrics", "L0")
    assert ended.status == 0, ended.err
    assert json.loads((tmp_path / "ours" / "scores.json").read_text())["l0"]["value"] == pytest.approx(4, abs=0.5)
    assert saelab("show", tmp_path / "ours").status == 0


def test_rows_that_are_each_scaled_by_themselves_go_where_there_is_a_form_for_them(saelab, store, tmp_path):
    run, theirs, ours = (tmp_path / name for name in ("run", "theirs", "ours"))
    ended = saelab("train", "--store", store, "--rows", 1280, *SMALL, "--sae.scale", "LayerNorm", "--out", run)
    assert ended.status == 0, ended.err
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["sae"]["scale"] == {"class_path": "LayerNorm"}
    sae, x = load(run), torch.randn(30, load(run).d_in, generator=torch.Generator().manual_seed(0))
    assert isinstance(sae.scale, LayerNorm)
    assert saelab("convert", run, theirs, "--to", "sae_lens").status == 0
    assert json.loads((theirs / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    assert saelab("convert", theirs, ours).status == 0
    torch.testing.assert_close(load(ours)(x), sae(x), rtol=1e-5, atol=1e-5)
    ended = saelab("convert", run, tmp_path / "other", "--to", "dictionary_learning")
    assert ended.status == 2
    assert ended.err.strip().count("\n") == 0
    assert "no form for rows that are each scaled by themselves (LayerNorm())" in ended.err
    assert not (tmp_path / "other").exists()
    ended = saelab("measure", run, "--tokens", 60, "--metrics", "Reconstruction", "L0", "AFA", "Downstream")
    assert ended.status == 0, ended.err


def test_without_a_certain_site_measure_says_what_to_give(saelab, tmp_path):
    path = foreign(tmp_path / "theirs", model_name="somebodys/model", hook_name="blocks.8.hook_resid_post")
    ended = saelab("convert", path, tmp_path / "ours")
    assert ended.status == 0, ended.err
    assert "note: no site is blocks.8.hook_resid_post of somebodys/model for sure" in ended.out
    assert "the file says model_name somebodys/model" in ended.out
    assert not (tmp_path / "ours" / "source.json").exists()
    ended = saelab("measure", tmp_path / "ours")
    assert ended.status == 2
    assert "--subject.model, --subject.site and --subject.text" in ended.complaint


def test_one_library_to_another(saelab, tmp_path):
    ended = saelab("convert", foreign(tmp_path / "theirs"), tmp_path / "others", "--to", "dictionary_learning")
    assert ended.status == 0, ended.err
    ended = saelab("convert", tmp_path / "others" / "ae.pt", tmp_path / "ours")
    assert "dictionary_learning AutoEncoder, 4 -> 8 latents -> 4" in ended.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{foreign}", "{own}"], "own is not an empty folder; choose another"),
        (["{own}", "{new}"], "is saelab's own already: say which library"),
        (["{several}", "{new}", "--to", "sae_lens"], "Ensemble cannot be exported"),
        (["{own}", "{new}", "--to", "saelens"], "unknown family 'saelens'; did you mean 'sae_lens'?"),
        (["{nothing}", "{new}"], "there is no file or folder"),
        (["{foreign}"], "are required: out"),
    ],
)
def test_what_is_refused_leaves_nothing(saelab, tmp_path, words, says):
    SAE(4, 8, TopK(2)).save(tmp_path / "own")
    Ensemble([SAE(4, 8, TopK(2)), SAE(4, 8, TopK(2), seed=1)]).save(tmp_path / "several")
    foreign(tmp_path / "foreign")
    before = files(tmp_path)
    ended = saelab(
        "convert",
        *[word.format(**{n: tmp_path / n for n in ("own", "foreign", "new", "nothing", "several")}) for word in words],
    )
    assert ended.status == 2
    assert says in ended.complaint
    assert files(tmp_path) == before


@pytest.mark.parametrize("to", [[], ["--to", "sae_lens"]])
def test_a_conversion_that_fails_midway_leaves_nothing(saelab, tmp_path, monkeypatch, to):
    path = foreign(tmp_path / "theirs")
    before, written = files(tmp_path), []

    def full(target, write):
        if written:
            raise OSError(28, "No space left on device")
        written.append(target)
        write_whole(target, write)

    monkeypatch.setattr("saelab.core.files.write_whole", full)
    assert saelab("convert", path, tmp_path / "ours", *to).status == 1
    assert len(written) == 1
    assert files(tmp_path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["theirs"]


def test_our_own_is_for_load(tmp_path):
    SAE(4, 8, TopK(2)).save(tmp_path)
    with pytest.raises(ValueError, match="is saelab's own: `saelab.load` opens it"):
        read(tmp_path)


def test_load_of_a_foreign_folder_names_the_command(tmp_path):
    path = foreign(tmp_path / "theirs")
    with pytest.raises(ValueError, match="`saelab convert .*theirs NEW`"):
        load(path)
    (path / "config.json").write_text('{"trainer": {}}')
    with pytest.raises(ValueError, match="`saelab convert .*theirs NEW`"):
        load(path)
    with pytest.raises(ValueError, match="there is no file"):
        load(tmp_path / "nothing")


def test_the_norms_of_directions_are_kept_or_brought_to_one(saelab, tmp_path):
    """dictionary_learning's keys are enough; its loader's own reading, codes times the norms, is an option."""
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(8, 4, generator=generator), torch.randn(4, 8, generator=generator)
    tensors = {"bias": torch.zeros(4), "encoder.weight": encoder, "encoder.bias": torch.zeros(8)}
    torch.save(tensors | {"decoder.weight": decoder}, tmp_path / "autoencoder.pt")
    kept = saelab("convert", tmp_path / "autoencoder.pt", tmp_path / "kept")
    unit = saelab("convert", tmp_path / "autoencoder.pt", tmp_path / "unit", "--unit_norm", "true")
    assert kept.status == unit.status == 0, kept.err + unit.err
    norms = decoder.norm(dim=0)
    says = f"directions keep the norms that they have, {norms.min():.3g} to {norms.max():.3g}"
    assert says in kept.out
    assert "--unit_norm true does the same here" in kept.out
    assert "directions keep" not in unit.out
    assert "directions were brought to unit norm" in unit.out
    x = torch.randn(20, 4, generator=generator)
    codes = (x @ encoder.T).relu()
    assert torch.allclose(load(tmp_path / "kept").encode(x).dense(), codes, atol=1e-5)
    assert torch.allclose(load(tmp_path / "unit").encode(x).dense(), codes * norms, atol=1e-5)
    for name in ("kept", "unit"):
        assert torch.allclose(load(tmp_path / name)(x), codes @ decoder.T, atol=1e-4)


def test_directions_whose_norms_choose_latents_stay_as_they_are(saelab, tmp_path):
    SAE(4, 8, TopK(2)).save(tmp_path / "ours")
    ended = saelab("convert", tmp_path / "ours", tmp_path / "out", "--to", "sae_lens", "--unit_norm", "true")
    assert ended.status == 2
    assert "TopK may keep other latents of directions of unit norm; leave --unit_norm out" in ended.complaint
    assert not (tmp_path / "out").exists()


def test_several_of_a_folder_become_a_run_each(saelab, tmp_path):
    (tmp_path / "set").mkdir()
    for layer in range(3):
        foreign(tmp_path / "set" / f"blocks.{layer}", model_name="gpt2")
    said = saelab("convert", tmp_path / "set", tmp_path / "out").complaint
    assert "set holds 3 SAEs: blocks.0, blocks.1, blocks.2; take one of them, or several by --only" in said
    assert (
        "called block.1; did you mean 'blocks.1'?"
        in saelab("convert", tmp_path / "set", tmp_path / "out", "--only", "block.1").complaint
    )
    ended = saelab("convert", tmp_path / "set", tmp_path / "out", "--only", "blocks.1", "blocks.2*")
    assert ended.status == 0, ended.err
    assert f"{tmp_path / 'out' / 'blocks.2'}: sae_lens standard, 4 -> 8 latents -> 4" in ended.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["blocks.1", "blocks.2"]
    assert load(tmp_path / "out" / "blocks.1").d_in == 4
    ended = saelab("convert", tmp_path / "set", tmp_path / "one", "--only", "blocks.0", "--to", "dictionary_learning")
    assert ended.status == 0, ended.err
    assert sorted(files(tmp_path / "one")) == ["ae.pt", "config.json"]


def test_a_set_of_transcoders_becomes_runs_and_a_set_again(saelab, tmp_path):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "set").mkdir()
    for layer in range(2):
        tensors = {name: torch.randn(*shape, generator=generator) for name, shape in TRANSCODER.items()}
        save_file(tensors, tmp_path / "set" / f"layer_{layer}.safetensors")
    about = 'model_kind: "transcoder_set"\nmodel_name: "Qwen/Qwen3-4B"\n'
    about += 'feature_input_hook: "mlp.hook_in"\nfeature_output_hook: "hook_mlp_out"\n'
    (tmp_path / "set" / "config.yaml").write_text(about)
    ended = saelab("convert", tmp_path / "set", tmp_path / "runs", "--only", "*")
    assert ended.status == 0, ended.err
    run = tmp_path / "runs" / "layer_1.safetensors"
    assert json.loads((run / "source.json").read_text())["site"] == "model.layers.1.mlp:in"
    ended = saelab("convert", tmp_path / "runs", tmp_path / "again", "--only", "*", "--to", "circuit_tracer")
    assert ended.status == 0, ended.err
    assert sorted(files(tmp_path / "again")) == ["config.yaml", "layer_0.safetensors", "layer_1.safetensors"]
    assert (tmp_path / "again" / "config.yaml").read_text() == about
    for layer in range(2):
        old, new = (load_file(tmp_path / name / f"layer_{layer}.safetensors") for name in ("set", "again"))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)


TRANSCODER = {"W_enc": (8, 4), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "W_skip": (4, 4)}
