"""Rows in numbered pieces: the same ones whatever piece one begins with."""

import pytest
import torch

from saelab.data.array import ArraySource
from saelab.data.store import Store, StoreWriter
from saelab.explorer.corpus import BareCorpus, Corpus, StoreCorpus, TextCorpus
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject


def rows_of(corpus: Corpus, start: int = 0) -> list[torch.Tensor]:
    return [piece.rows for piece in corpus.pieces(start)]


def test_pieces_of_a_store_go_across_its_shards(tmp_path):
    writer = StoreWriter(tmp_path / "s", 3, "fp32", {"made": "here"})
    x = torch.arange(75.0).view(25, 3)
    for first, last in ((0, 7), (7, 8), (8, 25)):
        count = torch.arange(first, last, dtype=torch.int32)
        writer.append(
            x[first:last], 1, {}, [(first, f"d{first}")], token=count, document=count // 7, position=count % 7
        )
    writer.finish()
    corpus = StoreCorpus(Store(tmp_path / "s"), tokens=22, piece_rows=5)
    pieces = list(corpus.pieces())
    assert [len(piece.rows) for piece in pieces] == [5, 5, 5, 5, 2]
    assert torch.equal(torch.cat(rows_of(corpus)), x[:22])
    assert torch.cat([piece.token for piece in pieces]).tolist() == list(range(22))
    assert torch.equal(torch.cat(rows_of(corpus, 3)), x[15:22])
    assert dict(pieces[1].names) == {0: "d0", 7: "d7", 8: "d8"}
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        StoreCorpus(Store(tmp_path / "s"), tokens=0)


def test_text_read_now_gives_the_rows_that_a_harvest_keeps(tmp_path):
    from saelab.models.harvest import harvest

    (tmp_path / "text").mkdir()
    for number in range(6):
        (tmp_path / "text" / f"{number}.txt").write_text(f"def f{number}(x):\n    return x + {number}\n" * 30)
    model = LanguageModel("pycode-7m", "model.layers.1")
    subject = Subject(site="model.layers.1", text=str(tmp_path / "text"), seq_len=32)
    corpus = TextCorpus(subject, model, 512, piece_rows=128)
    found = rows_of(corpus)
    store = harvest(subject, tmp_path / "acts", 512, dtype="fp32", model=model, show=False)
    whole = torch.cat(found)
    assert torch.allclose(whole[:400], store.rows(0)[:400], atol=1e-4)
    assert torch.allclose(torch.cat(rows_of(corpus, 2)), torch.cat(found[2:]), atol=1e-4)
    assert corpus.identity() != TextCorpus(subject, model, 1024, piece_rows=128).identity()


def test_rows_without_text_have_no_tokens():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    corpus = BareCorpus(ArraySource(x), 40, {"array": 1}, piece_rows=16)
    pieces = list(corpus.pieces())
    assert [len(piece.rows) for piece in pieces] == [16, 16, 16]
    assert all((piece.token == -1).all() for piece in pieces)
