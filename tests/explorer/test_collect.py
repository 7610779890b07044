"""Collecting, against loops over latents and rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from explorer.planted import PIECE, ROWS, WORDS, D, K, L, Model, Planted, rows, sae

from saelab.core.codes import Codes
from saelab.explorer import gather, segments, triples
from saelab.explorer.collect import collect
from saelab.explorer.database import FILE, Database
from saelab.explorer.gather import PARTS
from saelab.sae.activations.topk import TopK
from saelab.sae.ensemble import Ensemble
from saelab.sae.sae import SAE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    return run(folder)


def run(folder: Path, corpus: Planted | None = None) -> Database:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"1")
    path = collect(sae(), folder / "weights", corpus or Planted(), Model(), folder, show=False)
    return Database(path)


@pytest.fixture(scope="module")
def dense():
    with torch.no_grad():
        return sae().encode(rows()).dense().numpy()


def test_every_activation_is_kept(made, dense):
    for latent in range(L):
        at, values = made.activations(latent)
        assert at.tolist() == np.flatnonzero(dense[:, latent]).tolist()
        assert np.array_equal(values, dense[at, latent])
    assert not (made.path.parent / PARTS).exists()


def test_numbers_are_those_of_the_dense_codes(made, dense):
    for latent in range(L):
        column, found = dense[:, latent].astype(float), made.latent(latent)
        fired = column[column != 0]
        assert found["count"] == len(fired)
        assert found["density"] == pytest.approx(len(fired) / ROWS)
        assert found["kind"] == ("silent" if not len(fired) else "dense" if len(fired) > 0.1 * ROWS else "ordinary")
        if not len(fired):
            continue
        square = (column**2).mean()
        assert found["mean"] == pytest.approx(fired.mean())
        assert found["median"] == pytest.approx(np.sort(fired)[::-1][(len(fired) - 1) // 2])
        assert found["largest"] == pytest.approx(fired[np.abs(fired).argmax()])
        assert found["mean_square"] == pytest.approx(square)
        assert found["skew"] == pytest.approx((column**3).mean() / square**1.5)
        assert found["kurtosis"] == pytest.approx((column**4).mean() / square**2)


def test_histogram_and_intervals_count_every_value_once(made, dense):
    for latent in range(L):
        fired, details = np.abs(dense[:, latent][dense[:, latent] != 0]).astype(float), made.details(latent)
        for bins, counts in (
            (segments.BINS, details["histogram"]),
            (segments.INTERVALS, [one["count"] for one in details["intervals"]]),
        ):
            assert len(counts) == bins
            for number, count in enumerate(counts):
                low, high = (fired.max() * part / bins if len(fired) else 0 for part in (number, number + 1))
                inside = (fired > low) & (fired <= high * (1 + 1e-12 * (number + 1 == bins)))
                assert abs(count - inside.sum()) <= (0 if bins == 10 else 1)  # a value on an edge, to rounding
            assert sum(counts) == len(fired)


def test_examples_come_from_where_they_say(made, dense):
    tokens = Planted().token.numpy()
    for latent in range(L):
        column, details = np.abs(dense[:, latent]), made.details(latent)
        fired = set(np.flatnonzero(column).tolist())
        for number, part in enumerate(details["intervals"]):
            assert len(part["rows"]) == len(set(part["rows"])) == min(5, part["count"])
            for row in part["rows"]:
                assert np.ceil(column[row] / column.max() * 10 - 1e-6) == number + 1
        assert len(set(details["random"])) == len(details["random"]) == min(10, len(fired))
        assert set(details["random"]) <= fired
        by_weight = [[token, sum(column[r] for r in fired if tokens[r] == token)] for token in range(len(WORDS))]
        foremost = [token for token, weight in sorted(by_weight, key=lambda pair: -pair[1]) if weight][:2]
        for row in details["silent"]:
            assert row not in fired
            assert tokens[row] in foremost
        assert [token for token, _, _ in details["tokens"]][:2] == foremost
        for token, share, count in details["tokens"]:
            assert share == pytest.approx(by_weight[token][1] / column.sum(), abs=1e-4)
            assert count == sum(tokens[r] == token for r in fired)


def test_top_examples_are_the_largest_that_lie_apart(made, dense):
    for latent in range(L):
        column = np.abs(dense[:, latent])
        order = [row for row in np.argsort(-column, kind="stable") if column[row]][:80]
        chosen: list[int] = []
        for row in order:
            if all(abs(row - other) > 8 for other in chosen):
                chosen.append(int(row))
        assert made.details(latent)["top"] == chosen[:20]


def test_near_misses_are_the_largest_silent_pre_activations_of_their_stretch(made, dense):
    with torch.no_grad():
        model = sae()
        pre = model.dictionary.pre(model.scale.apply_to(rows())).dense().numpy()
    for latent in range(L):
        best = []
        for start in range(0, ROWS, PIECE):  # a piece is shorter than a stretch here
            piece = range(start, min(ROWS, start + PIECE))
            quiet = [row for row in piece if dense[row, latent] == 0]
            best.append(max(quiet, key=lambda row: pre[row, latent]))
        expected = sorted(best, key=lambda row: -pre[row, latent])
        assert [row for row, _ in made.details(latent)["near"]] == expected
        assert [value for _, value in made.details(latent)["near"]] == pytest.approx(
            [pre[row, latent] for row in expected], abs=1e-4
        )


def test_co_activation_is_the_correlation_of_the_dense_codes(made, dense):
    for latent in range(L):
        expected = {}
        for other in range(L):
            together = ((dense[:, latent] != 0) & (dense[:, other] != 0)).sum()
            if other != latent and together >= 5:
                r = np.corrcoef(dense[:, latent], dense[:, other])[0, 1]
                expected[other] = (r, together / (dense[:, latent] != 0).sum())
        found = made.details(latent)["correlated"]
        assert len(found) == min(10, len(expected))
        assert [r for _, r, _ in found] == sorted((r for _, r, _ in found), reverse=True)
        for other, r, share in found:
            assert (r, share) == pytest.approx(expected[other], abs=1e-4)
        if found:
            assert found[0][1] == pytest.approx(max(r for r, _ in expected.values()), abs=1e-4)


def test_neighbours_and_logits_are_products_with_unit_directions(made):
    directions = sae().dictionary.directions().detach().double()
    unit = directions / directions.norm(dim=1, keepdim=True)
    head = Model().head.weight.double()
    logits = D**0.5 * unit @ (head - head.mean(0)).T
    for latent in range(L):
        details = made.details(latent)
        cosines = (unit @ unit[latent]).tolist()
        cosines[latent] = -2.0
        assert [cosine for _, cosine in details["neighbours"]] == pytest.approx(
            sorted(cosines, reverse=True)[:12], abs=1e-4
        )
        assert made.latent(latent)["cosine"] == pytest.approx(max(cosines), abs=1e-5)
        order = logits[latent].argsort(descending=True).tolist()
        assert [token for token, _ in details["logits_top"]] == order
        assert [token for token, _ in details["logits_bottom"]] == order[::-1]
        assert details["logits_top"][0][1] == pytest.approx(logits[latent].max().item(), abs=1e-4)
        assert sum(details["logits_histogram"]) == len(WORDS)


def test_lines_follow_the_text(made):
    corpus = Planted()
    found = made.corpus(0, ROWS)
    assert found["token"].tolist() == corpus.token.tolist()
    for row in range(ROWS):
        number = row // 11
        before = "".join(WORDS[token] for token in corpus.token[number * 11 : row])
        word = WORDS[corpus.token[row]]
        leading = word[: len(word) - len(word.lstrip())]
        assert found["line"][row] == 10 * number + 1 + before.count("\n") + leading.count("\n")
    assert made.document(3) == {"number": 3, "name": "file3.py:31", "first": 33, "last": 44}


def test_an_interrupted_pass_goes_on_and_ends_the_same(made, tmp_path):
    stopped = Planted(stop_after=2)
    with pytest.raises(KeyboardInterrupt, match="stopped after 200 tokens"):
        run(tmp_path, stopped)
    assert not (tmp_path / FILE).exists()
    rest = Planted()
    again = run(tmp_path, rest)
    assert rest.given == 2
    for table in ("latents", "details", "activations", "corpus", "documents", "blobs"):
        query = f"SELECT * FROM {table}"
        assert [tuple(row) for row in again.all(query)] == [tuple(row) for row in made.all(query)], table


def test_parts_of_another_pass_are_not_used(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Planted(stop_after=2))
    (tmp_path / "weights").write_bytes(b"2")
    corpus = Planted()
    collect(sae(), tmp_path / "weights", corpus, Model(), tmp_path, show=False)
    assert corpus.given == 4


def test_small_blocks_of_latents_give_the_same(made, tmp_path, monkeypatch):
    monkeypatch.setattr(triples.Triples.blocks, "__defaults__", (40,))
    other = run(tmp_path)
    for latent in range(L):
        one, two = made.details(latent), other.details(latent)
        for key in ("top", "tokens", "histogram", "near", "correlated"):
            assert one[key] == two[key]
        assert made.latent(latent) == other.latent(latent)


def test_codes_without_a_fixed_number_and_with_signs(tmp_path):
    store = triples.Triples(tmp_path / "t", 5, {})
    values = torch.tensor([[0.0, -2.0, 0, 1, 0], [0, 0, 0, 3, 0], [0, 1, 0, -4, 0]])
    codes = Codes.full(values)
    kept = gather._Kept()
    kept.add(codes, torch.arange(3))
    store.append(0, *kept.arrays(), {"token": np.zeros(3, np.int32)})
    (block,) = store.blocks()
    of = segments.ranked(block)
    found = segments.moments(of, 3)
    assert found["count"].tolist() == [0, 2, 0, 3, 0]
    assert found["largest"].tolist() == [0, -2, 0, -4, 0]
    assert found["negative"].tolist() == [0, 0.5, 0, pytest.approx(1 / 3), 0]
    assert segments.top_entries(of, 2, 0)[3].tolist() == [
        int(np.flatnonzero((block.row == row) & (block.latent == 3))[0]) for row in (2, 1)
    ]


def test_an_ensemble_is_collected_and_known_by_its_members(tmp_path):
    both = Ensemble([sae(), sae()])
    both.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    found = Database(collect(both, weights, Planted(), Model(), tmp_path, show=False))
    with torch.no_grad():
        codes = both.encode(rows()).dense().numpy()
    at, values = found.activations(L + 2)
    assert at.tolist() == np.flatnonzero(codes[:, L + 2]).tolist()
    assert np.array_equal(values, codes[at, L + 2])
    assert (found.meta()["config"]["kind"], found.meta()["n_latents"]) == ("ensemble", 2 * L)
    known = gather.checksums(weights)
    assert len(known) == 5
    SAE(D, L, TopK(k=K), seed=4).save(tmp_path / "member-1")
    changed = gather.checksums(weights)
    assert {name for name in known if known[name] != changed[name]} >= {"member-1/weights.safetensors"}


def test_an_sae_of_another_width_is_refused(tmp_path):
    corpus = Planted()
    corpus.d_in = D + 1
    with pytest.raises(ValueError, match="reads rows 8 wide, these are 9"):
        run(tmp_path, corpus)
    assert K == 3


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, 1 << 20])
def test_order_by_is_a_stable_sort(size):
    keys = np.random.default_rng(0).integers(0, size, 5000)
    keys[::3] = keys[0]
    assert np.array_equal(triples.order_by(keys, size), np.argsort(keys, kind="stable"))


def test_strata_are_distinct_and_spread():
    draw = np.random.default_rng(0)
    start, count = np.array([0, 100, 300]), np.array([2, 5, 1000])
    places = segments.strata(start, count, 5, draw)
    assert places[0].tolist() == [0, 1, -1, -1, -1]
    assert sorted(places[1].tolist()) == list(range(100, 105))
    assert all(300 + 200 * part <= place < 500 + 200 * part for part, place in enumerate(places[2].tolist()))
