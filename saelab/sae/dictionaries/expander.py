"""A sparse dictionary: every latent reads and writes the same few of the D inputs.

    pre_l   = sum over j of W_dec[l, j] * (x - b_dec)[inputs[l, j]] + b_enc[l]        W_dec [L, d], inputs [L, d]
    x_hat_i = sum over latents l and j with inputs[l, j] = i of f_l * W_dec[l, j] + b_dec[i]

Expander SAE (arXiv 2607.01799): the support of the directions is a random bipartite graph in which every latent has d
inputs, drawn once and fixed; a random such graph is an expander with high probability. Encoder and decoder are tied,
directions have unit norm. So there are d L weights instead of 2 D L, and neither the pre-activations nor decoding ever
hold [L, D]. Here every input is used by nearly the same number of latents, which is our choice, and the activation may
be any (the paper's is TopK without a ReLU). Re-sampling of dead latents and matching pursuit are left out.

`directions()` makes the [L, D] matrix on demand: metrics and losses that look at directions pay for it.
"""

# Shape letters: B rows, D input width, L latents, K kept per row, d inputs of a latent.

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.core.codes import Codes, Entries
from saelab.core.mesh import ALONE, Mesh
from saelab.kernels.decode import DENSE_SHARE
from saelab.kernels.select import BLOCK_ROWS
from saelab.sae.base import Dictionary, PreActivations, Sizes
from saelab.sae.dictionaries.dense import Dense


class ExpanderPre(PreActivations):
    """Pre-activations of latents with d inputs each."""

    def __init__(
        self,
        dictionary: Dictionary,
        x: Tensor,
        centre: Tensor,
        weight: Tensor,
        inputs: Tensor,
        bias: Tensor,
        mesh: Mesh = ALONE,
    ):
        super().__init__(dictionary, x, centre, bias, mesh)
        self.weight, self.inputs = weight, inputs

    def all(self) -> Tensor:
        return self._through(self.weight, self.inputs) + self.bias

    def for_latents(self, latents: Tensor) -> Tensor:
        return self._through(self.weight[latents], self.inputs[latents]) + self.bias[latents]

    def _through(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """[B, n] for n latents: each adds up the columns of its inputs, so that no [B, n, d] is needed."""
        columns = self.centred.T.contiguous()
        return F.embedding_bag(inputs, columns, per_sample_weights=weight.to(columns.dtype), mode="sum").T

    def for_rows(self, centred: Tensor) -> "ExpanderPre":
        centre = torch.zeros_like(self.centre)
        return ExpanderPre(self.dictionary, centred, centre, self.weight, self.inputs, self.bias, self.mesh)

    def local_topk(self, k: int, absolute: bool) -> tuple[Tensor, Entries]:
        if self._dense is not None:
            return super().local_topk(k, absolute)
        with torch.no_grad():  # some rows at a time, so that not even [B, L] is held
            parts = []
            for rows in self.centred.split(BLOCK_ROWS):
                pre = self.for_rows(rows).all()
                parts.append((pre.abs() if absolute else pre).topk(k, dim=1).indices)
            chosen = torch.cat(parts)
        # Worked out again at the chosen entries, which makes the backward pass O(B K d) instead of O(B L d).
        seen = self.centred.flatten()[flat(self.inputs[chosen], self.x.shape[1])]
        return (seen * self.weight[chosen]).sum(2) + self.bias[chosen], Entries(chosen, self.n_latents)


class Expander(Dense):
    """Unit-norm directions with few non-zero entries, which are the encoder too; not for transcoders.

    Args:
        degree: inputs of every latent, d; at least 1 and at most the width D.
        decoder_bias: whether a bias is subtracted before encoding and added after decoding.
        encoder_bias: whether latents have a bias.
    """

    sharded = ("W_dec", "inputs", "b_enc")
    inputs: Tensor

    def __init__(self, degree: int = 7, decoder_bias: bool = True, encoder_bias: bool = True):
        Dense.__init__(self, decoder_bias, encoder_bias, tied=True)
        self.degree = degree

    def _check(self, sizes: Sizes) -> None:
        if sizes.is_transcoder:
            raise ValueError("Expander: a latent reads what it writes, so it cannot be a transcoder: leave out d_out")
        if not 1 <= self.degree <= sizes.d_in:
            raise ValueError(f"Expander: degree must be from 1 to the width {sizes.d_in}, got {self.degree}")

    def start(self, sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = random_inputs(sizes.n_latents, sizes.d_in, self.degree, generator)
        self.register_buffer("inputs", sizes.mesh.local_latents(inputs))
        weight = torch.randn(sizes.n_latents, self.degree, generator=generator)
        return weight, weight

    def pre(self, x: Tensor) -> PreActivations:
        return ExpanderPre(self, x, self.centre(x), self.W_dec, self.inputs, self.b_enc, self.sizes.mesh)

    def decode(self, codes: Codes, frozen: bool = False) -> Tensor:
        weight, bias = (self.W_dec.detach(), self.b_dec.detach()) if frozen else (self.W_dec, self.b_dec)
        many = codes.is_full or codes.values.shape[1] * DENSE_SHARE > codes.n_latents
        total = self._decode_all(codes.dense(), weight) if many else self._decode_entries(codes, weight)
        return self.sizes.mesh.sum_over_shards(total.contiguous()) + bias  # shards add up memory, so in one layout

    def _decode_entries(self, codes: Codes, weight: Tensor) -> Tensor:
        parts = codes.values.to(weight.dtype)[:, :, None] * weight[codes.indices]  # [B, K, d]
        at, total = flat(self.inputs[codes.indices], self.sizes.d_in), weight.new_zeros(len(codes) * self.sizes.d_in)
        # Not scatter_add, which adds in any order on a GPU.
        return total.index_put((at.flatten(),), parts.flatten(), accumulate=True).view(len(codes), self.sizes.d_in)

    def _decode_all(self, values: Tensor, weight: Tensor) -> Tensor:
        """From codes [B, L]: each input adds up the columns of its latents."""
        order = self.inputs.flatten().argsort(stable=True)
        counts = torch.bincount(self.inputs.flatten(), minlength=self.sizes.d_in)
        columns = values.to(weight.dtype).T.contiguous()
        return F.embedding_bag(
            order // self.degree,
            columns,
            counts.cumsum(0) - counts,
            per_sample_weights=weight.flatten()[order],
            mode="sum",
        ).T

    def directions(self) -> Tensor:
        """Each latent's direction with its zeros; [L, D], made anew by every call."""
        return self.W_dec.new_zeros(len(self.W_dec), self.sizes.d_in).scatter(1, self.inputs.long(), self.W_dec)

    def norms(self) -> Tensor:
        return self.W_dec.norm(dim=1)


def flat(inputs: Tensor, width: int) -> Tensor:
    """Where inputs [B, ...] of each row lie among the flattened rows [B * width]."""
    rows = torch.arange(len(inputs), device=inputs.device) * width
    return inputs + rows.view(-1, *(1 for _ in inputs.shape[1:]))


def random_inputs(n_latents: int, d_in: int, degree: int, generator: torch.Generator) -> Tensor:
    """`degree` different inputs for every latent, [L, degree] int32; each input serves nearly equally many latents.

    The latents take their inputs from one random order of all inputs after the other.
    """
    orders: list[Tensor] = []
    begun = torch.empty(0, dtype=torch.int64)  # inputs of the latent that takes from two orders
    while len(orders) * d_in < n_latents * degree:
        order = torch.randperm(d_in, generator=generator)
        first = order[~torch.isin(order, begun)][: degree - len(begun)] if len(begun) else order[:0]
        order = torch.cat([first, order[~torch.isin(order, first)]])
        orders.append(order)
        over = len(orders) * d_in % degree
        begun = order[d_in - over :]
    return torch.cat(orders)[: n_latents * degree].view(n_latents, degree).to(torch.int32)
