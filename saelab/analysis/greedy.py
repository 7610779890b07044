"""The order of a way from one SAE to another that takes, at every step, what helps most as things stand then.

With e the error so far and c_g what the step g changes in the reconstruction of a row,

    delta_g  =  mean( ||c_g||^2 - 2 e . c_g )                 and after step h:   delta_g += 2 mean( c_g . c_h )

so that a step costs a look at the rows in which it changes something, and the order is the greedy one exactly: two
latents that bring the same are not both taken for the help of one.
"""

# Shape letters: n rows, K entries of a row, D width, C components.

import torch
from torch import Tensor

from saelab.analysis.assembled import contributed
from saelab.kernels.decode import dot_at
from saelab.kernels.sums import bag
from saelab.sae.sae import SAE

ROWS = 16_384
"""Rows, evenly spaced, that the order is worked out on."""
BLOCK_ROWS = 256


@torch.no_grad()
def greedy_order(small: SAE, large: SAE, group: Tensor, phase: Tensor, x: Tensor) -> Tensor:
    """Components phase after phase, within a phase always the one that lowers the mean squared error the most.

    Args:
        small: as `independent` gives it.
        large: likewise.
        group: component of each latent, the small SAE's first, [L0 + L1].
        phase: of each component, [C].
        x: rows to work it out on, [n, D]; ROWS of them are used.

    Returns:
        Numbers of components [C].
    """
    x = x[:: -(-len(x) // ROWS)].to(small.device, small.dtype)
    weight = torch.cat([small.data_directions(), large.data_directions()]).detach().contiguous()
    group, count = group.to(weight.device), len(phase)
    latents, values = _signed(small, large, x)
    components = group[latents]
    places = _rows_of(components, values, count)
    error, delta = x - small(x), torch.zeros(count, dtype=torch.float64, device=weight.device)
    for g, rows in enumerate(places):
        change = _change(latents, values, components, weight, rows, g)
        delta[g] = (change.square() - 2 * error[rows] * change).double().sum()
    found = []
    for number in phase.unique().tolist():
        left = phase.to(delta.device) == number
        for _ in range(int(left.sum())):
            g = int(delta.where(left, torch.inf).argmin())
            left[g] = False
            found.append(g)
            rows = places[g]
            change = _change(latents, values, components, weight, rows, g)
            dots = 2 * values[rows] * dot_at(latents[rows], change, weight)
            delta.index_add_(0, components[rows].flatten(), dots.double().flatten())
    return torch.tensor(found)


def _signed(small: SAE, large: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [n, K], the large SAE's numbered on, and values, the small SAE's negative, of rows x."""
    parts = []
    for sae, offset, sign in ((small, 0, -1), (large, small.n_latents, 1)):
        blocks = [contributed(sae, block) for block in x.split(BLOCK_ROWS)]
        width = max(block.values.shape[1] for block in blocks)
        for kind in ("indices", "values"):
            padded = [_padded(getattr(block, kind), width) for block in blocks]
            parts.append(torch.cat(padded) + offset if kind == "indices" else sign * torch.cat(padded))
    return torch.cat(parts[::2], 1), torch.cat(parts[1::2], 1)


def _padded(part: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]))


def _rows_of(components: Tensor, values: Tensor, count: int) -> tuple[Tensor, ...]:
    """For each component the rows in which it has an active latent, each once."""
    row, slot = (values != 0).nonzero().unbind(1)
    keys = (components[row, slot] * len(values) + row).unique()
    sizes = torch.bincount(keys // len(values), minlength=count)
    return (keys % len(values)).split(sizes.tolist())


def _change(latents: Tensor, values: Tensor, components: Tensor, weight: Tensor, rows: Tensor, g: int) -> Tensor:
    """What a component's step changes in the reconstructions of some rows, [n, D]."""
    own = values[rows].where(components[rows] == g, 0)
    return bag(latents[rows], weight, own)
