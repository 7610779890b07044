"""Clusters of planted directions told apart by when they fire, and their dimensions; tokens and contexts by hand."""

import json
import math

import pytest
import torch
from planted import drawn, sae_with

from saelab.analysis.manifolds import KINDS, PAIRS, ManifoldSettings, manifolds, read_manifolds
from saelab.analysis.rows import Rows
from saelab.analysis.top_tokens import context, meta_tokens, top_tokens
from saelab.data.store import StoreWriter
from saelab.metrics import StoreEvaluation, TextEvaluation
from saelab.models.subject import Subject
from saelab.sae.activations.relu import ReLU
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]

TILES = 12


def exact(directions, encoder, bias):
    sae = SAE(directions.shape[1], len(directions), ReLU(l1=0.0))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(directions)
        sae.dictionary.W_enc.copy_(encoder)
        sae.dictionary.b_enc.copy_(bias)
        sae.dictionary.b_dec.zero_()
    return sae


@pytest.fixture(scope="module")
def planted():
    """Twelve tiles of a circle, a parent that keeps silent where its child fires, the same latent twice, strangers."""
    e = torch.eye(12)
    angles = 2 * math.pi * torch.arange(TILES) / TILES
    tiles = angles.cos()[:, None] * e[0] + angles.sin()[:, None] * e[1]
    family = torch.stack([e[2], 0.8 * e[2] + 0.6 * e[3]])
    directions = torch.cat([tiles, family, e[4:5], e[4:5], e[6:9]])
    encoder, bias = directions.clone(), torch.full((len(directions),), -0.1)
    bias[:TILES] = -0.8
    encoder[12] = e[2] - 3 * e[3]
    encoder[13] = e[3]
    generator = torch.Generator().manual_seed(0)
    at = 2 * math.pi * torch.rand(900, generator=generator)
    x = torch.zeros(1800, 12)
    x[:900] = at.cos()[:, None] * e[0] + at.sin()[:, None] * e[1]
    x[900:1200] = e[2] * (1 + torch.rand(300, 1, generator=generator))
    x[1100:1200] += 0.75 * x[1100:1200].norm(dim=1, keepdim=True) * e[3]
    x[1200:1500] = e[4] * (1 + torch.rand(300, 1, generator=generator))
    x[1500:] = e[6] + e[7]
    order = torch.randperm(1800, generator=generator)
    columns = {"token": torch.arange(1800) % 7, "document": torch.arange(1800) // 6, "position": torch.arange(1800) % 6}
    return exact(directions, encoder, bias), Rows(x[order], torch.arange(1800) // 6, columns)


def test_tiling_absorption_and_duplicates_are_told_apart(planted):
    sae, rows = planted
    found = manifolds(sae, rows, ManifoldSettings(threshold=0.75))
    assert [part.tolist() for part in found.clusters] == [list(range(TILES)), [12, 13], [14, 15]]
    assert found.kinds == ["tiling", "absorption", "duplicates"]
    assert found.of_latent().tolist() == [0] * TILES + [1, 1, 2, 2, -1, -1, -1]
    summary = found.summary("it")
    assert summary["share_in"] == pytest.approx({"tiling": 12 / 19, "absorption": 2 / 19, "duplicates": 2 / 19,
                                                 "mixed": 0, "undecided": 0})  # fmt: skip
    assert summary["clusters"][2]["jaccard"] == 1
    assert summary["clusters"][0]["pairs"]["overlapping"] == TILES


def test_rare_latents_are_undecided(planted):
    sae, rows = planted
    found = manifolds(sae, Rows(rows.x[:100], rows.group[:100]), ManifoldSettings(threshold=0.75, min_firings=60))
    assert found.kinds == ["undecided"] * 3
    assert (found.pairs.kind == PAIRS.index("undecided")).all()
    assert set(found.kinds) <= set(KINDS)


def test_a_tiled_circle_has_one_dimension_and_lies_in_a_plane(planted, monkeypatch):
    monkeypatch.setattr("saelab.analysis.manifolds.BLOCK_ROWS", 500)
    sae, rows = planted
    cloud = manifolds(sae, rows, ManifoldSettings(threshold=0.75, points=600)).clouds[0]
    assert cloud.rows == 900
    assert len(cloud.row) == 600
    assert cloud.participation == pytest.approx(2, abs=0.05)
    assert cloud.two_nearest == pytest.approx(1, abs=0.25)
    assert cloud.explained == pytest.approx(1, abs=1e-6)
    assert cloud.place[:, 2].abs().max() < 1e-6
    with torch.no_grad():
        codes = sae.encode(rows.x[cloud.row]).dense()[:, :TILES]
    y = codes.double() @ sae.dictionary.W_dec[:TILES].double().detach()
    assert torch.allclose(torch.cdist(y, y), torch.cdist(cloud.place, cloud.place), atol=1e-5)
    assert cloud.latent.tolist() == codes.argmax(1).tolist()
    assert torch.allclose(cloud.value, codes.max(1).values)


class Letters:
    """Stands for what spells tokens: seven letters."""

    def context(self, before: list[int], at: int, after: list[int]) -> tuple[str, str, str]:
        before, own, after = ("".join("abcdefg"[token] for token in part) for part in (before, [at], after))
        return before, own, after


def test_what_is_written_can_be_read(planted, tmp_path):
    sae, rows = planted
    found = manifolds(sae, rows, ManifoldSettings(threshold=0.75, points=50, clusters=2))
    found.write(tmp_path / "m", "it", rows, text=Letters())
    json.loads((tmp_path / "m" / "manifolds.json").read_text())
    read = read_manifolds(tmp_path / "m")
    assert [line["kind"] for line in read["clusters"]] == found.kinds
    assert "participation" not in read["clusters"][2]
    points = read["points"]
    assert set(points["cluster"].tolist()) == {0, 1}
    row = int(points["row"][3])
    assert points["at"][3] == "abcdefg"[row % 7]
    assert points["before"][3] == "".join("abcdefg"[i % 7] for i in range(row - row % 6, row))
    nothing = manifolds(sae_with(torch.eye(12)), rows)
    nothing.write(tmp_path / "n", "it", rows)
    assert read_manifolds(tmp_path / "n")["clusters"] == []


@pytest.fixture(scope="module")
def on_disk(planted, tmp_path_factory):
    """The same SAE saved, and its rows in a store."""
    sae, rows = planted
    folder = tmp_path_factory.mktemp("planted")
    sae.save(folder / "sae")
    writer = StoreWriter(folder / "acts", 12, "fp32", {})
    writer.append(rows.x, 1, {}, **{key: column.to(torch.int32) for key, column in rows.columns.items()})
    writer.finish()
    return folder


def test_the_command_tells_tiling_absorption_and_duplicates_apart(on_disk, saelab, tmp_path):
    words = ["--store", on_disk / "acts", "--threshold", 0.75, "--tokens", 1800, "--points", 300]
    ended = saelab("manifolds", on_disk / "sae", "--out", tmp_path / "m", *words)
    assert ended.status == 0, ended.err
    assert "3 clusters of 16 of 19 alive latents" in ended.out
    assert "1 duplicates, 1 tiling, 1 absorption" in ended.out
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[:3] for line in lines if len(line) > 9 and line[0].isdigit() and line[1].isdigit()] == [
        ["0", "12", "tiling"], ["1", "2", "absorption"], ["2", "2", "duplicates"]
    ]  # fmt: skip
    read = read_manifolds(tmp_path / "m")
    assert [line["kind"] for line in read["clusters"]] == ["tiling", "absorption", "duplicates"]
    assert read["clusters"][0]["two_nearest"] == pytest.approx(1, abs=0.3)
    assert read["latents"]["cluster"].tolist() == [0] * TILES + [1, 1, 2, 2, -1, -1, -1]
    page = (tmp_path / "m" / "manifolds.html").read_text()
    assert "cluster 1: 2 latents, absorption" in page
    assert "scatter3d" in page


def test_the_command_says_how_close_directions_are_where_nothing_is_a_cluster(on_disk, saelab, tmp_path):
    words = ["--store", on_disk / "acts", "--figures", "false"]
    exact(torch.eye(12), torch.eye(12), torch.zeros(12)).save(tmp_path / "lone")
    ended = saelab("manifolds", tmp_path / "lone", "--out", tmp_path / "m", *words)
    assert ended.status == 0, ended.err
    assert "0 clusters of 0 of 12 alive latents" in ended.out
    assert "nearest directions have a cosine of 0.000 (median), 0.000 at most: try a lower --threshold" in ended.out
    assert not (tmp_path / "m" / "manifolds.html").exists()


def test_what_the_command_refuses(on_disk, saelab, tmp_path):
    words, out = ["--store", on_disk / "acts"], ["--out", tmp_path / "never"]
    for refused, message in (
        (["--threshold", 1.5], "threshold must be above 0 and at most 1, got 1.5"),
        (["--treshold", 0.5], "unknown option --treshold; did you mean --threshold?"),
        (["--points", 0], "points must be at least 1, got 0"),
    ):
        assert message in saelab("manifolds", on_disk / "sae", *out, *words, *refused).complaint
    exact(torch.eye(9), torch.eye(9), torch.zeros(9)).save(tmp_path / "narrow")
    said = saelab("manifolds", tmp_path / "narrow", *out, *words).complaint
    assert f"{tmp_path / 'narrow'} reads rows 9 wide, the data's are 12" in said
    exact(-torch.eye(12), torch.eye(12), torch.zeros(12)).save(tmp_path / "broken")
    said = saelab("manifolds", tmp_path / "broken", *out, *words).complaint
    assert f"{tmp_path / 'broken'} reconstructs these rows worse than their mean does (FVU" in said
    assert "it is broken, was hardly trained, or was made for another site" in said
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold must be above 0 and at most 1"),
        ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
        ({"clusters": -1}, "clusters must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ManifoldSettings(**settings)


def test_top_tokens_are_those_a_loop_finds():
    sae = sae_with(drawn(8, 6))
    rows = Rows(drawn(300, 6, seed=1), torch.arange(300), {"token": torch.arange(300) * 7 % 11})
    tokens, share = top_tokens(sae, rows, count=4)
    with torch.no_grad():
        codes = sae.encode(rows.x).dense().double()
    for latent in range(8):
        strength = [codes[rows.columns["token"] == token, latent].sum().item() for token in range(11)]
        best = sorted(range(11), key=lambda token: -strength[token])[:4]
        assert tokens[latent].tolist() == best
        assert share[latent].tolist() == pytest.approx([strength[token] / sum(strength) for token in best])
    with pytest.raises(ValueError, match="these rows have no tokens"):
        top_tokens(sae, Rows(rows.x, rows.group))


def test_a_meta_latent_stands_for_the_tokens_of_the_latents_it_writes():
    tokens, share = torch.tensor([[3, 5], [5, -1], [9, 3]]), torch.tensor([[0.5, 0.4], [1.0, 0.0], [0.3, 0.2]])
    codes = (torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 0, 2]), torch.tensor([1.0, 0.2, 0.5, 1.0]))
    # meta 0: token 3 has .5 + .1, token 5 has .4 + .2, token 9 has .15; meta 2: .3 for 9, .2 for 3
    found = meta_tokens(tokens, share, codes, 3, count=2)
    assert set(found[0].tolist()) == {3, 5}
    assert found[1].tolist() == [-1, -1]
    assert found[2].tolist() == [9, 3]


def test_a_context_stays_in_its_document():
    columns = {"token": torch.arange(10) + 50, "document": torch.tensor([0] * 4 + [1] * 6)}
    rows = Rows(torch.zeros(10, 2), torch.arange(10), columns)
    assert context(rows, 5, before=3, after=2) == ([54], 55, [56, 57])
    assert context(rows, 0) == ([], 50, [51, 52, 53])
    assert context(rows, 9) == ([54, 55, 56, 57, 58], 59, [])


def test_rows_know_their_tokens_from_a_text_and_from_a_store(tiny_llama, text_folder, store, tmp_path):
    evaluation = TextEvaluation(Subject(str(tiny_llama), "model.layers.1", str(text_folder), seq_len=16), 150, "train")
    rows = Rows.of(evaluation)
    assert {key: len(column) for key, column in rows.columns.items()} == dict.fromkeys(
        ("token", "document", "position"), len(rows)
    )
    stored = Rows.of(StoreEvaluation(store, 150))
    assert len(stored) == 150
    for key in ("token", "document", "position"):
        assert torch.equal(stored.columns[key], rows.columns[key][:150])
    assert torch.allclose(stored.x, rows.x[:150], rtol=0.01, atol=0.01)  # bfloat16 on the disk
    writer = StoreWriter(tmp_path / "t", 2, "fp32", {}, d_out=3)
    writer.append(torch.ones(4, 5), 1, {})
    with pytest.raises(ValueError, match="transcoders are not compared row by row"):
        Rows.of(StoreEvaluation(tmp_path / "t"))
