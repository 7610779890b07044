"""Files of sparsify (eai-sparsify 1.3.3): those that its own API saves, read by ours, and ours, loaded by its API."""

# Shape letters: B rows, D input width, L latents.

from pathlib import Path

import pytest
import torch
from sharing import D, L, in_float32, rows, same, shuffle
from sparsify import SparseCoder, SparseCoderConfig

from saelab.interchange import read, write
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.dense import Dense

K = 4
SHAPES = [(transcode, skip) for transcode in (False, True) for skip in (False, True)]


@torch.no_grad()
def same_outputs(ours: SAE, theirs: SparseCoder) -> None:
    ours, theirs = in_float32(ours), in_float32(theirs)
    x = rows(ours.dtype)
    out = theirs(x)
    codes = torch.zeros(len(x), L, dtype=x.dtype).scatter(1, out.latent_indices, out.latent_acts)
    same(ours.encode(x).dense(), codes, "codes")
    same(ours(x), out.sae_out, "reconstruction")


@pytest.mark.parametrize(("transcode", "skip"), SHAPES)
def test_reading_what_they_save(dtype: torch.dtype, tmp_path: Path, transcode: bool, skip: bool) -> None:
    config = SparseCoderConfig(num_latents=L, k=K, transcode=transcode, skip_connection=skip)
    theirs = SparseCoder(D, config, dtype=dtype)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    theirs.save_to_disk(tmp_path / "layers.3")
    same_outputs(read(tmp_path / "layers.3")[0], theirs)


@pytest.mark.parametrize(("transcode", "skip"), [shape for shape in SHAPES if shape != (False, True)])
def test_they_load_what_we_write(dtype: torch.dtype, tmp_path: Path, transcode: bool, skip: bool) -> None:
    ours = shuffle(SAE(D, L, TopK(K), dictionary=Dense(skip_connection=skip), d_out=D if transcode else None), dtype)
    if dtype != torch.bfloat16:  # the scale is folded into weights, which are rounded
        ours.scale.set(torch.linspace(-1, 1, D, dtype=dtype), 1.5)
    write(ours, tmp_path / "layers.3", "sparsify")
    same_outputs(ours.fold(), SparseCoder.load_from_disk(tmp_path / "layers.3"))
