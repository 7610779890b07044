"""Packing against a slow reference that is right by looking at it; resuming; padding; tokenizers without BOS."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.models.text import Document
from saelab.models.tokens import TokenRows, pack


def reference(documents, tokenizer, seq_len, join, pad):
    """Rows of (id, document, position), token by token."""
    rows, row = [], []
    for number, document in enumerate(documents):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        for position, token in enumerate(ids):
            if len(row) == seq_len:
                rows.append(row)
                row = []
            if join is not None and (not row or position == 0):
                row.append((join, number, -1))
                if len(row) == seq_len:
                    rows.append(row)
                    row = [(join, number, -1)]
            row.append((token, number, position))
    return [*rows, row + [(pad, -1, -1)] * (seq_len - len(row))]


def texts(count: int, seed: int = 0) -> list[Document]:
    generator = random.Random(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "def", "return"]
    lengths = [generator.choice([0, 1, 2, 5, 9, 40]) for _ in range(count)]
    return [Document(f"d{n}", " ".join(generator.choices(words, k=length))) for n, length in enumerate(lengths)]


def whole(blocks: list[TokenRows]) -> torch.Tensor:
    """Everything of some blocks as [R, T, 4]."""
    parts = [torch.stack([b.ids, b.document, b.position, b.keep], dim=2) for b in blocks]
    return torch.cat(parts) if parts else torch.empty(0)


SPECIALS = [{"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}, {}, {"pad_token": "<pad>"}]


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("seq_len", [2, 3, 7, 64])
def test_packing_equals_the_reference(make_tokenizer, special, seq_len):
    tokenizer = make_tokenizer(**special)
    documents = texts(150)
    join = tokenizer.bos_token_id if "bos_token" in special else tokenizer.eos_token_id
    pad = next((token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None), 0)
    blocks = list(pack(documents, tokenizer, seq_len, rows=5))
    expected = torch.tensor(reference(documents, tokenizer, seq_len, join, pad))
    assert torch.equal(whole(blocks)[..., :3], expected)
    for block in blocks:
        assert torch.equal(block.keep, block.position >= 0)
    assert [len(block) for block in blocks[:-1]] == [5] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab é\n", max_size=12), max_size=12), st.integers(2, 9), st.integers(1, 4))
def test_packing_of_anything(bos_tokenizer, strings, seq_len, rows):
    documents = [Document(f"d{n}", text) for n, text in enumerate(strings)]
    expected = reference(documents, bos_tokenizer, seq_len, bos_tokenizer.bos_token_id, bos_tokenizer.eos_token_id)
    if len(expected) == 1 and expected[0][-1][1] == -1:
        with pytest.raises(ValueError, match="shorter than one row"):
            list(pack(documents, bos_tokenizer, seq_len, rows))
    else:
        assert whole(list(pack(documents, bos_tokenizer, seq_len, rows)))[..., :3].tolist() == [
            [list(entry) for entry in row] for row in expected
        ]


def test_types_and_shapes(bos_tokenizer):
    block = next(pack(texts(20), bos_tokenizer, 7, rows=3))
    assert [block.ids.dtype, block.document.dtype, block.position.dtype, block.keep.dtype] == [
        torch.int64, torch.int32, torch.int32, torch.bool,
    ]  # fmt: skip
    assert all(tensor.shape == (3, 7) for tensor in (block.ids, block.document, block.position, block.keep))


def test_every_kept_token_gives_its_text_back(bos_tokenizer):
    documents = texts(60)
    blocks = list(pack(documents, bos_tokenizer, 9, rows=4))
    everything = whole(blocks).flatten(0, 1)
    for number, document in enumerate(documents):
        ids = everything[(everything[:, 1] == number) & (everything[:, 3] == 1), 0]
        assert bos_tokenizer.decode(ids) == document.text


def test_padding(bos_tokenizer):
    (block,) = pack([Document("a", "dog" * 10)], bos_tokenizer, 9, rows=99)
    length = int((block.document[-1] == 0).sum())
    assert 0 < length < 9
    assert (block.ids[-1, length:] == bos_tokenizer.eos_token_id).all()
    assert (block.document[-1, length:] == -1).all()
    assert (block.position[-1, length:] == -1).all()
    assert not block.keep[-1, length:].any()


def test_a_row_that_is_just_full_needs_no_padding(make_tokenizer):
    tokenizer = make_tokenizer()
    (block,) = pack([Document("a", "zz"), Document("b", "zz")], tokenizer, 4, rows=2)
    assert block.document.tolist() == [[0, 0, 1, 1]]
    assert block.keep.all()


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("special", SPECIALS[::2])
def test_start_gives_what_an_uninterrupted_run_gives(make_tokenizer, special, rows):
    tokenizer, documents = make_tokenizer(**special), texts(150)
    blocks = list(pack(documents, tokenizer, 11, rows=1))
    for start in (0, 1, 3, len(blocks) - 1, len(blocks), len(blocks) + 5):
        resumed = list(pack(documents, tokenizer, 11, rows=rows, start=start))
        assert torch.equal(whole(resumed), whole(blocks[start:]))
        assert [name for b in resumed for name in b.names] == [name for b in blocks[start:] for name in b.names]


def test_names_are_of_documents_that_occur_for_the_first_time(bos_tokenizer):
    documents, seen = texts(150), -1
    for block in pack(documents, bos_tokenizer, 8, rows=2):
        new = sorted({number for number in block.document.flatten().tolist() if number > seen})
        assert block.names == [(number, documents[number].name) for number in new]
        seen = max([seen, *new])


def test_long_document_and_lazy_reading(bos_tokenizer):
    """A document far longer than the tokenizer's limit, from a stream that is not read to its end."""

    def endless():
        while True:
            read.append(0)
            yield Document("long", "the quick brown fox " * 50_000)

    read: list[int] = []
    block = next(pack(endless(), bos_tokenizer, 512, rows=8))
    assert len(read) == 1
    assert (block.document == 0).all()
    assert block.position[-1, -1] == 8 * 511 - 1


def test_errors(bos_tokenizer):
    with pytest.raises(ValueError, match="3 tokens, .*row of 9: .*--seq_len"):  # fmt: skip
        list(pack([Document("a", "zzz")], bos_tokenizer, 9, rows=1))
    with pytest.raises(ValueError, match="only 0 tokens"):
        list(pack([], bos_tokenizer, 9, rows=1))
    with pytest.raises(ValueError, match="seq_len must be at least 2, got 1"):
        pack([], bos_tokenizer, 1, rows=1)
    with pytest.raises(ValueError, match="rows .*start .*got 0 and 0"):
        pack([], bos_tokenizer, 9, rows=0)
    with pytest.raises(ValueError, match="got 1 and -1"):
        pack([], bos_tokenizer, 9, rows=1, start=-1)


def test_a_joining_token_spelled_out_in_a_document_is_not_kept(bos_tokenizer):
    join = bos_tokenizer.bos_token
    (block,) = pack([Document("a", f"one two{join}three four " * 20)], bos_tokenizer, 8, 1000)
    assert (block.ids == bos_tokenizer.bos_token_id).sum() > len(block)
    assert not block.keep[block.ids == bos_tokenizer.bos_token_id].any()


# ---- documents apart ----


def apart_reference(documents, tokenizer, seq_len, join, pad):
    """Rows of (id, document, position), each beginning with the joining token, if there is one."""
    rows, room = [], seq_len - (join is not None)
    for number, document in enumerate(documents):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(ids), room):
            row = [(token, number, start + n) for n, token in enumerate(ids[start : start + room])]
            row = [(join, number, -1), *row] if join is not None else row
            rows.append(row + [(pad, -1, -1)] * (seq_len - len(row)))
    return rows


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("seq_len", [2, 3, 7, 64])
def test_documents_apart_have_rows_of_their_own(make_tokenizer, special, seq_len):
    tokenizer = make_tokenizer(**special)
    documents = texts(80)
    join = tokenizer.bos_token_id if "bos_token" in special else tokenizer.eos_token_id
    pad = next((token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None), 0)
    blocks = list(pack(documents, tokenizer, seq_len, rows=5, apart=True))
    expected = torch.tensor(apart_reference(documents, tokenizer, seq_len, join, pad))
    assert torch.equal(whole(blocks)[..., :3], expected)
    for block in blocks:
        assert torch.equal(block.keep, block.position >= 0)
    names = [pair for block in blocks for pair in block.names]
    assert names == [(n, d.name) for n, d in enumerate(documents) if d.text]
    later = list(pack(documents, tokenizer, seq_len, rows=5, start=7, apart=True))
    assert torch.equal(whole(later), whole(blocks)[7:])


def test_apart_one_token_is_enough_and_none_is_refused(bos_tokenizer):
    (block,) = pack([Document("a", "the")], bos_tokenizer, 9, rows=5, apart=True)
    assert len(block) == 1
    for documents in ([], [Document("a", "")]):
        with pytest.raises(ValueError, match="the text has only 0 tokens"):
            list(pack(documents, bos_tokenizer, 9, rows=5, apart=True))
