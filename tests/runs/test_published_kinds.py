"""An SAE of each kind of release in the index, with files as they are published: fetched and read by its name."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from interchange.foreign import D, L, random, weights
from interchange.hub_server import Hub
from safetensors.torch import save

from saelab.interchange.index import KINDS, index, published
from saelab.runs import load, open_run

pytest_plugins = ["interchange.local_hub"]
W = weights()
JUMP = W | {"threshold": random(L, seed=5).abs()}
WIDE = {key: value.repeat(6, 1) if value.ndim > 1 else value.repeat(6) for key, value in W.items()} | {
    "b_dec": W["b_dec"]
}
LINEAR = {"encoder.weight": W["W_enc"], "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T.contiguous(),
          "decoder.bias": W["b_dec"]}  # fmt: skip


def flipped(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {key: value.T.contiguous() if key in names else value for key, value in tensors.items()}


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def npz(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{key: value.numpy() for key, value in tensors.items()})
    return file.getvalue()


def text(**settings: Any) -> bytes:
    return json.dumps(settings).encode()


def lower(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace("W_", "w_"): value for key, value in flipped(tensors, "W_enc").items()}


GEMMA_3 = {"architecture": "jump_relu", "model_name": "gemma-v3-270m", "hf_hook_point_in": "model.layers.0.output"}
HYPER = {"d_model": D, "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise",
         "dataset_average_activation_norm": {"in": 1.25, "out": 1.25}, "hook_point_in": "blocks.0.hook_attn_out",
         "hook_point_out": "blocks.0.hook_attn_out"}  # fmt: skip
R1 = {"d_model": D, "expansion_factor": 4, "hook_point_in": "blocks.0.hook_resid_post", "act_fn": "jumprelu",
      "norm_activation": "inference"}  # fmt: skip
TOPK = {"encoder.weight": W["W_enc"], "encoder.bias": W["b_enc"], "decoder.weight": LINEAR["decoder.weight"],
        "b_dec": W["b_dec"], "k": torch.tensor(3), "threshold": torch.tensor(-1.0)}  # fmt: skip
FILES: dict[str, Callable[[str], dict[str, bytes]]] = {
    "sae_lens": lambda path: {
        f"{path}/cfg.json": text(architecture="standard", d_in=D, d_sae=L),
        f"{path}/sae_weights.safetensors": save(flipped(W, "W_enc")),
    },
    "gemma_2": lambda path: {f"{path}/params.npz": npz(flipped(JUMP, "W_enc"))},
    "gemma_2_transcoder": lambda path: {f"{path}/params.npz": npz(flipped(JUMP, "W_enc"))},
    "gemma_3": lambda path: {f"{path}/config.json": text(**GEMMA_3), f"{path}/params.safetensors": save(lower(JUMP))},
    "dictionary_learning_1": lambda path: {
        f"{path}/config.json": text(trainer={"dict_class": "AutoEncoderTopK", "k": 3}, buffer={}),
        f"{path}/ae.pt": pickled(TOPK),
    },
    "qwen_scope": lambda path: {path: pickled(flipped(WIDE, "W_dec")), path.replace("0", "1"): b"another"},
    "mwhanna_transcoder": lambda path: {"config.yaml": b"model_kind: transcoder_set\n", path: save(W)},
    "llama_scope": lambda path: {
        f"{path}/hyperparams.json": text(**HYPER),
        f"{path}/checkpoints/final.safetensors": save(LINEAR),
    },
    "llama_scope_r1_distill": lambda path: {
        f"{path}/config.json": text(**R1),
        f"{path}/sae_weights.safetensors": save(LINEAR | {"log_jumprelu_threshold": random(L, seed=6)}),
    },
    "goodfire": lambda path: {path: pickled({f"{key.replace('.', '_linear.')}": part for key, part in LINEAR.items()})},
    "connor_rob_hook_z": lambda path: {
        path: pickled(flipped(W, "W_enc")),
        path.replace(".pt", "_cfg.json"): text(act_size=D, dict_size=L, act_name="blocks.0.attn.hook_z"),
        "other.pt": b"another",
        "other_cfg.json": text(),
    },
    "deepseek_r1": lambda path: {path: pickled(LINEAR)},
}


@pytest.mark.parametrize("kind", [kind for kind, (_, reason) in KINDS.items() if not reason])
def test_an_sae_of_each_kind_loads_by_its_name(hub: Hub, kind):
    release = next(name for name, table in index()["releases"].items() if table["kind"] == kind)
    one = next(one for one in published(release) if not one.path.startswith("embedding"))
    files = FILES[kind](one.path)
    hub.commit(one.repo, files)
    sae = load(one.name)
    assert (sae.d_in, sae.n_latents) == (D, 6 * L if kind == "qwen_scope" else L)  # it keeps 100
    assert set(hub.files()) == {file for file in files if "other" not in file and files[file] != b"another"}
    run = open_run(one.name)
    assert run.config["convert"]["family"] == one.family
    if one.site and "transcoder" not in kind:
        assert (run.origin["model"], run.origin["site"]) == (one.model, one.site)


def test_there_is_a_sample_of_each_kind_that_loads():
    assert FILES.keys() == {kind for kind, (_, reason) in KINDS.items() if not reason}
