"""`saelab harvest`: activations of a language model into a store."""

from pathlib import Path

from saelab.data.store import MANIFEST, Manifest
from saelab.models.harvest import harvest, is_text_known
from saelab.models.subject import Subject


def harvest_to(out: str, subject: Subject, tokens: int = 1_000_000, split: str = "train", dtype: str = "bf16") -> None:
    """Write activations of a language model into a store; the same command resumes an interrupted harvest.

    Args:
        out: the store's folder.
        subject: the model, the sites and the text.
        tokens: minimum number of rows to write (tokens or, with --average, averages).
        split: `train`, `held-out` (about 5 % of the documents, by a hash of their content) or `all`.
        dtype: of the rows on disk: bf16, fp16 or fp32.
    """
    if (Path(out) / MANIFEST).exists() and not is_text_known(Manifest.read(Path(out))):
        print(f"note: {out} does not say which text it is of, so whether that has changed cannot be told")
    store = harvest(subject, out, tokens, split, dtype)
    manifest = store.manifest
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items())
    width = f"{manifest.d_in}" + (f" with targets of width {manifest.d_out}" if manifest.d_out else "")
    print(f"{out}: {manifest.rows:,} rows of width {width} in {len(manifest.shards)} shards; dropped {dropped}")
    if manifest.rows < tokens:
        print(f"the text ended before {tokens:,} tokens were kept")
