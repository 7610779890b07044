"""What is looked at: a language model, sites in it, and text to run it on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from saelab.core.mesh import device_named
from saelab.models.language_model import LanguageModel
from saelab.models.text import in_pieces, read_text
from saelab.models.tokens import TokenRows, pack


@dataclass(frozen=True)
class Subject:
    """A model, a site or several, and text.

    With `average` rows are means over a document's tokens, the "turn-averaged" rows of arXiv 2606.28548 if every
    document is a conversational turn, such as a line of a .jsonl. Each document is then read by itself, so that its
    tokens see no other's, and one of more than seq_len tokens gives several rows, each the mean over a part of it that
    the model read at once.

    Args:
        model: folder or hub name of a transformers causal language model; `pycode-7m` is bundled.
        site: module path in the model, e.g. `model.layers.3` or `transformer.h.8`; `:in` after it means the module's
            input instead of its output. Names of TransformerLens, nnsight and nnterp, such as
            `blocks.8.hook_resid_post`, are understood. Several are joined by commas: a row then is their activations
            side by side.
        text: `stdlib` (the Python standard library of this machine), a .txt, .jsonl, .jsonl.gz or .parquet file, a
            folder or glob of them, or `hf:NAME[:CONFIG][@SPLIT]` for a data set of the hub, streamed.
        field: which field of a .jsonl, .parquet or hub row holds the text.
        piece: cut documents into pieces of about this many characters and read them in random order, so that a few
            tokens are a sample of all the text; by default documents are read whole.
        seq_len: tokens of a row that the model reads at once.
        seed: of the order in which documents are read.
        device: where the model runs; `auto` is the GPU if there is one.
        precision: of the model's weights: float32, bfloat16 or float16.
        target: site or sites whose activations are to be reconstructed from those at `site`, for a transcoder; by
            default the activations at `site` themselves are.
        average: `document` makes a row the mean over the tokens of a document, or of a piece if it is cut into pieces,
            or of each seq_len of its tokens if it is longer; by default every token is a row.
    """

    model: str = "pycode-7m"
    site: str = "model.layers.3"
    text: str = "stdlib"
    field: str = "text"
    piece: int | None = None
    seq_len: int = 256
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    target: str | None = None
    average: Literal["document"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise ValueError(
                f"a Subject's model is a folder or a name, got a {type(self.model).__name__}: save_pretrained it and "
                "name the folder, or give LanguageModel(model, site, tokenizer=tokenizer) to what takes model="
            )
        if self.average not in (None, "document"):
            raise ValueError(f"average must be 'document' or left out, got {self.average!r}")
        if self.seq_len < 2:
            raise ValueError(f"seq_len must be at least 2, got {self.seq_len}")

    @classmethod
    def of(cls, origin: Mapping[str, Any]) -> "Subject":
        """The one that rows were made from, by what a run's source.json says of them."""
        return cls(**{key: origin[key] for key in cls.__dataclass_fields__ if key in origin})

    def language_model(self, rank: int = 0) -> LanguageModel:
        """Load the model; of several processes, each names its rank to get a GPU of its own."""
        device = str(device_named(self.device, rank))
        return LanguageModel(self.model, self.site, device, self.precision, self.target)

    def token_rows(
        self, model: LanguageModel, split: str, rows: int, start: int = 0, spans: bool = False
    ) -> Iterator[TokenRows]:
        """The text as packed rows of tokens, `rows` at a time, without the first `start`; with spans, if asked for."""
        documents = read_text(self.text, split=split, field=self.field, seed=self.seed)
        if self.piece is not None:
            documents = in_pieces(documents, self.piece, self.seed)
        return pack(documents, model.tokenizer, self.seq_len, rows, start, self.average is not None, spans)

    def origin(self, model: LanguageModel, split: str) -> dict[str, Any]:
        """What activations of this subject depend on."""
        return {
            "model": self.model,
            "fingerprint": model.fingerprint,
            "site": model.site,
            "text": self.text,
            "field": self.field,
            "piece": self.piece,
            "split": split,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "precision": self.precision,
            "target": model.target,
            "average": self.average,
        }
