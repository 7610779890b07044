"""RateLaw: the best learning rate against the number of latents.

    lr*(n) = a n^c          c = -1/2 in Gao et al. 2024 (arXiv 2406.04093), as others report it

`saelab.scaling.envelope.best_rates` finds lr* at each width from cells that differ in their rates only.
"""

from saelab.scaling.law import Grid, Law, Parameter


class RateLaw(Law):
    """lr*(n) = a n^c.

    Args:
        irreducible: has no meaning here: the best rate has no floor.
    """

    variables = ("n",)
    target = "best_lr"
    reducible = (Parameter("ln_a", (), "a"), Parameter("c", ("n",)))
    grid = Grid({"n": 3})
