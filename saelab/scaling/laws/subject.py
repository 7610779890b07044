"""SubjectLaw: the loss at convergence against the number of latents and the size of the subject model, at one k.

    L(n, s) = exp(alpha + beta_s ln s + beta_n ln n + gamma ln s ln n) + exp(zeta + eta ln s)

s is the width of the subject's rows or its number of parameters. Gao et al. 2024 (arXiv 2406.04093) report that larger
subjects need more latents for the same error and that the exponent gets worse; the form is ours, the joint law with s
in the place of k. The exponent in n is beta_n + gamma ln s: gamma > 0 says that it gets worse with size.
"""

from saelab.scaling.law import Grid, Law, Parameter


class SubjectLaw(Law):
    """L(n, s), six parameters.

    Args:
        irreducible: whether the second term is fitted, or taken to be zero.
    """

    variables = ("n", "subject")
    target = "loss"
    reducible = (
        Parameter("alpha", ()),
        Parameter("beta_s", ("subject",)),
        Parameter("beta_n", ("n",)),
        Parameter("gamma", ("subject", "n")),
    )
    floor = (Parameter("zeta", ()), Parameter("eta", ("subject",)))
    grid = Grid({"n": 4, "subject": 3})
