"""JointLaw: the loss at convergence against the number of latents and the number active.

    L(n, k) = exp(alpha + beta_k ln k + beta_n ln n + gamma ln k ln n) + exp(zeta + eta ln k)

Gao et al. 2024 (arXiv 2406.04093), in the form that others report of it. The exponent in n is beta_n + gamma ln k; with
gamma < 0 it steepens as k grows. The second term is what no width removes.
"""

from saelab.scaling.law import Grid, Law, Parameter


class JointLaw(Law):
    """L(n, k), six parameters.

    Args:
        irreducible: whether the second term is fitted, or taken to be zero.
    """

    variables = ("n", "k")
    target = "loss"
    reducible = (
        Parameter("alpha", ()),
        Parameter("beta_k", ("k",)),
        Parameter("beta_n", ("n",)),
        Parameter("gamma", ("k", "n")),
    )
    floor = (Parameter("zeta", ()), Parameter("eta", ("k",)))
    grid = Grid({"n": 4, "k": 3})
