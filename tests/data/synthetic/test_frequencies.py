"""Power laws rescaled to a sum, with a cap."""

import pytest
import torch

from saelab.data.synthetic.frequencies import CAP, power_law


@pytest.mark.parametrize("alpha", [-1, -0.5, 0, 0.7, 3])
@pytest.mark.parametrize(("n", "l0"), [(1, 0.3), (5, 1e-6), (5, 3.2), (300, 8), (300, 150), (10_000, 32)])
def test_probabilities_sum_to_l0_and_follow_the_law_below_the_cap(n, l0, alpha):
    p = power_law(n, l0, alpha)
    assert p.dtype == torch.float64
    assert p.sum().item() == pytest.approx(l0, rel=1e-12)
    assert (p > 0).all()
    assert (p <= CAP).all()
    free = p < CAP
    assert not free[: int((~free).sum())].any()  # the capped ones come first
    ranks = torch.arange(1, n + 1).double()
    constants = p[free] * ranks[free] ** (1 + alpha)
    if len(constants):
        torch.testing.assert_close(constants, constants[:1].expand_as(constants), rtol=1e-10, atol=0)
        # A capped feature would be above the cap by the law, or at it.
        assert (constants[0] * ranks[~free] ** -(1 + alpha) >= CAP * (1 - 1e-12)).all()


def test_uncapped_probabilities_are_the_plain_law():
    expected = torch.tensor([1, 1 / 2, 1 / 3, 1 / 4]).double() * 0.5 / (25 / 12)
    torch.testing.assert_close(power_law(4, 0.5, 0.0), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(power_law(3, 0.5, 1.0), torch.tensor([36, 9, 4]).double() * 0.5 / 49)


def test_what_the_cap_cuts_off_goes_to_the_others():
    # Zipf over 3 with sum 1.8: 0.98, 0.49, 0.33 without the cap; with it, 0.9 is left for weights 1/2 and 1/3.
    torch.testing.assert_close(power_law(3, 1.8, 0.0), torch.tensor([0.9, 0.54, 0.36]).double())


def test_all_may_be_at_the_cap():
    torch.testing.assert_close(power_law(7, CAP * 7, 1.0), torch.full((7,), CAP).double())


def test_alpha_minus_one_makes_all_equal():
    torch.testing.assert_close(power_law(10, 2.0, -1.0), torch.full((10,), 0.2).double())
