"""Publishing: what goes to the hub, what comes back, what the card says, and what is refused."""

import pytest
import yaml
from interchange.hub_server import TOKEN, Hub
from runs.test_published import made_run, same

import saelab
from saelab.core.run import Run
from saelab.metrics.table import write_columns
from saelab.runs import open_run, publish
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK

pytest_plugins = ["interchange.local_hub"]


@pytest.fixture
def known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that knows who asks."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_a_published_run_comes_back_to_the_bit(known: Hub, tmp_path):
    folder = made_run(tmp_path / "run")
    write_columns(Run(folder).tables / "probes.parquet", {"latent": [1, 2]})
    assert saelab.publish(folder, "me/mine") == f"{known.url}/me/mine"
    repository = known.repositories["me/mine"]
    held = repository.commits[repository.refs["main"]]
    assert sorted(set(held) - {".gitattributes"}) == [
        "README.md", "config.yaml", "sae/config.json", "sae/weights.safetensors", "scores.json", "source.json",
        "tables/probes.parquet",
    ]  # fmt: skip
    assert not repository.private
    assert same(saelab.load("hf:me/mine"), saelab.load(folder))
    assert open_run("hf:me/mine").scores == open_run(folder).scores
    assert open_run("hf:me/mine").tables["probes"].exists()


def test_what_was_published_before_and_is_no_more_goes(known: Hub, tmp_path):
    folder = made_run(tmp_path / "run")
    write_columns(Run(folder).tables / "probes.parquet", {"latent": [1]})
    publish(folder, "me/mine", also=["sae_lens"])
    known.commit("me/mine", {"notes.txt": b"mine"})
    SAE(4, 8, TopK(1), seed=5).save(tmp_path / "other")
    publish(tmp_path / "other", "me/mine")
    repository = known.repositories["me/mine"]
    held = set(repository.commits[repository.refs["main"]]) - {".gitattributes"}
    assert held >= {"notes.txt", "config.json", "weights.safetensors", "README.md"}
    assert not held & {"config.yaml", "sae/config.json", "tables/probes.parquet", "scores.json"}
    assert saelab.load("hf:me/mine").n_latents == 8


def test_files_of_another_library_lie_beside_ours(known: Hub, tmp_path):
    folder = made_run(tmp_path / "run")
    publish(folder, "me/mine", private=True, also=["sae_lens", "dictionary_learning"])
    assert known.repositories["me/mine"].private
    ours = saelab.load("hf:me/mine")
    x = ours.decode(ours.encode(saelab.load(folder).dictionary.directions()[:3]))
    for family in ("sae_lens", "dictionary_learning"):
        theirs = saelab.load(f"hf:me/mine/{family}")
        assert theirs(x).allclose(ours(x), atol=1e-5)


def test_the_card_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made_run(tmp_path / "run")
    assert publish(folder, "me/mine", license="mit", also=["sae_lens"], dry_run=True) == "mine"
    text = (tmp_path / "mine" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "saelab",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "saelab"],
        "license": "mit",
    }
    for line in (
        "A sparse autoencoder of 16 latents on rows 4 wide, read with TopK (k 2).",
        'sae = saelab.load("hf:me/mine")',
        "| site | model.layers.1 |",
        "| rows | 100 |",
        "| fvu | 0.2 | 0.1 to 0.3 | 5 | share |",
        "Files for sae_lens are in `sae_lens/`.",
        "@misc{me-mine,",
    ):
        assert line in body
    assert same(saelab.load("mine"), saelab.load(folder))
    with pytest.raises(ValueError, match="mine is not an empty folder"):
        publish(folder, "me/mine", dry_run=True)


def test_a_model_of_the_hub_is_the_cards_base_model(tmp_path, monkeypatch):
    from saelab.core.files import write_json

    monkeypatch.chdir(tmp_path)
    folder = made_run(tmp_path / "run")
    write_json(Run(folder).source_file, {"model": "google/gemma-2-2b", "site": "model.layers.1"})
    publish(folder, "me/mine", citation="Me, 2026.", dry_run=True)
    text = (tmp_path / "mine" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "google/gemma-2-2b"
    assert text.endswith("## Citation\n\nMe, 2026.\n")


def test_who_is_not_logged_in_and_what_is_public_is_told(hub: Hub, tmp_path, monkeypatch):
    folder = made_run(tmp_path / "run")
    with pytest.raises(OSError, match="the hub answers 401 for hf:me/mine: log in with `hf auth login`, or set HF_T"):
        publish(folder, "me/mine")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    publish(folder, "me/mine")
    before = dict(hub.repositories["me/mine"].commits)
    with pytest.raises(ValueError, match="me/mine is there and public: make it private on the hub, or leave"):
        publish(folder, "me/mine", private=True)
    assert hub.repositories["me/mine"].commits == before


@pytest.mark.parametrize("to", ["mine", "me/mine/folder", "me/mine@v1"])
def test_only_a_repository_can_be_published_to(tmp_path, to):
    with pytest.raises(ValueError, match="org/name|no name of an SAE on the hub"):
        publish(made_run(tmp_path / "run"), to)


def test_an_sae_that_a_library_has_no_form_for_is_not_half_published(known: Hub, tmp_path):
    with pytest.raises(ValueError, match="unknown family 'saelens'; did you mean 'sae_lens'"):
        publish(made_run(tmp_path / "run"), "me/mine", also=["saelens"])
    assert not known.repositories


@pytest.mark.parametrize("to", ["mine", "me/mine/folder", "me/mine@main", "hf:mine"])
def test_an_sae_is_published_as_a_repository(tmp_path, to):
    with pytest.raises(ValueError, match=rf"org/name; got '{to}'"):
        publish(tmp_path, to)
