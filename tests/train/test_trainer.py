"""One update against a loop written by hand, and what a run logs, saves and refuses."""

# Shape letters: B rows of a batch, D input width, L latents.

import os
import signal
import threading
from itertools import islice

import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.log import read_log
from saelab.core.run import Run
from saelab.data import ArraySource, Batch
from saelab.kernels import tier
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.scales import LayerNorm
from saelab.train import Trainer
from saelab.train.loop import interrupts
from saelab.train.schedule import rate_at

B, D, L, K = 8, 6, 96, 3
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def rows(n: int = 64, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1


def make(**settings: object) -> Trainer:
    """A trainer of a small initialised SAE."""
    sae = SAE(D, L, TopK(K), [AuxK(dead_after=3 * B)])
    sae.initialise(rows())
    return Trainer(sae, **{"batch": B, "lr": 1e-2, "warmup": 0, "decay": 0.0, **settings})  # type: ignore[arg-type]


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in trainer.sae.state_dict().items()}


def fit(trainer: Trainer, steps: int, run: Run | None = None, **settings: object) -> SAE:
    return trainer.fit(ArraySource(rows()), steps * B, run, show=False, **settings)  # type: ignore[arg-type]


class ByHand:
    """TopK trained by Adam in float64, with every formula written out."""

    def __init__(self, sae: SAE):
        state = {key: value.clone() for key, value in sae.state_dict().items()}
        self.mean, self.scale, self.variance = state["scale.mean"], state["scale.scale"], state["variance"]
        self.weights = [state[f"dictionary.{name}"].requires_grad_() for name in NAMES]
        self.m = [torch.zeros_like(w) for w in self.weights]
        self.v = [torch.zeros_like(w) for w in self.weights]

    def step(self, x: Tensor, t: int, lr: float, clip: float | None) -> Tensor:
        W_enc, W_dec, b_enc, b_dec = self.weights
        x = (x.double() - self.mean) / self.scale
        pre = (x - b_dec) @ W_enc.T + b_enc
        kept = pre * (pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K])
        loss = (kept.relu() @ W_dec + b_dec - x).square().mean() / self.variance
        grads = list(torch.autograd.grad(loss, self.weights))
        grads[1] = grads[1] - (grads[1] * W_dec).sum(1, keepdim=True) * W_dec
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        shrink = min(1.0, clip / norm.item()) if clip else 1.0
        with torch.no_grad():
            for w, grad, m, v in zip(self.weights, grads, self.m, self.v, strict=True):
                m.mul_(0.9).add_(0.1 * shrink * grad)
                v.mul_(0.999).add_(0.001 * (shrink * grad) ** 2)
                w -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 6.25e-10)
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return loss.detach()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_steps_match_a_loop_written_by_hand(clip):
    sae = SAE(D, L, TopK(K))
    sae.initialise(rows())
    sae.double()
    by_hand = ByHand(sae)
    trainer = Trainer(sae, lr=1e-2, batch=B, warmup=3, decay=0.5, clip=clip)
    trainer.rows_planned = 16 * B
    for step in range(16):
        x = rows(B, seed=step)
        terms, _ = trainer.step(Batch(x))
        rate = 1e-2 * min(1, (step + 1) / 3) * min(1, (16 - step) / 8)
        torch.testing.assert_close(terms["loss"], by_hand.step(x, step + 1, rate, clip), rtol=1e-6, atol=1e-8)
    for name, expected in zip(NAMES, by_hand.weights, strict=True):
        torch.testing.assert_close(getattr(sae.dictionary, name), expected, rtol=1e-6, atol=1e-6)


def test_the_loss_is_the_sum_of_its_terms():
    terms, _ = make().step(Batch(rows(B)))
    assert set(terms) == {"loss", "reconstruction", "AuxK"}
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["AuxK"])
    assert not any(term.requires_grad for term in terms.values())


def test_training_learns():
    trainer = make()
    first, _ = trainer.step(Batch(rows(B)))
    for step in range(30):
        trainer.step(Batch(rows(B, seed=step % 4)))
    last, _ = trainer.step(Batch(rows(B)))
    assert last["reconstruction"] < 0.7 * first["reconstruction"]


def test_another_target_is_learned():
    trainer = make()
    _, forward = trainer.step(Batch(rows(B), target=rows(B, seed=9)))
    torch.testing.assert_close(forward.target, trainer.sae.scale.apply_to(rows(B, seed=9)))


def test_the_gradient_is_clipped_as_a_whole():
    for clip in (None, 1e-3):
        with tier.using("torch"):  # where gradients are formed as a whole
            trainer = make(clip=clip)
            trainer.step(Batch(rows(B)))
        norm = torch.stack([p.grad.norm() for p in trainer.sae.parameters()]).norm()
        assert (norm > 1e-2) if clip is None else (norm <= 1e-3 * (1 + 1e-4))


def test_clipping_is_the_same_where_gradients_are_formed_latent_by_latent():
    weights = []
    for kernels in ("torch", "auto"):
        with tier.using(kernels):
            trainer = make(clip=0.02)
            for step in range(3):
                trainer.step(Batch(rows(B, seed=step)))
            weights.append(trainer.sae.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)


def test_directions_keep_unit_norm():
    trainer = make()
    for step in range(5):
        trainer.step(Batch(rows(B, seed=step)))
        torch.testing.assert_close(trainer.sae.dictionary.directions().norm(dim=1), torch.ones(L), rtol=0, atol=1e-6)


def test_the_rate_follows_the_schedule(tmp_path):
    run = Run.create(tmp_path, {})
    trainer = make(warmup=3, decay=0.5)
    fit(trainer, 15, run, log_every=1)
    assert [record["lr"] for record in read_log(run.log_file)] == [rate_at(i, 15, 1e-2, 3, 0.5) for i in range(15)]


def test_warm_up_takes_at_most_a_fifth_of_the_run(tmp_path):
    run = Run.create(tmp_path, {})
    fit(make(warmup=100, decay=0), 10, run, log_every=1)
    assert [record["lr"] for record in read_log(run.log_file)] == [rate_at(i, 10, 1e-2, 2, 0) for i in range(10)]


def test_after_a_run_steps_go_on_at_the_full_rate():
    trainer = make(warmup=0, decay=0.5)
    trainer.fit(ArraySource(rows()), 5 * B, show=False)
    assert trainer.rate() == 1e-2


def test_without_an_end_in_sight_the_rate_does_not_fall():
    trainer = make(warmup=2, decay=1.0)
    assert trainer.rate() == 0.5e-2
    for step in range(3):
        trainer.step(Batch(rows(B, seed=step)))
    assert trainer.rate() == 1e-2


def test_rows_that_are_not_finite_are_named_and_change_nothing():
    trainer = make(average=0.9)
    trainer.step(Batch(rows(B)))
    before, rates = snapshot(trainer), trainer.rows_seen
    x = rows(B)
    x[3, 1], x[5, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="row 3 .*step 1 .*NaN"):
        trainer.step(Batch(x))
    with pytest.raises(ValueError, match="row 3 of the batch at step 1"):
        trainer.step(Batch(rows(B), target=x))
    assert all(torch.equal(value, before[key]) for key, value in trainer.sae.state_dict().items())
    assert (trainer.step_number, trainer.rows_seen, trainer.average.steps) == (1, rates, 1)
    trainer.step(Batch(rows(B)))


def test_rows_that_only_look_infinite_in_sum_are_taken():
    trainer = make()
    with pytest.raises(ValueError, match=r"loss at step 0 .*e\+38 times as large"):
        trainer.step(Batch(torch.full((B, D), 3e38)))


def test_a_loss_that_is_not_finite_is_said_and_changes_no_weight():
    trainer = make()
    trainer.step(Batch(rows(B)))
    before = snapshot(trainer)
    with pytest.raises(ValueError, match=r"loss at step 1 .*\(reconstruction .*rows"):
        trainer.step(Batch(rows(B) * 1e30))
    for key, _ in trainer.sae.named_parameters():
        assert torch.equal(trainer.sae.state_dict()[key], before[key])


def test_a_lower_rate_is_advised_only_where_steps_were_taken():
    trainer = make()
    with torch.no_grad():
        trainer.sae.dictionary.W_enc.fill_(float("nan"))
    with pytest.raises(ValueError, match="the weights that training began with"):
        trainer.step(Batch(rows(B)))
    trainer.step_number = 1
    with pytest.raises(ValueError, match="lower lr or set clip"):
        trainer.step(Batch(rows(B)))


@pytest.mark.parametrize("activation", [TopK(K), ReLU()], ids=["TopK", "ReLU"])
def test_bf16_runs_and_keeps_float32_weights(activation):
    sae = SAE(D, L, activation, [AuxK(dead_after=B)])
    sae.initialise(rows())
    trainer = Trainer(sae, batch=B, lr=1e-2, warmup=0, bf16=True)
    losses = [trainer.step(Batch(rows(B, seed=step % 3)))[0]["loss"] for step in range(30)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in sae.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_any_precision_are_taken(dtype):
    trainer, again = make(), make()
    x = rows(B).to(torch.bfloat16)
    trainer.step(Batch(x.to(dtype)))
    again.step(Batch(x.float()))
    assert all(torch.equal(value, snapshot(again)[key]) for key, value in trainer.sae.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"batch": 0}, "batch must be at least 1 row, got 0"),
        ({"warmup": -1}, "need warmup >= 0 and 0 <= decay <= 1, got -1 and 0.0"),
        ({"decay": 1.5}, "need warmup >= 0 and 0 <= decay <= 1, got 0 and 1.5"),
        ({"clip": 0.0}, "clip must be positive, got 0.0; leave it out for no clipping"),
        ({"average": 1.0}, "the average's momentum must be from 0 to below 1, got 1.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_the_default_rate_follows_the_width():
    assert Trainer(SAE(D, 2**10, TopK(K))).lr == pytest.approx(8e-4)


# A whole run.


def test_a_source_of_another_width_is_refused():
    with pytest.raises(ValueError, match=f"rows are 2 wide, .* {D}"):
        make().fit(ArraySource(torch.ones(3, 2)), 10, show=False)


def test_a_run_has_rows():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        fit(make(), 0)


def test_a_new_run_fits_the_start_to_the_source():
    sae = SAE(D, L, TopK(K))
    Trainer(sae, batch=B, lr=1e-9).fit(ArraySource(rows()), B, show=False)
    expected = SAE(D, L, TopK(K))
    expected.initialise(rows())
    torch.testing.assert_close(sae.scale.state_dict(), expected.scale.state_dict())
    torch.testing.assert_close(sae.dictionary.state_dict(), expected.dictionary.state_dict(), rtol=1e-4, atol=1e-4)


def test_rows_are_rounded_up_to_whole_batches():
    trainer = make()
    trainer.fit(ArraySource(rows()), 2 * B + 1, show=False)
    assert (trainer.step_number, trainer.rows_seen) == (3, 3 * B)


def test_the_log_says_what_the_first_batch_was_like(tmp_path):
    run, trainer = Run.create(tmp_path, {}), make()
    fit(trainer, 1, run)
    again, source = make(), ArraySource(rows())
    again.sae.initialise(source.sample(100), source.statistics())
    x = next(source.batches(B)).x
    with torch.no_grad():
        terms, step = again.sae.objective(x)
        x_hat = again.sae(x)
    record = read_log(run.log_file)[0]
    assert list(record)[:5] == ["step", "rows", "loss", "reconstruction", "AuxK"]
    assert (record["step"], record["rows"]) == (1, B)
    assert record["reconstruction"] == pytest.approx(terms["reconstruction"].item(), rel=1e-5)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert record["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    assert record["l0"] == pytest.approx((step.codes.values != 0).sum().item() / B)


def test_the_fvu_of_rows_that_are_each_scaled_by_themselves_is_in_the_datas_units(tmp_path):
    x = rows() * torch.logspace(-1, 1, len(rows()))[:, None]
    sae, run = SAE(D, L, TopK(K), scale=LayerNorm()), Run.create(tmp_path / "run", {})
    trainer = Trainer(sae, batch=64, lr=1e-9, warmup=0)
    trainer.prepare(ArraySource(x))
    before = sae(x)
    trainer.fit(ArraySource(x), 64, run, log_every=1, show=False)
    record = read_log(run.log_file)[0]
    fvu = (before - x).square().sum() / (x - x.mean(0)).square().sum()
    assert record["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    assert record["fvu"] != pytest.approx(record["reconstruction"], rel=1e-2)


def test_the_log_has_the_first_the_last_and_every_nth_step(tmp_path):
    run = Run.create(tmp_path, {})
    fit(make(), 11, run, log_every=4)
    assert [record["step"] for record in read_log(run.log_file)] == [1, 4, 8, 11]


def test_a_batch_without_variance_has_no_fvu(tmp_path):
    run = Run.create(tmp_path, {})
    make(batch=1).fit(ArraySource(rows()), 2, run, show=False)
    assert [record["fvu"] for record in read_log(run.log_file)] == [None, None]


def test_a_run_saves_the_sae_it_trained(tmp_path):
    run, x = Run.create(tmp_path, {}), rows()
    sae = fit(make(), 5, run)
    with torch.no_grad():
        assert torch.equal(saelab.load(tmp_path)(x), sae(x))


def test_an_average_is_saved_in_place_of_the_weights_with_unit_directions(tmp_path):
    run, trainer = Run.create(tmp_path, {}), make(average=0.9)
    sae = fit(trainer, 5, run)
    saved = saelab.load(tmp_path).dictionary
    averages = dict(zip(dict(sae.named_parameters()), trainer.average.values(), strict=True))
    W_enc, W_dec = averages["dictionary.W_enc"], averages["dictionary.W_dec"]
    norms = W_dec.norm(dim=1, keepdim=True)
    torch.testing.assert_close(saved.W_enc.detach(), W_enc * norms)  # codes take over what directions lose
    torch.testing.assert_close(saved.W_dec.detach(), W_dec / norms)
    torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(L), rtol=0, atol=1e-6)
    assert not torch.equal(saved.W_enc, sae.dictionary.W_enc)


def test_saving_an_average_changes_nothing_in_training(tmp_path):
    trainer = make(average=0.9)
    for step in range(3):
        trainer.step(Batch(rows(B, seed=step)))
    before = snapshot(trainer)
    trainer.save(tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in trainer.sae.state_dict().items())


def test_progress_is_shown(capsys):
    make().fit(ArraySource(rows()), 3 * B)
    err = capsys.readouterr().err
    assert err.startswith(f"train: {3 * B} rows in ")
    assert "fvu" in err


def test_tensorboard_gets_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path, {})
    fit(make(), 4, run, log_every=1, tensorboard=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    log = read_log(run.log_file)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([record["loss"] for record in log])
    assert {"reconstruction", "AuxK", "fvu", "l0", "lr"} <= set(events.Tags()["scalars"])


def test_no_thread_outlives_a_run(tmp_path):
    before = set(threading.enumerate())
    fit(make(), 3, Run.create(tmp_path, {}))
    assert set(threading.enumerate()) <= before


def test_a_run_may_live_on_a_thread(tmp_path):
    trainer, before = make(), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=fit, args=(trainer, 3))
    thread.start()
    thread.join()
    assert trainer.step_number == 3
    assert signal.getsignal(signal.SIGINT) is before


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_stops(number):
    before = signal.getsignal(number)
    with interrupts() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        assert stopped.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


class Stopping(ArraySource):
    """Presses Ctrl-C while it hands out its third batch."""

    def batches(self, rows):
        for number, batch in enumerate(super().batches(rows), 1):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


@pytest.mark.parametrize("with_run", [True, False])
def test_ctrl_c_finishes_the_step_saves_a_checkpoint_and_says_how_to_go_on(tmp_path, with_run):
    trainer = make()
    run = Run.create(tmp_path, {}) if with_run else None
    message = f"stopped after step 3; `saelab train --resume {tmp_path}` resumes it" if run else "stopped after step 3$"
    with pytest.raises(KeyboardInterrupt, match=message):
        trainer.fit(Stopping(rows()), 10 * B, run, show=False)
    assert trainer.step_number == 3
    if run:
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000003.safetensors"]
        assert not run.sae.exists()


def test_ctrl_c_in_the_last_step_is_the_end_of_the_run(tmp_path):
    run = Run.create(tmp_path, {})
    make().fit(Stopping(rows()), 3 * B, run, show=False)
    assert run.sae.exists()


def test_a_step_is_one_call_in_a_loop_of_ones_own():
    trainer = make()
    for batch in islice(ArraySource(rows()).batches(B), 3):
        trainer.step(batch)
    assert (trainer.step_number, trainer.rows_seen) == (3, 3 * B)


def test_a_source_that_fails_loses_no_step(tmp_path):
    class Failing(ArraySource):
        fails = True

        def batches(self, size):
            for number, batch in enumerate(super().batches(size)):
                if self.fails and number == 3:
                    raise ValueError("the shard s.safetensors was changed while it was in use")
                yield batch

    run, x = Run.create(tmp_path / "Run", {}), rows()
    message = rf"changed while it was in use; stopped after step 3; `saelab train --resume {run.folder}` resumes it"
    with pytest.raises(ValueError, match=message):
        make().fit(Failing(x), 5 * B, run, show=False)
    source = Failing(x)
    source.fails = False
    assert torch.equal(
        make().fit(source, 5 * B, run, show=False).dictionary.W_dec,
        make().fit(ArraySource(x), 5 * B, show=False).dictionary.W_dec,
    )
