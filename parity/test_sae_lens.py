"""SAELens (sae-lens 6.54.12), side by side.

Their losses are sums over the D entries of a row and means over rows: ours times `sae.variance` and D. Our L1 penalties
are divided by each row's norm, which theirs are not, so the rows here all have one norm and ours are multiplied by it.

Not compared, because ours has none: straight-through gradients that reach the pre-activations
(`jumprelu_ste_to_input`), Matryoshka's AuxK by level, the temporal SAE, whitening and layer normalisation.
"""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from sae_lens.saes import (
    abstopk_sae,
    batchtopk_sae,
    gated_sae,
    jumprelu_sae,
    matching_pursuit_sae,
    matryoshka_batchtopk_sae,
    standard_sae,
    topk_sae,
    transcoder,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sharing import (
    VARIANCE,
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
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.matching_pursuit import MatchingPursuit
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation, Forward
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.losses.auxk import AuxK
from saelab.sae.losses.matryoshka import Matryoshka

K = 4
AFTER = 1000
NORM = 5.0
SQUARES = VARIANCE * D
"""Ours to theirs, for a squared error."""

DECODER = [Link("dictionary.W_dec", "W_dec"), Link("dictionary.b_dec", "b_dec")]
ENCODER = [Link("dictionary.W_enc", "W_enc", flipped=True), Link("dictionary.b_enc", "b_enc")]
LINKS = ENCODER + DECODER


def words(dtype: torch.dtype) -> dict:
    """Settings that all their SAEs share."""
    return {"d_in": D, "d_sae": L, "dtype": str(dtype).removeprefix("torch.")}


def train(peer: TrainingSAE, x: Tensor, dead: Tensor | None = None) -> TrainStepOutput:
    """Their training pass, with coefficients of 1."""
    coefficients = dict.fromkeys(peer.get_coefficients(), 1.0)
    return peer.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )


def same_pass(step: Forward, out: TrainStepOutput) -> None:
    acts = out.feature_acts.to_dense() if out.feature_acts.is_sparse else out.feature_acts
    same(step.codes.dense(), acts, "codes")
    same(step.x_hat, out.sae_out, "reconstruction")


def auxk() -> AuxK:
    return AuxK(k_aux=D // 2, weight=1.0, dead_after=AFTER)


def auxk_unit(step: Forward) -> Tensor:
    """Ours to theirs: they do not divide by the variance of the residual, and with fewer dead latents than k_aux scale
    the loss down by that fraction, which we do not."""
    n_dead = int(step.sae.firing.dead(AFTER).sum())
    return error_variance(step) * D * min(n_dead / (D // 2), 1)


def same_auxk(pair: tuple[SAE, TrainingSAE], step: Forward, terms: dict[str, Tensor], out: TrainStepOutput) -> None:
    """AuxK agrees. It does where no dead latent that is looked at has a negative pre-activation: theirs has no ReLU."""
    unit = auxk_unit(step)
    name = "auxiliary_reconstruction_loss"
    more = {name: {"dictionary.b_dec": auxk_to_bias(step, D // 2) * unit}}
    same_losses(pair, LINKS, {name: terms["AuxK"] * unit}, {name: out.losses[name]}, more)


def test_standard(dtype: torch.dtype) -> None:
    sae = shuffle(SAE(D, L, ReLU(l1=1.0)), dtype)
    peer = standard_sae.StandardTrainingSAE(standard_sae.StandardTrainingSAEConfig(**words(dtype)))
    give(sae, peer, LINKS)
    x = rows(dtype, NORM)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    ours = {"mse_loss": terms["reconstruction"] * SQUARES, "l1_loss": terms["sparsity"] * NORM}
    same_losses((sae, peer), LINKS, ours, out.losses)


def test_standard_from_their_starting_weights(dtype: torch.dtype) -> None:
    sae = SAE(D, L, ReLU(l1=1.0)).to(dtype)
    peer = standard_sae.StandardTrainingSAE(standard_sae.StandardTrainingSAEConfig(**words(dtype)))
    take(sae, peer, LINKS)
    x = rows(dtype, NORM)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    ours = {"mse_loss": terms["reconstruction"] * D, "l1_loss": terms["sparsity"] * NORM}
    same_losses((sae, peer), LINKS, ours, out.losses)


TOPKS = [
    (TopK, topk_sae.TopKTrainingSAE, topk_sae.TopKTrainingSAEConfig),
    (AbsTopK, abstopk_sae.AbsTopKTrainingSAE, abstopk_sae.AbsTopKTrainingSAEConfig),
]


def topk_twins(
    kinds: tuple, dtype: torch.dtype, unit: bool = False, lift: float = 0.0, sparse: bool = False
) -> tuple[SAE, TrainingSAE]:
    """TopK or AbsTopK with AuxK; `lift` is added to the latents' bias. Their rescaling by the directions' norms selects
    otherwise than ours unless those are 1, so it is on where they are."""
    ours, theirs, config = kinds
    sae = shuffle(SAE(D, L, ours(K), [auxk()]), dtype, unit)
    with torch.no_grad():
        sae.dictionary.b_enc.add_(lift)
    peer = theirs(config(**words(dtype), k=K, rescale_acts_by_decoder_norm=unit, use_sparse_activations=sparse))
    give(sae, peer, LINKS)
    return sae, peer


@pytest.mark.parametrize("kinds", TOPKS, ids=["topk", "abs_topk"])
@pytest.mark.parametrize("unit", [False, True], ids=["any_norm", "rescaled"])
def test_topk(dtype: torch.dtype, kinds: tuple, unit: bool) -> None:
    sae, peer = topk_twins(kinds, dtype, unit)
    x = rows(dtype)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    same_losses((sae, peer), LINKS, {"mse": terms["reconstruction"] * SQUARES}, {"mse": out.losses["mse_loss"]})


def test_topk_with_their_sparse_codes() -> None:
    """Without their rescaling, whose backward pass torch does not have for sparse tensors on a CPU."""
    sae, peer = topk_twins(TOPKS[0], torch.float32, sparse=True)
    x = rows(torch.float32)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    same_losses((sae, peer), LINKS, {"mse": terms["reconstruction"] * SQUARES}, {"mse": out.losses["mse_loss"]})


@pytest.mark.parametrize("kinds", TOPKS, ids=["topk", "abs_topk"])
@pytest.mark.parametrize("n_dead", [L, 5])
def test_auxk(dtype: torch.dtype, kinds: tuple, n_dead: int) -> None:
    sae, peer = topk_twins(kinds, dtype, lift=9.0)  # all pre-activations are positive
    x = rows(dtype)
    set_dead(sae, AFTER, torch.arange(L) < n_dead)
    terms, step = counted(sae, x)
    assert (step.pre.dense() > 0).all()
    same_auxk((sae, peer), step, terms, train(peer, x, sae.firing.dead(AFTER)))


@pytest.mark.parametrize("kinds", TOPKS, ids=["topk", "abs_topk"])
def test_their_auxk_has_no_relu(dtype: torch.dtype, kinds: tuple) -> None:
    """Dead latents with negative pre-activations stay out of ours; theirs decode to negative multiples."""
    sae, peer = topk_twins(kinds, dtype)
    with torch.no_grad():
        sae.dictionary.b_enc[:5] -= 20
    give(sae, peer, LINKS)
    if kinds is TOPKS[1]:  # where such latents would be the ones that are active
        sae.activation, peer.activation_fn = TopK(K), topk_sae.TopK(K)
    set_dead(sae, AFTER, torch.arange(L) < 5)
    x = rows(dtype)
    terms, step = counted(sae, x)
    dead = sae.firing.dead(AFTER)
    assert (step.pre.dense()[:, dead] < 0).all()
    theirs = train(peer, x, dead).losses["auxiliary_reconstruction_loss"]
    error = (x - step.x_hat).detach()
    signed = step.pre.dense()[:, dead] @ sae.dictionary.W_dec[dead] - error
    same(signed.square().sum(1).mean() * 5 / (D // 2), theirs, "AuxK of signed codes")
    same(terms["AuxK"] * auxk_unit(step), error.square().sum(1).mean() * 5 / (D // 2), "AuxK of nothing")
    assert gradients(theirs, peer)["W_enc"].any()
    assert not gradients(terms["AuxK"], sae)["dictionary.W_enc"].any()


def batch_twins(dtype: torch.dtype, k: float = K, kind: str = "batch", **more: object) -> tuple[SAE, TrainingSAE]:
    losses = [auxk()] + ([Matryoshka([1 / 8, 1 / 4, 1 / 2])] if kind == "matryoshka" else [])
    sae = shuffle(SAE(D, L, BatchTopK(k, momentum=0.9), losses), dtype)
    make, config = {
        "batch": (batchtopk_sae.BatchTopKTrainingSAE, batchtopk_sae.BatchTopKTrainingSAEConfig),
        "matryoshka": (
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE,
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig,
        ),
    }[kind]
    words_ = words(dtype) | {"k": k, "topk_threshold_lr": 0.1, "rescale_acts_by_decoder_norm": False} | more
    peer = make(config(**words_))
    give(sae, peer, LINKS)
    return sae, peer


@pytest.mark.parametrize("k", [K, 2.5])
def test_batch_topk(dtype: torch.dtype, k: float) -> None:
    sae, peer = batch_twins(dtype, k)
    x = rows(dtype)
    set_dead(sae, AFTER)
    terms, step = counted(sae, x)
    dead = sae.firing.dead(AFTER)
    largest = step.pre.dense().where(dead, -torch.inf).topk(D // 2).values
    assert (largest > 0).all()  # as same_auxk wants it
    out = train(peer, x, dead)
    same_pass(step, out)
    same_losses((sae, peer), LINKS, {"mse": terms["reconstruction"] * SQUARES}, {"mse": out.losses["mse_loss"]})
    same_auxk((sae, peer), step, terms, out)


def test_batch_topk_threshold(dtype: torch.dtype) -> None:
    """Theirs is an average that starts at zero: after t batches it is 1 - m^t times ours, which is corrected for it."""
    sae, peer = batch_twins(dtype)
    for step in range(1, 4):
        x = rows(dtype, seed=step)
        counted(sae, x)
        train(peer, x)
        wanted = peer.topk_threshold.to(dtype) / (1 - 0.9**step)
        same(sae.activation.threshold, wanted.expand(L), f"threshold after {step} batches")
    reader = jumprelu_sae.JumpReLUSAE(jumprelu_sae.JumpReLUSAEConfig(**words(dtype)))
    state = peer.state_dict()
    peer.process_state_dict_for_saving_inference(state)
    reader.load_state_dict(state)
    with torch.no_grad():
        reader.threshold.div_(1 - 0.9**3)
        same(sae.encode(x).dense(), reader.encode(x), "codes when read")
        same(sae(x), reader(x), "reconstruction when read")


def test_matryoshka(dtype: torch.dtype) -> None:
    sae, peer = batch_twins(dtype, kind="matryoshka", matryoshka_widths=[12, 24, 48, L])
    x = rows(dtype)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    inner = sum(out.losses[f"inner_mse_loss_{width}"] for width in (12, 24, 48))
    ours = {"mse": terms["reconstruction"] * SQUARES, "inner": terms["Matryoshka"] * SQUARES}
    same_losses((sae, peer), LINKS, ours, {"mse": out.losses["mse_loss"], "inner": inner})
    assert terms["AuxK"] == 0
    assert out.losses["auxiliary_reconstruction_loss"] == 0


THRESHOLD = Link("activation.log_threshold", "threshold", log=True)


def jump_twins(dtype: torch.dtype, penalty: str, dead_weight: float = 0.0) -> tuple[SAE, TrainingSAE]:
    words_ = {"threshold": 0.6, "bandwidth": 0.5}
    activation = JumpReLU(penalty, weight=1.0, target=20.0, dead_weight=dead_weight, dead_after=AFTER, **words_)
    sae = shuffle(SAE(D, L, activation), dtype)
    mode = {"l0": "step", "tanh": "tanh", "target_l0": "quadratic"}[penalty]
    config = jumprelu_sae.JumpReLUTrainingSAEConfig(
        **words(dtype),
        jumprelu_bandwidth=0.5,
        jumprelu_sparsity_loss_mode=mode,
        target_l0=20.0,
        pre_act_loss_coefficient=dead_weight or None,
    )
    peer = jumprelu_sae.JumpReLUTrainingSAE(config)
    give(sae, peer, [*LINKS, THRESHOLD])
    return sae, peer


@pytest.mark.parametrize("penalty", ["l0", "tanh"])
def test_jumprelu(dtype: torch.dtype, penalty: str) -> None:
    """They train the threshold, we its logarithm."""
    sae, peer = jump_twins(dtype, penalty)
    x = rows(dtype)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    ours = {"mse_loss": terms["reconstruction"] * SQUARES, "l0_loss": terms["sparsity"]}
    same_losses((sae, peer), [*LINKS, THRESHOLD], ours, out.losses)


def test_jumprelu_target_l0(dtype: torch.dtype) -> None:
    """Theirs is 2 target times ours on one row. On several theirs also punishes that rows differ, by 2 / target times
    the variance of their L0."""
    sae, peer = jump_twins(dtype, "target_l0")
    x = rows(dtype)
    (terms, _), out = counted(sae, x[:1]), train(peer, x[:1])
    ours, theirs = {"l0": terms["sparsity"] * 2 * 20.0}, {"l0": out.losses["l0_loss"]}
    same_losses((sae, peer), [*LINKS, THRESHOLD], ours, theirs)
    (terms, step), out = counted(sae, x), train(peer, x)
    spread = 2 / 20.0 * step.codes.l0().to(dtype).var(correction=0)
    assert spread > 1
    same(terms["sparsity"] * 2 * 20.0 + spread, out.losses["l0_loss"], "quadratic penalty")


def test_jumprelu_dead_latents(dtype: torch.dtype) -> None:
    sae, peer = jump_twins(dtype, "l0", dead_weight=0.7)
    x = rows(dtype)
    with torch.no_grad():
        sae.dictionary.b_enc[:9] -= 20
    give(sae, peer, [*LINKS, THRESHOLD])
    set_dead(sae, AFTER)
    terms, _ = counted(sae, x)
    out = train(peer, x, sae.firing.dead(AFTER))
    ours, theirs = {"dead": terms["dead"]}, {"dead": out.losses["pre_act_loss"]}
    same_losses((sae, peer), [*LINKS, THRESHOLD], ours, theirs)


def test_gated(dtype: torch.dtype) -> None:
    """Their gate's reconstruction trains the decoder; ours with frozen=False."""
    links = [
        ENCODER[0],
        Link("dictionary.b_enc", "b_gate"),
        *DECODER,
        Link("activation.r_mag", "r_mag"),
        Link("activation.b_mag", "b_mag"),
    ]
    sae = shuffle(SAE(D, L, Gated(l1=1.0, frozen=False)), dtype)
    peer = gated_sae.GatedTrainingSAE(gated_sae.GatedTrainingSAEConfig(**words(dtype)))
    give(sae, peer, links)
    x = rows(dtype, NORM)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    ours = {
        "mse_loss": terms["reconstruction"] * SQUARES,
        "l1_loss": terms["sparsity"] * NORM,
        "auxiliary_reconstruction_loss": terms["gate"] * SQUARES,
    }
    same_losses((sae, peer), links, ours, out.losses)


def test_matching_pursuit(dtype: torch.dtype) -> None:
    """With their two reasons to stop early, a small residual and an unchanged set of latents, switched off."""
    sae = shuffle(SAE(D, L, MatchingPursuit(K), dictionary=Dense(tied=True, encoder_bias=False)), dtype, unit=True)
    config = matching_pursuit_sae.MatchingPursuitTrainingSAEConfig(
        **words(dtype),
        residual_threshold=0.0,
        max_iterations=K,
        stop_on_duplicate_support=False,
        decoder_init_norm=1.0,
    )
    peer = matching_pursuit_sae.MatchingPursuitTrainingSAE(config)
    give(sae, peer, DECODER)
    x = rows(dtype)
    (terms, step), out = counted(sae, x), train(peer, x)
    same_pass(step, out)
    same_losses((sae, peer), DECODER, {"mse_loss": terms["reconstruction"] * SQUARES}, out.losses)


WIDE = 8  # what transcoders write


def jump() -> Activation:
    return JumpReLU(threshold=0.6)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("jumps", [False, True], ids=["relu", "jumprelu"])
def test_transcoder(dtype: torch.dtype, skip: bool, jumps: bool) -> None:
    """They cannot train transcoders; the loss is ours on their reconstruction. Their thresholds get no gradient."""
    activation = jump() if jumps else ReLU(l1=0.0)
    sae = shuffle(SAE(D, L, activation, dictionary=Dense(skip_connection=skip), d_out=WIDE), dtype)
    name = ("JumpReLU" if jumps else "") + ("Skip" if skip else "") + "Transcoder"
    words_ = words(dtype) | {"d_out": WIDE, "apply_b_dec_to_input": False}
    peer = getattr(transcoder, name)(getattr(transcoder, name + "Config")(**words_))
    links = LINKS + ([Link("dictionary.W_skip", "W_skip")] if skip else [])
    give(sae, peer, links + ([THRESHOLD] if jumps else []))
    x, y = rows(dtype), rows(dtype, seed=2, width=WIDE)
    terms, step = counted(sae, x, y)
    x_hat, acts = peer.forward_with_activations(x)
    same(step.codes.dense(), acts, "codes")
    same(step.x_hat, x_hat, "reconstruction")
    mse = (x_hat - y).square().sum(1).mean()
    same_losses((sae, peer), links, {"mse": terms["reconstruction"] * VARIANCE * WIDE}, {"mse": mse})
    if jumps:
        assert not gradients(mse, peer)["threshold"].any()
        assert gradients(terms["reconstruction"], sae)["activation.log_threshold"].any()


def test_rows_have_one_norm() -> None:
    same(rows(torch.float64, NORM).norm(dim=1), torch.full((B,), NORM), "norms")
