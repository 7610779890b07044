"""Refining codes: the best values for the latents that are active, to see how far an activation shrinks its codes.

    minimise over f  ||x - (f @ W_dec + b_dec)||^2      latents that are not active stay so, no value changes its sign

Dictionary and support are frozen (Gao et al. 2024, arXiv 2406.04093, Section 5.1 and Figure 6, as we read it): codes
that an L1 penalty shrank move up as a whole, codes of TopK hardly move. For positive codes it is non-negative least
squares on the K directions of a row, here for all rows at once by a projected Newton method (Bertsekas 1982, SIAM J.
Control Optim. 20, 221-246) in float64. Which latents should be active is not asked.
"""

# Shape letters: B rows of a block, D width, K kept per row.

import torch
from torch import Tensor

from saelab.core.codes import Codes
from saelab.sae.autoencoder import Autoencoder

BLOCK_ENTRIES = 1 << 22
"""Entries of the directions and products [B, K, D + 3 K] that are held at once, 8 bytes each."""
TOLERANCE = 1e-10
"""Largest violation of the optimality conditions, as a share of the row's norm."""
RIDGE = 1e-11
"""Added to products of unit directions, so that directions that depend on each other can be solved for."""
HALVINGS = 40
SLOPE = 1e-4
"""Share of the descent that the gradient promises which a step has to keep; Armijo's rule."""


@torch.no_grad()
def refine(sae: Autoencoder, x: Tensor, codes: Codes, rounds: int = 100, target: Tensor | None = None) -> Codes:
    """The codes with the values that reconstruct best, each of its old sign or zero.

    No row's error becomes larger. The error is that of scaled rows, which is the one in the data's units where a
    row has one scale.

    Args:
        sae: whose directions are summed; on one process.
        x: rows [B, D].
        codes: of these rows.
        rounds: Newton steps at most. A row stops at its solution, mostly after fewer than ten; where directions nearly
            depend on each other it takes dozens.
        target: what a transcoder is to reconstruct [B, d_out].

    Returns:
        Codes with the same entries, compact if they were full.

    Raises:
        ValueError: for rows that are not those of the codes, `rounds` below 1, or an SAE dealt to several shards.
    """
    if sae.mesh.shards > 1:
        raise ValueError("codes are refined in one process: load the saved SAE there")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    codes = codes.compact() if codes.is_full else codes
    rest = _without_latents(sae, x, codes, target)
    directions, kept = sae.dictionary.directions(), codes.values.shape[1]
    size = max(1, BLOCK_ENTRIES // max(1, kept * (directions.shape[1] + 3 * kept)))
    blocks = zip(rest.split(size), codes.values.split(size), codes.indices.split(size), strict=True)
    found = [_refined(rows, values, directions[indices], rounds) for rows, values, indices in blocks]
    return codes.with_values(torch.cat(found))


def _without_latents(sae: Autoencoder, x: Tensor, codes: Codes, target: Tensor | None) -> Tensor:
    """What is left for the latents to reconstruct, in scaled units; [B, D]."""
    if x.ndim != 2 or x.shape[1] != sae.d_in or len(x) != len(codes):
        raise ValueError(f"expected the codes' {len(codes)} rows [B, {sae.d_in}], got {list(x.shape)}")
    scaled = sae.scale.apply_to(x, codes.row_scale)
    wanted = scaled
    if sae.d_out:
        if target is None or target.shape != (len(x), sae.d_out):
            raise ValueError(f"a transcoder needs the rows to reconstruct: give target [{len(x)}, {sae.d_out}]")
        wanted = sae.target_scale.apply_to(target)
    elif target is not None:
        raise ValueError("target is for transcoders; an SAE reconstructs x")
    skipped = sae.dictionary.skip(scaled)
    return wanted - sae.dictionary.bias() - (0 if skipped is None else skipped)


def _refined(rows: Tensor, values: Tensor, directions: Tensor, rounds: int) -> Tensor:
    """Values [B, K] for rows [B, D] and the directions [B, K, D] of their entries."""
    # With directions of unit norm and the sign of their values, every value is at least 0; unused entries have none.
    signed = directions.double() * values.sign().double()[:, :, None]
    norms = signed.norm(dim=2)
    unit = signed / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, :, None]
    gram, aim = unit @ unit.mT, (unit @ rows.double()[:, :, None])[:, :, 0]
    start = values.double().abs() * norms
    found = _non_negative(gram, aim, start, TOLERANCE * rows.double().norm(dim=1), rounds)
    new = (values.sign() * (found / norms)).to(values.dtype).where(norms > 0, values)
    # Counted with the values as they are rounded: what does not gain by it stays as it was, bit for bit.
    change = new.double().abs() * norms - start
    gain = _gain(gram, _slope(gram, aim, start), change)
    return new.where((gain > 0)[:, None], values)


def _non_negative(gram: Tensor, aim: Tensor, start: Tensor, tolerance: Tensor, rounds: int) -> Tensor:
    """Where u . gram u / 2 - aim . u is least over u >= 0, by descent from `start`.

    Args:
        gram: [B, K, K], ones or zeros on the diagonal; aim, start: [B, K].
        tolerance: largest |min(u, gradient)| at which a row [B] is done.
        rounds: steps at most.
    """
    found = start.clone()
    todo = torch.arange(len(start), device=start.device)
    for _ in range(rounds):
        slope = _slope(gram[todo], aim[todo], found[todo])
        violation = torch.minimum(found[todo], slope).abs().amax(1) if start.shape[1] else tolerance[todo]
        open_ = violation > tolerance[todo]
        todo, slope = todo[open_], slope[open_]
        if not len(todo):
            break
        moved = _step(gram[todo], slope, found[todo])
        # A row that rounding keeps from descending any further is done too.
        changed = (moved != found[todo]).any(1)
        found[todo] = moved
        todo = todo[changed]
    return found


def _step(gram: Tensor, slope: Tensor, u: Tensor) -> Tensor:
    """One projected Newton step from u [B, K] with the gradient `slope`, halved until the objective falls enough."""
    # Entries at or near zero that want to be lower go down by the gradient alone: the others' coupling would lift them.
    near = (u - (u - slope).clamp_min(0)).norm(dim=1, keepdim=True).clamp_max(1e-3 * u.amax(1, keepdim=True))
    bound = (slope > 0) & (u <= near)
    free = ~bound
    identity = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    system = torch.where(free[:, :, None] & free[:, None, :], gram, 0) * (1 - identity) + (1 + RIDGE) * identity
    direction = -torch.cholesky_solve(slope[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
    promised = -(slope * direction).where(free, 0).sum(1)
    result, waiting = u.clone(), torch.ones(len(u), dtype=torch.bool, device=u.device)
    for halving in range(HALVINGS):
        length = 0.5**halving
        moved = (u + length * direction).clamp_min(0)
        enough = length * promised + (slope * (u - moved)).where(bound, 0).sum(1)
        good = waiting & (_gain(gram, slope, moved - u) >= SLOPE * enough)
        result = moved.where(good[:, None], result)
        waiting = waiting & ~good
        if not waiting.any():
            break
    return result


def _slope(gram: Tensor, aim: Tensor, u: Tensor) -> Tensor:
    """The objective's gradient [B, K]."""
    return (gram @ u[:, :, None])[:, :, 0] - aim


def _gain(gram: Tensor, slope: Tensor, change: Tensor) -> Tensor:
    """By how much the objective falls when u changes; [B]."""
    return -(slope * change).sum(1) - (change * (gram @ change[:, :, None])[:, :, 0]).sum(1) / 2
