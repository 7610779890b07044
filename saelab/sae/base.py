"""The contract of the three words an SAE is made of: dictionary, activation, losses. All of it is on this page.

A component's constructor is its configuration; the sizes come later, through `setup`. A dictionary owns the weights:
others ask it for pre-activations, reconstructions and directions. An activation turns pre-activations into codes. A
loss is one more term of the training objective.
"""

# Shape letters: B rows, D input width, L latents, K kept per row.

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes, Entries
from saelab.core.components import Component
from saelab.core.mesh import ALONE, Mesh
from saelab.kernels.gradient import LatentGradients, Term
from saelab.sae.autoencoder import Autoencoder, Decoder
from saelab.sae.scale import Fixed


@dataclass(frozen=True)
class Sizes:
    """What a component has to fit."""

    d_in: int
    """Width of the rows that are read."""
    d_out: int
    """Width of the rows that are reconstructed."""
    n_latents: int
    """Latents of all shards together."""
    is_transcoder: bool = False
    """Whether other rows than those read are reconstructed."""
    seed: int = 0
    """Of the starting weights."""
    mesh: Mesh = ALONE

    @classmethod
    def checked(cls, d_in: int, n_latents: int, d_out: int | None, seed: int, mesh: Mesh) -> "Sizes":
        """The sizes of an SAE, a transcoder where there is a d_out; ValueError if they are none."""
        given = {"d_in": d_in, "n_latents": n_latents} | ({} if d_out is None else {"d_out": d_out})
        for name, size in given.items():
            try:
                given[name] = operator.index(size)
            except TypeError:
                raise ValueError(f"{name} must be a whole number, got {type(size).__name__}") from None
            if given[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if given["n_latents"] % mesh.shards:
            raise ValueError(f"{n_latents} latents cannot be split evenly over {mesh.shards} shards")
        d_in = given["d_in"]
        return cls(d_in, given.get("d_out", d_in), given["n_latents"], d_out is not None, seed, mesh)

    @property
    def local_latents(self) -> int:
        """How many latents this shard holds."""
        return self.n_latents // self.mesh.shards

    def generator(self) -> torch.Generator:
        """A fresh stream of random numbers for starting weights."""
        return torch.Generator().manual_seed(self.seed)


class PreActivations(ABC):
    """Pre-activations of B rows, weight (x - centre) + bias, computed only as far as they are asked for.

    Attributes:
        dictionary: whose they are.
        x: scaled rows [B, D].
        centre: what is subtracted from every row, [D].
        bias: this shard's part of the latents' bias, [L].
        gradient: of a loss downstream with respect to the rows [B, D], where the training data brings it.
    """

    def __init__(self, dictionary: "Dictionary", x: Tensor, centre: Tensor, bias: Tensor, mesh: Mesh = ALONE):
        self.dictionary, self.x, self.centre, self.bias, self.mesh = dictionary, x, centre, bias, mesh
        self.gradient: Tensor | None = None
        self._dense: Tensor | None = None

    @property
    def n_latents(self) -> int:
        """How many there are on this shard."""
        return len(self.bias)

    @property
    def centred(self) -> Tensor:
        """The rows without the centre, [B, D]."""
        return self.x - self.centre

    def dense(self) -> Tensor:
        """All of them, [B, L]; computed once."""
        if self._dense is None:
            self._dense = self.all()
        return self._dense

    @abstractmethod
    def all(self) -> Tensor:
        """Compute all of them, [B, L]."""

    @abstractmethod
    def for_latents(self, latents: Tensor) -> Tensor:
        """Those of some latents only: [B, n] for latent numbers [n]."""

    @abstractmethod
    def for_rows(self, centred: Tensor) -> "PreActivations":
        """The same latents' pre-activations of other centred rows [B, D], such as residuals."""

    def first(self, rows: int) -> "PreActivations":
        """The same latents' pre-activations of the first rows only."""
        return self.for_rows(self.centred[:rows])

    def topk(self, k: int, absolute: bool = False) -> Codes:
        """The k largest of each row over all shards, by value or by absolute value, signed; others are zero."""
        values, entries = self.local_topk(min(k, self.n_latents), absolute)
        if self.mesh.shards > 1:
            values = values.where(self.mesh.largest(values.abs() if absolute else values, k), 0)
        return Codes(values, entries, self.n_latents)

    def above(self, threshold: Tensor) -> Codes:
        """Those above their latent's threshold [L], which is at least 0; the threshold gets no gradient."""
        dense = self.dense()
        return Codes.full(dense.where(~(dense <= threshold), 0)).compact()  # NaN stays

    def local_topk(self, k: int, absolute: bool) -> tuple[Tensor, Entries]:
        """The k largest of each row on this shard, largest first: values [B, K] and their entries."""
        pre = self.dense()
        indices = (pre.abs() if absolute else pre).topk(k, dim=1).indices
        return pre.gather(1, indices), Entries(indices, self.n_latents)


class Dictionary(Component, Decoder, nn.Module, ABC):
    """The two linear maps. Nothing outside a dictionary touches its weights."""

    home = "saelab.sae.dictionaries"

    sharded: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers whose first axis is latents; a shard holds its own latents' part."""

    is_separable: ClassVar[bool] = False
    """Whether a latent is its rows of `sharded` alone, so that it may get another number, among other latents."""

    sizes: Sizes
    """What `setup` was given."""

    gradients: LatentGradients | None = None
    """Where gradients of `latent_rows` are collected in a training step; the optimizer's, which sets it."""

    @abstractmethod
    def setup(self, sizes: Sizes) -> None:
        """Make the parameters, this shard's part of the latents; ValueError for sizes that do not fit."""

    @abstractmethod
    def initialise(self, sample: Tensor, target: Tensor, activation: "Activation", generator: torch.Generator) -> None:
        """Fit the starting point to a sample of scaled rows [n, D] and what is to be reconstructed from them."""

    @abstractmethod
    def pre(self, x: Tensor) -> PreActivations:
        """Pre-activations of scaled rows [B, D]."""

    def decode_among(self, codes: Codes, latents: Tensor) -> Tensor:
        """`decode` of codes whose entries count among some latents [n] alone; it need look at no others."""
        return self.decode(Codes(codes.values, latents[codes.indices], self.sizes.local_latents))

    def latent_rows(self) -> dict[Tensor, bool]:
        """Parameters [L, n] that an optimizer may update one latent at a time, and whether their rows have unit norm.

        What an optimizer does to such rows it does in place of `before_step` and `after_step`. Empty where the hooks do
        more than that, or the weights are laid out otherwise.
        """
        return {}

    def latent_bias(self) -> Tensor:
        """The parameter that is added to pre-activations; [L]. ValueError where there is none, as in what follows."""
        raise self._lacks("a trained latent bias")

    def reset_latents(self, latents: Tensor, read: Tensor, written: Tensor, size: float) -> None:
        """Start some latents anew, with a bias of 0.

        Args:
            latents: numbers of this shard's latents, [n].
            read: along which their encoder rows then lie, [n, D]; not zero.
            written: along which their directions then lie, [n, D]; not zero.
            size: norm of their encoder rows; means nothing where the directions are the encoder.
        """
        raise self._lacks("latents that can be reset along given rows")

    def set_bias(self, bias: Tensor) -> None:
        """Decode `bias` [D] when no latent is active; pre-activations stay what they are."""
        raise self._lacks("a bias that can be set")

    def set_directions(self, directions: Tensor) -> None:
        """Replace all directions, [L, D], of any norm other than zero; `unit_directions` is for the caller to do."""
        raise self._lacks("directions that can be set freely")

    def terms_for(self, weight: Tensor) -> list[Term] | None:
        """Where a weight's gradient is collected, if it is."""
        return self.gradients.terms(weight) if self.gradients else None

    @abstractmethod
    def fold(self, read: Fixed, written: Fixed) -> Tensor:
        """Absorb the scalings of the rows read and written, so that rows go in and come out unscaled.

        Returns:
            How many times larger each latent's pre-activations, and so its codes, became; [L].
        """

    @abstractmethod
    def unit_directions(self) -> Tensor:
        """Bring directions to unit norm with pre-activations rescaled, so that active latents decode to the same.

        Returns:
            How many times larger each latent's pre-activations became; [L].
        """

    def before_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""


@dataclass(frozen=True)
class PlainActivation:
    """How rows are read, in the words that libraries share.

    Attributes:
        kind: relu, topk, abstopk, gated (with parts r_mag and b_mag), jumprelu or batchtopk (with a part threshold).
        k: latents kept a row, or a row on average where there is a threshold.
        parts: tensors by name, [L] each.
    """

    kind: str
    k: float | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


class Activation(Component, nn.Module, ABC):
    """Pre-activations to sparse codes. May own a sparsity penalty and buffers."""

    home = "saelab.sae.activations"
    sharded: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers whose first axis is latents."""

    @property
    def topk_k(self) -> int | None:
        """k, where codes of the training pass are made of `pre.topk(k)` alone, in its layout; None otherwise."""
        return None

    def setup(self, sizes: Sizes) -> None:
        """Check the sizes and make parameters and buffers; ValueError for a setting that does not fit."""

    calibration_rows: ClassVar[int] = 0
    """How many rows `calibrate` should be given; 0 where nothing is estimated while training and read later."""

    @abstractmethod
    def forward(self, pre: PreActivations) -> Codes:
        """The codes of rows that are read: a row's codes do not depend on what else is in the batch.

        The gradient, where somebody asks for it, is that of the codes as a function of rows and weights; stand-ins for
        the derivatives of jumps belong to `forward_train`. Either layout of codes will do.
        """

    def forward_train(self, pre: PreActivations) -> Codes:
        """The codes of the training pass, where they, or their gradients, differ from those of rows that are read."""
        return self(pre)

    def observe(self, codes: Codes, mesh: Mesh) -> None:
        """Update running estimates by the training pass's codes; the trainer calls it once a batch."""

    def calibrate(self, parts: Iterable[PreActivations], rows: int, mesh: Mesh) -> None:
        """Set exactly, for the weights as they are, what `observe` only estimates and `forward` reads.

        It depends on nothing but the weights and these rows. Every process of the mesh has to call it.

        Args:
            parts: pre-activations of this replica's share of the rows, one part after another.
            rows: how many rows all replicas have together, at least 1.
            mesh: the processes that share the work.
        """

    def penalties(self, step: "Forward") -> dict[str, Tensor]:
        """The activation's own terms of the objective by name, weighted scalars; none by default."""
        return {}

    def rescale(self, factor: Tensor) -> None:
        """Adapt thresholds and the like to pre-activations that became `factor` [L] times larger."""

    def thresholds(self) -> Tensor | None:
        """The thresholds of latents that decide for themselves, f = pre * 1[pre > threshold]: [L], or [] for all.

        None where a row keeps its largest latents instead, so that a threshold has to be set on rows. In float64, so
        that the logarithm of one, in a lower precision, is what it was made of.

        Raises:
            ValueError: where codes come about in another way, as here.
        """
        name = type(self).__name__
        raise ValueError(f"latents of {name} cannot be separated: they are not active just above a threshold")

    def plain(self) -> PlainActivation:
        """How it reads rows, for other libraries; ValueError where they have no form for that, as here."""
        raise ValueError(f"{type(self).__name__} cannot be exported: no library that saelab writes for has it")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a parent says of how it reads rows does not hold for a class that reads them in its own way.
        for name in ("thresholds", "plain"):
            if "forward" in cls.__dict__ and name not in cls.__dict__:
                setattr(cls, name, getattr(Activation, name))


class Composed(Autoencoder):
    """An autoencoder made of components, as they see it in training; `SAE` is the one there is.

    Attributes:
        activation: turns pre-activations into codes.
        losses: further terms of the objective.
        seed: of the starting weights.
        variance: mean squared deviation of a scaled entry from its mean, the loss's unit; [].
    """

    dictionary: Dictionary
    activation: Activation
    losses: nn.ModuleList
    seed: int
    variance: Tensor

    @abstractmethod
    def unit_directions(self) -> None:
        """Bring directions to unit norm where they are not; reconstructions stay the same."""


@dataclass(frozen=True)
class Forward:
    """One training batch on its way through an SAE, as losses see it. All rows are scaled."""

    sae: Composed
    x: Tensor
    """Input rows [B, D]."""
    target: Tensor
    """Rows to reconstruct [B, D]; the input itself unless the SAE is a transcoder."""
    pre: PreActivations
    codes: Codes
    x_hat: Tensor
    """Reconstruction [B, D]."""
    downstream: Callable[[Tensor], Tensor] | None = None
    """The model's loss [] when its rows are replaced by reconstructions [B, D], in the data's own units; where the
    training data brings it."""

    def decode(self, codes: Codes, frozen: bool = False) -> Tensor:
        """Reconstruction [B, D] of these rows from other codes; `frozen` as in `Dictionary.decode`."""
        skipped = self.sae.dictionary.skip(self.x)
        x_hat = self.sae.dictionary.decode(codes, frozen)
        return x_hat if skipped is None else x_hat + (skipped.detach() if frozen else skipped)

    def undone(self, x_hat: Tensor) -> Tensor:
        """Scaled rows [B, D], such as a reconstruction, in the data's units."""
        return self.sae.target_scale.undo(x_hat, self.codes.row_scale)

    def error(self, x_hat: Tensor) -> Tensor:
        """Mean squared error of a reconstruction in the unit that the objective uses, a scalar."""
        return (x_hat - self.target).square().mean() / self.sae.variance


class Loss(Component, nn.Module, ABC):
    """One more term of the training objective."""

    home = "saelab.sae.losses"

    def setup(self, sizes: Sizes) -> None:
        """Check the sizes; ValueError for a setting that does not fit."""

    def no_effect_warning(self, rows: int) -> str | None:
        """What to know about this loss in a run of so many rows, e.g. that it will have no effect."""
        return None

    @abstractmethod
    def forward(self, step: Forward) -> Tensor:
        """The weighted term, a scalar; exactly zero with a finite gradient when it does not apply."""

    def before_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self) -> None:
        """Called after the optimizer's step."""
