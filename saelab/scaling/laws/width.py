"""WidthLaw: the loss at convergence against the number of latents, at one k.

    L(n) = a n^b + e

Gao et al. 2024 (arXiv 2406.04093), as we read it; b is negative, e is what no width removes.
"""

from saelab.scaling.law import Grid, Law, Parameter


class WidthLaw(Law):
    """L(n) = a n^b + e.

    Args:
        irreducible: whether e is fitted, or taken to be zero.
    """

    variables = ("n",)
    target = "loss"
    reducible = (Parameter("ln_a", (), "a"), Parameter("b", ("n",)))
    floor = (Parameter("ln_e", (), "e"),)
    grid = Grid({"n": 4})
