"""saprmarks/dictionary_learning (dictionary-learning 0.1.0), side by side.

Their losses are sums over the D entries of a row and means over rows: ours times `sae.variance` and D. Our L1 penalties
are divided by each row's norm, which theirs are not, so the rows here all have one norm and ours are multiplied by it.
A trainer gives one sum of losses, linear in its weights: terms are told apart by differences between weights.

Known to be wrong there: the JumpReLU trainer takes the straight-through estimate of L0 from the codes instead of the
pre-activations, so that it sees only the upper half of the kernel around a threshold.

Not compared, because ours has none: p-annealing, resampling, and a threshold for reading TopK.
"""

# Shape letters: B rows, D input width, L latents.

import pytest
import torch
from dictionary_learning.trainers import trainer as steps
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from sharing import (
    VARIANCE,
    B,
    D,
    L,
    Link,
    auxk_to_bias,
    counted,
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
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.sae.losses.matryoshka import Matryoshka

K = 4
AFTER = 1000
NORM = 5.0
STEP = 10
SQUARES = VARIANCE * D
"""Ours to theirs, for a squared error."""
AUXK = 64.0
"""Their weight of AuxK, large enough to show next to the squared error."""

LINEAR = [
    Link("dictionary.W_enc", "encoder.weight"),
    Link("dictionary.b_enc", "encoder.bias"),
    Link("dictionary.W_dec", "decoder.weight", flipped=True),
]
STANDARD = [*LINEAR, Link("dictionary.b_dec", "bias")]
TOPK = [*LINEAR, Link("dictionary.b_dec", "b_dec")]
MATRICES = [
    Link("dictionary.W_enc", "W_enc", flipped=True),
    Link("dictionary.b_enc", "b_enc"),
    Link("dictionary.W_dec", "W_dec"),
    Link("dictionary.b_dec", "b_dec"),
]
GATED = [
    LINEAR[0],
    LINEAR[2],
    Link("dictionary.b_enc", "gate_bias"),
    Link("dictionary.b_dec", "decoder_bias"),
    Link("activation.r_mag", "r_mag"),
    Link("activation.b_mag", "mag_bias"),
]


def trainer(kind: type, dtype: torch.dtype, **more: object):
    """Their trainer with a learning rate of zero, and its SAE in a precision."""
    made = kind(
        steps=1000, activation_dim=D, dict_size=L, layer=0, lm_name="none", device="cpu", lr=0.0, warmup_steps=1, **more
    )
    made.ae.to(dtype)
    return made


def read(made, x: Tensor):
    """Their codes, reconstruction and the values of their losses."""
    return made.loss(x, step=STEP, logging=True)


def logged(log, name: str) -> Tensor:
    """The value of one of their losses."""
    return torch.tensor(log.losses[name], dtype=log.f.dtype)


def test_april_update(dtype: torch.dtype) -> None:
    sae = shuffle(SAE(D, L, ReLU(l1=0.7)), dtype)
    made = trainer(StandardTrainerAprilUpdate, dtype, l1_penalty=0.7, sparsity_warmup_steps=None)
    give(sae, made.ae, STANDARD)
    x = rows(dtype, NORM)
    (terms, step), log = counted(sae, x), read(made, x)
    same(step.codes.dense(), log.f, "codes")
    same(step.x_hat, log.x_hat, "reconstruction")
    total = made.loss(x, step=STEP)
    made.l1_penalty = 0.0
    squares = made.loss(x, step=STEP)
    ours = {"mse": terms["reconstruction"] * SQUARES, "l1": terms["sparsity"] * NORM}
    same_losses((sae, made.ae), STANDARD, ours, {"mse": squares, "l1": total - squares})


def test_standard(dtype: torch.dtype) -> None:
    """Their L1 is not weighted by the directions' norms, which are 1; ours passes a gradient to those norms, and both
    sides then remove what lies along a direction."""
    sae = shuffle(SAE(D, L, ReLU(l1=0.7)), dtype, unit=True)
    made = trainer(StandardTrainer, dtype, l1_penalty=0.7, sparsity_warmup_steps=None)
    give(sae, made.ae, STANDARD)
    x = rows(dtype, NORM)
    (terms, step), log = counted(sae, x), read(made, x)
    same(step.codes.dense(), log.f, "codes")
    same(terms["reconstruction"] * SQUARES, logged(log, "mse_loss"), "squared error")
    same(terms["sparsity"] * NORM, 0.7 * logged(log, "sparsity_loss"), "L1")
    same_projected(sae, made, STANDARD, terms["reconstruction"] * SQUARES + terms["sparsity"] * NORM, x)


def same_projected(sae: SAE, made, links: list[Link], loss: Tensor, x: Tensor) -> None:
    """The gradients of the sum of losses that both optimizers get to see."""
    loss.backward()
    sae.before_step()
    made.loss(x, step=STEP).backward()
    made.optimizer.step()  # removes what lies along a direction; the learning rate is zero
    ours, theirs = dict(sae.named_parameters()), dict(made.ae.named_parameters())
    for link in links:
        grad = theirs[link.theirs].grad
        same(ours[link.ours].grad, grad.T if link.flipped else grad, f"gradient for {link.ours}")


def test_standard_from_their_starting_weights(dtype: torch.dtype) -> None:
    sae = SAE(D, L, ReLU(l1=0.7)).to(dtype)
    made = trainer(StandardTrainerAprilUpdate, dtype, l1_penalty=0.7, sparsity_warmup_steps=None)
    take(sae, made.ae, STANDARD)
    x = rows(dtype, NORM)
    (terms, step), log = counted(sae, x), read(made, x)
    same(step.codes.dense(), log.f, "codes")
    ours = {"loss": terms["reconstruction"] * D + terms["sparsity"] * NORM}
    same_losses((sae, made.ae), STANDARD, ours, {"loss": made.loss(x, step=STEP)})


def test_gated(dtype: torch.dtype) -> None:
    """The gate's reconstruction leaves the decoder alone on both sides. L1 as in `test_standard`."""
    sae = shuffle(SAE(D, L, Gated(l1=0.7)), dtype, unit=True)
    made = trainer(GatedSAETrainer, dtype, l1_penalty=0.7, sparsity_warmup_steps=None)
    give(sae, made.ae, GATED)
    x = rows(dtype, NORM)
    (terms, step), log = counted(sae, x), read(made, x)
    same(step.codes.dense(), log.f, "codes")
    same(step.x_hat, log.x_hat, "reconstruction")
    ours = {
        "mse_loss": terms["reconstruction"] * SQUARES,
        "sparsity_loss": terms["sparsity"] * NORM / 0.7,
        "aux_loss": terms["gate"] * SQUARES,
    }
    for name, term in ours.items():
        same(term, logged(log, name), name)
    total = ours["mse_loss"] + ours["sparsity_loss"] * 0.7 + ours["aux_loss"]
    same_projected(sae, made, GATED, total, x)


KINDS = {
    "topk": (lambda: TopK(K), [], TopKTrainer, TOPK, {}),
    "batch_topk": (lambda: BatchTopK(K, momentum=0.9), [], BatchTopKTrainer, TOPK, {}),
    "matryoshka": (
        lambda: BatchTopK(K, momentum=0.9),
        [1 / 8, 1 / 4, 1 / 2],
        MatryoshkaBatchTopKTrainer,
        MATRICES,
        {"group_fractions": [1 / 8, 1 / 8, 1 / 4, 1 / 2]},
    ),
}
GROUPS = 4


def topk_twins(kind: str, dtype: torch.dtype) -> tuple[SAE, object, list[Link]]:
    """TopK and its like with AuxK; a latent is dead when one more batch does not activate it."""
    activation, prefixes, make, links, more = KINDS[kind]
    losses = [AuxK(k_aux=D // 2, weight=AUXK, dead_after=AFTER)] + ([Matryoshka(prefixes)] if prefixes else [])
    sae = shuffle(SAE(D, L, activation(), losses), dtype)
    made = trainer(make, dtype, k=K, auxk_alpha=AUXK, threshold_beta=0.9, threshold_start_step=0, **more)
    made.dead_feature_threshold = AFTER
    made.num_tokens_since_fired.fill_(AFTER - B)
    give(sae, made.ae, links)
    set_dead(sae, AFTER)
    return sae, made, links


@pytest.mark.parametrize("kind", KINDS)
def test_topk_and_its_like(dtype: torch.dtype, kind: str) -> None:
    """Squared error and AuxK. Their Matryoshka weighs its G reconstructions by 1 / G and then takes the mean over them,
    which makes 1 / G^2 of their sum."""
    sae, made, links = topk_twins(kind, dtype)
    x = rows(dtype)
    (terms, step), log = counted(sae, x), read(made, x)
    same(step.codes.dense(), log.f, "codes")
    same(step.x_hat, log.x_hat, "reconstruction")
    same(sae.firing.since, made.num_tokens_since_fired, "rows since each latent fired")
    squares = terms["reconstruction"] * SQUARES
    if kind == "matryoshka":
        squares = (squares + terms["Matryoshka"] * SQUARES) / GROUPS**2
    same(squares, logged(log, "l2_loss"), "squared error")
    same(terms["AuxK"] / AUXK, logged(log, "auxk_loss"), "AuxK")
    theirs = {}
    for name, weight in (("squares", 0.0), ("all", AUXK)):
        made.auxk_alpha = weight
        made.num_tokens_since_fired.fill_(AFTER - B)
        theirs[name] = made.loss(x, step=STEP)
    more = {"AuxK": {"dictionary.b_dec": AUXK * auxk_to_bias(step, D // 2)}}
    ours = {"squares": squares, "AuxK": terms["AuxK"]}
    apart = {"squares": theirs["squares"], "AuxK": theirs["all"] - theirs["squares"]}
    same_losses((sae, made.ae), links, ours, apart, more)


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_threshold(dtype: torch.dtype, kind: str) -> None:
    """Both start at the first batch's smallest kept code. After it theirs moves by 1 - m, so that the first counts for
    more; ours is corrected for its start, so that the first two count m to 1."""
    sae, made, _ = topk_twins(kind, dtype)
    smallest = []
    for number in (1, 2):
        x = rows(dtype, seed=number)
        _, step = counted(sae, x)
        log = read(made, x)
        same(step.codes.dense(), log.f, "codes")
        smallest.append(log.f[log.f > 0].min())
        if number == 1:
            same(sae.activation.threshold, made.ae.threshold.expand(L), "threshold after a batch")
            # Other rows: theirs is rounded to float32, and the smallest code of these lies on it.
            others = rows(dtype, seed=9)
            with torch.no_grad():
                same(sae.encode(others).dense(), made.ae.encode(others), "codes when read")
    first, second = smallest
    same(0.9 * first + 0.1 * second, made.ae.threshold, "their threshold after two batches")
    same(sae.activation.threshold, ((0.9 * first + second) / 1.9).expand(L), "ours after two batches")


JUMPS = [*MATRICES, Link("activation.log_threshold", "threshold", log=True)]
BANDWIDTH = 0.5


def jump_twins(dtype: torch.dtype, weight: float) -> tuple[SAE, JumpReluTrainer]:
    """They subtract nothing before encoding, so b_dec is zero here."""
    activation = JumpReLU("target_l0", weight=weight, target=20.0, threshold=0.6, bandwidth=BANDWIDTH)
    sae = shuffle(SAE(D, L, activation), dtype)
    with torch.no_grad():
        sae.dictionary.b_dec.zero_()
    words = {"bandwidth": BANDWIDTH, "sparsity_penalty": weight, "target_l0": 20.0, "sparsity_warmup_steps": None}
    made = trainer(JumpReluTrainer, dtype, **words)
    give(sae, made.ae, JUMPS)
    return sae, made


def test_jumprelu_reconstruction(dtype: torch.dtype) -> None:
    """They train the threshold, we its logarithm. Our b_dec has a gradient through the encoder, theirs has not."""
    sae, made = jump_twins(dtype, weight=0.0)
    x = rows(dtype)
    (terms, step), log = counted(sae, x), read(made, x)
    same(step.codes.dense(), log.f, "codes")
    same(step.x_hat, log.recon, "reconstruction")
    loss = terms["reconstruction"] * SQUARES
    through = -gradients(loss, sae)["dictionary.b_enc"] @ sae.dictionary.W_enc.detach()
    more = {"mse": {"dictionary.b_dec": through}}
    same_losses((sae, made.ae), JUMPS, {"mse": loss}, {"mse": made.loss(x, step=STEP)}, more)


def test_their_jumprelu_penalty_sees_half_the_kernel(dtype: torch.dtype) -> None:
    """The value agrees. The gradient for a threshold counts the rows within half a bandwidth on either side of it; in
    theirs those below have a code of zero and are out of reach."""
    sae, made = jump_twins(dtype, weight=30.0)
    x = rows(dtype)
    terms, step = counted(sae, x)
    made.sparsity_coefficient = 0.0
    squares = made.loss(x, step=STEP)
    made.sparsity_coefficient = 30.0
    penalty = made.loss(x, step=STEP) - squares
    same(terms["sparsity"], penalty, "penalty")
    pre, threshold = step.pre.dense().detach(), sae.activation.theta.detach()
    assert (threshold > BANDWIDTH / 2).all()  # below it zero codes would be within reach, every one of them
    near, above = (pre - threshold).abs() < BANDWIDTH / 2, pre > threshold
    l0 = above.sum(1).double().mean().to(dtype)
    slope = -30.0 * 2 * (l0 / 20.0 - 1) / 20.0 / B / BANDWIDTH
    same(gradients(terms["sparsity"], sae)["activation.log_threshold"], slope * near.sum(0) * threshold, "ours")
    same(gradients(penalty, made.ae)["threshold"], slope * (near & above).sum(0), "theirs")
    assert (near & ~above).sum() > B


def test_projection_and_unit_norm(dtype: torch.dtype) -> None:
    """Their TopK trainer's own functions for what ours does around a step."""
    sae, made, links = topk_twins("topk", dtype)
    sae.after_step()
    give(sae, made.ae, links)
    terms, _ = counted(sae, rows(dtype))
    terms["reconstruction"].backward()
    weight = made.ae.decoder.weight
    grad = sae.dictionary.W_dec.grad.T.clone()
    sae.before_step()
    wanted = steps.remove_gradient_parallel_to_decoder_directions(weight, grad, D, L)
    same(sae.dictionary.W_dec.grad, wanted.T, "projected gradient")
    with torch.no_grad():
        sae.dictionary.W_dec.add_(1.0)
        weight.add_(1.0)
    sae.after_step()
    same(sae.dictionary.W_dec, steps.set_decoder_norm_to_unit_norm(weight, D, L).T, "directions")
