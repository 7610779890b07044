"""Quasi-orthogonality: closed forms, bounds that hold, the authors' formula by hand, and cosines against all pairs."""

from pathlib import Path

import pytest
import torch
from recipes.world import SITE
from sweeps import Rows, mirror, random_sae, values, with_weights

from saelab.geometry import cosines
from saelab.geometry.cosines import cosines_of
from saelab.metrics import TextEvaluation, measure
from saelab.metrics.afa import bounds, cosine_scores, median_score
from saelab.models.subject import Subject
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.sae import SAE

pytest_plugins = ["models.conftest", "recipes.small_world"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def afa(sae: SAE, x: torch.Tensor, document: torch.Tensor | None = None, **setting):
    rows = Rows(x, torch.arange(len(x)) if document is None else document)
    return measure({"sae": sae}, rows, [{"name": "AFA"} | setting], show=False)["sae"]


def test_orthonormal_directions_and_exact_reconstruction_have_no_excess():
    turn = torch.linalg.qr(gaussian(6, 6)).Q
    sae = with_weights(SAE(6, 6, ReLU(l1=0.0)), turn, turn, torch.zeros(6))
    x = gaussian(100, 6).abs() @ turn
    scores = values(afa(sae, x).scores)
    assert scores["afa_eps_lbo"] == pytest.approx(0, abs=1e-6)
    assert scores["afa_excess"] == pytest.approx(0, abs=1e-5)
    assert scores["afa_ratio"] == pytest.approx(1, abs=1e-6)
    assert scores["decoder_cosine_abs_max"] == pytest.approx(0, abs=1e-6)
    assert scores["afa_nmse"] == pytest.approx(0, abs=1e-10)
    assert scores["afa_bound_h"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_of_any_exact_decomposition_eps_lbo_is_at_most_the_largest_cosine(seed):
    directions = torch.nn.functional.normalize(gaussian(40, 12, seed=seed), dim=1).double()
    codes = gaussian(300, 40, seed=seed + 9).relu().double() * (gaussian(300, 40, seed=seed + 5) > 1)
    x = codes @ directions
    largest = cosines_of(directions.float()).largest_absolute
    keep = codes.count_nonzero(1) > 0
    f, size, active = codes[keep].norm(dim=1), x[keep].norm(dim=1), codes[keep].count_nonzero(1)
    eps = (size.square() - f.square()).abs() / (39 * f.square())
    assert eps.max() <= largest
    for count in (active, torch.tensor(40)):
        low, high = bounds(largest, count)
        assert ((f / size >= low - 1e-6) & (f / size <= high + 1e-6)).all()
    assert bounds(largest, torch.tensor(40))[1].item() == float("inf")


@torch.no_grad()
def test_norms_in_the_data_s_units_by_hand():
    sae, x = random_sae(k=3), gaussian(150, 16, seed=3) * 2 + 1
    sae.dictionary.W_dec.mul_(torch.linspace(0.5, 2, 24)[:, None])
    sae.dictionary.b_dec.copy_(gaussian(16, seed=4))
    sae.scale.set(gaussian(16, seed=5), 1.7)
    found = afa(sae, x)
    codes = sae.encode(x).dense().double()
    bias = 1.7 * sae.dictionary.b_dec.double() + sae.scale.mean.double()
    f = torch.cat([codes * 1.7 * sae.dictionary.W_dec.double().norm(dim=1), bias.norm().expand(150, 1)], 1).norm(dim=1)
    size = x.double().norm(dim=1)
    table = {key: torch.tensor(value, dtype=torch.float64) for key, value in found.tables["zf"].items()}
    torch.testing.assert_close(table["norm_f"], f, rtol=1e-5, atol=0)
    torch.testing.assert_close(table["norm_x"], size)
    eps = (size.square() - f.square()).abs() / (23 * f.square())
    torch.testing.assert_close(table["eps_lbo"], eps, rtol=1e-3, atol=1e-7)
    assert found.scores["afa_eps_lbo"].value == pytest.approx(eps.quantile(0.5).item(), rel=1e-4)
    assert found.scores["afa_excess"].value == pytest.approx(23 * eps.quantile(0.5).item(), rel=1e-4)
    ratio = codes.mul(1.7 * sae.dictionary.W_dec.double().norm(dim=1)).norm(dim=1) / (x.double() - bias).norm(dim=1)
    assert found.scores["afa_ratio_centred"].value == pytest.approx(ratio.quantile(0.5).item(), rel=1e-5)
    error = (x - sae(x)).double().square().sum(1) / size.square()
    torch.testing.assert_close(table["nmse"], error, rtol=1e-4, atol=1e-8)
    assert found.tables["zf"]["l0"] == (codes != 0).sum(1).tolist()


def test_folding_the_scale_changes_nothing():
    sae, x = random_sae(k=3), gaussian(80, 16, seed=3) * 2 + 1
    before = values(afa(sae, x).scores)
    after = values(afa(sae.fold(), x).scores)
    assert after == pytest.approx(before, rel=1e-4)


def test_cosines_of_one_sign():
    apart = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    assert cosines_of(apart).largest == pytest.approx(-0.5, abs=1e-6)
    close = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.4]])
    assert cosines_of(close).mean > 0.9
    assert cosines_of(close).largest_absolute == pytest.approx(cosines_of(close).largest)


def test_full_codes_are_read_as_sparse_ones():
    found = afa(mirror(5), gaussian(60, 5)).scores
    assert found["afa_ratio"].value == pytest.approx(1, abs=1e-6)
    assert found["decoder_cosine_max"].value == 0
    assert found["decoder_cosine_abs_max"].value == 1
    assert found["decoder_cosine_mean"].value == pytest.approx(-1 / 9)


@pytest.mark.parametrize("block", [1, 70, 1 << 24])
def test_cosines_of_pairs_in_blocks(monkeypatch, block):
    monkeypatch.setattr(cosines, "BLOCK_ENTRIES", block)
    directions = gaussian(37, 6) + 0.3
    unit = torch.nn.functional.normalize(directions.double(), dim=1)
    table = (unit @ unit.T)[~torch.eye(37, dtype=torch.bool)]
    found = cosines_of(torch.cat([directions * 3, torch.zeros(1, 6)]))
    assert found.largest == pytest.approx(table.max().item(), abs=1e-6)
    assert found.largest_absolute == pytest.approx(table.abs().max().item(), abs=1e-6)
    assert found.mean == pytest.approx(table.mean().item(), abs=1e-6)
    assert found.count == 37
    assert cosine_scores(cosines_of(directions[:1])) == {}


def test_the_median_s_interval_is_over_documents():
    group = torch.arange(400) // 10
    value = (torch.arange(40) % 4).double().repeat_interleave(10)
    score = median_score(value, group, "u")
    assert (score.low, score.value, score.high, score.n, score.documents) == (1, 1.5, 2, 400, 40)
    alone = median_score(value, torch.zeros(400, dtype=torch.int64), "u")
    assert (alone.low, alone.high) == (None, None)
    spread = median_score(torch.linspace(0, 1, 400).double(), torch.arange(400), "u")
    assert 0.5 - 0.06 < spread.low < 0.47
    assert 0.53 < spread.high < 0.56


def test_the_table_has_the_text_up_to_each_row(tiny_llama: Path, text_folder: Path):
    text = TextEvaluation(Subject(str(tiny_llama), SITE, str(text_folder), seq_len=16), tokens=60)
    table = measure({"sae": random_sae()}, text, ["AFA"], show=False)["sae"].tables["zf"]
    ids = [chunk.places.tokens for chunk in text.chunks(False)]
    decode = text.model.tokenizer.decode
    (places,) = [[(b, r, t) for b in ids for r in range(len(b)) for t in range(16) if b.keep[r, t]]]
    expected = [decode(block.ids[row, : place + 1].tolist()) for block, row, place in places]
    assert table["text"] == expected


def test_a_skip_connection_and_wrong_settings_are_said(tmp_path):
    sae = SAE(6, 8, TopK(2), dictionary=Dense(skip_connection=True), d_out=6)
    rows = Rows(gaussian(20, 6), torch.arange(20))
    rows.d_out = 6
    assert "skip connection" in measure({"sae": sae}, rows, ["AFA"], show=False)["sae"].skipped["AFA"]
    assert "rows must be at least 1" in afa(random_sae(), gaussian(20, 16), rows=0).skipped["AFA"]
