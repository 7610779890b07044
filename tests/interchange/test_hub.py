"""SAEs on the hub by name: what is fetched, from which revision, and what is said where it cannot be."""

import json
from pathlib import Path

import pytest
import torch
from interchange.hub_server import TOKEN, Hub
from safetensors.torch import save_file

from saelab.interchange.hub import HubName, fetch, needed

pytest_plugins = ["interchange.local_hub"]


def sae_lens(folder: Path, seed: int = 0, d_in: int = 4) -> Path:
    """A ReLU SAE of SAELens, with files beside it that are of no use for reading it."""
    folder.mkdir(parents=True)
    made = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, 8), "b_enc": (8,), "W_dec": (8, d_in), "b_dec": (d_in,)}
    save_file(
        {key: torch.randn(shape, generator=made) for key, shape in shapes.items()}, folder / "sae_weights.safetensors"
    )
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": d_in, "d_sae": 8}))
    save_file({"sparsity": torch.zeros(8)}, folder / "sparsity.safetensors")
    return folder


@pytest.fixture
def filled(hub: Hub, tmp_path: Path) -> Hub:
    """A hub with two SAEs in one repository, and a language model's files beside them."""
    hub.add("org/saes", sae_lens(tmp_path / "a", 1), "blocks.8.hook_resid_post/")
    hub.add("org/saes", sae_lens(tmp_path / "b", 2), "blocks.9.hook_resid_post/")
    hub.commit("org/saes", {"README.md": b"words", "tokenizer.json": b"{}", "model.safetensors": b"none"})
    return hub


def test_a_name_has_repository_path_and_revision():
    assert HubName.of("hf:org/repo") == HubName("org/repo")
    assert HubName.of("hf:org/repo/a/b.pt@refs/pr/1") == HubName("org/repo", "a/b.pt", "refs/pr/1")
    assert str(HubName.of("hf:org/repo/a@v1")) == "hf:org/repo/a@v1"
    assert HubName.of("hf:org/repo/a/") == HubName("org/repo", "a")


@pytest.mark.parametrize(
    "text", ["hf:gpt2", "hf:org//a", "hf:org/repo/../x", "hf:org/repo@../x", "hf:/org/repo", "hf:"]
)
def test_what_is_no_name_is_said(text):
    with pytest.raises(ValueError, match="expected hf:org/repo"):
        HubName.of(text)


def test_only_what_one_sae_needs_is_fetched_and_kept(filled):
    found = fetch(HubName.of("hf:org/saes/blocks.8.hook_resid_post"))
    folder = "blocks.8.hook_resid_post"
    assert filled.files() == [f"{folder}/cfg.json", f"{folder}/sae_weights.safetensors"]
    assert found.path.name == folder
    assert sorted(path.name for path in found.path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert found.place.revision == filled.repositories["org/saes"].refs["main"] == found.root.name
    fetch(HubName.of("hf:org/saes/blocks.8.hook_resid_post"))
    assert len(filled.files()) == 2  # nothing is fetched again


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub):
    first = hub.commit("org/saes", {"cfg.json": b"{}", "sae_weights.safetensors": b"old"})
    hub.repositories["org/saes"].refs["v1"] = first
    second = hub.commit("org/saes", {"sae_weights.safetensors": b"new"})
    for revision, content, commit in ((None, b"new", second), ("v1", b"old", first), (first, b"old", first)):
        found = fetch(HubName("org/saes", "", revision))
        assert (found.path / "sae_weights.safetensors").read_bytes() == content
        assert found.place.revision == commit
    hub.commit("org/saes", {"sae_weights.safetensors": b"newer"})
    assert (fetch(HubName("org/saes")).path / "sae_weights.safetensors").read_bytes() == b"newer"


def test_a_broken_download_goes_on_where_it_ended(hub):
    content = bytes(range(256)) * 40
    hub.commit("org/saes", {"cfg.json": b"{}", "sae_weights.safetensors": content})

    def ranges() -> list[str]:
        return [wanted for what, path, wanted in hub.asked if what == "GET" and path.endswith(".safetensors")]

    hub.breaks["sae_weights.safetensors"] = [1000, 500]
    found = fetch(HubName("org/saes"))
    assert (found.path / "sae_weights.safetensors").read_bytes() == content
    assert ranges() == ["", "bytes=1000-", "bytes=1500-"]


def test_a_download_that_never_ends_says_so_and_leaves_nothing_half(hub):
    hub.commit("org/saes", {"cfg.json": b"{}", "sae_weights.safetensors": bytes(2000)})
    hub.breaks["sae_weights.safetensors"] = [1000] + 6 * [0]  # its library gives up after five tries for nothing
    with pytest.raises(ConnectionError, match="cannot be reached for hf:org/saes: try again, whole files are kept"):
        fetch(HubName("org/saes"))
    found = fetch(HubName("org/saes"))
    assert (found.path / "sae_weights.safetensors").stat().st_size == 2000
    assert hub.files().count("cfg.json") == 1


def test_without_the_hub_the_cache_serves_what_is_whole(filled, monkeypatch):
    from huggingface_hub import constants

    name = HubName.of("hf:org/saes/blocks.8.hook_resid_post")
    online = fetch(name)
    asked = len(filled.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(name) == online
    assert len(filled.asked) == asked
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set, .* has not all of hf:org/saes/blocks.9"):
        fetch(HubName.of("hf:org/saes/blocks.9.hook_resid_post"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for setting in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):  # where nobody answers
        monkeypatch.setattr(constants, setting, getattr(constants, setting).replace(filled.url, "http://127.0.0.1:9"))
    assert fetch(name) == online
    with pytest.raises(ConnectionError, match="the hub cannot be reached for hf:org/saes/blocks.9") as caught:
        fetch(HubName.of("hf:org/saes/blocks.9.hook_resid_post"))
    assert "\n" not in str(caught.value)


def test_gated_private_and_missing_repositories_say_what_to_do(filled, monkeypatch):
    filled.repositories["org/saes"].gated = True
    name = HubName.of("hf:org/saes/blocks.8.hook_resid_post")
    with pytest.raises(ValueError, match=f"is gated: accept its terms at {filled.url}/org/saes, then log in"):
        fetch(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(name).files
    monkeypatch.delenv("HF_TOKEN")
    filled.repositories["org/saes"].private = True
    for repo in ("org/saes", "org/none"):
        with pytest.raises(ValueError, match=f"the hub has no repository {repo}, or it is private: check"):
            fetch(HubName(repo, "x", "v2"))


def test_what_a_repository_has_not_is_named_with_what_it_has(filled):
    for name, message in (
        (
            "hf:org/saes/blocks.8.hook_resid_pre",
            "no folder or file 'blocks.8.hook_resid_pre'; did you mean 'blocks.8",
        ),
        ("hf:org/saes/zzz", "there are: blocks.8.hook_resid_post, blocks.9.hook_resid_post"),
        ("hf:org/saes@v7", "org/saes has no revision 'v7'"),
        ("hf:org/sa--es", "is no name of an SAE on the hub"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            fetch(HubName.of(name))
        assert "\n" not in str(caught.value)


def test_a_hub_that_is_broken_is_said(filled):
    filled.status = 500
    with pytest.raises(OSError, match="the hub answers 500 for hf:org/saes: try again later"):
        fetch(HubName("org/saes"))


LLAMA = ["L0R-8x/hyperparams.json", "L0R-8x/checkpoints/final.safetensors", "L0R-8x/lm_config.json"]
RUN = ["README.md", "config.yaml", "log.jsonl", "sae/config.json", "sae/weights.safetensors", "sae_lens/cfg.json"]


@pytest.mark.parametrize(
    ("files", "path", "wanted"),
    [
        (LLAMA, "L0R-8x", set(LLAMA)),
        (["a.pt", "b.pt", "config.json", "tokenizer.json"], "a.pt", {"a.pt", "config.json"}),
        (["x/checkpoints/ae_1.pt", "x/config.json"], "x/checkpoints/ae_1.pt",
         {"x/checkpoints/ae_1.pt", "x/config.json"}),
        (["x/trainer_0/ae.pt", "x/trainer_0/eval.pt"], "x/trainer_0", {"x/trainer_0/ae.pt"}),
        (["c.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors", "W_enc_1.safetensors", "W_dec_1.safetensors"], "",
         {"c.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors", "W_enc_1.safetensors", "W_dec_1.safetensors"}),
        (["config.json", "sae_weights.pt", "trainer.pt", "optimizer.pt"], "", {"config.json", "sae_weights.pt"}),
        ([*RUN, "sae/../../evil.json", "sae_lens/sae_weights.safetensors"], "",
         {"config.yaml", "sae/config.json", "sae/weights.safetensors"}),
        (["config.json", "member-0/config.json", "member-0/weights.safetensors", "x.pt"], "",
         {"config.json", "member-0/config.json", "member-0/weights.safetensors"}),
        (["../evil.json", "config.json", "weights.safetensors"], "", {"config.json", "weights.safetensors"}),
    ],
)  # fmt: skip
def test_what_is_needed_of_a_repository(files, path, wanted):
    found = needed(files, HubName("org/repo", path))
    assert set(found) == wanted
    assert found[-1].endswith((".pt", ".safetensors"))  # what is cut short lacks weights, not descriptions


def test_a_folder_of_several_saes_is_not_fetched_but_told():
    files = [f"layer{n}.sae.pt" for n in range(50)]
    with pytest.raises(
        ValueError, match="holds 50 files of weights: give one of them; there are 50, such as hf:Qwen/S/layer0"
    ):
        needed(files, HubName("Qwen/S"))
    with pytest.raises(ValueError, match="hf:org/repo holds no SAE; there are: a, b/c"):
        needed(["a/x.pt", "b/c/y.pt", "config.json"], HubName("org/repo"))
