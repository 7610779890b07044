"""The compiled kernels are tested where they can be compiled, and the reason is said where they cannot."""

import pytest

from saelab.kernels import native


@pytest.fixture(scope="session")
def compiled():
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    return native.library()
