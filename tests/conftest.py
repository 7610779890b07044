"""What every test shares: no network, the bundled model, and the skip of GPU tests where there is no GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton, whose kernels then run step by step

torch.set_num_threads(1)  # tensors in tests are tiny: a second thread costs more than it does


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: several processes share the files out in this order, and none ends up waiting."""

    def is_long(item: pytest.Item) -> bool:
        in_browser = "chromium" in getattr(item, "fixturenames", ())
        return in_browser or item.path.parent.name == "recipes" or item.get_closest_marker("slow") is not None

    long = {item.path for item in items if is_long(item)}
    items.sort(key=lambda item: (item.path not in long, item.path.name != "test_readme.py"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, and torch sees none here")


@pytest.fixture(scope="session")
def pycode_dir() -> Path:
    """Folder of the bundled language model, pycode-7m."""
    return Path(__file__).resolve().parents[1] / "saelab" / "assets" / "pycode-7m"
