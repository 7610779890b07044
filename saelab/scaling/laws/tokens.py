"""TokensLaw: the tokens (rows) it takes to converge, against the number of latents.

    T(n) = a n^c

Gao et al. 2024 (arXiv 2406.04093), as we read it. What counts as converged is `saelab.train.convergence`'s criterion.
"""

from saelab.scaling.law import Grid, Law, Parameter


class TokensLaw(Law):
    """T(n) = a n^c.

    Args:
        irreducible: has no meaning here: tokens to convergence have no floor.
    """

    variables = ("n",)
    target = "converged_rows"
    reducible = (Parameter("ln_a", (), "a"), Parameter("c", ("n",)))
    grid = Grid({"n": 3})
