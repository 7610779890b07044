"""What every comparison runs under: no network, one thread, and both precisions."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are for GPUs

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of weights and rows."""
    return request.param
