"""The ordinary dictionary: two dense matrices, latents first.

    pre   = (x - b_dec) @ W_enc.T + b_enc            W_enc [L, D]
    x_hat = f @ W_dec + b_dec                        W_dec [L, D], rows of unit norm: the directions

Start (Gao et al. 2024, arXiv 2406.04093): W_enc random, W_dec = W_enc with unit rows (encoder and decoder start
parallel and are then free), b_dec the geometric median of a sample, b_enc zero, W_enc scaled so that reconstructions of
random unit vectors have unit norm. While training, the gradient of each direction loses its part along the direction,
and directions are brought back to unit norm after every step (the authors' code does so before the next step's update,
so its forward pass sees directions one step off unit norm).
"""

# Shape letters: B rows, D input width, L latents.

import math

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.mesh import ALONE, Mesh
from saelab.kernels.decode import decode
from saelab.sae.base import Activation, Dictionary, PreActivations

MEDIAN_ROWS = 32_768
PROBES = 256


class Dense(Dictionary):
    """A dense encoder and a dense decoder with unit-norm directions.

    Args:
        decoder_bias: whether a bias is subtracted before encoding and added after decoding.
    """

    sharded = ("W_enc", "b_enc", "W_dec")
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: Tensor

    def __init__(self, decoder_bias: bool = True):
        nn.Module.__init__(self)
        self.decoder_bias = decoder_bias

    def setup(self, d_in: int, n_latents: int, generator: torch.Generator, mesh: Mesh = ALONE) -> None:
        self.mesh = mesh
        bound = 1 / math.sqrt(d_in)
        weight = mesh.own_latents(torch.empty(n_latents, d_in).uniform_(-bound, bound, generator=generator))
        self.W_enc = nn.Parameter(weight)
        self.W_dec = nn.Parameter(weight.clone())
        self.b_enc = nn.Parameter(torch.zeros(len(weight)))
        if self.decoder_bias:
            self.b_dec = nn.Parameter(torch.zeros(d_in))
        else:
            self.register_buffer("b_dec", torch.zeros(d_in))
        self.after_step()

    @torch.no_grad()
    def initialise(self, sample: Tensor, activation: Activation, generator: torch.Generator) -> None:
        if self.decoder_bias:
            self.b_dec.copy_(geometric_median(sample[:MEDIAN_ROWS]))
        probes = torch.randn(PROBES, sample.shape[1], generator=generator).to(sample)
        probes /= probes.norm(dim=1, keepdim=True)
        codes = activation(self.pre(probes + self.b_dec))
        norm = (self.decode(codes) - self.b_dec).norm(dim=1).mean()
        if norm > 0:
            self.W_enc.div_(norm)

    def pre(self, x: Tensor) -> PreActivations:
        return PreActivations(x, self.mesh.shared(self.b_dec), self.W_enc, self.b_enc, self.mesh)

    def decode(self, codes: Codes) -> Tensor:
        return self.mesh.sum_over_shards(decode(codes, self.W_dec)) + self.b_dec

    def bias(self) -> Tensor:
        return self.b_dec

    def directions(self) -> Tensor:
        return self.W_dec

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: Tensor) -> None:
        # Codes grow by `scale` and directions keep unit norm: W_enc sees scale * x', so only the biases change.
        self.b_enc.mul_(scale)
        self.b_dec.copy_(self.b_dec * scale + mean)

    @torch.no_grad()
    def unit_directions(self) -> None:
        norms = self.W_dec.norm(dim=1)
        self.W_enc.mul_(norms[:, None])
        self.b_enc.mul_(norms)
        self.after_step()

    @torch.no_grad()
    def before_step(self) -> None:
        grad = self.W_dec.grad
        if grad is not None:
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def after_step(self) -> None:
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
