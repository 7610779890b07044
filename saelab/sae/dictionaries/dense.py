"""The ordinary dictionary: two dense matrices, latents first.

    pre   = (x - b_dec) @ W_enc.T + b_enc            W_enc [L, D]
    x_hat = f @ W_dec + b_dec                        W_dec [L, D], rows of unit norm: the directions

Start (Gao et al. 2024, arXiv 2406.04093): W_enc random, W_dec = W_enc with unit rows (encoder and decoder start
parallel and are then free), b_dec the geometric median of a sample, b_enc zero, W_enc scaled so that reconstructions of
random vectors as long as rows keep their norm (there: of unit norm, as rows are). Then, which is ours, W_enc is scaled
once more by the factor that makes the sample's error least: random directions reproduce little of a row, and as long as
a row the error would be that of no reconstruction at all. While training, the gradient of each direction loses its part
along the direction, and directions are brought back to unit norm after every step (the authors' code does so before the
next step's update, so its forward pass sees directions one step off unit norm).

A transcoder reads rows of one site and reconstructs those of another: nothing is subtracted before encoding, b_dec is
only added, W_dec starts random, and W_enc is scaled so that reconstructions start with the targets' mean norm, whatever
the error: random directions have nothing to do with the targets.
"""

# Shape letters: B rows, D input width, L latents.

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saelab.core.codes import Codes, Entries
from saelab.core.mesh import ALONE, Mesh
from saelab.kernels.decode import DENSE_SHARE, decode
from saelab.kernels.gradient import Term, take
from saelab.kernels.select import above_threshold, centred_linear, topk_linear
from saelab.sae.base import Activation, Dictionary, PreActivations, Sizes
from saelab.sae.scale import Fixed

MEDIAN_ROWS = 32_768
PROBES = 256


class DensePre(PreActivations):
    """Pre-activations through one matrix [L, D]."""

    def __init__(
        self,
        dictionary: Dictionary,
        x: Tensor,
        centre: Tensor,
        weight: Tensor,
        bias: Tensor,
        mesh: Mesh = ALONE,
        terms: list[Term] | None = None,
    ):
        super().__init__(dictionary, x, centre, bias, mesh)
        self.weight, self.terms = weight, terms

    def all(self) -> Tensor:
        return F.linear(self.centred, self.weight, self.bias)

    def for_latents(self, latents: Tensor) -> Tensor:
        return centred_linear(self.x, self.centre, take(self.weight, latents, self.terms), self.bias[latents])

    def for_rows(self, centred: Tensor) -> "DensePre":
        return self._on(centred, torch.zeros_like(self.centre))

    def first(self, rows: int) -> "DensePre":
        return self._on(self.x[:rows], self.centre)

    def _on(self, x: Tensor, centre: Tensor) -> "DensePre":
        return DensePre(self.dictionary, x, centre, self.weight, self.bias, self.mesh, self.terms)

    def above(self, threshold: Tensor) -> Codes:
        if self._dense is not None:
            return super().above(threshold)
        return above_threshold(self.x, self.centre, self.weight, self.bias, threshold, self.terms)

    def local_topk(self, k: int, absolute: bool) -> tuple[Tensor, Entries]:
        return topk_linear(self.x, self.centre, self.weight, self.bias, k, absolute, terms=self.terms)


class Dense(Dictionary):
    """A dense encoder and a dense decoder with unit-norm directions.

    Args:
        decoder_bias: whether a bias is subtracted before encoding and added after decoding (in a transcoder: only
            added).
        encoder_bias: whether latents have a bias.
        tied: whether the encoder is the decoder's transpose, W_enc = W_dec; not for transcoders.
        skip_connection: whether a transcoder adds a linear map W_skip of its input to the reconstruction (Paulo et
            al. 2025, arXiv 2501.18823).
    """

    sharded = ("W_enc", "b_enc", "W_dec")
    is_separable = True
    W_dec: nn.Parameter
    b_enc: Tensor
    b_dec: Tensor
    W_skip: nn.Parameter

    def __init__(
        self,
        decoder_bias: bool = True,
        encoder_bias: bool = True,
        tied: bool = False,
        skip_connection: bool = False,
    ):
        nn.Module.__init__(self)
        self.decoder_bias = decoder_bias
        self.encoder_bias = encoder_bias
        self.tied = tied
        self.skip_connection = skip_connection

    def setup(self, sizes: Sizes) -> None:
        self._check(sizes)
        self.sizes, mesh = sizes, sizes.mesh
        weight, out = self.start(sizes, sizes.generator())
        if not self.tied:
            self.W_enc = nn.Parameter(mesh.local_latents(weight))
        self.W_dec = nn.Parameter(mesh.local_latents(out).clone())
        self._hold("b_enc", sizes.local_latents, self.encoder_bias)
        self._hold("b_dec", sizes.d_out, self.decoder_bias)
        if self.skip_connection:
            self.W_skip = nn.Parameter(torch.zeros(sizes.d_out, sizes.d_in))
        self.after_step()

    def start(self, sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starting weights of encoder and decoder, all latents' [L, D]; the decoder's are brought to unit norm."""
        bound = 1 / math.sqrt(sizes.d_in)
        weight = torch.empty(sizes.n_latents, sizes.d_in).uniform_(-bound, bound, generator=generator)
        return weight, torch.randn(sizes.n_latents, sizes.d_out, generator=generator) if sizes.is_transcoder else weight

    def _check(self, sizes: Sizes) -> None:
        if self.tied and sizes.is_transcoder:
            raise ValueError("tied weights are for SAEs: a transcoder reads and writes different rows")
        if self.skip_connection and not sizes.is_transcoder:
            raise ValueError("skip_connection is for transcoders: an SAE could copy its input through it (set d_out)")

    def _hold(self, name: str, size: int, trained: bool) -> None:
        if trained:
            setattr(self, name, nn.Parameter(torch.zeros(size)))
        else:
            self.register_buffer(name, torch.zeros(size))

    @property
    def encoder(self) -> Tensor:
        """The encoder's weight, [L, D]."""
        return self.W_dec if self.tied else self.W_enc

    @torch.no_grad()
    def initialise(self, sample: Tensor, target: Tensor, activation: Activation, generator: torch.Generator) -> None:
        if self.decoder_bias:
            self.b_dec.copy_(geometric_median(target[:MEDIAN_ROWS]))
        if self.tied:
            return
        if self.sizes.is_transcoder:
            probes, wanted = sample[:PROBES], (target[:PROBES] - self.b_dec).norm(dim=1).mean()
        else:
            probes = torch.randn(PROBES, sample.shape[1], generator=generator).to(sample)
            # As long as rows are, because thresholds of an activation may be in that unit.
            wanted = torch.tensor(math.sqrt(sample.shape[1])).to(sample)
            probes = probes * (wanted / probes.norm(dim=1, keepdim=True)) + self.b_dec
        norm = self._without_bias(probes, activation).norm(dim=1).mean()
        if norm > 0 and wanted > 0:
            self.W_enc.mul_(wanted / norm)
        if not self.sizes.is_transcoder:
            self._fit_encoder(sample[:PROBES], activation)

    def _fit_encoder(self, rows: Tensor, activation: Activation) -> None:
        """Scale the encoder by <x_hat, x> / <x_hat, x_hat>, unless codes that jump at a threshold make that worse."""
        x_hat, wanted = self._without_bias(rows, activation), rows - self.b_dec
        factor = (x_hat * wanted).sum() / x_hat.square().sum()
        if not (factor.isfinite() and factor > 0):
            return
        self.W_enc.mul_(factor)
        if (self._without_bias(rows, activation) - wanted).norm() > (x_hat - wanted).norm():
            self.W_enc.div_(factor)

    def _without_bias(self, rows: Tensor, activation: Activation) -> Tensor:
        return self.decode(activation.forward_train(self.pre(rows))) - self.b_dec

    def pre(self, x: Tensor) -> PreActivations:
        terms = self.terms_for(self.encoder)
        return DensePre(self, x, self.centre(x), self.encoder, self.b_enc, self.sizes.mesh, terms)

    def centre(self, x: Tensor) -> Tensor:
        """What is subtracted from rows [B, D] before encoding; [D]."""
        return x.new_zeros(x.shape[1]) if self.sizes.is_transcoder else self.sizes.mesh.replicated(self.b_dec)

    def decode(self, codes: Codes, frozen: bool = False) -> Tensor:
        weight, bias = (self.W_dec.detach(), self.b_dec.detach()) if frozen else (self.W_dec, self.b_dec)
        terms = None if frozen else self.terms_for(self.W_dec)
        return self.sizes.mesh.sum_over_shards(decode(codes, weight, terms)) + bias

    def decode_among(self, codes: Codes, latents: Tensor) -> Tensor:
        if not self._is_plain() or codes.values.shape[1] * DENSE_SHARE <= len(latents):
            return super().decode_among(codes, latents)
        dense = codes.values.new_zeros(len(codes), len(latents)).scatter(1, codes.indices, codes.values)
        weight = take(self.W_dec, latents, self.terms_for(self.W_dec))
        return self.sizes.mesh.sum_over_shards(dense.to(weight.dtype) @ weight) + self.b_dec

    def skip(self, x: Tensor) -> Tensor | None:
        return F.linear(x, self.W_skip) if self.skip_connection else None

    def bias(self) -> Tensor:
        return self.b_dec

    def directions(self) -> Tensor:
        return self.W_dec

    @torch.no_grad()
    def fold(self, read: Fixed, written: Fixed) -> Tensor:
        # One factor for all latents, so that those with the largest codes stay the same. Where sites have scales of
        # their own, directions then are not of unit norm: what they write in the data's units is not either.
        size = written.size.square().mean().sqrt()
        factor = size.expand(len(self.W_dec)).clone()
        self.W_dec.mul_(written.size / size)
        self.fold_reading(read, factor)
        self.b_enc.mul_(factor)
        self.b_dec.copy_(self.b_dec * written.size + written.mean)
        if self.skip_connection:
            self.W_skip.copy_(written.size.expand(self.sizes.d_out)[:, None] * self.W_skip / read.size)
            self.b_dec.sub_(self.W_skip @ read.mean)
        return factor

    def fold_reading(self, read: Fixed, factor: Tensor) -> None:
        """Make the encoder read unscaled rows and answer `factor` [L] times larger, but for the bias's own part."""
        if self.sizes.is_transcoder:
            self.b_enc.sub_(self.W_enc @ (read.mean / read.size))
        if not self.tied:
            self.W_enc.mul_(factor[:, None] / read.size)

    def latent_rows(self) -> dict[Tensor, bool]:
        if not self._is_plain() or type(self).before_step is not Dense.before_step:
            return {}
        return {self.W_dec: True} if self.tied else {self.W_enc: False, self.W_dec: True}

    def latent_bias(self) -> Tensor:
        return self.b_enc if self.encoder_bias else super().latent_bias()

    @torch.no_grad()
    def reset_latents(self, latents: Tensor, read: Tensor, written: Tensor, size: float) -> None:
        if not self._is_plain():
            super().reset_latents(latents, read, written, size)
        if not self.tied:
            self.W_enc[latents] = (size * F.normalize(read, dim=1)).to(self.W_enc.dtype)
        self.W_dec[latents] = F.normalize(written, dim=1).to(self.W_dec.dtype)
        self.b_enc[latents] = 0

    @torch.no_grad()
    def set_bias(self, bias: Tensor) -> None:
        if not self._is_plain():
            super().set_bias(bias)
        if not self.sizes.is_transcoder:
            moved = bias.double() - self.b_dec.double()
            self.b_enc.copy_(self.b_enc.double() + self.encoder.double() @ moved)
        self.b_dec.copy_(bias)

    @torch.no_grad()
    def untied(self) -> "Dense":
        """The same two maps with an encoder, a decoder and biases of their own, whatever was shared or left out."""
        free = Dense(skip_connection=self.skip_connection)
        free.setup(self.sizes)
        free.to(self.W_dec).in_use = True
        free.load_state_dict({"W_enc": self.encoder} | self.state_dict())
        return free.train(self.training)

    @torch.no_grad()
    def set_directions(self, directions: Tensor) -> None:
        if self.tied or not self._is_plain():
            super().set_directions(directions)
        self.W_dec.copy_(directions)

    def _is_plain(self) -> bool:
        """Whether the weights are whole [L, D] matrices; a variant may keep a part of each row only."""
        return self.directions() is self.W_dec and self.encoder.shape[1] == self.sizes.d_in

    @torch.no_grad()
    def unit_directions(self) -> Tensor:
        norms = self.W_dec.norm(dim=1)
        if not self.tied:
            self.W_enc.mul_(norms[:, None])
            self.b_enc.mul_(norms)
        self.after_step()
        return torch.ones_like(norms) if self.tied else norms

    @torch.no_grad()
    def before_step(self) -> None:
        grad = self.W_dec.grad
        if grad is not None:
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def after_step(self) -> None:
        if not (self.gradients and self.gradients.is_unit(self.W_dec)):
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))


def geometric_median(rows: Tensor, tolerance: float = 1e-6, max_rounds: int = 200) -> Tensor:
    """The point with the least mean distance to the rows [n, D], by Weiszfeld's iteration; [D]."""
    point = rows.mean(0)
    for _ in range(max_rounds):
        # A row on the point itself would have infinite weight; the bound keeps the step finite.
        weights = 1 / (rows - point).norm(dim=1).clamp_min(1e-8)
        moved = weights @ rows / weights.sum()
        shift = (moved - point).norm()
        point = moved
        if shift <= tolerance * point.norm().clamp_min(1e-12):
            break
    return point
