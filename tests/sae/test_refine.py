"""Refined codes are the non-negative least squares of their directions: scipy's, the conditions, planted codes."""

import sys

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from saelab.core.codes import Codes
from saelab.core.mesh import Mesh
from saelab.sae import SAE, refine, reread
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense

B, D, L, K = 60, 24, 80, 10


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**settings: object) -> SAE:
    """An SAE in float64 with directions that are neither orthogonal nor of unit norm, and a scaling."""
    sae = SAE(D, L, TopK(K), **settings).double()
    sae.initialise(2 * random(100, D, seed=1) + 1, target=random(100, D, seed=2) if "d_out" in settings else None)
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(random(L, D, seed=3) + 1)
        sae.dictionary.b_dec.copy_(random(D, seed=4))
    return sae


def some_codes(seed: int = 5, n: int = B) -> Codes:
    """Positive codes of K different latents a row."""
    indices = random(n, L, seed=seed).argsort(1)[:, :K]
    return Codes(random(n, K, seed=seed + 1).abs() + 0.1, indices, L)


def errors(sae: SAE, x: Tensor, codes: Codes) -> Tensor:
    return (x - sae.decode(codes)).norm(dim=1).detach()


def best(sae: SAE, x: Tensor, codes: Codes) -> Tensor:
    """The values by scipy, a row at a time, on the active entries only; [B, K]."""
    rest = ((x - sae.scale.mean) / sae.scale.scale - sae.dictionary.b_dec).detach()
    values = torch.zeros_like(codes.values)
    for row in range(len(x)):
        active = codes.values[row] != 0
        signs = codes.values[row, active].sign()
        columns = (sae.dictionary.W_dec[codes.indices[row, active]] * signs[:, None]).detach()
        values[row, active] = torch.from_numpy(nnls(columns.T.numpy(), rest[row].numpy())[0]) * signs
    return values


def test_values_are_those_of_non_negative_least_squares():
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    expected = best(sae, x, codes)
    assert 0.05 < (expected == 0).double().mean() < 0.8
    found = refine(sae, x, codes)
    torch.testing.assert_close(found.values, expected, rtol=1e-7, atol=1e-8)
    assert torch.equal(found.indices, codes.indices)


def test_signed_values_keep_their_signs():
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    signed = codes.with_values(codes.values * random(B, K, seed=9).sign())
    found = refine(sae, x, signed)
    torch.testing.assert_close(found.values, best(sae, x, signed), rtol=1e-7, atol=1e-8)
    assert ((found.values.sign() == signed.values.sign()) | (found.values == 0)).all()
    assert (found.values < 0).any()


def test_unused_entries_stay_unused_whatever_latent_they_name():
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    values, indices = codes.values.clone(), codes.indices.clone()
    values[:, 6:], indices[:, 6:] = 0, indices[:, :1]
    fewer = Codes(values, indices, L)
    found = refine(sae, x, fewer)
    assert (found.values[:, 6:] == 0).all()
    torch.testing.assert_close(found.values, best(sae, x, fewer), rtol=1e-7, atol=1e-8)


def test_the_conditions_of_the_optimum_hold():
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    found = refine(sae, x, codes)
    residual = sae.scale.apply_to(x) - sae.dictionary.decode(found).detach()
    slope = -(sae.dictionary.W_dec.detach()[found.indices] @ residual[:, :, None])[:, :, 0]
    at_zero = found.values == 0
    assert slope[~at_zero].abs().max() < 1e-7
    assert slope[at_zero].min() > -1e-7


@pytest.mark.parametrize("closeness", [0, 3, 30])
@pytest.mark.parametrize("rounds", [1, 2, 100])
def test_no_error_becomes_larger(closeness, rounds):
    """Also with directions that nearly coincide, and when it is stopped early."""
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    with torch.no_grad():
        sae.dictionary.W_dec += closeness * random(D, seed=11)
    for rows in (x, sae.decode(codes).detach()):
        before, after = errors(sae, rows, codes), errors(sae, rows, refine(sae, rows, codes, rounds))
        assert (after <= before * (1 + 1e-12) + 1e-12).all()
    if rounds == 100:
        least = errors(sae, x, codes.with_values(best(sae, x, codes)))
        found = errors(sae, x, refine(sae, x, codes))
        assert (found <= least * (1 + 1e-7)).all()


def test_directions_that_depend_on_each_other_are_no_trouble():
    """More directions than the rows are wide, and one twice: many optima, one error."""
    sae = SAE(4, 12, ReLU()).double()
    with torch.no_grad():
        sae.dictionary.W_dec[1] = sae.dictionary.W_dec[0]
    codes = Codes(random(20, 12, seed=1).abs(), torch.arange(12).expand(20, 12), 12)
    x = random(20, 4)
    found = refine(sae, x, codes)
    assert torch.isfinite(found.values).all()
    least = (x - best(sae, x, codes) @ sae.dictionary.W_dec.detach()).norm(dim=1)
    assert (errors(sae, x, found) <= least + 1e-7).all()


def test_a_direction_of_zeros_leaves_its_value_alone():
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    with torch.no_grad():
        sae.dictionary.W_dec[codes.indices[0, 0]] = 0
    found = refine(sae, x, codes)
    assert found.values[0, 0] == codes.values[0, 0]
    assert torch.isfinite(found.values).all()
    assert (errors(sae, x, found) < errors(sae, x, codes)).all()


# What it is for.


@pytest.mark.parametrize("shrunk", [0.7, 1.4])
def test_shrunk_codes_are_scaled_back(shrunk):
    sae, codes = make(), some_codes()
    x = sae.decode(codes).detach()
    found = refine(sae, x, codes.with_values(shrunk * codes.values))
    torch.testing.assert_close(found.values, codes.values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimal_codes_stay(dtype):
    sae, x, codes = make().to(dtype), (2 * random(B, D) + 1).to(dtype), some_codes()
    once = refine(sae, x, codes.with_values(codes.values.to(dtype)))
    assert once.values.dtype == dtype
    torch.testing.assert_close(refine(sae, x, once).values, once.values, rtol=1e-5, atol=1e-6)


def test_orthogonal_directions_of_a_tied_topk_are_optimal_already():
    """Bit for bit: there the codes are the projections."""
    sae = SAE(D, D, TopK(5), dictionary=Dense(tied=True))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.eye(D))
    x = random(B, D).float()
    codes = sae.encode(x)
    assert torch.equal(refine(sae, x, codes).values, codes.values)


def test_rounding_makes_no_error_larger():
    """Values in float32, a unit in the last place off the best of two directions that nearly coincide."""
    sae = SAE(3, 2, TopK(2))
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(torch.tensor([[1.0, 0, 0], [1, 1e-3, 0]]))
    start = 1 + random(2000, 2).abs().float()
    codes = Codes(start, torch.arange(2).expand(2000, 2), 2)
    x = sae.decode(codes).detach() + 1e-3 * random(2000, 3, seed=1).float()
    once = refine(sae, x, codes)
    off = once.with_values(torch.nextafter(once.values, random(2000, 2, seed=2).float().sign() * torch.inf))
    direct = sae.dictionary.W_dec.detach().double()
    before, after = (
        (x.double() - each.values.double() @ direct).square().sum(1) for each in (off, refine(sae, x, off))
    )
    assert (after <= before * (1 + 1e-14)).all()
    assert (after < before).any()


def test_full_codes_come_back_compact():
    sae, x = reread(make(), ReLU()), 2 * random(B, D) + 1
    full = Codes.full(sae.encode(x).dense())
    found = refine(sae, x, full)
    assert found.values.shape[1] == full.l0().max()
    assert (found.dense()[full.dense() == 0] == 0).all()
    assert (errors(sae, x, found) < errors(sae, x, full)).all()
    assert torch.equal(refine(sae, x, full.compact()).dense(), found.dense())


def test_a_transcoders_target_is_reconstructed():
    sae = make(d_out=D, dictionary=Dense(skip_connection=True))
    x, target = 2 * random(B, D) + 1, random(B, D, seed=8)
    with torch.no_grad():
        sae.dictionary.W_skip.copy_(random(D, D, seed=7) / 5)
    codes = some_codes()
    missing = sae.target_scale.apply_to(target) - sae.dictionary.skip(sae.scale.apply_to(x))
    plain = SAE(D, L, TopK(K)).double()
    plain.dictionary.load_state_dict({k: v for k, v in sae.dictionary.state_dict().items() if k != "W_skip"})
    found = refine(sae, x, codes, target=target)
    torch.testing.assert_close(found.values, best(plain, missing, codes), rtol=1e-7, atol=1e-8)
    with pytest.raises(ValueError, match=rf"give target \[{B}, {D}\]"):
        refine(sae, x, codes)
    with pytest.raises(ValueError, match="target is for transcoders"):
        refine(plain, x, codes, target=target)


# Edges.


def test_blocks_do_not_matter(monkeypatch):
    sae, x, codes = make(), 2 * random(B, D) + 1, some_codes()
    expected = refine(sae, x, codes).values
    for size in (1, 7 * K * (D + 3 * K)):
        monkeypatch.setattr(sys.modules["saelab.sae.refine"], "BLOCK_ENTRIES", size)
        torch.testing.assert_close(refine(sae, x, codes).values, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kept", [0, 3])
def test_nothing_to_refine(kept):
    sae = make()
    none = Codes(torch.zeros(2, kept).double(), torch.zeros(2, kept, dtype=torch.int64), L)
    assert torch.equal(refine(sae, torch.ones(2, D), none).values, none.values)
    assert len(refine(sae, torch.ones(0, D), some_codes(n=0))) == 0


def test_no_gradient_is_kept():
    sae, x = make(), 2 * random(B, D) + 1
    assert not refine(sae, x, sae.encode(x)).values.requires_grad


def test_wrong_rows_and_rounds_are_named():
    sae, codes = make(), some_codes()
    for shape in ((B, D + 1), (B - 1, D), (D,)):
        with pytest.raises(ValueError, match=rf"expected the codes' {B} rows \[B, {D}\]"):
            refine(sae, torch.zeros(shape), codes)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        refine(sae, torch.zeros(B, D), codes, rounds=0)
    sae.mesh = Mesh()
    sae.mesh.shards = 2
    with pytest.raises(ValueError, match="one process"):
        refine(sae, torch.zeros(B, D), codes)
