"""EleutherAI's sparsify (eai-sparsify 1.3.3), side by side.

Their unit is the fraction of the batch's variance unexplained: ours with `sae.variance` set to the batch's.

Known to be wrong there: `FusedEncoder.backward` ignores the gradient of the pre-activations, which both auxiliary
losses are made of, so neither AuxK nor Multi-TopK teaches the encoder anything. The values agree all the same. With
the same encoder written as plain torch in its place, all gradients agree too. It also takes the ReLU's derivative to be
1 everywhere, which shows where a row has fewer than k positive pre-activations.
"""

# Shape letters: B rows, D input width, L latents.

import pytest
import sparsify.sparse_coder
import torch
from sharing import (
    B,
    D,
    L,
    Link,
    auxk_to_bias,
    counted,
    error_variance,
    give,
    gradients,
    rows,
    same,
    same_losses,
    set_dead,
    shuffle,
    take,
)
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.fused_encoder import EncoderOutput
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Forward, Loss
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.auxk import AuxK
from saelab.sae.losses.multi_topk import MultiTopK

K = 4
AFTER = 1000
LINKS = [
    Link("dictionary.W_enc", "encoder.weight"),
    Link("dictionary.b_enc", "encoder.bias"),
    Link("dictionary.W_dec", "W_dec"),
    Link("dictionary.b_dec", "b_dec"),
]
SKIP = Link("dictionary.W_skip", "W_skip")
Pair = tuple[SAE, SparseCoder]


def twins(dtype: torch.dtype, losses: list[Loss] | None = None, multi_topk: bool = False, k: int = K) -> Pair:
    """Ours and theirs with our weights."""
    sae = shuffle(SAE(D, L, TopK(k), losses or []), dtype)
    peer = SparseCoder(D, SparseCoderConfig(num_latents=L, k=k, multi_topk=multi_topk), dtype=dtype)
    give(sae, peer, LINKS)
    return sae, peer


def transcoders(dtype: torch.dtype, losses: list[Loss] | None = None, multi_topk: bool = False) -> Pair:
    """Ours and theirs with a skip connection."""
    sae = shuffle(SAE(D, L, TopK(K), losses or [], Dense(skip_connection=True), d_out=D), dtype)
    config = SparseCoderConfig(num_latents=L, k=K, multi_topk=multi_topk, transcode=True, skip_connection=True)
    peer = SparseCoder(D, config, dtype=dtype)
    give(sae, peer, [*LINKS, SKIP])
    return sae, peer


def passes(pair: Pair, x: Tensor, y: Tensor | None = None, dead: bool = False):
    """Our terms in the unit that sae.variance sets, our pass, and theirs."""
    sae, peer = pair
    y_ = x if y is None else y
    sae.variance.copy_((y_ - y_.mean(0)).square().mean())
    terms, step = counted(sae, x, y)
    return terms, step, peer(x, y, dead_mask=sae.firing.dead(AFTER) if dead else None)


def dense(out) -> Tensor:
    """Their codes [B, L]."""
    return torch.zeros(len(out.latent_acts), L, dtype=out.latent_acts.dtype).scatter(
        1, out.latent_indices, out.latent_acts.detach()
    )


def plain_encoder(x: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str) -> EncoderOutput:
    """Their encoder's forward pass, with the gradients that torch gives it."""
    pre = torch.nn.functional.linear(x, weight, bias).relu()
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return EncoderOutput(values, indices, pre)


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their SAE with an encoder that every gradient passes."""
    monkeypatch.setattr(sparsify.sparse_coder, "fused_encoder", plain_encoder)


def auxk_twins(dtype: torch.dtype, n_dead: int = L) -> Pair:
    pair = twins(dtype, [AuxK(k_aux=D // 2, weight=1.0, dead_after=AFTER)])
    set_dead(pair[0], AFTER, torch.arange(L) < n_dead)
    return pair


def in_their_unit(term: Tensor, step: Forward) -> Tensor:
    """AuxK: they divide by the variance of the rows, we by that of the residual; with fewer dead latents than k_aux
    they scale it down by that fraction, which we do not."""
    n_dead = int(step.sae.firing.dead(AFTER).sum())
    return term * error_variance(step) / step.sae.variance * min(n_dead / (D // 2), 1)


def test_topk(dtype: torch.dtype) -> None:
    pair, x = twins(dtype), rows(dtype)
    terms, step, out = passes(pair, x)
    same(step.codes.dense(), dense(out), "codes")
    same(step.x_hat, out.sae_out, "reconstruction")
    same(pair[0](x), out.sae_out, "reconstruction when read")
    same_losses(pair, LINKS, {"fvu": terms["reconstruction"]}, {"fvu": out.fvu})


def test_topk_from_their_starting_weights(dtype: torch.dtype) -> None:
    sae = SAE(D, L, TopK(K)).to(dtype)
    peer = SparseCoder(D, SparseCoderConfig(num_latents=L, k=K), dtype=dtype)
    take(sae, peer, LINKS)
    terms, step, out = passes((sae, peer), rows(dtype))
    same(step.codes.dense(), dense(out), "codes")
    same_losses((sae, peer), LINKS, {"fvu": terms["reconstruction"]}, {"fvu": out.fvu})


def scarce(dtype: torch.dtype) -> Pair:
    """With a k so large that many rows have fewer positive pre-activations."""
    return twins(dtype, k=L - 10)


def test_slots_left_empty_teach_their_encoder(dtype: torch.dtype) -> None:
    """Where fewer than k pre-activations are positive, theirs fills up with latents of value zero, and
    `FusedEncoder.backward` passes their gradient as if the ReLU had let them through; ours passes none."""
    pair = scarce(dtype)
    terms, step, out = passes(pair, rows(dtype))
    assert (step.codes.l0() < L - 10).any()
    same(step.codes.dense(), dense(out), "codes")
    same(terms["reconstruction"], out.fvu, "FVU")
    ours, theirs = gradients(terms["reconstruction"], pair[0]), gradients(out.fvu, pair[1])
    pre = step.pre.dense().gather(1, out.latent_indices)
    f = torch.zeros_like(step.pre.dense()).scatter(1, out.latent_indices, pre - pre.detach() + pre.detach().relu())
    as_theirs = gradients(step.error(f @ pair[0].dictionary.W_dec + pair[0].dictionary.b_dec), pair[0])
    for link in LINKS:
        same(as_theirs[link.ours], theirs[link.theirs], f"gradient for {link.ours} as if the ReLU had let all through")
    wanted = theirs["encoder.weight"]
    assert (ours["dictionary.W_enc"] - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.usefixtures("repaired")
def test_slots_left_empty_with_their_encoder_repaired(dtype: torch.dtype) -> None:
    pair = scarce(dtype)
    terms, _, out = passes(pair, rows(dtype))
    same_losses(pair, LINKS, {"fvu": terms["reconstruction"]}, {"fvu": out.fvu})


def test_skip_transcoder(dtype: torch.dtype) -> None:
    pair, x, y = transcoders(dtype), rows(dtype), rows(dtype, seed=2)
    terms, step, out = passes(pair, x, y)
    same(step.codes.dense(), dense(out), "codes")
    same(step.x_hat, out.sae_out, "reconstruction")
    same_losses(pair, [*LINKS, SKIP], {"fvu": terms["reconstruction"]}, {"fvu": out.fvu})


@pytest.mark.parametrize("n_dead", [L, 7])
def test_auxk_value_agrees_but_their_encoder_learns_nothing(dtype: torch.dtype, n_dead: int) -> None:
    pair = auxk_twins(dtype, n_dead)
    terms, step, out = passes(pair, rows(dtype), dead=True)
    auxk = in_their_unit(terms["AuxK"], step)
    same(auxk, out.auxk_loss, "AuxK")
    ours, theirs = gradients(auxk, pair[0]), gradients(out.auxk_loss, pair[1])
    same(ours["dictionary.W_dec"], theirs["W_dec"], "gradient of AuxK for W_dec")
    for link in LINKS[:2]:
        assert not theirs[link.theirs].any(), "sparsify's AuxK has begun to train the encoder: compare it in full"
        assert ours[link.ours].any()
    assert not theirs["b_dec"].any()  # it would reach the bias through the encoder's input alone


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("n_dead", [L, 7])
def test_auxk_agrees_in_full_with_their_encoder_repaired(dtype: torch.dtype, n_dead: int) -> None:
    pair = auxk_twins(dtype, n_dead)
    terms, step, out = passes(pair, rows(dtype), dead=True)
    direct = in_their_unit(auxk_to_bias(step, D // 2), step)
    more = {"AuxK": {"dictionary.b_dec": direct}}
    same_losses(pair, LINKS, {"AuxK": in_their_unit(terms["AuxK"], step)}, {"AuxK": out.auxk_loss}, more)


def test_multi_topk_value_agrees_but_their_encoder_learns_nothing(dtype: torch.dtype) -> None:
    pair = twins(dtype, [MultiTopK(k=4 * K, weight=1.0)], multi_topk=True)
    x = rows(dtype)
    terms, step, out = passes(pair, x)
    same(terms["MultiTopK"], out.multi_topk_fvu, "Multi-TopK")
    same(terms["reconstruction"], out.fvu, "FVU")
    ours, theirs = gradients(terms["MultiTopK"], pair[0]), gradients(out.multi_topk_fvu, pair[1])
    same(ours["dictionary.W_dec"], theirs["W_dec"], "gradient of Multi-TopK for W_dec")
    for link in LINKS[:2]:
        assert not theirs[link.theirs].any(), "sparsify's Multi-TopK has begun to train the encoder: compare it in full"
        assert ours[link.ours].any()
    # With Multi-TopK on they hand out its codes and reconstruction, of 4 k latents, in place of those of k.
    wide = step.pre.topk(4 * K)
    wide = wide.with_values(wide.values.relu())
    same(wide.dense(), dense(out), "codes handed out")
    same(step.decode(wide), out.sae_out, "reconstruction handed out")


@pytest.mark.usefixtures("repaired")
def test_multi_topk_agrees_in_full_with_their_encoder_repaired(dtype: torch.dtype) -> None:
    pair = twins(dtype, [MultiTopK(k=4 * K, weight=1.0)], multi_topk=True)
    terms, _, out = passes(pair, rows(dtype))
    same_losses(pair, LINKS, {"Multi-TopK": terms["MultiTopK"]}, {"Multi-TopK": out.multi_topk_fvu})


def test_their_multi_topk_leaves_the_skip_connection_out(dtype: torch.dtype) -> None:
    pair = transcoders(dtype, [MultiTopK(k=4 * K, weight=1.0)], multi_topk=True)
    x, y = rows(dtype), rows(dtype, seed=2)
    terms, step, out = passes(pair, x, y)
    wide = step.pre.topk(4 * K)
    wide = wide.with_values(wide.values.relu())
    same(step.error(pair[0].dictionary.decode(wide)), out.multi_topk_fvu, "Multi-TopK without the skip connection")
    assert (terms["MultiTopK"] - out.multi_topk_fvu).abs() > 0.1 * out.multi_topk_fvu


def test_projected_gradient_and_unit_norm(dtype: torch.dtype) -> None:
    pair = twins(dtype)
    sae, peer = pair
    with torch.no_grad():
        sae.after_step()
    give(sae, peer, LINKS)
    terms, _, out = passes(pair, rows(dtype))
    terms["reconstruction"].backward()
    out.fvu.backward()
    sae.before_step()
    peer.remove_gradient_parallel_to_decoder_directions()
    same(sae.dictionary.W_dec.grad, peer.W_dec.grad, "projected gradient")
    with torch.no_grad():
        sae.dictionary.W_dec.add_(0.1 * B)
        peer.W_dec.add_(0.1 * B)
    sae.after_step()
    peer.set_decoder_norm_to_unit_norm()
    same(sae.dictionary.W_dec, peer.W_dec, "directions")
