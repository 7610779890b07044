"""PAM-SGD: the encoder follows its gradient, the decoder is refitted in closed form.

After every round of `every` rows, from the latest `rows` rows and their codes F under the encoder as it is now:

    W_dec = (F^T F + ridge I)^-1 F^T (target - b_dec)

and directions are brought to unit norm with pre-activations rescaled. In between no gradient reaches W_dec, and the
encoder is held close to where it was at the last refit (proximal alternating minimisation):

    gradient of W_enc += 2 mu (W_enc - W_enc at the refit)
    gradient of b_enc += 2 nu (b_enc - b_enc at the refit)

SplInterp (2025, arXiv 2505.11836), as we read it; ridge, mu and nu are the defaults of the authors'
script. Codes are those of rows that are read, in the units of the scaled input; b_dec follows its gradient. A latent
that is active on none of the rows keeps its direction. Bringing directions to unit norm leaves the reconstruction as it
is for activations that scale with their input (ReLU); one that compares latents (TopK) may choose others afterwards.
The system is L x L and solved in float64. Weights in one process only; replicas each solve the same system.
"""

# Shape letters: B rows of a batch, N rows kept, D width, L latents.

import torch
from torch import Tensor
from torch.nn import Module

from saelab.sae.base import Composed, Forward
from saelab.sae.sae import SAE
from saelab.train.algorithm import Algorithm, Training, all_rows

MOST_LATENTS = 8192
"""Beyond this the system and its factor take more than a gigabyte and minutes."""
BLOCK = 4096
"""Rows that are encoded at once."""


class ClosedFormDecoder(Algorithm):
    """Refit the decoder by ridge regression now and then; in between only the encoder learns.

    Args:
        every: rows between two refits.
        rows: how many of the latest rows the decoder is fitted to.
        ridge: weight of the directions' squared entries in the fit, above 0.
        mu: how strongly the encoder's weight is held to where it was at the last refit; 0 lets it go.
        nu: the same for the latents' bias.
    """

    sharded = ("start_weight", "start_bias")
    kept: Tensor
    kept_targets: Tensor
    seen: Tensor
    start_weight: Tensor
    start_bias: Tensor

    def __init__(
        self, every: int = 65_536, rows: int = 16_384, ridge: float = 1e-5, mu: float = 1e-3, nu: float = 1e-3
    ):
        Module.__init__(self)
        self.every = every
        self.rows = rows
        self.ridge = ridge
        self.mu = mu
        self.nu = nu

    def setup(self, sae: SAE) -> None:
        self._check(sae)
        dictionary, like = sae.dictionary, sae.variance
        dictionary.set_directions(dictionary.directions())  # says now if it cannot be done
        self.register_buffer("kept", like.new_zeros(self.rows, sae.d_in))
        self.register_buffer("kept_targets", like.new_zeros(self.rows, sae.d_out or sae.d_in))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=like.device))
        if self.mu:
            self.register_buffer("start_weight", dictionary.encoder.detach().clone())
        if self.nu:
            self.register_buffer("start_bias", dictionary.latent_bias().detach().clone())

    def _check(self, sae: Composed) -> None:
        self.check_every()
        if self.rows < 1:
            raise ValueError(f"ClosedFormDecoder: rows must be at least 1, got {self.rows}")
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ClosedFormDecoder: ridge must be positive and finite, got {self.ridge}")
        for name in ("mu", "nu"):
            if not 0 <= getattr(self, name) < float("inf"):
                got = getattr(self, name)
                raise ValueError(f"ClosedFormDecoder: {name} must not be negative, infinite or NaN, got {got}")
        if sae.n_latents > MOST_LATENTS:
            raise ValueError(f"ClosedFormDecoder: at most {MOST_LATENTS} latents, this SAE has {sae.n_latents}")
        if sae.mesh.shards > 1:
            raise ValueError("ClosedFormDecoder: latents cannot be split over several shards; use replicas")

    def no_effect_warning(self, rows: int) -> str | None:
        if rows >= self.every:
            return None
        return f"ClosedFormDecoder never refits: {rows:,} rows are less than one round of every = {self.every:,} rows"

    @torch.no_grad()
    def before_step(self, trainer: Training, step: Forward) -> None:
        dictionary = step.sae.dictionary
        if not trainer.step_number:
            self._mark(step.sae)
        dictionary.directions().grad = None
        if self.mu and dictionary.encoder.grad is not None:
            dictionary.encoder.grad.add_(dictionary.encoder - self.start_weight, alpha=2 * self.mu)
        bias = dictionary.latent_bias() if self.nu else None
        if bias is not None and bias.grad is not None:
            bias.grad.add_(bias - self.start_bias, alpha=2 * self.nu)

    @torch.no_grad()
    def after_step(self, trainer: Training, step: Forward) -> None:
        mesh = step.sae.mesh
        self._keep(all_rows(mesh, step.x), all_rows(mesh, step.target))
        if self.round(trainer, step) is not None:
            count = min(self.rows, int(self.seen))
            refit(step.sae, self.kept[:count], self.kept_targets[:count], self.ridge)
            self._mark(step.sae)

    def _keep(self, x: Tensor, target: Tensor) -> None:
        """Let rows take the places of the oldest kept."""
        x, target = x[-self.rows :], target[-self.rows :]
        places = (torch.arange(len(x), device=x.device) + self.seen) % self.rows
        self.kept[places], self.kept_targets[places] = x.to(self.kept), target.to(self.kept)
        self.seen += len(x)

    def _mark(self, sae: Composed) -> None:
        """Remember the encoder as it is now."""
        if self.mu:
            self.start_weight.copy_(sae.dictionary.encoder)
        if self.nu:
            self.start_bias.copy_(sae.dictionary.latent_bias())


@torch.no_grad()
def refit(sae: Composed, x: Tensor, target: Tensor, ridge: float) -> None:
    """Replace directions by those that decode scaled rows [N, D] best, at unit norm with pre-activations rescaled."""
    dictionary = sae.dictionary
    products = x.new_zeros(sae.n_latents, sae.n_latents, dtype=torch.float64)
    moments = x.new_zeros(sae.n_latents, target.shape[1], dtype=torch.float64)
    for rows, wanted in zip(x.split(BLOCK), target.split(BLOCK), strict=True):
        codes = sae.activation(dictionary.pre(rows)).dense().double()
        skipped = dictionary.skip(rows)
        wanted = wanted - dictionary.bias() if skipped is None else wanted - dictionary.bias() - skipped
        products.addmm_(codes.T, codes)
        moments.addmm_(codes.T, wanted.double())
    products.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(products)
    if failed:
        raise ValueError(f"ClosedFormDecoder: the refit cannot be solved with ridge = {ridge}; raise ridge")
    directions = torch.cholesky_solve(moments, factor)
    unused = (directions == 0).all(1, keepdim=True)
    own = dictionary.directions()
    dictionary.set_directions(torch.where(unused, own, directions.to(own.dtype)))
    sae.unit_directions()
