"""Do the tests notice?  python tools/plant_faults.py [--only TEXT]

Plants one fault at a time in a copy of saelab/, runs the tests that ought to see it until the first that fails, and
prints which did. Ends with status 1 if a fault was missed, or stands in the table with text that is there no longer.
Nothing in the checkout is changed. A tool and not a test, because it takes a few seconds a fault.
"""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """One change of one line; `right` stands in the file and is replaced by `wrong` where it stands first."""

    file: str
    right: str
    wrong: str
    tests: str
    """Files of tests, below tests/."""


KERNELS = "kernels/test_select.py kernels/test_decode.py kernels/test_update.py kernels/native/test_native_sparse.py"
DOWNSTREAM = "metrics/test_downstream.py"
STORE = "data/test_store.py"
RESUME = "train/test_checkpoint.py train/test_resume.py train/test_kept_state.py"
FAULTS = [
    # kernels
    Fault("kernels/select.py", "return pre.gather(1, indices)", "return pre.gather(1, indices).relu()", KERNELS),
    Fault("kernels/select.py", "grad_centre = -(grad_bias @ weight)", "grad_centre = grad_bias @ weight", KERNELS),
    Fault("kernels/select.py", "grad_centre = -(summed @ weight)", "grad_centre = summed @ weight", KERNELS),
    Fault("kernels/sums.py", "weights = values.flatten()[entries.order]", "weights = values.flatten()", KERNELS),
    Fault("kernels/update.py", "missed = step - 1 - state", "missed = step - state", KERNELS),
    Fault("kernels/update.py", "(1 - adam.beta2) * g.square()", "(1 - adam.beta1) * g.square()", KERNELS),
    Fault("kernels/update.py", "g = g - (g * w).sum(1, keepdim=True) * w", "pass", KERNELS),
    Fault("kernels/adam.py", "self.lr / (1 - self.beta1**step)", "self.lr / (1 - self.beta1 ** (step + 1))", KERNELS),
    # losses
    Fault("sae/losses/auxk.py", "variance.clamp_min(", "variance.sqrt().clamp_min(", "sae/test_auxk.py"),
    Fault("sae/losses/multi_topk.py", "codes.values.relu()", "codes.values", "sae/test_multi_topk.py"),
    Fault("sae/losses/norm_match.py", "target = target - past_latents(step)", "pass", "sae/test_norm_match.py"),
    Fault("sae/losses/matryoshka.py", "counts.cumsum(1) - counts", "counts.cumsum(1)", "sae/test_matryoshka.py"),
    Fault("sae/losses/orthogonality.py", ".masked_fill(alone, 0)", "", "sae/test_orthogonality.py"),
    Fault("sae/losses/decomposability.py", "self.sigma**2", "self.sigma", "sae/test_decomposability.py"),
    Fault("sae/losses/nuclear_norm.py", ".where(real, 1).sqrt()", ".where(real, 1)", "sae/test_nuclear_norm.py"),
    # metrics
    Fault("metrics/reconstruction.py", "rows * mean.square().sum()", "0", "metrics/test_reconstruction.py"),
    Fault("metrics/reconstruction.py", "size_hat / overlap", "overlap / size_hat", "metrics/test_reconstruction.py"),
    Fault("metrics/base.py", "[0.025, 0.975]", "[0.05, 0.95]", "metrics/test_base.py"),
    Fault("metrics/base.py", "sums[sums.abs().sum(1) > 0]", "sums", "metrics/test_base.py"),
    Fault("metrics/density.py", "density[density > 0]", "density", "metrics/test_latent_statistics.py"),
    Fault("metrics/downstream.py", "log_probabilities(text.logits,", "log_probabilities(text.logits / 2,", DOWNSTREAM),
    Fault("metrics/downstream.py", "document[:, 1:] >= 0", "document[:, :-1] >= 0", DOWNSTREAM),
    # store
    Fault("data/store.py", "(self.rows * self.d_in) - mean", "self.rows - mean", STORE),
    Fault("data/store.py", "manifest.sum_squares += exact", "manifest.sum_squares = exact", STORE),
    Fault("data/store.py", "if sha256(path) != shard.sha256:", "if False:", STORE),
    Fault("data/store.py", "min(b, counts[shard])", "min(b, counts[shard] - 1)", STORE),
    Fault("data/store.py", "(blocks.cumsum(0) - blocks)", "(blocks.cumsum(0) - blocks[0])", STORE),
    Fault("data/store.py", "manifest.dropped.get(key, 0) + count", "count", STORE),
    Fault("data/store.py", "generator_for(self.seed, epoch, 0)", "generator_for(self.seed, 0, 0)", STORE),
    # resume
    Fault("train/checkpoint.py", "tensors |= _optimizer_tensors(trainer)", "pass", RESUME),
    Fault("train/checkpoint.py", "trainer.average.steps = about[", "trainer.average.steps = 0 * about[", RESUME),
    Fault("train/checkpoint.py", "[:-KEPT]", "[:-1]", RESUME),
    Fault("train/checkpoint.py", 'trainer.rows_seen = about["rows"]', "pass", RESUME),
    Fault("core/log.py", '["step"] <= after', '["step"] < after', "core/test_log.py"),
    Fault("data/source.py", "number, offset = self._window, self._offset", "number, offset = self._window, 0", RESUME),
]  # fmt: skip


def first_failure(copy: Path, tests: list[str]) -> str:
    """The first test that fails in a copy of the checkout, or nothing; asked in a process that is forked from here."""
    read, write = os.pipe()
    if not os.fork():
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        with open(os.devnull, "w") as sys.stdout:
            import pytest  # and no part of saelab before this

            class Reporter:
                def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                    if report.failed:
                        os.write(write, f"{report.nodeid}\n".encode())

                def pytest_collectreport(self, report: pytest.CollectReport) -> None:
                    if report.failed:
                        os.write(write, f"cannot be collected: {report.nodeid}\n".encode())

            pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[Reporter()])
        os._exit(0)
    os.close(write)
    with open(read) as said:
        name = said.readline().strip()
    os.wait()
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults in files whose names hold this text")
    only = parser.parse_args().only
    import torch  # once for all that is forked

    del torch
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "saelab"
        kept = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "runs")
        shutil.copytree(ROOT, copy, ignore=kept)
        os.environ["PYTHONPATH"] = str(copy)  # for processes that tests start
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # else a fault of the same length as what is right is not seen
        for fault in FAULTS:
            if only not in fault.file:
                continue
            path = copy / "saelab" / fault.file
            right = path.read_text(encoding="utf-8")
            seen = "not planted: the text is not there"
            if fault.right in right:
                path.write_text(right.replace(fault.right, fault.wrong, 1), encoding="utf-8")
                seen = first_failure(copy, [f"tests/{name}" for name in fault.tests.split()])
                path.write_text(right, encoding="utf-8")
            missed += not seen or seen.startswith(("not planted", "cannot"))
            print(f"{fault.file}: {fault.right!r} -> {fault.wrong!r}: {seen or 'MISSED'}", flush=True)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
