"""When a run counts as converged, and what the loop does then."""

import json

import pytest
import torch

from saelab.core.run import Run
from saelab.data.array import ArraySource
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.train.convergence import Convergence, at_full_rate, fall
from saelab.train.loop import LoopConfig
from saelab.train.sweep import Sweep
from saelab.train.trainer import Trainer


def curve(rate, irreducible=0.2, count=400):
    rows = [100 * (i + 1) for i in range(count)]
    return rows, [irreducible + 3 * r**-rate for r in rows]


def test_fall_is_the_closed_form_of_two_means():
    rows = [100 * (i + 1) for i in range(40)]
    fvu = [1.0] * 10 + [0.8] * 10 + [0.6] * 20
    assert fall(rows, fvu) == pytest.approx(1 - 0.6 / 0.8)
    assert fall(rows[:15], fvu[:15]) is None  # too few records in a half
    assert fall([], []) is None


def test_first_is_where_the_fall_drops_below_the_tolerance():
    rows, fvu = curve(0.6)
    found = Convergence(0.05).first(rows, fvu)
    place = rows.index(found)
    assert fall(rows[: place + 1], fvu[: place + 1]) < 0.05 <= fall(rows[:place], fvu[:place])
    assert Convergence(0.001).first(rows, fvu) is None
    assert Convergence(0.05, least_rows=39_000).first(rows, fvu) == 39_000


def test_what_is_left_to_lose_is_bounded_by_the_fall():
    rows, fvu = curve(0.6)
    found = Convergence(0.02).first(*curve(0.6, count=3000))
    rows, fvu = curve(0.6, count=3000)
    left = 1 - 0.2 / fvu[rows.index(found)]
    assert 0.02 < left < 0.05


def test_warm_up_and_the_falling_rate_do_not_count():
    records = [{"rows": i, "fvu": 0.1, "lr": lr} for i, lr in enumerate([0.5, 1, 1, 0.9, 0.1])]
    assert at_full_rate([*records, {"step": 9, "measured": 1}]) == ([1, 2], [0.1, 0.1])


@pytest.mark.parametrize("tolerance", [0, 1, -0.1, float("nan")])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    with pytest.raises(ValueError, match="converge must be between 0 and 1"):
        Convergence(tolerance)


def trainers(decay=0.25):
    return [Trainer(SAE(6, 12, TopK(k), seed=1), lr=1e-2, batch=32, decay=decay, warmup=5) for k in (1, 2)]


def source():
    return ArraySource(torch.randn(4096, 6, generator=torch.Generator().manual_seed(0)))


HABITS = LoopConfig(log_every=1, save_every=7, show=False, converge=Convergence(0.2))


def test_a_run_ends_early_after_its_rate_has_fallen(tmp_path):
    runs = [Run.create(tmp_path / name, {}) for name in ("a", "b")]
    Sweep(trainers()).fit(source(), 32 * 400, runs, HABITS)
    logs = [[json.loads(line) for line in run.log_file.read_text().splitlines()] for run in runs]
    firsts = [Convergence(0.2).first(*at_full_rate(log)) for log in logs]
    last = logs[0][-1]["step"]
    assert last == logs[1][-1]["step"] == -(-(max(firsts) // 32) * 4 // 3)  # a quarter of the run for the fall
    assert last < 200
    for log in logs:
        assert log[-1]["lr"] < 0.2 * 1e-2
        assert [r["lr"] for r in log if r["step"] == max(firsts) // 32] == [1e-2]


def test_a_stopped_run_ends_where_it_would_have(tmp_path):
    whole, stopped = (Run.create(tmp_path / name, {}) for name in ("whole", "stopped"))
    one = trainers()[0]
    one.fit(source(), 32 * 400, whole, 1, 7, show=False, converge=Convergence(0.2))
    steps = one.step_number
    assert steps < 400
    for cut in (steps // 2, steps - 2):  # before it had converged, and while the rate falls

        class Stop(Exception):
            pass

        again = trainers()[0]

        def update(forward, rows, own=again.update, trainer=again, cut=cut):
            own(forward, rows)
            if trainer.step_number == cut:
                raise Stop

        again.update = update
        with pytest.raises(Stop):
            again.fit(source(), 32 * 400, stopped, 1, 7, show=False, converge=Convergence(0.2))
    last = trainers()[0]
    last.fit(source(), 32 * 400, stopped, 1, 7, show=False, converge=Convergence(0.2))
    assert last.step_number == steps
    for name, value in one.sae.state_dict().items():
        assert torch.equal(value, last.sae.state_dict()[name]), name


def test_without_time_at_the_full_rate_nothing_can_converge():
    with pytest.raises(ValueError, match="set decay below 1"):
        trainers(decay=1.0)[0].fit(source(), 320, show=False, converge=Convergence(0.1))
