"""Files of SAELens (sae-lens 6.54.12): those that its own API saves, read by ours, and ours, loaded by its API.

Known to be wrong there: the loader of sparsify's files transposes a decoder that lies the right way round already, and
takes normalize_decoder for whether the decoder's bias is subtracted, so that what it loads cannot be run.
"""

# Shape letters: B rows, D input width, L latents.

from pathlib import Path

import pytest
import torch
from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAE as Theirs
from safetensors.torch import save_file
from sharing import D, L, in_float32, needs_arithmetic, rows, same, shuffle

from saelab.interchange import read, write
from saelab.sae import SAE
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.scale import Scale
from saelab.sae.scales.constant_norm import ConstantNorm
from saelab.sae.scales.layer_norm import LayerNorm

K, O = 4, 7  # noqa: E741 - latents kept, width written
HOOK = {"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "model_from_pretrained_kwargs": {}}


def filled(peer: torch.nn.Module) -> torch.nn.Module:
    """Their SAE with weights that are nowhere special; thresholds are positive."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
            parameter.copy_(noise.abs() if name == "threshold" else noise)
    return peer


def same_outputs(ours: SAE, theirs: Theirs) -> None:
    ours, theirs = in_float32(ours), in_float32(theirs)
    x = rows(ours.dtype)
    with torch.no_grad():
        codes = theirs.encode(x)
        same(ours.encode(x).dense(), codes.to_dense() if codes.is_sparse else codes, "codes")
        same(ours(x), theirs(x), "reconstruction")


ARCHITECTURES = [
    {"architecture": "standard"},
    {"architecture": "standard", "apply_b_dec_to_input": False},
    {"architecture": "topk", "k": K},
    {"architecture": "topk", "k": K, "apply_b_dec_to_input": False},
    {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
    {"architecture": "abstopk", "k": K},
    {"architecture": "abstopk", "k": K, "rescale_acts_by_decoder_norm": True},
    {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    {"architecture": "gated"},
    {"architecture": "gated", "apply_b_dec_to_input": False},
    {"architecture": "topk", "k": K, "normalize_activations": "layer_norm"},
    {"architecture": "gated", "normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
    {"architecture": "transcoder", "d_out": O, "normalize_activations": "layer_norm", "apply_b_dec_to_input": False},
    *(
        {"architecture": name, "d_out": O, "apply_b_dec_to_input": False}
        for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
    ),
]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=str)
def test_reading_what_they_save(dtype: torch.dtype, tmp_path: Path, config: dict) -> None:
    sizes = {"d_in": D, "d_sae": L, "dtype": str(dtype).removeprefix("torch."), "metadata": HOOK}
    theirs = filled(Theirs.from_dict(sizes | config))
    theirs.save_model(tmp_path)
    ours, description = read(tmp_path)
    same_outputs(ours, theirs)
    assert description.architecture == config["architecture"]
    if "d_out" not in config:
        assert description.source == {"model": "gpt2", "site": "transformer.h.8:in", "target": None}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("matryoshka", [False, True])
def test_reading_batchtopk_of_training(dtype: torch.dtype, tmp_path: Path, inference: bool, matryoshka: bool) -> None:
    """Kept for inference it is a JumpReLU; a checkpoint keeps the threshold as it is. Both read alike."""
    if not inference:
        needs_arithmetic(dtype)
    sizes = {"d_in": D, "d_sae": L, "dtype": str(dtype).removeprefix("torch."), "k": K}
    sizes |= {"rescale_acts_by_decoder_norm": not inference}
    if matryoshka:
        config = MatryoshkaBatchTopKTrainingSAEConfig(**sizes, matryoshka_widths=[10, L])
        peer = filled(MatryoshkaBatchTopKTrainingSAE(config))
    else:
        peer = filled(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes)))
    peer.topk_threshold.fill_(0.8)
    (peer.save_inference_model if inference else peer.save_model)(tmp_path / "sae")
    ours, _ = read(tmp_path / "sae")
    assert ours.activation.config() == BatchTopK(K).config()
    if not inference:
        peer.fold_W_dec_norm()
        peer.cfg.rescale_acts_by_decoder_norm = False
        peer.save_inference_model(tmp_path / "sae")
    same_outputs(ours, Theirs.load_from_disk(tmp_path / "sae"))


KINDS = [(ReLU, {}), (TopK, {"k": K}), (AbsTopK, {"k": K}), (BatchTopK, {"k": K}), (JumpReLU, {}), (Gated, {})]
WRITTEN = [
    *((kind, settings, None, None, False) for kind, settings in KINDS),
    (BatchTopK, {"k": K}, 0.6, None, False),
    *((kind, {}, None, O, skip) for kind in (ReLU, JumpReLU) for skip in (False, True)),
]


@pytest.mark.parametrize(("kind", "settings", "threshold", "width", "skip"), WRITTEN)
def test_they_load_what_we_write(dtype, tmp_path, kind, settings, threshold, width, skip) -> None:
    activation = kind(**settings)
    ours = shuffle(SAE(D, L, activation, dictionary=Dense(skip_connection=skip), d_out=width), dtype)
    if threshold:
        activation.threshold.fill_(threshold)
        activation.updates.fill_(1)
    if dtype != torch.bfloat16:  # the scale is folded into weights, which are rounded
        ours.scale.set(torch.linspace(-1, 1, D, dtype=dtype), 1.5)
    write(ours, tmp_path / "sae", "sae_lens", {"model": "gpt2", "site": "transformer.h.8", "target": None})
    theirs = Theirs.load_from_disk(tmp_path / "sae")
    assert theirs.cfg.metadata.hook_name == "blocks.8.hook_resid_post"
    same_outputs(ours.fold(), theirs)


@pytest.mark.parametrize("scale", [LayerNorm, ConstantNorm])
def test_they_load_rows_normalised_one_by_one(dtype: torch.dtype, tmp_path: Path, scale: type[Scale]) -> None:
    ours = shuffle(SAE(D, L, TopK(K), scale=scale()), dtype)
    write(ours, tmp_path / "sae", "sae_lens")
    same_outputs(ours, Theirs.load_from_disk(tmp_path / "sae"))


def test_whitening_is_what_they_fold(dtype: torch.dtype, tmp_path: Path) -> None:
    needs_arithmetic(dtype)
    sizes = {"d_in": D, "d_sae": L, "dtype": str(dtype).removeprefix("torch."), "metadata": HOOK}
    theirs = filled(
        Theirs.from_dict(sizes | {"architecture": "standard", "normalize_activations": "covariance_whitening"})
    )
    theirs.save_model(tmp_path)
    there, mean = torch.randn(D, D, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(D), torch.ones(D)
    whitening = {"mean": mean, "matrix": there, "inverse_matrix": there.inverse().contiguous()}
    save_file(whitening, tmp_path / "activation_whitening.safetensors")
    theirs.fold_activation_whitening(mean, there, there.inverse())
    same_outputs(read(tmp_path)[0], theirs)


def test_their_loader_of_sparsify_turns_the_decoder_the_wrong_way(tmp_path: Path) -> None:
    folder = tmp_path / "layers.3"
    write(shuffle(SAE(D, L, TopK(K)), torch.float32, unit=True), folder, "sparsify")
    config, state = sparsify_disk_loader(folder)
    assert not config["apply_b_dec_to_input"], "it is not told from normalize_decoder any more: compare it in full"
    assert state["W_enc"].shape == (D, L)
    assert state["W_dec"].shape == (D, L), "it lies the right way now: compare it in full"
