"""The sort by latent for GPUs and sums over each latent's entries, against loops and torch's stable sort."""

# Shape letters: B rows, D width, L latents, K entries per row.

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton, whose interpreter runs GPU kernels here, is not installed")

from saelab.core.codes import Entries
from saelab.kernels.gpu import sort
from saelab.kernels.gpu.sort import sort_by_latent
from saelab.kernels.gpu.sums import CHUNK, sum_by_latent, totals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def indices_of(rows: int, kept: int, n_latents: int) -> Tensor:
    return torch.randint(n_latents, (rows, kept), generator=torch.Generator().manual_seed(rows)).to(DEVICE)


@pytest.mark.parametrize(
    ("rows", "kept", "n_latents"),
    [(7, 3, 20), (1, 1, 1), (90, 5, 3), (40, 8, 700), (30, 9, 513), (64, 4, 300_000), (64, 8, 512), (0, 3, 5)],
)
def test_entries_come_in_the_order_of_a_stable_sort(rows, kept, n_latents):
    indices = indices_of(rows, kept, n_latents)
    entries, found = Entries(indices, n_latents), sort_by_latent(indices, n_latents)
    for name in ("order", "offsets", "rows"):
        assert torch.equal(getattr(found, name), getattr(entries, name)), name


def test_the_last_latents_are_sorted_too():
    indices = torch.tensor([[1023, 1022], [511, 512], [1023, 0]], device=DEVICE)
    assert sort_by_latent(indices, 1024).order.tolist() == [5, 2, 3, 1, 0, 4]


def test_many_passes_sort_as_one_does(monkeypatch):
    indices = indices_of(100, 3, 200)
    expected = sort_by_latent(indices, 200)
    monkeypatch.setattr(sort, "MOST_BITS", 3)
    for found, wanted in zip(sort_by_latent(indices, 200), expected, strict=True):
        assert torch.equal(found, wanted)


def loop(indices: Tensor, values: Tensor, rows: Tensor, n_latents: int) -> Tensor:
    out = torch.zeros(n_latents, rows.shape[1], dtype=torch.float64, device=rows.device)
    for row, entries in enumerate(indices.tolist()):
        for slot, latent in enumerate(entries):
            out[latent] += values[row, slot].double() * rows[row].double()
    return out


@pytest.mark.parametrize(("width", "dtype"), [(5, torch.float32), (33, torch.float32), (16, torch.bfloat16)])
def test_sums_by_latent_are_those_of_a_loop(width, dtype):
    indices = indices_of(150, 4, 60)
    indices[:, 1] = 7  # hot: three chunks
    indices[: CHUNK - (indices[:, 2] == 9).sum(), 0] = 9
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(150, 4, generator=generator).to(DEVICE)
    rows = torch.randn(150, width, generator=generator).to(DEVICE, dtype)
    found = sum_by_latent(sort_by_latent(indices, 60), values, rows)
    assert found.dtype == dtype
    expected = loop(indices, values, rows, 60)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_a_latent_at_the_edge_of_a_chunk_loses_no_entry(count):
    indices = torch.zeros(200, 1, dtype=torch.int64, device=DEVICE)
    indices[count:] = 2
    values = torch.arange(1.0, 201.0, device=DEVICE)[:, None]
    found = totals(sort_by_latent(indices, 4), values)
    assert found.tolist() == [count * (count + 1) / 2, 0, (200 * 201 - count * (count + 1)) / 2, 0]


def test_no_entries_sum_to_zero():
    none = torch.zeros(0, 2, dtype=torch.int64, device=DEVICE)
    found = sum_by_latent(sort_by_latent(none, 3), none.float(), torch.zeros(0, 4, device=DEVICE))
    assert torch.equal(found, torch.zeros(3, 4, device=DEVICE))
