"""What every sparse autoencoder can be asked, one SAE or an ensemble of several, without a look at its weights.

Who measures, compares or shows an autoencoder takes an `Autoencoder`; who needs components or weights takes an `SAE`.
Training is left out: see `saelab.sae.base.Composed` and `saelab.sae.sae`.
"""

# Shape letters: B rows, D width of what is reconstructed, L latents.

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.files import Streamed, write_json, write_tensors
from saelab.core.mesh import Mesh
from saelab.core.rows import Rows
from saelab.sae.firing import Firing
from saelab.sae.scale import Scale

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
ENSEMBLE = "ensemble"
"""What the config of an ensemble says under `kind`; an SAE's has no such key."""


def write_files(folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor | Streamed]) -> None:
    """Write what a saved SAE is, each file whole or not at all."""
    write_tensors(folder / WEIGHTS, tensors, {"config": config})
    write_json(folder / CONFIG, config)


class Decoder(ABC):
    """What may be read of any dictionary: how codes become rows. Everything is in units of the scaled rows."""

    sites: int = 1
    """Places in a model that the columns of a row come from, in equal parts; each has a scale of its own."""

    @abstractmethod
    def decode(self, codes: Codes, frozen: bool = False) -> Tensor:
        """Reconstruction [B, D] from codes; `frozen` passes a gradient to the codes only, none to the weights."""

    @abstractmethod
    def bias(self) -> Tensor:
        """What is decoded when no latent is active; [D]."""

    @abstractmethod
    def directions(self) -> Tensor:
        """Each latent's decoder direction; [L, D]."""

    def norms(self) -> Tensor:
        """How much a code of 1 counts in a sparsity penalty: the norm of the latent's direction; [L]."""
        return self.directions().norm(dim=1)

    def skip(self, x: Tensor) -> Tensor | None:
        """What goes from scaled rows [B, D] straight into the reconstruction, past the latents; None for nothing."""
        return None

    @property
    def encoder(self) -> Tensor:
        """The parameter that pre-activations are linear in, a latent a row; [L, n].

        Raises:
            ValueError: where there is no such parameter.
        """
        raise self._lacks("one encoder weight that could be read from outside")

    def _lacks(self, what: str) -> ValueError:
        return ValueError(f"the dictionary {type(self).__name__} with these settings does not have {what}")


class Autoencoder(nn.Module, ABC):
    """Rows to sparse codes and back.

    Attributes:
        d_in: width of the rows that are read.
        d_out: width of the rows that are reconstructed, of a transcoder; None otherwise.
        n_latents: number L of latents.
        mesh: the processes that hold it.
        scale: scaling of the rows that are read.
        firing: when each latent was last active in training.
        dictionary: what knows the directions.
    """

    d_in: int
    d_out: int | None
    n_latents: int
    mesh: Mesh
    scale: Scale
    firing: Firing
    dictionary: Decoder

    @property
    def device(self) -> torch.device:
        """Where its weights are; rows have to be there."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights, to which rows are brought."""
        return next(self.parameters()).dtype

    @property
    def target_scale(self) -> Scale:
        """The scaling of the rows that are reconstructed; `scale` itself unless this is a transcoder."""
        return self.scale

    @abstractmethod
    def encode(self, x: Rows) -> Codes:
        """Codes of rows x [..., d_in], never in the full layout."""

    @abstractmethod
    def decode(self, codes: Codes, x: Rows | None = None) -> Tensor:
        """Reconstructed rows [..., D], in the units of the data; x: the rows, where a skip connection needs them."""

    def forward(self, x: Rows) -> Tensor:
        """Reconstruction [..., D] of rows x [..., d_in]."""
        return self.decode(self.encode(x), x)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `config.json` holds."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write it into a folder, from which `saelab.load` opens it."""

    def data_directions(self, latents: Tensor | None = None, normalised: bool = False) -> Tensor:
        """What a code of 1 adds to a reconstruction, in the units of the data; [L, D].

        Where every row has a size of its own (`scale.per_row`), it is what a row of size 1 gets: other rows get a
        multiple of it, which `data_values` says.

        Args:
            latents: numbers [n] of those wanted; by default all.
            normalised: whether to bring them to unit norm; sites with scales of their own weigh by these.
        """
        directions = self.dictionary.directions()
        written = (directions if latents is None else directions[latents]) * self.target_scale.size
        return F.normalize(written, dim=1) if normalised else written

    def data_bias(self, row_scale: Tensor | None = None) -> Tensor:
        """What is decoded when no latent is active, in the units of the data; [D].

        Args:
            row_scale: the numbers [B, n] of rows that each have a scale of their own, which it then is of, [B, D];
                without them it is that of a row with centre 0 and size 1.
        """
        bias = self.dictionary.bias()
        if not self.target_scale.per_row:
            return self.target_scale.undo(bias)
        return bias if row_scale is None else self.target_scale.undo(bias.expand(len(row_scale), -1), row_scale)

    def data_values(self, codes: Codes) -> Tensor:
        """Values [..., K] of codes in the unit of `data_directions`: times these they add up to what is decoded.

        Raises:
            ValueError: where every row has sizes of its own and several sites: there is no one factor then.
        """
        return self.target_scale.data_values(codes)

    def alive(self, after: int | None = None) -> Tensor:
        """Latents active in the last `after` rows of training, by default as many as `Firing.horizon`; [L] bool.

        Where training was not counted, as in a converted SAE, all are.
        """
        horizon = self.firing.horizon if after is None else after
        return ~self.firing.dead(horizon) if horizon else self.firing.since >= 0
