"""Members trained one after another: boosting's error on held-out rows falls with each, its source is the residuals."""

from contextlib import closing
from itertools import islice

import pytest
import torch
from torch import Tensor

from saelab.data import ArraySource, Batch
from saelab.metrics import Evaluation, measure
from saelab.metrics.chunks import Chunk
from saelab.sae import SAE, Ensemble
from saelab.sae.activations.topk import TopK
from saelab.sae.scales import DataScale
from saelab.train import Trainer
from saelab.train import ensemble as home
from saelab.train.ensemble import BoostedSource, diversity, train_ensemble

D, FEATURES = 12, 30
SETTINGS = {"lr": 2e-2, "batch": 64, "warmup": 5}


def world(n: int = 2000, seed: int = 1) -> Tensor:
    """Rows of 4 known directions each, of 30, plus a mean."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(FEATURES, D, generator=generator), dim=1)
    generator.manual_seed(seed)
    chosen = torch.rand(n, FEATURES, generator=generator).argsort(1)[:, :4]
    sizes = 1 + torch.rand(n, 4, generator=generator)
    return (sizes[:, :, None] * directions[chosen]).sum(1) + 0.5


def make(number: int) -> SAE:
    return SAE(D, 32, TopK(2), seed=number)


def fitted(seed: int = 0) -> SAE:
    sae = SAE(D, 24, TopK(2), seed=seed)
    sae.initialise(world(100))
    return sae


def fvu(model: SAE | Ensemble, x: Tensor) -> float:
    with torch.no_grad():
        return ((model(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()


class Rows(Evaluation):
    """Rows to measure on, in two chunks."""

    def __init__(self, x: Tensor):
        self.x, self.d_in, self.tokens = x, x.shape[1], len(x)
        self.why_no_model = "these are rows"

    def chunks(self, need_logits: bool):
        for x, group in zip(self.x.chunk(2), torch.arange(len(self.x)).chunk(2), strict=True):
            yield Chunk(x, group, None)


# Training.


def test_boostings_error_falls_with_each_member():
    trained = train_ensemble(make, ArraySource(world()), 3, 2048, "boosting", SETTINGS, show=False)
    held_out = world(seed=2)
    errors = [fvu(Ensemble(trained.saes[:count], "boosting"), held_out) for count in (1, 2, 3)]
    assert errors[0] < 0.7
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert trained.how == "boosting"


def test_later_members_of_boosting_are_trained_on_residuals():
    first, second = train_ensemble(make, ArraySource(world()), 2, 640, "boosting", SETTINGS, show=False).saes
    alone = Trainer(make(0), **SETTINGS).fit(ArraySource(world()), 640, show=False)
    for name, value in alone.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name
    with torch.no_grad():
        residuals = ArraySource(world() - first(world()))
    # The source knows its rows' mean and scale, a boosted one has them from a sample: of all rows, as there are few.
    by_hand = Trainer(make(1), **SETTINGS).fit(residuals, 640, show=False)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_members_of_bagging_see_the_same_rows_and_differ_in_their_seed():
    trained = train_ensemble(make, ArraySource(world()), 2, 640, settings=SETTINGS, show=False)
    assert trained.how == "bagging"
    for number, sae in enumerate(trained.saes):
        alone = Trainer(make(number), **SETTINGS).fit(ArraySource(world()), 640, show=False)
        for name, value in alone.state_dict().items():
            assert torch.equal(sae.state_dict()[name], value), name


def test_bagging_is_better_than_its_members_on_average():
    trained = train_ensemble(make, ArraySource(world()), 3, 1280, settings=SETTINGS, show=False)
    held_out = world(seed=2)
    members = [fvu(sae, held_out) for sae in trained.saes]
    assert fvu(trained, held_out) < sum(members) / 3


def test_members_start_where_the_source_stood():
    source, other = ArraySource(world(100)), ArraySource(world(100))
    for one in (source, other):
        with closing(one.batches(30)) as stream:
            next(stream)
    train_ensemble(make, source, 2, 128, "boosting", SETTINGS, show=False)
    Trainer(make(0), **SETTINGS).fit(other, 128, show=False)
    assert source.state() == other.state()


def test_wrong_settings_are_named():
    source = ArraySource(world(100))
    with pytest.raises(ValueError, match="'bosting'; did you mean 'boosting'"):
        train_ensemble(make, source, 2, 64, "bosting")
    with pytest.raises(ValueError, match="members must be at least 1, got 0"):
        train_ensemble(make, source, 0, 64)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        train_ensemble(make, source, 1, 64, settings={"batch": 0})


# The source.


def batches(source: ArraySource | BoostedSource, count: int, rows: int = 30) -> list[Batch]:
    with closing(source.batches(rows)) as stream:
        return list(islice(stream, count))


def test_a_boosted_source_gives_residuals_at_the_same_places():
    sae = fitted()
    plain, boosted = batches(ArraySource(world(70)), 5), batches(BoostedSource(ArraySource(world(70)), sae), 5)
    for one, other in zip(plain, boosted, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(other.x, one.x - sae(one.x), rtol=0, atol=0)
        assert other.place == one.place
        assert not other.x.requires_grad


def test_it_goes_on_from_a_saved_place():
    source = BoostedSource(ArraySource(world(70)), fitted())
    batches(source, 2)
    state = source.state()
    expected = batches(source, 3)
    again = BoostedSource(ArraySource(world(70)), fitted())
    again.restore(state)
    for one, other in zip(expected, batches(again, 3), strict=True):
        assert torch.equal(one.x, other.x)


def test_a_sample_is_of_residuals(monkeypatch):
    monkeypatch.setattr(home, "BLOCK_ROWS", 7)
    sae, source = fitted(), ArraySource(world(70))
    sample = source.sample(50)
    with torch.no_grad():
        torch.testing.assert_close(BoostedSource(source, sae).sample(50), sample - sae(sample))
    assert BoostedSource(source, sae).statistics() is None


def test_rows_of_another_precision_are_read_in_the_saes():
    x = world(70).half()
    (batch,) = batches(BoostedSource(ArraySource(x), fitted()), 1)
    assert batch.x.dtype == torch.float32


class Downstream(ArraySource):
    """Rows that know a loss downstream and its gradient."""

    def _batch(self, rows: Tensor) -> Batch:
        return Batch(rows, gradient=2 * rows, downstream=lambda x_hat: x_hat.square().sum(), place=self.state())


def test_what_lies_downstream_sees_whole_reconstructions():
    sae = fitted()
    ((one,), (other,)) = (batches(Downstream(world(30)), 1), batches(BoostedSource(Downstream(world(30)), sae), 1))
    assert torch.equal(other.gradient, one.gradient)
    with torch.no_grad():
        torch.testing.assert_close(other.downstream(torch.ones(30, D)), (1 + sae(one.x)).square().sum())


def test_closing_it_closes_the_source():
    opened, closed = [], []

    class Closing(ArraySource):
        def batches(self, rows: int):
            opened.append(self._watched(super().batches(rows)))  # held here, so that nothing but close() ends it
            return opened[-1]

        def _watched(self, stream):
            try:
                yield from stream
            finally:
                closed.append(True)

    stream = BoostedSource(Closing(world(70)), fitted()).batches(10)
    next(stream)
    assert not closed
    stream.close()
    assert closed


def test_sources_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=f"{D} wide, .*reads {D + 1}"):
        BoostedSource(ArraySource(world(70)), SAE(D + 1, 8, TopK(2)))
    for source, earlier in (
        (ArraySource(world(70), target=world(70)), fitted()),
        (ArraySource(world(70)), SAE(D, 8, TopK(2), d_out=3)),
    ):
        with pytest.raises(ValueError, match="boosting .*targets"):
            BoostedSource(source, earlier)


# Measuring.


@pytest.mark.parametrize("how", ["bagging", "boosting"])
def test_an_ensemble_is_measured_like_an_sae(how):
    saes, x = [fitted(0), fitted(1)], world(100)
    for sae in saes:
        sae.objective(world(400, seed=3))
    found = measure({"both": Ensemble(saes, how), "one": saes[0]}, Rows(x), show=False)
    both, scores = Ensemble(saes, how), found["both"].scores
    assert set(scores) <= set(found["one"].scores)
    assert {"fvu", "l0", "nearest_cosine"} <= set(scores)
    assert scores["fvu"].value == pytest.approx(fvu(both, x), rel=1e-5)
    assert scores["l0"].value == pytest.approx(both.encode(x).l0().float().mean().item())
    assert scores["nearest_cosine"].n == both.n_latents == 48
    assert all(len(values) == 48 for values in found["both"].latents.values())


def test_diversity_is_the_distance_to_the_nearest_direction_of_another_sae():
    saes = [SAE(3, 2, TopK(1)), SAE(3, 3, TopK(1))]
    with torch.no_grad():
        saes[0].dictionary.W_dec.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        saes[1].dictionary.W_dec.copy_(torch.tensor([[2.0, 0, 0], [0, 3, 3], [0, 0, -1]]))
    half = 1 - 0.5**0.5
    torch.testing.assert_close(diversity(saes), torch.tensor([0, half, 0, half, 1.0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(diversity([saes[0], saes[0]]), torch.zeros(4), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 SAEs, got 1"):
        diversity(saes[:1])


def test_diversity_compares_directions_in_the_units_of_the_data():
    """With a scale a site, directions point elsewhere there."""
    saes = [SAE(2, 1, TopK(1)), SAE(2, 1, TopK(1))]
    saes[1].scale = DataScale().setup(2, sites=2)
    saes[1].scale.set(torch.zeros(2), torch.tensor([1.0, 2.0]))
    with torch.no_grad():
        saes[0].dictionary.W_dec.copy_(torch.tensor([[1.0, 2]]))
        saes[1].dictionary.W_dec.copy_(torch.tensor([[1.0, 1]]))
    torch.testing.assert_close(diversity(saes), torch.zeros(2), rtol=0, atol=1e-6)
