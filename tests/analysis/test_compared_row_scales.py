"""Comparing SAEs that scale every row by itself: as SAEs that reconstruct the same and do not, and by hand.

A ReLU without biases is homogeneous: whatever one number each row is divided by, what every latent adds is the same.
"""

# Shape letters: n rows, D width, L latents.

import pytest
import torch
from analysis.planted import drawn, sae_with

from saelab.analysis.assembled import assembled, independent
from saelab.analysis.insertion import insertion_test
from saelab.analysis.manifolds import ManifoldSettings, manifolds
from saelab.analysis.match import match
from saelab.analysis.rows import Rows
from saelab.analysis.stitch import stitch
from saelab.analysis.swaps import along, plan
from saelab.sae import SAE
from saelab.sae.activations import JumpReLU
from saelab.sae.scale import Scale
from saelab.sae.scales import ConstantNorm, DataScale, Identity, LayerNorm

D = 10


def scaled_by(scale: Scale, n_latents: int, seed: int, bias: bool = False, activation=None) -> SAE:
    """With latents of the other SAE among its own."""
    one = sae_with(drawn(n_latents, D, seed=3) + 0.3 * drawn(n_latents, D, seed=seed), activation, seed=seed)
    if not bias:
        with torch.no_grad():
            one.dictionary.b_dec.zero_()
            one.dictionary.b_enc.zero_()
    made = SAE(D, n_latents, one.activation, scale=scale)
    made.load_state_dict(one.state_dict() | made.scale.state_dict(prefix="scale."), strict=False)
    return made.eval()


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Rows of sizes that differ by far."""
    return Rows.independent(drawn(400, D, seed=8) * torch.logspace(-1, 1, 400)[:, None] + 0.2)


def pair_of(scale: type[Scale]) -> tuple[SAE, SAE]:
    small, large = (scaled_by(scale(), n, seed) for n, seed in ((12, 5), (20, 6)))
    return independent(small), independent(large)


def test_what_each_latent_adds_is_what_it_adds_to_rows_as_they_are(rows):
    each, none = (insertion_test(*pair_of(scale), rows, min_firings=5) for scale in (ConstantNorm, Identity))
    torch.testing.assert_close(each.delta, none.delta, rtol=1e-4, atol=1e-7)
    assert (none.delta < 0).any()
    assert torch.equal(each.kind, none.kind)


@pytest.mark.parametrize("order", ["cosine", "delta"])
def test_the_way_between_two_is_the_same(rows, order):
    found = []
    for scale in (ConstantNorm, Identity):
        small, large = pair_of(scale)
        firings = insertion_test(small, large, rows, min_firings=5).firings
        steps = plan(small, large, firings, 0.8, order, rows)
        found.append((steps, along(small, large, steps, list(range(len(steps) + 1)), rows)))
    (each, path), (none, expected) = found
    assert torch.equal(each.comes, none.comes)
    assert torch.equal(each.goes, none.goes)
    for here, there in zip(path, expected, strict=True):
        assert here.mse == pytest.approx(there.mse, rel=1e-4)
        assert here.l0 == there.l0


def test_clusters_show_what_latents_add(rows):
    settings = ManifoldSettings(threshold=0.3, min_firings=2, clusters=2)
    each, none = (manifolds(scaled_by(scale(), 20, 6), rows, settings) for scale in (ConstantNorm, Identity))
    assert len(none.clouds)
    for here, there in zip(each.clouds, none.clouds, strict=True):
        torch.testing.assert_close(here.value, there.value, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_every_step_with_layer_norm_is_the_sae_that_is_put_together(rows):
    """Biases and thresholds are in the units of the scaled row."""
    small, large = (
        independent(scaled_by(LayerNorm(), n, seed, bias=True, activation=JumpReLU(threshold=0.2)))
        for n, seed in ((12, 5), (20, 6))
    )
    steps = plan(small, large, insertion_test(small, large, rows, 5).firings, 0.8)
    path = along(small, large, steps, list(range(len(steps) + 1)), rows)
    variance, mean = torch.var_mean(rows.x, 1, keepdim=True)
    x = (rows.x - mean) / (variance.sqrt() + 1e-5)
    for step, point in enumerate(path):
        kept = steps.latents(step)
        bias = (large if step == len(steps) else small).dictionary.b_dec
        x_hat = bias.expand(len(x), -1)
        for sae, latents in zip((small, large), kept, strict=True):
            pre = (x - sae.dictionary.b_dec) @ sae.dictionary.W_enc.T + sae.dictionary.b_enc
            f = pre.where(pre > sae.activation.theta, 0)
            x_hat = x_hat + f[:, latents] @ sae.dictionary.W_dec[latents]
        x_hat = x_hat * variance.sqrt() + mean
        assert point.mse == pytest.approx((rows.x - x_hat).square().mean().item(), rel=1e-4), step
        put_together = assembled(list(zip((small, large), kept, strict=True)), bias)
        assert isinstance(put_together.scale, LayerNorm)
        torch.testing.assert_close(put_together(rows.x), x_hat, rtol=1e-4, atol=1e-4)


def test_sae_s_of_other_scalings_are_refused_in_one_line(rows):
    saes = {"a": scaled_by(LayerNorm(), 12, 5), "b": scaled_by(DataScale(), 20, 6)}
    wanted = r"^a and b scale rows by LayerNorm\(\) and DataScale\(\): they cannot be compared$"
    with pytest.raises(ValueError, match=wanted):
        stitch(saes, rows, show=False)
    with pytest.raises(ValueError, match=wanted):
        match(*saes.values(), names=("a", "b"), by="weights")
    same = match(saes["a"], saes["a"], names=("a", "b"))
    assert same.a.cosine.min() > 0.999
