"""`saelab stitch`, `saelab meta` and `saelab match`: what they write and say, and what they refuse."""

import json

import pytest
import torch
from recipes.world import SMALL, files

from saelab import load
from saelab.analysis.match import read_match
from saelab.analysis.meta import read_meta
from saelab.analysis.stitch import read_stitch
from saelab.cli import main
from saelab.recipes.compared import opened
from saelab.recipes.stitch import _undecided
from saelab.sae import Ensemble, load_sae

pytest_plugins = ["models.conftest", "recipes.small_world"]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory, store):
    """Three SAEs on the tiny Llama's activations: two widths, and the wider one with another seed."""
    folder = tmp_path_factory.mktemp("ladder")
    words = ["--store", str(store), "--rows", "1280", *SMALL, "--trainer.lr", "0.003"]
    for name, n, seed in (("small", 32, 0), ("large", 48, 0), ("other", 48, 1)):
        more = ["--out", str(folder / name), "--sae.n_latents", str(n), "--sae.seed", str(seed)]
        main(["train", *words, *more])
    return folder


def test_stitch_writes_what_it_found_and_an_sae_that_is_measured(saelab, ladder, tmp_path):
    out = tmp_path / "out"
    words = ["--tokens", 200, "--min_firings", 3, "--points", 5, "--ce_points", 2, "--ce_tokens", 60]
    before = files(ladder)
    ended = saelab("stitch", ladder / "small", ladder / "large", "--out", out, *words)
    assert ended.status == 0, ended.err
    assert "novel" in ended.out
    assert "FVU with novel" in ended.out
    found = read_stitch(out)
    assert [sae["n_latents"] for sae in found["saes"]] == [32, 48]
    losing = [sae["name"] for sae in found["saes"] if sae["fvu"] > 1.02 * sae["fvu_trained"]]
    assert ended.out.count("reconstructs worse with a threshold") == len(losing)
    assert all(f"warning: {name} reconstructs worse" in ended.out for name in losing)
    assert any(sae["fvu"] != sae["fvu_trained"] for sae in found["saes"])
    path = found["path"]
    assert len(path["mse"]) >= 5
    measured = [value for value in path["ce_delta"] if value is not None]
    assert len(measured) >= 2
    assert path["ce_delta"][0] is not None
    assert path["ce_delta"][-1] is not None
    assert (out / "path.html").stat().st_size > 1_000_000  # opens offline
    assert "Insertion test" in (out / "scatter.html").read_text()
    stitched = load(out / "pair-0" / "stitched")
    assert stitched.n_latents == 32 + found["pairs"][0]["steps"]["insert"]
    ended = saelab("measure", out / "pair-0" / "stitched", "--tokens", 100, "--metrics", "L0")
    assert ended.status == 0, ended.err
    assert files(ladder) == before


def test_stitch_without_a_model_says_what_it_skipped(saelab, ladder, store, tmp_path):
    words = ["--store", store, "--tokens", 200, "--figures", "false"]
    ended = saelab("stitch", ladder / "small", ladder / "large", ladder / "other", "--out", tmp_path / "o", *words)
    assert ended.status == 0, ended.err
    assert "skipped ce_delta: needs a model" in ended.out
    assert len(read_stitch(tmp_path / "o")["pairs"]) == 2
    assert not (tmp_path / "o" / "path.html").exists()


def test_meta_names_what_directions_are_made_of(saelab, ladder, tmp_path):
    words = ["--ratio", 8, "--k", 2, "--steps", 5, "--tokens", 200, "--against", ladder / "small", "--show", 2]
    ended = saelab("meta", ladder / "large", "--out", tmp_path / "meta", *words)
    assert ended.status == 0, ended.err
    found = read_meta(tmp_path / "meta")
    assert (found["n_latents"], found["n_meta"]) == (48, 6)
    assert set(found["controls"]) == {"random", "shuffled", "pca", "kmeans", "residual_kmeans"}
    assert found["similar"][0]["n_latents"] == 32
    assert ended.out.count("latent ") >= 2
    assert "control pca" in ended.out
    for name in ("latent_tokens", "meta_tokens"):
        assert (tmp_path / "meta" / f"{name}.parquet").exists()
    words = ["--steps", 2, "--ratio", 8, "--k", 2, "--tokens", 0, "--controls", "false"]
    ended = saelab("meta", ladder / "large", "--out", tmp_path / "bare", *words)
    assert ended.status == 0, ended.err
    assert not (tmp_path / "bare" / "meta_tokens.parquet").exists()


def test_match_of_two_and_of_several(saelab, ladder, tmp_path):
    ended = saelab("match", ladder / "large", ladder / "other", "--out", tmp_path / "two", "--swap", 60)
    assert ended.status == 0, ended.err
    found = read_match(tmp_path / "two")
    assert (found["n_a"], found["n_b"]) == (48, 48)
    assert set(found["swap"]["swapped"]) == {"fvu", "ce_delta"}
    assert "one-to-one pairs (the best)" in ended.out
    names = [ladder / "large", ladder / "other", ladder / "small"]
    ended = saelab("match", *names, "--out", tmp_path / "three", "--keep_union", "true", "--threshold", 0.9)
    assert ended.status == 0, ended.err
    stability = json.loads((tmp_path / "three" / "stability.json").read_text())
    assert all(x <= y + 1e-9 for x, y in zip(stability["share_in_every"], stability["share_mean"], strict=True))
    counts = read_match(tmp_path / "three" / "1")["counts"]
    assert load(tmp_path / "three" / "1" / "union").n_latents == 48 - counts["a"]["dead"] + counts["b"]["unique"]
    ended = saelab("match", *names[:2], "--out", tmp_path / "weights", "--by", "weights")
    assert ended.status == 0, ended.err
    assert read_match(tmp_path / "weights")["by"] == "weights"


def test_an_sae_that_reconstructs_nothing_is_warned_of_where_rows_are_at_hand(saelab, ladder, store, tmp_path):
    """One line for each of FVU near 1 and above, and nothing where no rows were asked for."""
    good = ladder / "large"
    for name, size in (("faint", 0.06), ("wrong", -3.0)):
        one = load(ladder / "other")
        one.dictionary.W_dec.data.mul_(size)
        one.save(tmp_path / name)
    faint, wrong = tmp_path / "faint", tmp_path / "wrong"
    near, beyond = f"warning: {faint} reconstructs these rows hardly", f"warning: {wrong} reconstructs these rows worse"
    words = ["--store", store, "--tokens", 200]
    ended = saelab("match", good, faint, wrong, "--out", tmp_path / "match", *words)
    assert ended.status == 0, ended.err
    assert near in ended.out
    assert beyond in ended.out
    assert ended.out.count("warning: ") == 2
    assert ended.out.count(": FVU ") == 3
    fits = read_match(tmp_path / "match" / "1")["fits"]
    assert list(fits) == [str(good), str(faint)]
    assert fits[str(faint)]["fvu"] > 0.9 > fits[str(good)]["fvu"]
    small = ["--steps", 2, "--ratio", 8, "--k", 2, "--controls", "false"]
    ended = saelab("meta", wrong, "--against", good, "--out", tmp_path / "meta", *words, *small)
    assert ended.status == 0, ended.err
    assert beyond in ended.out
    assert list(read_meta(tmp_path / "meta")["fits"]) == [str(wrong), str(good)]
    more = ["--figures", "false", "--ce_points", 0]
    ended = saelab("stitch", good, faint, "--out", tmp_path / "stitch", *words, *more)
    assert ended.status == 0, ended.err
    assert near in ended.out
    ended = saelab("manifolds", faint, "--out", tmp_path / "manifolds", *words, "--figures", "false")
    assert ended.status == 0, ended.err
    assert near in ended.out
    for words in (["match", good, wrong], ["meta", wrong, "--tokens", 0, *small]):
        ended = saelab(*words, "--out", tmp_path / f"{words[0]}-bare")
        assert ended.status == 0, ended.err
        assert "FVU" not in ended.out
        assert "warning" not in ended.out


def test_wrong_settings_and_folders_are_named_before_anything_is_read(saelab, ladder, tmp_path):
    """One line each, in no time, and nothing is left behind; what would be read is a store that is not there."""
    a, b, out = ladder / "small", ladder / "large", ["--out", tmp_path / "never"]
    nothing = ["--store", tmp_path / "no-store"]
    for command, words, said in [
        ("stitch", ["--threshold", -0.5], "threshold must be above 0 and at most 1, got -0.5"),
        ("stitch", ["--min_firings", 0], "min_firings must be at least 1, got 0"),
        ("stitch", ["--tokens", -5], "tokens must be at least 0, got -5"),
        ("match", ["--threshold", 0], "threshold must be above 0 and at most 1, got 0.0"),
        ("match", ["--by", "zz"], "unknown matching method 'zz'; there are: directions, weights"),
        ("match", ["--swap", -1], "swap must be at least 0 tokens, got -1"),
        ("match", ["--tokens", -1], "tokens must be at least 0, got -1"),
        ("meta", ["--lr", -1], "lr must be above 0, got -1"),
        ("meta", ["--k", 0], "k must be above 0, got 0"),
        ("meta", ["--show", -1], "show must be at least 0, got -1"),
        ("manifolds", ["--show", -1], "show must be at least 0, got -1"),
        ("manifolds", ["--threshold", 0], "threshold must be above 0 and at most 1, got 0.0"),
    ]:
        runs = [a, b] if command in ("stitch", "match") else [a]
        assert said in saelab(command, *runs, *out, *nothing, *words).complaint
    assert f"there is no folder {tmp_path / 'no'}: give" in saelab("stitch", a, tmp_path / "no", *out).complaint
    said = saelab("meta", a, *out, "--tokens", 0, "--k", 40, "--ratio", 8).complaint
    assert "k must be at most the number of meta-latents, 4 for 32 directions at a ratio of 8; got 40" in said
    assert not (tmp_path / "never").exists()
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "deep" / "er"
    said = saelab("match", a, b, "--out", inside).complaint
    assert f"{tmp_path / 'file'} is a file, and {inside} would be a folder in it; choose another" in said


def test_match_across_sites_says_nothing_of_saes_whose_rows_it_has_not(saelab, ladder, store, tmp_path):
    bare = tmp_path / "bare"
    load(ladder / "other").save(bare)
    words = ["--store", store, "--tokens", 150, "--across", "true", "--out", tmp_path / "out"]
    ended = saelab("match", ladder / "large", bare, ladder / "small", *words)
    assert ended.status == 0, ended.err
    assert f"{bare}: FVU" not in ended.out
    assert list(read_match(tmp_path / "out" / "1")["fits"]) == [str(ladder / "large")]
    fits = read_match(tmp_path / "out" / "2")["fits"]
    assert {name: fit["rows"] for name, fit in fits.items()} == {
        str(ladder / "large"): 150, str(ladder / "small"): 150
    }  # fmt: skip


def test_what_does_not_go_together_is_one_line_that_names_both(saelab, ladder, store, tmp_path):
    out = ["--out", tmp_path / "never"]
    a, b = ladder / "small", ladder / "large"
    assert "give 2 runs or more, got 1" in saelab("stitch", a, *out).complaint
    assert "give 2 runs or more, got 1" in saelab("match", a, *out).complaint
    assert f"from small to large: {b} has 48 latents and {a} after it 32" in saelab("stitch", b, a, *out).complaint
    assert f"'{b}' is one word too many" in saelab("meta", a, b, *out).complaint
    assert f"{a} is given twice" in saelab("match", a, a, *out).complaint
    assert (
        "unknown option --treshold; did you mean --threshold?" in saelab("match", a, b, *out, "--treshold", 1).complaint
    )
    assert "unknown order 'cosinus'; did you mean" in saelab("stitch", a, b, *out, "--order", "cosinus").complaint
    assert "--split chooses documents" in saelab("stitch", a, b, *out, "--store", store, "--split", "all").complaint
    assert not (tmp_path / "never").exists()
    elsewhere = tmp_path / "elsewhere"
    subject = json.loads((a / "source.json").read_text())
    words = ["--live.model", subject["model"], "--live.site", "model.layers.0", "--live.text", subject["text"]]
    main(["train", "--out", str(elsewhere), "--rows", "512", *words, "--live.seq_len", "16", *SMALL])
    said = saelab("stitch", a, elsewhere, *out).complaint
    assert f"{a} and {elsewhere} are of different sites: model.layers.1 and model.layers.0" in said
    assert saelab("match", a, elsewhere, *out, "--across", "true").status == 0
    broken, hole = tmp_path / "broken", load(b)
    hole.dictionary.W_dec.data[3, 1] = float("nan")
    hole.save(broken)
    for command in ("match", "stitch"):
        assert (
            f"{broken} is broken: its weights hold NaN" in saelab(command, a, broken, "--out", tmp_path / "x").complaint
        )
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    assert "is not an empty folder; choose another" in saelab("meta", a, "--out", taken).complaint
    bare = tmp_path / "bare"
    load(a).save(bare)
    assert f"{bare} does not say what it was trained on" in saelab("stitch", bare, b, "--out", tmp_path / "x").complaint


def test_a_stitch_that_decides_little_says_how_many_rows_would():
    counts = {"novel": 5, "reconstruction": 6, "undecided": 2037, "dead": 0}
    pair = {"small": "a", "large": "b", "counts": counts, "rows_to_decide": 250_000}
    says = "a to b: 2,037 of 2,048 are undecided on 1,530 rows"
    about = "about 250,000 would decide half of these, going by their intervals: --tokens"
    assert _undecided(pair, 1530, 40) == f"{says}; {about}"
    assert _undecided(pair, 1530, 1) == f"{says} of only 1 document: intervals need 20; give more --tokens"
    assert _undecided(pair | {"rows_to_decide": None}, 1530, 40) == says
    assert _undecided(pair | {"counts": counts | {"undecided": 3}}, 1530, 40) == ""


def test_an_ensemble_is_matched_like_an_sae_and_not_stitched(saelab, ladder, store, tmp_path):
    Ensemble([load_sae(ladder / name) for name in ("small", "other")]).save(tmp_path / "both")
    words = ["--store", store, "--tokens", 200]
    ended = saelab("match", tmp_path / "both", ladder / "large", "--out", tmp_path / "match", *words)
    assert ended.status == 0, ended.err
    found = read_match(tmp_path / "match")
    assert len(found["latents_a"]["latent"]) == 32 + 48
    ended = saelab("stitch", ladder / "small", tmp_path / "both", "--out", tmp_path / "stitch", *words)
    assert ended.status == 2
    assert "both is an ensemble, and this needs the weights of one SAE: give a member of it" in ended.complaint
    with torch.no_grad():
        broken = load(tmp_path / "both" / "member-1")
        broken.dictionary.W_dec[0, 0] = torch.nan
        broken.save(tmp_path / "both" / "member-1")
    with pytest.raises(ValueError, match="both is broken: its weights hold NaN"):
        opened([str(tmp_path / "both"), str(ladder / "large")], "cpu")
