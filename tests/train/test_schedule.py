"""The learning rate over a run, at every step."""

import pytest

from saelab.train.schedule import default_rate, rate_at


def rates(steps: int, warmup: int, decay: float) -> list[float]:
    return [rate_at(step, steps, 2.0, warmup, decay) for step in range(steps)]


def test_it_rises_stays_and_falls():
    assert rates(10, warmup=4, decay=0.4) == pytest.approx([0.5, 1.0, 1.5, 2, 2, 2, 2, 1.5, 1.0, 0.5])


def test_without_warmup_and_decay_it_is_constant():
    assert rates(5, warmup=0, decay=0.0) == [2.0] * 5


def test_no_step_of_a_run_is_idle():
    for steps in (1, 2, 3, 10, 57):
        for decay in (0.01, 0.2, 1.0):
            assert all(0 < rate <= 2 for rate in rates(steps, warmup=3, decay=decay))


def test_after_the_end_it_is_zero():
    assert rate_at(10, 10, 2.0, 0, 0.5) == rate_at(11, 10, 2.0, 0, 0.5) == 0


def test_warmup_and_decay_may_overlap():
    assert rates(4, warmup=4, decay=1.0) == pytest.approx([0.5 * 1, 1 * 0.75, 1.5 * 0.5, 2 * 0.25])


def test_the_default_falls_with_the_root_of_the_width():
    assert default_rate(2**14) == pytest.approx(2e-4)
    assert default_rate(2**16) == pytest.approx(1e-4)
