"""Make pycode-7m, the small language model of Python code that is bundled with saelab, from scratch.

    python tools/make_pycode.py corpus    WORK/corpus
    python tools/make_pycode.py tokenizer WORK/corpus WORK/tokenizer
    python tools/make_pycode.py train     WORK/corpus WORK/tokenizer WORK/pycode-7m --seconds 390

The recipe. *Corpus*: the standard library of the Python that runs this, then the packages installed beside it, without
duplicates, data tables and machine-made files; of the standard library's files, the 5 % whose sha256 starts with a byte
below 13 are held out, so the split depends on nothing but their text. *Tokenizer*: byte-level BPE with 8,192 entries,
learned from the standard library and every third file of the rest. *Model*: Llama architecture, 6 layers of width 256,
4 heads, MLP 704, context 512, tied embeddings, 6,917,376 parameters. *Training*: AdamW, 192 rows of 512 tokens a step,
learning rate 3e-3 (300 steps of warm-up, flat for 30 % of the time, then linear to 2 %), bfloat16 on a GPU, standard
library seen twice per epoch.

The figures of the bundled model: Python 3.11 with torch 2.13, transformers 5.23, numpy 2.4 and what they install;
61.7 M tokens of text, 1.28 G tokens seen in 390 s on one H100, held-out loss 1.924 nats per token.

Seeds are fixed, but the learning rate follows the clock and other package versions are other text: a second run makes
a model that is as good, not the same bits. Options for a trial on a CPU: ``corpus --limit``, ``tokenizer --vocab``,
``train --seconds --batch``.

Shapes: N rows of text, B rows per step, T tokens per row (the first is always ``<|endoftext|>``).
"""

import argparse
import hashlib
import json
import lzma
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
CONTEXT = 512
HELD_OUT_BYTE = 13  # of 256: about 5 %
SEED = 0

PEAK_RATE, WARMUP_STEPS, FLAT_SHARE, LAST_SHARE = 3e-3, 300, 0.3, 0.02
UNTIMED_STEPS = 5  # compilation and first allocations do not count against the budget
REPORT_EVERY = 500


# --- corpus ----------------------------------------------------------------------------------------------------------


def python_files(root: Path) -> Iterator[str]:
    """Text of every Python file below ``root`` that a person probably wrote, in the order of the paths."""
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages", "__pycache__"} & set(path.relative_to(root).parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (
            UnicodeDecodeError,
            OSError,
        ):  # test data of the standard library holds files that are broken on purpose
            continue
        if looks_written(text):
            yield text


def looks_written(text: str) -> bool:
    """Leaves out stubs, giants, files with endless lines, and tables of data."""
    return (
        200 <= len(text) <= 300_000
        and max(map(len, text.splitlines()), default=0) <= 1000
        and sum(c.isalpha() for c in text) >= 0.35 * len(text)
    )


def make_corpus(out: Path, packages: list[Path], limit: int | None) -> None:
    """Write ``train.jsonl.xz`` and ``heldout.jsonl.xz``, one ``{"text", "stdlib"}`` per line."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    seen: set[bytes] = set()
    documents: dict[str, list[dict]] = {"train": [], "heldout": []}
    for root in [stdlib, *packages]:
        for text in islice(python_files(root), limit):
            digest = hashlib.sha256(text.encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            held_out = root == stdlib and digest[0] < HELD_OUT_BYTE
            documents["heldout" if held_out else "train"].append({"text": text, "stdlib": root == stdlib})
    out.mkdir(parents=True, exist_ok=True)
    for name, members in documents.items():
        with lzma.open(out / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(member) + "\n" for member in members)
        print(f"{name}: {len(members):,} files, {sum(len(m['text']) for m in members) / 1e6:.1f} M characters")


def read_corpus(corpus: Path, name: str) -> Iterator[dict]:
    with lzma.open(corpus / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def make_tokenizer(corpus: Path, out: Path, vocab: int, every: int) -> None:
    """Learn byte-level BPE from the standard library and every ``every``-th file of the rest."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],  # becomes id 0
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = enumerate(read_corpus(corpus, "train"))
    tokenizer.train_from_iterator((d["text"] for i, d in documents if d["stdlib"] or i % every == 0), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)
    print(f"{len(fast):,} entries; for example {fast.tokenize('    def __init__(self, name: str) -> None:')}")


# --- training --------------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[dict]) -> list[np.ndarray]:
    """Token ids of each document, with the end-of-text token in front."""
    end = tokenizer.bos_token_id
    ids: list[np.ndarray] = []
    for start in range(0, len(documents), CONTEXT):  # in slices, to hold few of the encoder's fat records at once
        texts = [d["text"] for d in documents[start : start + CONTEXT]]
        ids += [np.array([end, *e.ids], dtype=np.int32) for e in tokenizer.backend_tokenizer.encode_batch(texts)]
    return ids


def pack(documents: list[np.ndarray], end: int) -> Tensor:
    """Join all documents and cut them into rows that each start with ``end``: [N, T] int32. The rest is dropped."""
    flat = np.concatenate(documents) if documents else np.zeros(0, dtype=np.int32)
    num_rows = len(flat) // (CONTEXT - 1)
    rows = flat[: num_rows * (CONTEXT - 1)].reshape(num_rows, CONTEXT - 1)
    return torch.from_numpy(np.concatenate([np.full((num_rows, 1), end, np.int32), rows], axis=1))


def load_rows(corpus: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Training rows, in which the standard library occurs twice, and held-out rows."""
    documents = list(read_corpus(corpus, "train"))
    ids = encode(tokenizer, documents)
    stdlib = [i for i, document in enumerate(documents) if document["stdlib"]]
    rng = np.random.default_rng(SEED)
    order = [*rng.permutation(len(ids)), *rng.permutation(stdlib)]
    held_out = encode(tokenizer, list(read_corpus(corpus, "heldout")))
    train_rows = pack([ids[i] for i in order], tokenizer.bos_token_id)
    held_rows = pack(held_out, tokenizer.bos_token_id)
    if not len(train_rows) or not len(held_rows):
        raise ValueError(f"{corpus}: too little text for one training and one held-out row of {CONTEXT} tokens")
    print(f"{train_rows.numel() / 1e6:.1f} M training tokens, {held_rows.numel() / 1e6:.2f} M held out", flush=True)
    return train_rows, held_rows


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)


def new_loss(model: LlamaForCausalLM, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Mean next-token loss of rows [B, T] in nats; bfloat16 and compiled on a GPU, plain on a CPU."""

    def loss(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    return torch.compile(loss) if device.type == "cuda" else loss


@torch.no_grad()
def held_out_loss(loss: Callable[[Tensor], Tensor], rows: Tensor, batch: int) -> float:
    parts = [(len(part), loss(part.long()).item()) for part in rows.split(batch)]
    return sum(n * value for n, value in parts) / len(rows)


def batches(rows: Tensor, batch: int) -> Iterator[Tensor]:
    """Endless [B, T] int64, every row once per epoch, in an order that is the same on every device."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        for start in range(0, len(rows) - batch + 1, batch):
            yield rows[order[start : start + batch]].long()


def learning_rate(step: int, share: float) -> float:
    """After ``step`` steps, when ``share`` of the time budget is spent."""
    fall = 1.0 if share < FLAT_SHARE else max(LAST_SHARE, (1 - share) / (1 - FLAT_SHARE))
    return PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * fall


def train(corpus: Path, tokenizer_dir: Path, out: Path, seconds: float, batch: int, device: torch.device) -> None:
    """Train for ``seconds``, then write the model in float16 and its tokenizer to ``out``."""
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    train_rows, held_rows = (rows.to(device) for rows in load_rows(corpus, tokenizer))
    batch = min(batch, len(train_rows))
    model = new_model(tokenizer).to(device)
    print(f"{model.num_parameters():,} parameters on {device}", flush=True)
    optimizer, loss = new_optimizer(model), new_loss(model, device)
    spent, began = 0.0, time.monotonic()
    for step, rows in enumerate(batches(train_rows, batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, spent / seconds)
        value = loss(rows)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step < UNTIMED_STEPS:
            value.item()  # waits for the device
            began = time.monotonic()
        spent = time.monotonic() - began
        if (step + 1) % REPORT_EVERY == 0 or spent >= seconds:
            seen = (step + 1) * rows.numel() / 1e6
            held = held_out_loss(loss, held_rows, batch)
            print(
                f"step {step + 1}  {spent:.0f} s  {seen:.1f} M tokens  loss {value:.3f}  held out {held:.4f}",
                flush=True,
            )
        if spent >= seconds:
            break
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}")


# --- command line ----------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    site_packages = Path(sysconfig.get_paths()["purelib"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)

    corpus = commands.add_parser("corpus", help="gather Python source text")
    corpus.add_argument("out", type=Path)
    corpus.add_argument(
        "--packages", type=Path, nargs="*", default=[site_packages], help="folders beside the standard library's"
    )
    corpus.add_argument("--limit", type=int, help="at most so many files per folder, for a trial")

    tokenizer = commands.add_parser("tokenizer", help="learn the tokenizer")
    tokenizer.add_argument("corpus", type=Path)
    tokenizer.add_argument("out", type=Path)
    tokenizer.add_argument("--vocab", type=int, default=8192)
    tokenizer.add_argument("--every", type=int, default=3, help="of the packages' files, use every so-manieth")

    training = commands.add_parser("train", help="train the model")
    training.add_argument("corpus", type=Path)
    training.add_argument("tokenizer", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--seconds", type=float, default=390.0, help="time budget, the first few steps not counted")
    training.add_argument("--batch", type=int, default=192, help="rows per step")
    training.add_argument("--device", type=torch.device, default=torch.device(device), help=f"here: {device}")
    return top.parse_args()


def main() -> None:
    args = arguments()
    try:
        if args.command == "corpus":
            make_corpus(args.out, args.packages, args.limit)
        elif args.command == "tokenizer":
            make_tokenizer(args.corpus, args.out, args.vocab, args.every)
        else:
            train(args.corpus, args.tokenizer, args.out, args.seconds, args.batch, args.device)
    except (OSError, ValueError) as error:
        sys.exit(f"make_pycode: {error}")


if __name__ == "__main__":
    main()
