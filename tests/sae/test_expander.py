"""The expander dictionary against a dense one with a mask, in float64, and what it must never hold in memory."""

# Shape letters: B rows, D input width, L latents, K kept per row, d inputs of a latent.

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import saelab
from saelab.core.codes import Codes
from saelab.core.mesh import Mesh
from saelab.sae import SAE
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander, random_inputs

B, D, L = 11, 10, 96


def rows(n: int = B, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3


def made(activation: Activation | None = None, degree: int = 3, seed: int = 0) -> SAE:
    """In float64, with biases that are nowhere special; the input is not scaled."""
    sae = SAE(D, L, activation or TopK(4), dictionary=Expander(degree), seed=seed).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        sae.dictionary.b_enc += 0.1 * torch.randn(L, generator=generator, dtype=torch.float64)
        sae.dictionary.b_dec += 0.3 * torch.randn(D, generator=generator, dtype=torch.float64)
    sae.after_step()  # unit norm in float64
    return sae


def matrix(dictionary: Expander) -> Tensor:
    """Its weights as [L, D], entry by entry."""
    full = torch.zeros(L, D, dtype=torch.float64)
    for latent in range(L):
        for slot, place in enumerate(dictionary.inputs[latent].tolist()):
            full[latent, place] = dictionary.W_dec[latent, slot].item()
    return full


@pytest.mark.parametrize("activation", [TopK(4), TopK(L // 2), ReLU()], ids=["sparse", "many", "full"])
def test_values_and_gradients_are_those_of_a_masked_dense_dictionary(activation):
    sae, x = made(activation), rows()
    dictionary = sae.dictionary
    full, b_enc, b_dec = matrix(dictionary), dictionary.b_enc.detach().clone(), dictionary.b_dec.detach().clone()
    full, b_enc, b_dec = (part.requires_grad_() for part in (full, b_enc, b_dec))
    k = getattr(activation, "k", L)
    pre = (x - b_dec) @ full.T + b_enc
    f = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    expected = f @ full + b_dec
    codes = sae.activation.forward_train(dictionary.pre(x))
    found = dictionary.decode(codes)
    torch.testing.assert_close(codes.dense(), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found.sin().sum().backward()
    expected.sin().sum().backward()
    torch.testing.assert_close(dictionary.W_dec.grad, full.grad.gather(1, dictionary.inputs.long()))
    torch.testing.assert_close(dictionary.b_enc.grad, b_enc.grad)
    torch.testing.assert_close(dictionary.b_dec.grad, b_dec.grad)


def test_pre_activations_of_some_latents_and_of_other_rows():
    dictionary, x = made().dictionary, rows()
    pre, weight = dictionary.pre(x), matrix(dictionary)
    dense = (x - dictionary.b_dec) @ weight.T + dictionary.b_enc
    torch.testing.assert_close(pre.dense(), dense)
    torch.testing.assert_close(pre.for_latents(torch.tensor([90, 3, 3])), dense[:, [90, 3, 3]])
    assert pre.for_latents(torch.tensor([], dtype=torch.int64)).shape == (B, 0)
    torch.testing.assert_close(pre.for_rows(rows(5, seed=2)).dense(), rows(5, seed=2) @ weight.T + dictionary.b_enc)
    for absolute in (False, True):
        size = dense.abs() if absolute else dense
        for fresh in (dictionary.pre(x), pre):  # before and after all were computed
            codes = fresh.topk(6, absolute)
            assert torch.equal(codes.indices, size.topk(6).indices)
            torch.testing.assert_close(codes.values, dense.gather(1, codes.indices))


def test_choosing_the_largest_does_not_cost_the_others_their_gradient():
    pre = made().dictionary.pre(rows())
    pre.topk(3)
    assert pre.dense().requires_grad


def test_frozen_decoding_passes_a_gradient_to_the_codes_only():
    for codes in (
        Codes.full(torch.rand(B, L).double()),
        Codes(torch.rand(B, 2).double(), torch.tensor([[1, 7]] * B), L),
    ):
        dictionary, values = made().dictionary, codes.values.requires_grad_()
        dictionary.decode(codes.with_values(values), frozen=True).sum().backward()
        assert all(parameter.grad is None for parameter in dictionary.parameters())
        torch.testing.assert_close(values.grad, dictionary.directions().sum(1)[codes.indices])


@pytest.mark.parametrize("k", [1, L])
def test_reconstructions_lie_in_memory_row_by_row(k):
    # Shards that decode different numbers of entries add up their memory.
    codes = Codes(torch.rand(B, k).double(), torch.arange(k).expand(B, k), L)
    assert made().dictionary.decode(codes).is_contiguous()


def test_it_holds_degree_weights_a_latent():
    dictionary = SAE(1000, 4096, TopK(4), dictionary=Expander(7)).dictionary
    assert sum(parameter.numel() for parameter in dictionary.parameters()) == 7 * 4096 + 4096 + 1000
    assert dictionary.inputs.shape == (4096, 7)
    assert dictionary.inputs.dtype == torch.int32


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


@pytest.mark.parametrize("activation", [TopK(4), ReLU()], ids=["sparse", "full"])
def test_a_training_step_never_holds_a_matrix_of_latents_by_inputs(activation):
    d_in, n_latents, n = 512, 256, 100
    sae = SAE(d_in, n_latents, activation, dictionary=Expander(7))
    with Largest() as largest:
        terms, _ = sae.objective(torch.randn(n, d_in))
        torch.stack(list(terms.values())).sum().backward()
    assert largest.entries == n * d_in < n_latents * d_in < n * n_latents * 7


@pytest.mark.parametrize(
    ("n_latents", "d_in", "degree"), [(96, 10, 3), (50, 7, 7), (33, 8, 1), (10, 64, 5), (500, 9, 8)]
)
def test_inputs_are_distinct_and_used_nearly_equally(n_latents, d_in, degree):
    inputs = random_inputs(n_latents, d_in, degree, torch.Generator().manual_seed(0))
    assert inputs.shape == (n_latents, degree)
    assert all(len(set(latent)) == degree for latent in inputs.tolist())
    used = torch.bincount(inputs.flatten(), minlength=d_in)
    assert used.sum() == n_latents * degree
    assert used.max() - used.min() <= 1


def test_inputs_are_random():
    first, again, other = (random_inputs(200, 20, 3, torch.Generator().manual_seed(seed)).long() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    together = torch.zeros(20, 20)
    for latent in random_inputs(4000, 20, 3, torch.Generator().manual_seed(2)).long():
        together[latent[:, None], latent] += 1
    together.fill_diagonal_(0)
    expected = 4000 * 6 / (20 * 19)  # of every pair
    assert (together.sum() / (20 * 19)).item() == pytest.approx(expected)
    off = together[~torch.eye(20, dtype=torch.bool)]
    assert off.min() > 0.6 * expected
    assert off.max() < 1.4 * expected


def test_with_all_inputs_it_is_the_tied_dense_dictionary():
    sae, x = made(degree=D), rows()
    dense = SAE(D, L, TopK(4), dictionary=Dense(tied=True)).double()
    with torch.no_grad():
        dense.dictionary.W_dec.copy_(sae.dictionary.directions())
        dense.dictionary.b_enc.copy_(sae.dictionary.b_enc)
        dense.dictionary.b_dec.copy_(sae.dictionary.b_dec)
    torch.testing.assert_close(sae(x), dense(x))


def test_the_bias_starts_at_the_geometric_median_and_may_be_left_out():
    sae = SAE(D, L, TopK(4), dictionary=Expander(3))
    sae.initialise(rows(60).float())
    assert (sae.dictionary.b_dec != 0).all()
    bare = SAE(D, L, TopK(4), dictionary=Expander(3, decoder_bias=False, encoder_bias=False))
    assert [name for name, _ in bare.dictionary.named_parameters()] == ["W_dec"]
    assert torch.equal(bare.dictionary.bias(), torch.zeros(D))


def test_directions_keep_unit_norm_and_their_inputs():
    sae = made()
    before = sae.dictionary.directions() != 0
    assert (before.sum(1) == 3).all()
    optimizer = torch.optim.SGD(sae.parameters(), lr=1.0)
    sae.objective(rows())[0]["reconstruction"].backward()
    sae.before_step()
    along = (sae.dictionary.W_dec.grad * sae.dictionary.W_dec).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
    optimizer.step()
    sae.after_step()
    torch.testing.assert_close(sae.dictionary.norms(), torch.ones(L, dtype=torch.float64))
    torch.testing.assert_close(sae.dictionary.directions().norm(dim=1), sae.dictionary.norms())
    assert torch.equal(sae.dictionary.directions() != 0, before)


def test_folding_makes_codes_larger_and_keeps_the_rest():
    sae, x = made(), 5 * rows() + 2
    sae.scale.set(x.mean(0), 5.0)
    before, codes = sae(x), sae.encode(x).dense()
    sae.fold()
    torch.testing.assert_close(sae(x), before)
    torch.testing.assert_close(sae.encode(x).dense(), 5 * codes)


def test_the_graph_is_saved(tmp_path):
    sae = made(seed=3)
    sae.save(tmp_path)
    again = saelab.load(tmp_path)
    assert torch.equal(again.dictionary.inputs, sae.dictionary.inputs)
    assert torch.equal(again(rows()), sae(rows()))
    assert not torch.equal(made(seed=4).dictionary.inputs, sae.dictionary.inputs)


def test_a_shard_holds_its_part():
    class Second(Mesh):
        def _join(self) -> None:
            self.shard = 1

    whole = SAE(D, L, TopK(4), dictionary=Expander(3)).dictionary
    part = SAE(D, L, TopK(4), dictionary=Expander(3), mesh=Second(1, 2)).dictionary
    assert torch.equal(part.inputs, whole.inputs[L // 2 :])
    torch.testing.assert_close(part.W_dec, whole.W_dec[L // 2 :])
    assert {"W_dec", "inputs", "b_enc"} == set(part.sharded)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"degree": 0}, {}, "degree must be from 1 to the width 10, got 0"),
        ({"degree": 11}, {}, "degree must be from 1 to the width 10, got 11"),
        ({}, {"d_out": 10}, "cannot be a transcoder: leave out d_out"),
    ],
)
def test_a_bad_setting_is_named(settings, more, message):
    with pytest.raises(ValueError, match=f"Expander: .*{message}"):
        SAE(D, L, TopK(4), dictionary=Expander(**settings), **more)
