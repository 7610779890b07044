"""ComputeLaw: the lowest loss that an amount of training compute buys, over all widths at one k.

    L(C) = a C^b + e          on the lower envelope of the loss curves against compute

Gao et al. 2024 (arXiv 2406.04093), as we read it. `saelab.scaling.envelope` takes the envelope.
"""

from saelab.scaling.law import Grid, Law, Parameter


class ComputeLaw(Law):
    """L(C) = a C^b + e.

    Args:
        irreducible: whether e is fitted, or taken to be zero.
    """

    variables = ("compute",)
    target = "loss"
    reducible = (Parameter("ln_a", (), "a"), Parameter("b", ("compute",)))
    floor = (Parameter("ln_e", (), "e"),)
    grid = Grid({"compute": 6})
