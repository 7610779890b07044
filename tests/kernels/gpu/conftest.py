"""Makes Triton's interpreter quick enough for tests: kernels run in it where there is no GPU."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def quick_interpreter() -> Iterator[None]:
    """Within a kernel, prepare each module of functions for the interpreter once instead of at every call.

    That preparation, which walks through all of triton.language, is nine tenths of the time of a kernel with calls.
    """
    if torch.cuda.is_available():
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
    prepared: set[str] = set()
    start = interpreter.GridExecutor.__call__

    def start_kernel(self, *args, **kwargs):
        prepared.clear()
        return start(self, *args, **kwargs)

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", start_kernel)
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
