"""The index of published SAEs: what it holds, how names are found in it, and that its script makes it again."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

from saelab.interchange import index as module
from saelab.interchange.family import families
from saelab.interchange.index import FILE, KINDS, at, find, hint, index, latents, published

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_large_in_names_and_small_in_bytes():
    found = list(published())
    assert len(found) >= 13_000
    assert f"an index of {len(found):,} SAEs" in (ROOT / "README.md").read_text()
    assert FILE.stat().st_size < 400_000
    assert index()["source"].startswith("the registry of SAELens ")
    assert index()["date"] >= "2026-11-28"
    assert len({one.name for one in found}) == len(found)


def test_what_loads_is_of_a_family_that_saelab_reads_and_all_else_has_a_reason():
    kinds = {table["kind"] for table in index()["releases"].values()}
    assert kinds <= KINDS.keys()
    for family, reason in KINDS.values():
        assert reason or family in families()


@pytest.mark.parametrize(
    ("name", "repo", "path", "site", "width", "l0"),
    [
        ("gpt2-small-resid-post-v5-32k/blocks.8", "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", "v5_32k_layer_8.pt",
         "transformer.h.8", 32_768, 32),
        ("gemma-scope-2b-pt-res-canonical/layer_12/width_16k", "google/gemma-scope-2b-pt-res",
         "layer_12/width_16k/average_l0_82", "model.layers.12", 16_384, 82),
        ("gemma-scope-2b-pt-att/layer_0/width_65k/average_l0_10", "google/gemma-scope-2b-pt-att",
         "layer_0/width_65k/average_l0_10", "model.layers.0.self_attn.o_proj:in", 65_536, 10),
        ("qwen-scope-3-8b-base-w64k-l50/layer3", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50", "layer3.sae.pt",
         "model.layers.3", 65_536, 50),
        ("llama_scope_lxm_8x/l7m", "fnlp/Llama3_1-8B-Base-LXM-8x", "Llama3_1-8B-Base-L7M-8x", "model.layers.7.mlp",
         32_768, 50),
        ("gpt2-small-res-jb-feature-splitting/blocks.8.hook_resid_pre_768",
         "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", "blocks.8.hook_resid_pre_768", "transformer.h.8:in",
         768, 36),
        ("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.12.hook_resid_post__trainer_3",
         "canrager/saebench_gemma-2-2b_width-2pow12_date-1109",
         "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_3", "model.layers.12", 4096, None),
        ("goodfire-llama-3.1-8b-instruct", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
         "Llama-3.1-8B-Instruct-SAE-l19.pth", "model.layers.19", None, 91),
    ],
)  # fmt: skip
def test_a_name_is_found_with_what_is_known_of_it(name, repo, path, site, width, l0):
    found = find(name)
    assert (found.repo, found.path, found.site, found.width, found.l0) == (repo, path, site, width, l0)
    assert at(repo, path).site == site


def test_a_name_of_none_or_several_says_which_there_are():
    assert find("runs/k32") is None
    with pytest.raises(ValueError, match="gpt2-small-res-jb is the name of 13 published SAEs: give one, such as gpt2-"):
        find("gpt2-small-res-jb")
    with pytest.raises(ValueError, match="is the name of 5 published SAEs: give one, such as gemma-scope-2b-pt-res/"):
        find("gemma-scope-2b-pt-res/layer_0/width_16k")
    with pytest.raises(ValueError, match="gpt2-small-res-jb has no SAE 'blocks.88'; did you mean 'blocks.8.hook"):
        find("gpt2-small-res-jb/blocks.88")
    assert find("gpt2-small-res-jb/blocks.1").id == "blocks.1.hook_resid_pre"  # and not blocks.10
    assert hint("gpt2-small-res-jbb/x") == "; did you mean 'gpt2-small-res-jb/x'?"
    assert hint("runs/k32") == hint("compared/meta") == ""


def test_the_source_is_given_only_where_rows_are_the_models_own():
    source = {"model": "gpt2", "site": "transformer.h.8", "target": None}
    assert find("gpt2-small-resid-post-v5-32k/blocks.8").source() == source
    assert find("gpt2-small-res-jb/blocks.8").source() == {}  # trained on weights that were centred
    assert find("gemma-scope-2b-pt-transcoders/layer_3").source() == {}  # the second site is not in it
    assert find("mistral-7b-res-wg/blocks.8").settings == {
        "cfg.json": {"normalize_activations": "constant_norm_rescale"}
    }
    scaler = {"activation_scaler.json": {"scaling_factor": 0.21381938399317255}}
    assert find("gemma-2b-res-jb/blocks.12").settings == scaler


@pytest.mark.parametrize(
    ("text", "count"),
    [("16384", 16_384), ("16k", 16_384), ("65k", 65_536), ("131K", 131_072), ("80k", 81_920), ("1m", 1_048_576)],
)
def test_numbers_of_latents_as_names_have_them(text, count):
    assert latents(text) == count


REGISTRY = """
small-res:
  repo_id: org/small
  model: gemma-2-2b
  conversion_func: gemma_2
  saes:
  - {id: layer_3/width_16k/canonical, path: layer_3/width_16k/average_l0_82, neuronpedia: gemma-2-2b/3-x-16k}
old:
  repo_id: org/old
  model: gpt2-small
  conversion_func: null
  config_overrides: {dataset_path: x, model_from_pretrained_kwargs: {center_writing_weights: true}}
  saes:
  - {id: blocks.0.hook_z, path: a, l0: 3.0, norm_scaling_factor: 0.5}
"""


def test_its_script_makes_it_from_a_wheel(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("index_published", ROOT / "tools" / "index_published.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    wheel = tmp_path / "sae_lens-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(script.REGISTRY, REGISTRY.replace("org/small", "google/gemma-scope-2b-pt-res"))
    script.write_index(wheel, tmp_path / "index.json.gz")
    monkeypatch.setattr(module, "FILE", tmp_path / "index.json.gz")
    index.cache_clear()
    try:
        one, other = find("small-res"), find("old")
        assert index()["source"] == "the registry of SAELens 9.9.9"
    finally:
        index.cache_clear()
    assert (one.model, one.hook, one.width, one.l0) == ("google/gemma-2-2b", "blocks.3.hook_resid_post", 16_384, 82)
    assert (other.model, other.hook, other.width, other.l0) == ("gpt2", "blocks.0.attn.hook_z", None, 3)
    centred = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    assert other.settings == {"cfg.json": centred, "activation_scaler.json": {"scaling_factor": 0.5}}
