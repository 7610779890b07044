"""Weights as other libraries keep them, rows, and what reading a file has to give."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from saelab.interchange import Description, read
from saelab.interchange.family import families
from saelab.interchange.files import Files
from saelab.sae import SAE

D, L, O = 6, 20, 4  # noqa: E741 - widths read and written, latents
K = 3


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(n: int = 40) -> torch.Tensor:
    return random(n, D, seed=0) * torch.linspace(0.5, 2, D) + 0.3


def weights(width: int = D) -> dict[str, torch.Tensor]:
    """W_enc [L, D], b_enc [L], W_dec [L, width] with rows of any norm, b_dec [width]; nowhere zero."""
    return {
        "W_enc": random(L, D, seed=1) * 0.5,
        "b_enc": random(L, seed=2) * 0.3,
        "W_dec": random(L, width, seed=3),
        "b_dec": random(width, seed=4) * 0.7,
    }


def exact(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row of pre, as they are; others zero."""
    kept = torch.zeros_like(pre)
    for row, values in zip(kept, pre, strict=True):
        for latent in sorted(range(len(values)), key=lambda j: -values[j].item())[:k]:
            row[latent] = values[latent]
    return kept


def save(folder: Path, name: str, tensors: Mapping[str, Any], **configs: dict[str, Any]) -> Path:
    """Write weights and JSON files, named by their first words: `cfg={...}` is cfg.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    else:
        torch.save(dict(tensors), folder / name)
    for stem, table in configs.items():
        (folder / f"{stem}.json").write_text(json.dumps(table))
    return folder


def check(
    path: Path, family: str, codes: torch.Tensor, x_hat: torch.Tensor, x: torch.Tensor | None = None
) -> tuple[SAE, Description]:
    """The file is claimed by its family alone, and reading it gives these codes and reconstructions of rows."""
    assert [title for title, one in families().items() if one.claims(Files(path))] == [family]
    sae, description = read(path)
    assert description.family == family
    x = rows() if x is None else x
    with torch.no_grad():
        found = sae.encode(x).dense().double()
        assert codes.count_nonzero() > 20
        torch.testing.assert_close(found, codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(x).double(), x_hat, rtol=1e-5, atol=1e-5)
        assert torch.equal(found != 0, codes != 0)
    return sae, description


def kept(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors as a file of this precision has them."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def normalised(x: torch.Tensor, how: str = "layer_norm") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in float64 that are each normalised by themselves, and the centres and sizes that undo it."""
    x = x.double()
    mean = x.mean(1, keepdim=True) if how == "layer_norm" else torch.zeros(len(x), 1, dtype=torch.float64)
    if how == "layer_norm":
        size = ((x - mean).square().sum(1, keepdim=True) / (x.shape[1] - 1)).sqrt()
        return (x - mean) / (size + 1e-5), mean, size
    size = x.square().sum(1, keepdim=True).sqrt() / x.shape[1] ** 0.5
    return x / size, mean, size


both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
