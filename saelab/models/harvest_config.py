"""The settings of a harvest, as `saelab harvest` has them: `harvest(**vars(config), out="acts")`."""

from dataclasses import dataclass, field

from saelab.core.settings import Config
from saelab.models.subject import Subject


@dataclass
class HarvestConfig(Config):
    """What a store of activations is a function of.

    Args:
        subject: the model, the sites and the text.
        tokens: minimum number of rows to write (tokens or, with --average, averages).
        split: `train`, `held-out` (about 5 % of the documents, by a hash of their content) or `all`.
        dtype: of the rows on disk: bf16, fp16 or fp32.
    """

    beside = "subject"
    subject: Subject = field(default_factory=Subject)
    tokens: int = 1_000_000
    split: str = "train"
    dtype: str = "bf16"
