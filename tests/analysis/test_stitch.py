"""Stitching against brute force in float64, planted truths, and its files."""

import json

import pytest
import torch
from metrics.sweeps import Rows as Evaluated
from planted import codes_by_hand, decoded_by_hand, drawn, sae_with

from saelab import load
from saelab.analysis.assembled import independent
from saelab.analysis.insertion import Insertion, cosine_rule, insertion_test, resampled
from saelab.analysis.rows import Rows
from saelab.analysis.stitch import StitchSettings, read_stitch, stitch
from saelab.analysis.swaps import PHASES, along, plan
from saelab.metrics import measure
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.topk import TopK

DOCUMENTS = 40


def mse(x, x_hat):
    return (x.double() - x_hat).square().mean().item()


def sparse_rows(n, features, seed=0):
    """Rows made of few of the features each, and documents of ten rows."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, len(features), generator=generator) < 2.5 / len(features)
    x = (on * (1 + torch.rand(n, len(features), generator=generator))) @ features
    return Rows(x, torch.arange(n) // 10 % DOCUMENTS)


def two(threshold=0.2):
    small = independent(sae_with(drawn(9, 8), JumpReLU(threshold=threshold)))
    large = independent(sae_with(torch.cat([drawn(9, 8) + 0.2 * drawn(9, 8, seed=5), drawn(7, 8, seed=6)]), seed=3))
    return small, large


def test_one_pass_gives_the_change_of_error_of_brute_force():
    small, large = two()
    rows = Rows(2 * drawn(300, 8, seed=8), torch.arange(300) // 10)
    found = insertion_test(small, large, rows)
    f0, f1 = codes_by_hand(small, rows.x), codes_by_hand(large, rows.x)
    base = decoded_by_hand(small, f0)
    for i in range(16):
        put_in = base + f1[:, i : i + 1] * large.dictionary.W_dec[i].double()
        wanted = mse(rows.x, put_in.detach()) - mse(rows.x, base)
        assert found.delta[i].item() == pytest.approx(wanted, rel=1e-5)
        assert found.firings[i].item() == (f1[:, i] > 0).sum()


def test_intervals_are_those_of_resampled_documents():
    generator = torch.Generator().manual_seed(1)
    sums, entries = torch.rand(30, 3, generator=generator).double(), torch.rand(30, generator=generator).double() + 1
    mean, low, high = resampled(torch.cat([sums, torch.zeros(5, 3)]), torch.cat([entries, torch.zeros(5)]))
    assert torch.allclose(mean, sums.sum(0) / entries.sum())
    drawn_groups = torch.randint(30, (4000, 30), generator=generator)
    ratios = sums[drawn_groups].sum(1) / entries[drawn_groups].sum(1)[:, None]
    wanted = ratios.quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    assert torch.allclose(torch.stack([low, high]), wanted, atol=0.01)
    assert resampled(sums[:19], entries[:19])[1].isnan().all()
    assert not resampled(sums[:20], entries[:20])[1].isnan().any()


def test_how_many_rows_would_decide_is_estimated_from_the_widths_of_intervals():
    delta, low, high = torch.tensor([[-1.0, -2.0, 1.0], [1.0, -0.5, 2.5], [-4.0, -5.0, -3.0], [0.0, 0.0, 0.0]]).T
    firings = torch.tensor([100, 200, 300, 0])
    # Two are undecided: one needs 4 times the rows (0 lies two widths away), one 2.25 times; the lower median counts.
    first = Insertion(delta, low, torch.where(delta == -1, 1.0, high), firings, 100)
    assert first.rows_to_decide(1000) == 2250
    # One that fired in a tenth of the rows that are asked for needs ten times as many, whatever its interval.
    rare = Insertion(delta[:1], low[:1], torch.tensor([-0.5]), torch.tensor([10]), 100)
    assert rare.rows_to_decide(1000) == 10_000
    assert Insertion(delta[2:3], low[2:3], high[2:3], firings[2:3], 100).rows_to_decide(1000) is None


def test_classes_need_enough_firings_and_an_interval_on_one_side_of_zero():
    test = Insertion(
        delta=torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0, -1.0]),
        low=torch.tensor([-2.0, 0.5, -2.0, -0.1, 0.0, torch.nan]),
        high=torch.tensor([-0.5, 2.0, 0.1, 2.0, 0.0, torch.nan]),
        firings=torch.tensor([100, 100, 100, 100, 0, 100]),
        min_firings=100,
    )
    assert test.kind.tolist() == [0, 1, 2, 2, 3, 2]
    rare = Insertion(test.delta, test.low, test.high, torch.tensor([99, 99, 5, 5, 0, 1]), 100)
    assert rare.counts() == {"novel": 0, "reconstruction": 0, "undecided": 5, "dead": 1}


def test_the_cosine_rule_against_every_pair():
    generator = torch.Generator().manual_seed(0)
    cosine = (torch.rand(60, generator=generator) * 20).round() / 20  # ties
    kind = torch.randint(4, (60,), generator=generator)
    found = cosine_rule(kind, cosine, 0.7)
    novel, double = cosine[kind == 0].tolist(), cosine[kind == 1].tolist()
    score = sum(1.0 if n < d else 0.5 if n == d else 0.0 for n in novel for d in double)
    assert found["auc"] == pytest.approx(score / len(novel) / len(double))
    right = sum(n < cosine.new_tensor(0.7) for n in novel) + sum(d >= cosine.new_tensor(0.7) for d in double)
    assert found["accuracy"] == pytest.approx(int(right) / (len(novel) + len(double)))
    assert sum(found["confusion"].values()) == found["n"] == len(novel) + len(double)
    best = max(
        sum(n < t for n in novel) + sum(d >= t for d in double) for t in torch.linspace(-0.01, 1.01, 2001).tolist()
    )
    assert found["best_accuracy"] == pytest.approx(best / found["n"])
    said = sum(n < found["best_threshold"] for n in novel) + sum(d >= found["best_threshold"] for d in double)
    assert said == best
    assert cosine_rule(torch.zeros(5, dtype=torch.int64), cosine[:5])["auc"] is None


def test_a_permuted_copy_has_no_novel_latent():
    features = drawn(12, 16)
    sae, order = sae_with(features), torch.randperm(12, generator=torch.Generator().manual_seed(4))
    copy = sae_with(features)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc"):
            getattr(copy.dictionary, name).copy_(getattr(sae.dictionary, name)[order])
    found = stitch({"a": sae, "b": copy}, sparse_rows(4000, features), show=False).pairs[0]
    assert found.insertion.counts() == {"novel": 0, "reconstruction": 12, "undecided": 0, "dead": 0}
    assert found.cosine.tolist() == pytest.approx([1.0] * 12, abs=1e-6)
    assert torch.equal(order[torch.arange(12)], found.nearest)
    assert found.path[-1].mse == pytest.approx(found.path[0].mse, rel=1e-6)


def test_planted_extra_directions_are_exactly_the_novel_ones():
    features = torch.linalg.qr(drawn(24, 24))[0]  # orthonormal: none can stand for another
    small = sae_with(features[:14], bias=torch.zeros(24))
    large = sae_with(features[[20, 3, 14, 15, 0, 1, 16, 2, *range(4, 14), 17, 18, 19, 21]], bias=torch.zeros(24))
    extra = torch.tensor([0, 2, 3, 6, 18, 19, 20, 21])
    found = stitch({"a": small, "b": large}, sparse_rows(4000, features), show=False).pairs[0]
    assert (found.insertion.kind == 0).nonzero().squeeze(1).tolist() == extra.tolist()
    assert (found.insertion.kind == 1).sum() == 14
    assert found.rule["auc"] == 1
    assert found.rule["accuracy"] == 1
    phase = found.steps.phase.tolist()
    assert [phase.count(number) for number in range(4)] == [8, 14, 0, 1]
    assert found.with_novel().n_latents == 14 + 8


@pytest.mark.parametrize("order", ["cosine", "delta", "random"])
def test_the_way_ends_at_the_large_sae_and_each_step_is_what_it_says(order, monkeypatch):
    monkeypatch.setattr("saelab.analysis.insertion.LEAST_DOCUMENTS", 2)
    small, large = two()
    x = 2 * drawn(120, 8, seed=8)
    rows = Rows(x, torch.arange(120) // 10)
    steps = plan(small, large, insertion_test(small, large, rows).firings, 0.8, order, rows, seed=1)
    assert set(steps.phase.tolist()) >= {0, 1, 3}
    assert steps.phase.tolist() == sorted(steps.phase.tolist())
    f0, f1 = codes_by_hand(small, x), codes_by_hand(large, x)
    points = along(small, large, steps, list(range(len(steps) + 1)), rows)
    for step, point in enumerate(points):
        ours, theirs = (steps.goes > step).double(), (steps.comes <= step).double()
        bias = (large if step == len(steps) else small).dictionary.b_dec.double()
        wanted = (f0 * ours) @ small.dictionary.W_dec.double() + (f1 * theirs) @ large.dictionary.W_dec.double() + bias
        assert point.mse == pytest.approx(mse(x, wanted.detach()), rel=1e-5)
        active = ((f0 * ours) > 0).sum(1) + ((f1 * theirs) > 0).sum(1)
        assert point.l0 == pytest.approx(active.double().mean().item())
        assert point.n_latents == ours.sum() + theirs.sum()
        assert point.mse_low <= point.mse <= point.mse_high
    assert points[0].mse == pytest.approx(mse(x, decoded_by_hand(small, f0)), rel=1e-6)
    assert points[-1].mse == pytest.approx(mse(x, decoded_by_hand(large, f1)), rel=1e-6)
    some = along(small, large, steps, [0, 3, len(steps)], rows)  # fewer points, the same numbers
    assert [point.mse for point in some] == pytest.approx([points[p].mse for p in (0, 3, len(steps))], rel=1e-6)


def test_swap_groups_are_the_components_of_close_pairs():
    base = torch.eye(6)
    small = independent(sae_with(torch.stack([base[0], base[1], base[2], base[1] + base[2]])))
    split = [base[0] + 0.3 * base[3], base[0] - 0.3 * base[3]]
    children = torch.stack([*split, base[4], base[1], base[1] + base[2]])
    large = independent(sae_with(children))
    steps = plan(small, large, torch.full((5,), 500), threshold=0.7)
    # 0 splits into 0 and 1; small 1, 2, 3 hang together over large 3 and 4; large 2 is new.
    assert steps.group_small[0] == steps.group_large[0] == steps.group_large[1]
    assert steps.group_small[1] == steps.group_small[2] == steps.group_small[3]
    assert steps.group_small[1] == steps.group_large[3] == steps.group_large[4]
    assert [PHASES[number] for number in steps.phase.tolist()] == ["insert", "swap", "swap", "finish"]
    assert steps.comes[2] == 1
    assert steps.goes[0] == steps.comes[0] == steps.comes[1]
    alone = plan(small, large, torch.full((5,), 500), threshold=0.9999)
    assert [PHASES[number] for number in alone.phase.tolist()].count("remove") == 2
    dead = plan(small, large, torch.tensor([500, 500, 0, 500, 500]), threshold=0.7)
    assert dead.comes[2] == len(dead) == 3


def test_orders_within_a_phase():
    small, large = two()
    rows = Rows(2 * drawn(300, 8, seed=8), torch.arange(300) // 10)
    test = insertion_test(small, large, rows)
    by_cosine = plan(small, large, test.firings, 0.8)
    cosines = torch.nn.functional.normalize(large.dictionary.W_dec, dim=1) @ small.dictionary.W_dec.T
    new = (by_cosine.phase == 0).sum()
    order = by_cosine.comes.argsort()[:new]
    best = cosines.max(1).values[order].tolist()
    assert best == sorted(best)
    by_delta = plan(small, large, test.firings, 0.8, "delta", rows)
    first = by_delta.comes.argsort()[:new]
    assert test.delta[first[0]] == test.delta[first].min()
    assert first.tolist() != order.tolist()
    assert not torch.equal(plan(small, large, test.firings, 0.8, "random", seed=1).comes, by_cosine.comes)


def test_the_order_by_delta_takes_at_every_step_what_helps_most_then():
    small, large = two()
    rows = Rows(2 * drawn(150, 8, seed=8), torch.arange(150) // 10)
    firings = insertion_test(small, large, rows).firings
    steps = plan(small, large, firings, 0.8, "delta", rows)
    f0, f1 = codes_by_hand(small, rows.x), codes_by_hand(large, rows.x)

    def error(gone, come):
        x_hat = (f0 * ~gone) @ small.dictionary.W_dec.double() + (f1 * come) @ large.dictionary.W_dec.double()
        return mse(rows.x, (x_hat + small.dictionary.b_dec.double()).detach())

    firsts = []
    for step in range(1, len(steps)):
        gone, come = steps.goes < step, steps.comes < step
        here = [other for other in range(step, len(steps)) if steps.phase[other - 1] == steps.phase[step - 1]]
        found = [error(gone | (steps.goes == other), come | (steps.comes == other)) for other in here]
        assert found[0] == pytest.approx(min(found), rel=1e-6)
        firsts.append(found)
    # What helps most alone is not always what helps most next.
    assert firsts[0] != sorted(firsts[0])


def test_a_stitched_sae_is_an_sae(tmp_path):
    small, large = two()
    rows = Rows(2 * drawn(200, 8, seed=8), torch.arange(200) // 10)
    pair = stitch({"a": small, "b": large}, rows, StitchSettings(threshold=0.8), show=False).pairs[0]
    by_step = {point.step: point for point in along(small, large, pair.steps, list(range(len(pair.steps) + 1)), rows)}
    for step in (0, 2, pair.steps.last("insert"), len(pair.steps)):
        sae = pair.sae(step)
        assert mse(rows.x, sae(rows.x).detach()) == pytest.approx(by_step[step].mse, rel=1e-5)
        assert sae.encode(rows.x).l0().double().mean().item() == pytest.approx(by_step[step].l0)
    assert torch.allclose(pair.sae(0)(rows.x), small(rows.x), rtol=1e-6, atol=1e-6)
    assert torch.allclose(pair.sae(len(pair.steps))(rows.x), large(rows.x), rtol=1e-6, atol=1e-6)
    pair.with_novel().save(tmp_path / "stitched")
    again = load(tmp_path / "stitched")
    assert torch.equal(again(rows.x), pair.with_novel()(rows.x))
    with pytest.raises(ValueError, match=f"from 0 to {len(pair.steps)}, got -1"):
        pair.sae(-1)


def test_a_stitched_sae_is_measured_like_any_other():
    small, large = two()
    x = 2 * drawn(200, 8, seed=8)
    pair = stitch({"a": small, "b": large}, Rows(x, torch.arange(200) // 10), show=False).pairs[0]
    evaluation = Evaluated(x, torch.arange(200) // 10)
    scores = measure({"s": pair.with_novel()}, evaluation, ["Reconstruction", "L0"], show=False)["s"].scores
    point = next(point for point in pair.path if point.step == pair.steps.last("insert"))
    assert scores["mse"].value == pytest.approx(point.mse, rel=1e-5)
    assert scores["l0"].value == pytest.approx(point.l0)


def test_a_ladder_of_three_is_one_continuous_way(tmp_path):
    features = torch.linalg.qr(drawn(32, 32))[0][:30]
    saes = {str(n): sae_with(features[:n] + 0.05 * drawn(n, 32, seed=n), TopK(k=3), seed=n) for n in (8, 16, 30)}
    for number, sae in enumerate(saes.values()):  # scalings of different samples
        sae.scale.set(0.01 * drawn(32, seed=number), 1 + 0.02 * number)
    rows = sparse_rows(3000, features)
    found = stitch(saes, rows, StitchSettings(points=9), show=False)
    ends = [(pair.path[0], pair.path[-1]) for pair in found.pairs]
    assert ends[0][1].mse == pytest.approx(ends[1][0].mse, rel=1e-5)
    for number, (first, last) in enumerate(ends):
        assert first.mse == pytest.approx(found.points[number].mse, rel=1e-5)
        assert last.mse == pytest.approx(found.points[number + 1].mse, rel=1e-5)
        assert (first.n_latents, last.n_latents) == ((8, 16), (16, 30))[number]
    whole = torch.cat([x for x, _ in rows.blocks(1000)])
    for sae, point, mse in zip(saes.values(), found.points, found.trained, strict=True):
        assert mse == pytest.approx((whole - sae(whole)).detach().double().square().mean().item(), rel=1e-5)
        assert abs(mse / point.mse - 1) > 1e-3  # the k largest of each row, not what is above a threshold
    found.write(tmp_path / "out")
    json.loads((tmp_path / "out" / "stitch.json").read_text())
    read = read_stitch(tmp_path / "out")
    assert [sae["name"] for sae in read["saes"]] == ["8", "16", "30"]
    assert [sae["fvu_trained"] * found.variance for sae in read["saes"]] == pytest.approx(found.trained)
    assert read["path"]["mse"].tolist() == [point.mse for pair in found.pairs for point in pair.path]
    assert read["path"]["ce_delta"] == [None] * len(read["path"]["mse"])
    large = read["pairs"][1]["large_latents"]
    assert large["latent"].tolist() == list(range(30))
    assert torch.equal(large["delta_mse"], found.pairs[1].insertion.delta)
    assert [large["class"].count(name) for name in ("novel", "reconstruction", "undecided", "dead")] == list(
        read["pairs"][1]["counts"].values()
    )
    assert read["pairs"][1]["small_latents"]["step"].tolist() == found.pairs[1].steps.goes.tolist()


def test_saes_that_do_not_go_together_are_refused_by_name():
    rows = Rows(drawn(50, 8), torch.arange(50))
    a, b = two()
    with pytest.raises(ValueError, match="at least 2 SAEs, got 1"):
        stitch({"a": a}, rows)
    with pytest.raises(ValueError, match="narrow .*8 wide, wide .*9 wide"):
        stitch({"narrow": a, "wide": sae_with(drawn(5, 9))}, rows)
    with pytest.raises(ValueError, match="narrow .*8 wide, .* 3"):
        stitch({"narrow": a, "wide": b}, Rows(drawn(50, 3), torch.arange(50)))
    one, other = sae_with(drawn(9, 8)), sae_with(drawn(9, 8))
    one.scale.set(torch.zeros(8) + 0.1, 1.0)
    other.scale.set(torch.zeros(8) + 0.1, 9.0)
    with pytest.raises(ValueError, match="first and second .*different normalisation"):
        stitch({"first": one, "second": other}, rows)
    other.scale.set(torch.ones(8), 1.0)
    with pytest.raises(ValueError, match="means 0.9 scales apart"):
        stitch({"first": one, "second": other}, rows)
    far = sae_with(drawn(9, 8), bias=torch.full((8,), 50.0))
    with pytest.raises(ValueError, match="far .*worse.*another site"):
        stitch({"near": sae_with(torch.cat([torch.eye(8), -torch.eye(8)])), "far": far}, rows, show=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold must be above 0 and at most 1, got 0.0"),
        ({"order": "cosin"}, "unknown order 'cosin'; did you mean 'cosine'?"),
        ({"min_firings": 0}, "min_firings must be at least 1, got 0"),
        ({"points": 1}, "points must be at least 2, got 1"),
        ({"ce_points": -1}, "need ce_points >= 0 and ce_tokens >= 1, got -1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    a, b = two()
    with pytest.raises(ValueError, match=message):
        stitch({"a": a, "b": b}, Rows(2 * drawn(200, 8, seed=8), torch.arange(200)), StitchSettings(**settings))
