"""Small tokenizers of every common kind, made here, for tests of text."""

from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SAMPLE = ["once upon a time there was a little child who liked to play in the garden every day ing ed th " * 3]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(inner: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2: its offsets leave blanks out."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(SAMPLE, trainer)
    return wrapped(inner)


def _falling_back() -> Tokenizer:
    """Pieces with blanks as `▁`, and bytes for what is in none of them."""
    words = ["▁", "o", "n", "c", "e", "u", "p", "a", "t", "i", "m", "on", "▁a", "▁t", "▁u", "▁up", "on", "im"]
    merges = [("o", "n"), ("▁", "a"), ("▁", "t"), ("▁", "u"), ("▁u", "p"), ("i", "m")]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *BYTES, *words]))}
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def llama_like() -> PreTrainedTokenizerFast:
    """As Llama 2: a blank put in front of the text, and bytes."""
    inner = _falling_back()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(inner)


def gemma_like() -> PreTrainedTokenizerFast:
    """As Gemma: blanks replaced, none put in front, and bytes."""
    inner = _falling_back()
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(inner)


def unigram() -> PreTrainedTokenizerFast:
    """As T5: a unigram model, NFKC, unknown characters."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(SAMPLE, trainer)
    return wrapped(inner)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: lower case, no accents, parts of words behind `##`."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789<>/.", *[f"##{one}" for one in "abcdefghijklmnopqrstuvwxyz"]]
    words = [*SPECIAL, *letters, "once", "upon", "time", "play", "##ing", "##ed", "the"]
    inner = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece("##", cleanup=True)
    return wrapped(inner)


def by_character() -> PreTrainedTokenizerFast:
    """A token for each character that it knows."""
    known = [*SPECIAL, *sorted({*"".join(SAMPLE), *"今日は🙂\n\t\u200d"})]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return wrapped(inner)


def by_word() -> PreTrainedTokenizerFast:
    """A token for each word that it knows; blanks are nobody's."""
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(SAMPLE, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return wrapped(inner)


def with_word_ends() -> PreTrainedTokenizerFast:
    """As GPT-1: the end of a word is in the token, `time</w>`, and a blank behind it if another follows."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False)
    inner.train_from_iterator(SAMPLE, trainer)
    return wrapped(inner)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "llama": llama_like,
    "gemma": gemma_like,
    "unigram": unigram,
    "word-piece": word_piece,
    "character": by_character,
    "word": by_word,
    "word-ends": with_word_ends,
}
