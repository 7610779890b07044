"""`saelab harvest`: activations of a language model into a store."""

from pathlib import Path

from saelab.data.store import MANIFEST, Manifest
from saelab.models.harvest import harvest, is_text_known
from saelab.models.harvest_config import HarvestConfig


def harvest_to(out: str, config: HarvestConfig) -> None:
    """Write activations of a language model into a store; the same command resumes an interrupted harvest."""
    if (Path(out) / MANIFEST).exists() and not is_text_known(Manifest.read(Path(out))):
        print(f"note: {out} does not say which text it is of, so whether that has changed cannot be told")
    store = harvest(**vars(config), out=out)
    manifest = store.manifest
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items())
    width = f"{manifest.d_in}" + (f" with targets of width {manifest.d_out}" if manifest.d_out else "")
    print(f"{out}: {manifest.rows:,} rows of width {width} in {len(manifest.shards)} shards; dropped {dropped}")
    if manifest.rows < config.tokens:
        print(f"the text ended before {config.tokens:,} tokens were kept")
