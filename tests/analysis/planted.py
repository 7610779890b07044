"""SAEs with chosen weights and rows for tests of analyses, and the same arithmetic written out in float64."""

import torch
from torch import Tensor

from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.base import Activation
from saelab.sae.sae import SAE


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sae_with(
    directions: Tensor, activation: Activation | None = None, bias: Tensor | None = None, seed: int = 0
) -> SAE:
    """An SAE with these directions [L, D], brought to unit norm, which are nearly its encoder too."""
    n_latents, d_in = directions.shape
    sae = SAE(d_in, n_latents, activation or ReLU(l1=0.0), seed=seed)
    unit = directions / directions.norm(dim=1, keepdim=True)
    sae.dictionary.W_dec.copy_(unit)
    sae.dictionary.W_enc.copy_(unit + 0.05 * drawn(n_latents, d_in, seed=seed + 1) / d_in**0.5)
    sae.dictionary.b_enc.copy_(-0.1 + 0.05 * drawn(n_latents, seed=seed + 2))
    sae.dictionary.b_dec.copy_(0.1 * drawn(d_in, seed=seed + 3) if bias is None else bias)
    return sae


def codes_by_hand(sae: SAE, x: Tensor) -> Tensor:
    """[n, L] float64, of an SAE with ReLU or JumpReLU, from its weights and scaling."""
    d = sae.dictionary
    x = (x.double() - sae.scale.mean.double()) / sae.scale.scale.double()
    pre = (x - d.b_dec.double()) @ d.W_enc.double().T + d.b_enc.double()
    theta = sae.activation.theta.double() if isinstance(sae.activation, JumpReLU) else 0.0
    return (pre * (pre > theta)).detach()


def decoded_by_hand(sae: SAE, codes: Tensor) -> Tensor:
    x_hat = codes @ sae.dictionary.W_dec.double() + sae.dictionary.b_dec.double()
    return (x_hat * sae.scale.scale.double() + sae.scale.mean.double()).detach()
