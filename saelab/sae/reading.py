"""Reading a trained SAE with another activation: another k, or one threshold in the place of a k.

    TopK(k')        for a sweep of k' other than the one it was trained with
    JumpReLU(θ)     f = pre * 1[pre > θ], θ chosen so that the mean L0 is what is wanted (`threshold_for`), or one a
                    latent that is known (`thresholded`)

Plain TopK over-fits its k, and a fixed threshold reads about as well as a fixed k at the same mean L0 (Gao et al. 2024,
arXiv 2406.04093, as we read it). Nothing is trained here: thresholds that differ from latent to latent are learnt by
the activations that have them.
"""

# Shape letters: n rows, B rows of a block, D input width, L latents.

import copy

import torch
from torch import Tensor, nn

from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.base import Activation, Sizes
from saelab.sae.quantile import BLOCK_ENTRIES, threshold_over
from saelab.sae.sae import SAE


def reread(sae: SAE, activation: Activation) -> SAE:
    """The same SAE read through another activation, without losses; it can be saved like any other.

    Dictionary, scaling and counters are the same objects in both, no weight is copied: what is trained or folded in
    one changes under the other too.

    Args:
        sae: a trained SAE.
        activation: a new one, e.g. `TopK(k=8)`; it is set up for the SAE's sizes, on its device. One that an SAE has
            already is copied, settings only.

    Raises:
        ValueError: for an activation that does not fit the sizes, or that is the SAE's own.
    """
    if activation is sae.activation:
        raise ValueError("activation belongs to the SAE already; give a new one")
    activation = Activation.unused(activation)
    activation.setup(Sizes(sae.d_in, sae.d_out or sae.d_in, sae.n_latents, bool(sae.d_out), sae.seed, sae.mesh))
    activation.in_use = True
    other = copy.copy(sae)
    # A shallow copy shares the tables of parts with the original, which must keep its own activation and losses.
    other._modules, other._buffers = dict(sae._modules), dict(sae._buffers)
    other.activation = activation.to(sae.device, sae.dtype).train(sae.training)
    other.losses = nn.ModuleList()
    return other


@torch.no_grad()
def thresholded(sae: SAE, thresholds: Tensor) -> SAE:
    """The same SAE read as f = pre * 1[pre > threshold] with a threshold of its own for each latent, [L], at least 0.

    What is shared and raised is as in `reread`.
    """
    activation = JumpReLU(threshold=0.0)
    other = reread(sae, activation)
    activation.log_threshold.copy_(thresholds.double().log())
    return other


@torch.no_grad()
def threshold_for(sae: SAE, rows: Tensor, l0: float) -> float:
    """The threshold on pre-activations over which `l0` latents of a row lie on average.

    It is exact: round(l0 * n) pre-activations of these rows lie above it (see `saelab.sae.quantile`).

    Args:
        sae: whose pre-activations; on one process.
        rows: rows to count on [n, D], in the units of the data.
        l0: latents of a row to lie above it on average, more than 0.

    Raises:
        ValueError: for an `l0` that is not positive or that more than the positive pre-activations would have to
            make up, rows of another width or none, or an SAE that is dealt to several shards.
    """
    _check(sae, rows, l0)
    wanted = max(1, round(l0 * len(rows)))
    blocks = rows.to(sae.device).split(max(1, BLOCK_ENTRIES // sae.n_latents))
    threshold, found = threshold_over((sae.dictionary.pre(sae.scale.apply_to(part)).dense() for part in blocks), wanted)
    if found < wanted:
        most = found / len(rows)
        raise ValueError(f"l0 must be at most {most:.4g}, the mean number of positive pre-activations; got {l0}")
    return threshold


def _check(sae: SAE, rows: Tensor, l0: float) -> None:
    if sae.mesh.shards > 1:
        raise ValueError("a threshold is computed in one process: load the saved SAE there")
    if rows.ndim != 2 or rows.shape[1] != sae.d_in or not len(rows):
        raise ValueError(f"expected rows of shape [n, {sae.d_in}] with n >= 1, got {list(rows.shape)}")
    if not 0 < l0 <= sae.n_latents:
        raise ValueError(f"l0 must be above 0 and at most the number of latents, {sae.n_latents}; got {l0}")
